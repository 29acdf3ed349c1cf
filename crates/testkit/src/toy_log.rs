//! The records of the toy engine's log, and what replaying them does.
//!
//! Records lie in a segment from [`BODY_OFFSET`] on, one after the other, none across two
//! segments: length of the whole record (4 bytes, little-endian), kind (1), then its fields. A
//! length of 0 ends the segment. A changed page is always logged whole.

use std::collections::BTreeMap;

use lifeboat_engine::{LogFacts, Lsn, RestorePoint, SegmentName};
use lifeboat_units::Timestamp;

use crate::toy;

/// Where records begin in a segment: before it lie its header and its facts.
pub const BODY_OFFSET: usize = 64 << 10;
/// Size of a page.
pub const PAGE_BYTES: usize = 512;

/// The files of a toy database by path: the whole truth about one moment.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A change of the page files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A page is written; a file that is too short grows, one that is missing is made.
    Page {
        /// The file.
        file: u32,
        /// The page in it.
        page: u32,
        /// The whole page.
        bytes: Vec<u8>,
    },
    /// A file is cut to so many pages.
    Truncate {
        /// The file.
        file: u32,
        /// Pages that stay.
        pages: u32,
    },
    /// A file is removed.
    Remove {
        /// The file.
        file: u32,
    },
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A change, of whatever transaction.
    Change(Change),
    /// A transaction ended.
    Commit {
        /// Its number.
        xid: u32,
        /// When, by the server's clock.
        at: Timestamp,
    },
    /// A restore point.
    Point {
        /// Its name.
        name: String,
        /// When it was made.
        at: Timestamp,
    },
    /// A backup that began at this position is consistent from here on.
    BackupEnd(Lsn),
    /// Nothing happened, but the segment is not empty.
    Filler,
}

/// A record and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Its first byte.
    pub start: Lsn,
    /// The byte after its last.
    pub end: Lsn,
    /// The record.
    pub record: Record,
}

/// Path of a page file.
pub fn path(file: u32) -> String {
    format!("base/1/{file}")
}

/// Files that are brought forward record by record. Nobody sees what a transaction did before it
/// ended.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// The files as the last transaction left them.
    pub files: Files,
    under_way: Vec<Change>,
}

impl Replayed {
    /// Begins with these files.
    pub fn from(files: Files) -> Self {
        Self { files, under_way: Vec::new() }
    }

    /// Replays one record.
    pub fn replay(&mut self, record: &Record) {
        match record {
            Record::Change(change) => self.under_way.push(change.clone()),
            Record::Commit { .. } => {
                self.under_way.drain(..).for_each(|change| apply(&change, &mut self.files));
            }
            _ => {}
        }
    }
}

/// Does a change to the files.
pub fn apply(change: &Change, files: &mut Files) {
    match change {
        Change::Page { file, page, bytes } => {
            let content = files.entry(path(*file)).or_default();
            let at = *page as usize * PAGE_BYTES;
            content.resize(content.len().max(at + PAGE_BYTES), 0);
            content[at..at + PAGE_BYTES].copy_from_slice(bytes);
        }
        Change::Truncate { file, pages } => {
            files.entry(path(*file)).or_default().resize(*pages as usize * PAGE_BYTES, 0);
        }
        Change::Remove { file } => {
            files.remove(&path(*file));
        }
    }
}

/// The bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    let number = |bytes: &mut Vec<u8>, n: u32| bytes.extend_from_slice(&n.to_le_bytes());
    let time = |bytes: &mut Vec<u8>, at: &Timestamp| {
        bytes.extend_from_slice(&at.as_microsecond().to_le_bytes());
    };
    match record {
        Record::Change(Change::Page { file, page, bytes: content }) => {
            bytes.push(1);
            number(&mut bytes, *file);
            number(&mut bytes, *page);
            bytes.extend_from_slice(content);
        }
        Record::Change(Change::Truncate { file, pages }) => {
            bytes.push(2);
            number(&mut bytes, *file);
            number(&mut bytes, *pages);
        }
        Record::Change(Change::Remove { file }) => {
            bytes.push(3);
            number(&mut bytes, *file);
        }
        Record::Commit { xid, at } => {
            bytes.push(4);
            number(&mut bytes, *xid);
            time(&mut bytes, at);
        }
        Record::Point { name, at } => {
            bytes.push(5);
            time(&mut bytes, at);
            bytes.extend_from_slice(name.as_bytes());
        }
        Record::BackupEnd(start) => {
            bytes.push(6);
            bytes.extend_from_slice(&start.0.to_le_bytes());
        }
        Record::Filler => bytes.push(7),
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let time = |at: usize| Timestamp::from_microsecond(long(at)? as i64).ok();
    Some(match bytes.first()? {
        1 => Record::Change(Change::Page {
            file: number(1)?,
            page: number(5)?,
            bytes: bytes.get(9..).filter(|page| page.len() == PAGE_BYTES)?.to_vec(),
        }),
        2 => Record::Change(Change::Truncate { file: number(1)?, pages: number(5)? }),
        3 => Record::Change(Change::Remove { file: number(1)? }),
        4 => Record::Commit { xid: number(1)?, at: time(5)? },
        5 => {
            Record::Point { at: time(1)?, name: String::from_utf8(bytes.get(9..)?.to_vec()).ok()? }
        }
        6 => Record::BackupEnd(Lsn(long(1)?)),
        7 => Record::Filler,
        _ => return None,
    })
}

/// All records of a segment, as far as they can be read.
pub fn records(name: SegmentName, segment: &[u8]) -> Vec<Logged> {
    let Some(number) = name.number(toy::segment_size()) else { return Vec::new() };
    let base = number.start(toy::segment_size()).0;
    let (mut at, mut found) = (BODY_OFFSET, Vec::new());
    while let Some(length) = segment.get(at..at + 4).and_then(|b| b.try_into().ok()) {
        let end = at + u32::from_le_bytes(length) as usize;
        let Some(record) = segment.get(at + 4..end).and_then(decode) else { break };
        found.push(Logged { start: Lsn(base + at as u64), end: Lsn(base + end as u64), record });
        at = end;
    }
    found
}

/// What a planner is told of these records: all of one segment.
pub fn facts(records: &[Logged]) -> LogFacts {
    let mut facts = LogFacts { end: records.last().map(|r| r.end), ..LogFacts::default() };
    for logged in records {
        match &logged.record {
            Record::Commit { xid, at } => {
                facts.commits += 1;
                facts.first_commit.get_or_insert(*at);
                facts.last_commit = facts.last_commit.max(Some(*at));
                let (low, high) = facts.xids.unwrap_or((*xid, *xid));
                facts.xids = Some((low.min(*xid), high.max(*xid)));
            }
            Record::Point { name, at } => {
                let point = RestorePoint { name: name.clone(), lsn: logged.end, at: *at };
                facts.restore_points.push(point);
            }
            _ => {}
        }
    }
    facts
}
