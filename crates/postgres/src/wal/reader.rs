//! Walks the records of one segment.

use lifeboat_engine::{LogPart, Lsn, SegmentName, TimelineId};

use super::record::{HEADER_BYTES, Record, checksum, is_switch, resource_manager_exists};
use super::{
    ALL_FLAGS, FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER, PageHeader,
    SegmentHeader, WalError,
};
use crate::bytes::{u32_at, u64_at};

/// Where and why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail<'a> {
    /// The walk has not ended.
    Walking,
    /// The last record ends with the segment.
    Full,
    /// The last record was a switch: the rest of the segment is unused.
    Switched,
    /// A record begins here and goes on in the next segment.
    CutOff(Record<'a>),
    /// A record begins here, and not even its header lies in this segment.
    HeaderCutOff,
    /// What follows is no record: the end of what was written, or damage.
    Invalid,
}

/// The records that begin in one segment, in order.
///
/// Ends quietly at the first thing that is no record (see [`Reader::tail`]). Checks what
/// `ValidXLogRecordHeader` in `xlogreader.c` checks (length, resource manager, link to the
/// previous record), and the headers of all pages, but not the records' checksums: see
/// [`Record::is_intact`].
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    part: LogPart<'a>,
    header: SegmentHeader,
    name_timeline: TimelineId,
    /// Offset of the next record in the segment.
    at: usize,
    /// Where the record before begins, once there was one.
    previous: Option<Lsn>,
    /// Timeline of the page that was entered last; it never falls.
    timeline: TimelineId,
    end: Option<Lsn>,
    tail: Tail<'a>,
}

/// Where a walk stands, to go on from there when more of the segment is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    header: SegmentHeader,
    at: usize,
    previous: Option<Lsn>,
    timeline: TimelineId,
    end: Option<Lsn>,
}

impl Position {
    /// Where the page begins that the walk goes on in.
    pub fn page_start(&self) -> usize {
        self.at - self.at % self.header.page_bytes as usize
    }
}

