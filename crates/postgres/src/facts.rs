//! What a planner wants to know of a WAL segment: commits, their times, restore points.
//!
//! Source: `xl_xact_commit` and its parts in PostgreSQL `src/include/access/xact.h`,
//! `ParseCommitRecord` in `src/backend/access/rmgrdesc/xactdesc.c`, `xl_restore_point` in
//! `src/include/access/xlog_internal.h`.

use lifeboat_engine::{LogFacts, LogFollower, LogPart, Lsn, RestorePoint, SegmentName};
use lifeboat_units::Timestamp;

use crate::bytes::{i64_at, u32_at};
use crate::wal::{Position, RM_XACT, RM_XLOG, RMGR_INFO, Reader, Record, Tail};

/// `XLOG_XACT_OPMASK` in `xact.h`.
const XACT_OPMASK: u8 = 0x70;
/// `XLOG_XACT_HAS_INFO` in `xact.h`.
const XACT_HAS_INFO: u8 = 0x80;
/// `XLOG_XACT_COMMIT` in `xact.h`.
const XACT_COMMIT: u8 = 0x00;
/// `XLOG_XACT_ABORT` in `xact.h`.
const XACT_ABORT: u8 = 0x20;
/// `XLOG_XACT_COMMIT_PREPARED` in `xact.h`.
const XACT_COMMIT_PREPARED: u8 = 0x30;
/// `XLOG_XACT_ABORT_PREPARED` in `xact.h`.
const XACT_ABORT_PREPARED: u8 = 0x40;
/// `XLOG_RESTORE_POINT` in `src/include/catalog/pg_control.h`.
const RESTORE_POINT: u8 = 0x70;
/// `MAXFNAMELEN` in `xlog_internal.h`: size of a restore point's name, its end included.
const NAME_BYTES: usize = 64;

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Whose end. 0 when a prepared transaction's record does not say.
    pub xid: u32,
    /// Whether it was committed; else it was aborted.
    pub committed: bool,
    /// When, by the server's clock.
    pub at: Timestamp,
}

/// A record that matters to whoever chooses a moment to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A commit or abort, of a prepared transaction too.
    End(TransactionEnd),
    /// A named restore point.
    RestorePoint(RestorePoint),
}

/// What can be read from a segment for planning a restore.
///
/// - Shape: `segment` is the whole file, called `name`. A file that is no segment of that name
///   gives empty facts.
/// - Reading ends at the first record that is none, or whose checksum fails.
/// - Never panics, allocates no more than the longest record.
/// - Checked by: `segments_of_a_real_cluster_walk_as_pg_waldump_walks_them`.
pub fn log_facts(name: SegmentName, segment: &[u8]) -> LogFacts {
    let mut follower = Follower::new(name);
    follower.facts(LogPart::whole(segment));
    follower.facts
}

/// Reads facts from a segment while it is received: no record is read twice.
#[derive(Debug)]
pub struct Follower {
    name: SegmentName,
    /// After the last record that was read; `None` as long as there is no first page.
    position: Option<Position>,
    facts: LogFacts,
    scratch: Vec<u8>,
}

impl Follower {
    /// Begins with a segment of which nothing was received.
    pub fn new(name: SegmentName) -> Self {
        Self { name, position: None, facts: LogFacts::default(), scratch: Vec::new() }
    }
}

impl LogFollower for Follower {
    fn facts(&mut self, part: LogPart<'_>) -> &LogFacts {
        let reader = match self.position {
            Some(position) => Ok(Reader::resume(self.name, part, position)),
            None => Reader::of_part(self.name, part),
        };
        let Ok(mut reader) = reader else { return &self.facts };
        let full = part.end() >= part.size;
        let received = Lsn(reader.header().start.0 + part.end() as u64);
        if reader.tail() == Tail::Walking {
            self.position = Some(reader.position());
        }
        loop {
            if let Some(end) = reader.pass_over(is_candidate) {
                self.facts.end = Some(end);
                self.position = Some(reader.position());
            }
            let Some(record) = reader.next() else { break };
            // Of a record under way some bytes are zeros still.
            let here = full || record.end <= received;
            if !here || !record.is_intact(&mut self.scratch) {
                return &self.facts;
            }
            if let Some(event) = event(&record, &mut self.scratch) {
                note(&mut self.facts, event);
            }
            self.facts.end = Some(record.end);
            self.position = Some(reader.position());
        }
        self.facts.cut_off = full
            && match reader.tail() {
                Tail::CutOff(record) => is_candidate(record.rmid, record.info),
                Tail::HeaderCutOff => true,
                Tail::Walking | Tail::Full | Tail::Switched | Tail::Invalid => false,
            };
        &self.facts
    }

    fn wants_from(&self) -> usize {
        self.position.map_or(0, |position| position.page_start())
    }
}

fn note(facts: &mut LogFacts, event: Event) {
    match event {
        Event::End(end) => {
            facts.commits += 1;
            facts.first_commit.get_or_insert(end.at);
            facts.last_commit = Some(facts.last_commit.map_or(end.at, |last| last.max(end.at)));
            if end.xid != 0 {
                let (low, high) = facts.xids.unwrap_or((end.xid, end.xid));
                facts.xids = Some((low.min(end.xid), high.max(end.xid)));
            }
        }
        Event::RestorePoint(point) => facts.restore_points.push(point),
    }
}