/// What lies where a record was looked for.
enum Step<'a> {
    Found(Record<'a>),
    /// A record that was never finished; others follow at this offset.
    Overwritten(usize),
    End(Tail<'a>),
}

impl<'a> Reader<'a> {
    /// Starts at the first record that begins in the segment.
    ///
    /// - Shape: `segment` is the whole file.
    /// - Errors: as [`SegmentHeader::parse`].
    pub fn new(name: SegmentName, segment: &'a [u8]) -> Result<Self, WalError> {
        Self::of_part(name, LogPart::whole(segment))
    }

    /// As [`Reader::new`] for a segment of which the first bytes are there.
    pub fn of_part(name: SegmentName, part: LogPart<'a>) -> Result<Self, WalError> {
        let header = SegmentHeader::parse(name, part)?;
        let mut reader = Self {
            part,
            header,
            name_timeline: name.timeline,
            at: 0,
            previous: None,
            timeline: header.timeline,
            end: None,
            tail: Tail::Walking,
        };
        match reader.first_record() {
            Some(at) => reader.at = at,
            None => reader.tail = Tail::Invalid,
        }
        Ok(reader)
    }

    /// Goes on where an earlier walk of the same segment stood.
    ///
    /// - Shape: the part begins at [`Position::page_start`] or at the beginning of a page before
    ///   it; what was walked before is there unchanged.
    pub fn resume(name: SegmentName, part: LogPart<'a>, position: Position) -> Self {
        let Position { header, at, previous, timeline, end } = position;
        let name_timeline = name.timeline;
        let tail = Tail::Walking;
        Self { part, header, name_timeline, at, previous, timeline, end, tail }
    }

    /// Where the walk stands: after the record that was given last.
    pub fn position(&self) -> Position {
        let Self { header, at, previous, timeline, end, .. } = *self;
        Position { header, at, previous, timeline, end }
    }

    /// What the first page says.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// End of the last whole record that was met, a switch's unused rest included.
    pub fn end(&self) -> Option<Lsn> {
        self.end
    }

    /// Where and why the walk ended.
    pub fn tail(&self) -> Tail<'a> {
        self.tail
    }

    /// Where the record begins that is cut off by the end of the segment, when the walk ended there.
    pub fn cut_off_start(&self) -> Option<Lsn> {
        match self.tail {
            Tail::CutOff(record) => Some(record.start),
            Tail::HeaderCutOff => Some(self.lsn(self.at)),
            Tail::Walking | Tail::Full | Tail::Switched | Tail::Invalid => None,
        }
    }

    /// Passes over records that the caller has no use for, as long as they follow each other on one
    /// page, and says where the last of them ends, if there was any.
    ///
    /// - `wanted` tells by `xl_rmid` and `xl_info` for which records to stop.
    /// - Law: stands where [`Iterator::next`] would stand after these records, of which each
    ///   [`Record::is_intact`]. It stops before what it cannot judge, and `next` does.
    /// - Speed: most records are short and of no interest, and to look at each as a [`Record`]
    ///   takes more than twice as long.
    pub fn pass_over(&mut self, wanted: impl Fn(u8, u8) -> bool) -> Option<Lsn> {
        let page_bytes = self.header.page_bytes as usize;
        let offset = self.at % page_bytes;
        if self.tail != Tail::Walking || offset == 0 {
            return None; // the header of a page is for `step`
        }
        let left = self.part.bytes.get(self.index(self.at)..)?;
        let mut left = &left[..left.len().min(page_bytes - offset)];
        let before = self.at;
        while let Some((head, _)) = left.split_first_chunk::<HEADER_BYTES>()
            && let (Some(total), Some(link)) = (u32_at(head, 0), u64_at(head, 8))
        {
            let (total, whole) = (total as usize, (total as usize).next_multiple_of(8));
            let (info, rmid, start) = (head[16], head[17], self.lsn(self.at));
            let plain = total >= HEADER_BYTES
                && whole <= left.len()
                && !wanted(rmid, info)
                && !is_switch(rmid, info)
                && self.is_plausible(rmid, Lsn(link), start)
                && u32_at(head, 20) == Some(checksum(head, &left[HEADER_BYTES..total]));
            if !plain {
                break;
            }
            self.previous = Some(start);
            self.at += whole;
            left = &left[whole..];
        }
        if self.at > before {
            self.end = Some(self.lsn(self.at));
            return self.end;
        }
        None
    }

    /// Skips the record that began in an earlier segment.
    fn first_record(&mut self) -> Option<usize> {
        let page = self.page(0)?;
        if page.info & FIRST_IS_CONTRECORD == 0 {
            return Some(page.size());
        }
        match self.follow(0, page.remaining) {
            Follow::To(end) => Some(end.next_multiple_of(8)),
            Follow::Restart(at) => Some(at),
            // Longer than the segment: no record begins here.
            Follow::PastTheEnd => Some(self.part.size),
            Follow::Broken => None,
        }
    }

    fn lsn(&self, at: usize) -> Lsn {
        Lsn(self.header.start.0 + at as u64)
    }

    /// Where an offset of the segment lies in the part; where none can, if it lies before it.
    fn index(&self, at: usize) -> usize {
        at.checked_sub(self.part.from).unwrap_or(usize::MAX)
    }

    /// The header of the page that begins at offset `at`, when it is one of this segment.
    fn page(&self, at: usize) -> Option<PageHeader> {
        let page = PageHeader::parse(self.part.bytes.get(self.index(at)..)?)?;
        let right = page.magic == self.header.version.wal_magic
            && page.info & !ALL_FLAGS == 0
            && (page.info & LONG_HEADER != 0) == (at == 0)
            && page.address.0 == self.header.start.0 + at as u64
            && page.timeline >= self.timeline
            && page.timeline <= self.name_timeline;
        right.then_some(page)
    }

    /// Finds the end of a record of which `left` bytes lie on the page at `at` and later ones.
    fn follow(&mut self, mut at: usize, mut left: u32) -> Follow {
        let page_bytes = self.header.page_bytes as usize;
        loop {
            if at >= self.part.size {
                return Follow::PastTheEnd;
            }
            let Some(page) = self.page(at) else { return Follow::Broken };
            self.timeline = page.timeline;
            if page.info & FIRST_IS_OVERWRITE_CONTRECORD != 0 {
                return Follow::Restart(at + page.size());
            }
            if page.info & FIRST_IS_CONTRECORD == 0 || page.remaining != left {
                return Follow::Broken;
            }
            let room = page_bytes - page.size();
            if left as usize <= room {
                return Follow::To(at + page.size() + left as usize);
            }
            left -= room as u32;
            at += page_bytes;
        }
    }

    fn step(&mut self) -> Step<'a> {
        let page_bytes = self.header.page_bytes as usize;
        if self.at >= self.part.size {
            return Step::End(Tail::Full);
        }
        if self.at.is_multiple_of(page_bytes) {
            let Some(page) = self.page(self.at) else { return Step::End(Tail::Invalid) };
            if page.info & FIRST_IS_CONTRECORD != 0 {
                return Step::End(Tail::Invalid);
            }
            self.timeline = page.timeline;
            self.at += page.size();
        }
        let total = u32_at(self.part.bytes, self.index(self.at)).unwrap_or_default();
        if (total as usize) < HEADER_BYTES {
            return Step::End(Tail::Invalid);
        }
        let room = page_bytes - self.at % page_bytes;
        let end = if total as usize <= room {
            self.at + total as usize
        } else {
            let next_page = self.at + room;
            match self.follow(next_page, total - room as u32) {
                Follow::To(end) => end,
                Follow::Restart(at) => return Step::Overwritten(at),
                Follow::PastTheEnd => return Step::End(self.cut_off(total)),
                Follow::Broken => return Step::End(Tail::Invalid),
            }
        };
        let end = self.lsn(end.next_multiple_of(8));
        match self.record(total, end) {
            Some(record) if self.is_plausible(record.rmid, record.previous, record.start) => {
                Step::Found(record)
            }
            _ => Step::End(Tail::Invalid),
        }
    }

    fn record(&self, total: u32, end: Lsn) -> Option<Record<'a>> {
        let (index, start) = (self.index(self.at), self.lsn(self.at));
        Record::parse(self.part.bytes, &self.header, index, total, start, end)
    }

    /// The tail when a record of `total` bytes begins here and does not end here.
    fn cut_off(&self, total: u32) -> Tail<'a> {
        match self.record(total, self.header.start) {
            Some(record) if self.is_plausible(record.rmid, record.previous, record.start) => {
                Tail::CutOff(record)
            }
            Some(_) => Tail::Invalid,
            None => Tail::HeaderCutOff,
        }
    }

    /// Source: `ValidXLogRecordHeader` in `xlogreader.c`.
    fn is_plausible(&self, rmid: u8, link: Lsn, start: Lsn) -> bool {
        let linked = match self.previous {
            Some(previous) => link == previous,
            None => link < start,
        };
        linked && resource_manager_exists(rmid, self.header.version)
    }
}

enum Follow {
    /// The record ends at this offset.
    To(usize),
    /// It was never finished; other records follow at this offset.
    Restart(usize),
    PastTheEnd,
    Broken,
}

impl<'a> Iterator for Reader<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.tail != Tail::Walking {
            return None;
        }
        loop {
            match self.step() {
                Step::Found(mut record) => {
                    self.previous = Some(record.start);
                    self.at = (record.end.0 - self.header.start.0) as usize;
                    if is_switch(record.rmid, record.info) {
                        record.end = Lsn(self.header.start.0 + self.header.size.bytes());
                        self.at = self.part.size;
                        self.tail = Tail::Switched;
                    }
                    self.end = Some(record.end);
                    return Some(record);
                }
                Step::Overwritten(at) => {
                    // Its successor links to the record before the unfinished one; see
                    // `XLogReaderState.missingContrecPtr`.
                    self.at = at;
                }
                Step::End(tail) => {
                    self.tail = tail;
                    return None;
                }
            }
        }
    }
}