/// Where the end of a transaction lies in a segment, if it ends there.
///
/// - Shape: as [`log_facts`]; the position is the end of the commit or abort record.
/// - Reading ends at the first record whose checksum fails.
pub fn find_transaction(
    name: SegmentName,
    segment: &[u8],
    xid: u32,
) -> Option<(lifeboat_engine::Lsn, Timestamp)> {
    let mut scratch = Vec::new();
    for record in Reader::new(name, segment).ok()? {
        if !record.is_intact(&mut scratch) {
            return None;
        }
        match event(&record, &mut scratch) {
            Some(Event::End(end)) if end.xid == xid => return Some((record.end, end.at)),
            _ => {}
        }
    }
    None
}

/// Where the last record begins that begins in a segment before `lsn`, also one that goes on in
/// the next segment.
///
/// - Shape: as [`log_facts`].
/// - Reading ends at the first record whose checksum fails: `None` when that is before `lsn`.
/// - Checked by: `segments_of_a_real_cluster_walk_as_pg_waldump_walks_them`.
pub fn record_before(name: SegmentName, segment: &[u8], lsn: Lsn) -> Option<Lsn> {
    let (mut last, mut scratch) = (None, Vec::new());
    let mut reader = Reader::new(name, segment).ok()?;
    for record in reader.by_ref() {
        if record.start >= lsn {
            return last;
        }
        if !record.is_intact(&mut scratch) {
            return None;
        }
        last = Some(record.start);
        if record.end >= lsn {
            return last;
        }
    }
    reader.cut_off_start().filter(|start| *start < lsn)
}

/// Whether a record of this `xl_rmid` and `xl_info` may be an [`Event`].
fn is_candidate(rmid: u8, info: u8) -> bool {
    match rmid {
        RM_XACT => matches!(
            info & XACT_OPMASK,
            XACT_COMMIT | XACT_ABORT | XACT_COMMIT_PREPARED | XACT_ABORT_PREPARED
        ),
        RM_XLOG => info & RMGR_INFO == RESTORE_POINT,
        _ => false,
    }
}

/// Reads a record as an event; `None` when it is none, or its parts do not fit.
///
/// - Does not look at the checksum: see [`Record::is_intact`].
/// - `scratch` is overwritten.
pub fn event(record: &Record<'_>, scratch: &mut Vec<u8>) -> Option<Event> {
    if !is_candidate(record.rmid, record.info) {
        return None;
    }
    let data = record.main_data(scratch)?;
    let at = timestamp(i64_at(data, 0)?)?;
    if record.rmid == RM_XLOG {
        let name = data.get(8..8 + NAME_BYTES)?.split(|byte| *byte == 0).next()?;
        let name = String::from_utf8_lossy(name).into_owned();
        return Some(Event::RestorePoint(RestorePoint { name, lsn: record.end, at }));
    }
    let operation = record.info & XACT_OPMASK;
    let committed = matches!(operation, XACT_COMMIT | XACT_COMMIT_PREPARED);
    let xid = match operation {
        XACT_COMMIT | XACT_ABORT => record.xid,
        _ => prepared_xid(record, data, committed).unwrap_or_default(),
    };
    Some(Event::End(TransactionEnd { xid, committed, at }))
}

/// The transaction that a `COMMIT PREPARED` or `ROLLBACK PREPARED` ends: the record itself
/// belongs to no transaction, the number stands behind several optional parts.
fn prepared_xid(record: &Record<'_>, data: &[u8], committed: bool) -> Option<u32> {
    const DBINFO: u32 = 1 << 0;
    const SUBXACTS: u32 = 1 << 1;
    const RELATIONS: u32 = 1 << 2;
    const INVALS: u32 = 1 << 3;
    const TWOPHASE: u32 = 1 << 4;
    const DROPPED_STATS: u32 = 1 << 8;
    if record.info & XACT_HAS_INFO == 0 {
        return None;
    }
    let xinfo = u32_at(data, 8)?;
    // `xl_xact_dbinfo` holds two object identifiers, the lists a count and so many items.
    let mut at = if xinfo & DBINFO != 0 { 20 } else { 12 };
    let mut skip_list = |flag: u32, item_bytes: usize| {
        if xinfo & flag != 0 {
            let count = u32_at(data, at)? as usize;
            at = at.checked_add(count.checked_mul(item_bytes)?)?.checked_add(4)?;
        }
        Some(())
    };
    skip_list(SUBXACTS, 4)?;
    skip_list(RELATIONS, 12)?; // RelFileLocator
    // `xl_xact_stats_item` grew with the 64-bit object identifiers of version 18.
    skip_list(DROPPED_STATS, if record.version().major >= 18 { 16 } else { 12 })?;
    if committed {
        skip_list(INVALS, 16)?; // SharedInvalidationMessage
    }
    if xinfo & TWOPHASE == 0 {
        return None;
    }
    u32_at(data, at)
}

/// `TimestampTz`: microseconds since 2000-01-01 UTC.
/// Source: `POSTGRES_EPOCH_JDATE` in `src/include/datatype/timestamp.h`.
fn timestamp(microseconds: i64) -> Option<Timestamp> {
    const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
    Timestamp::from_microsecond(microseconds.checked_add(EPOCH_MICROSECONDS)?).ok()
}
