//! WAL to columns. Takes in only what joining gives back as it is.

use super::BODY_BYTES_MAX;
use super::columns::{Head, Templates, is_alike};
use super::differ::{SLACK_BYTES, differing};
use super::front::{FRONT_BYTES, Front};
use super::pages::{Header, HeaderPredictor};
use crate::bytes::{array, u16_at, u32_at, u64_at};
use crate::wal::{
    FIRST_IS_CONTRECORD, LONG_HEADER, LONG_HEADER_BYTES, RECORD_HEADER_BYTES as HEADER_BYTES,
    SHORT_HEADER_BYTES, checksum,
};

/// Sizes of a page (`XLOG_BLCKSZ`). The smallest that fits is right: where pages of a size begin,
/// so do some of every smaller size.
const PAGE_BYTES: [usize; 7] = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/// Room for bodies is made in steps of this many bytes.
const TEXT_STEP_BYTES: usize = 64 << 10;

/// Appends front and columns; `None` when there is no record to take apart.
pub(super) fn split(piece: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let page_bytes = page_bytes(piece)?;
    let start = first_record(piece, page_bytes)?;
    let mut splitter = Splitter::new(piece, page_bytes, out)?;
    splitter.text.append(&piece[..start]);
    let end = splitter.records(start);
    if splitter.records == 0 {
        return None;
    }
    splitter.text.append(&piece[end..]);
    splitter.finish(start);
    Some(())
}

/// The size of the pages that the piece is made of.
fn page_bytes(piece: &[u8]) -> Option<usize> {
    let first: Header = array(piece, 0)?;
    let base = u64_at(&first, 8)?;
    PAGE_BYTES.into_iter().find(|size| {
        piece.len().is_multiple_of(*size)
            && array::<SHORT_HEADER_BYTES>(piece, *size).is_some_and(|second| {
                second[..2] == first[..2]
                    && u64_at(&second, 8) == Some(base.wrapping_add(*size as u64))
            })
    })
}

/// Where the first record begins that does not go on from an earlier piece.
fn first_record(piece: &[u8], page_bytes: usize) -> Option<usize> {
    let info = u16_at(piece, 2)?;
    let mut header = if info & LONG_HEADER != 0 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES };
    let mut left = if info & FIRST_IS_CONTRECORD != 0 { u32_at(piece, 16)? as usize } else { 0 };
    let mut page = 0;
    while left > page_bytes - header {
        left -= page_bytes - header;
        page += page_bytes;
        header = SHORT_HEADER_BYTES;
        if page >= piece.len() {
            return None;
        }
    }
    let start = (page + header + left).next_multiple_of(8);
    (start < piece.len()).then_some(start)
}

struct Splitter<'a, 'o> {
    piece: &'a [u8],
    page_bytes: usize,
    predictor: HeaderPredictor,
    templates: Templates,
    records: usize,
    link: u64,
    last_xid: u32,
    heads: Vec<u8>,
    pages: Vec<u8>,
    masks: Vec<u8>,
    text: Text<'o>,
}

/// `XLogRecord` in `xlogrecord.h`.
type RecordHeader = [u8; HEADER_BYTES];

impl<'a, 'o> Splitter<'a, 'o> {
    fn new(piece: &'a [u8], page_bytes: usize, out: &'o mut Vec<u8>) -> Option<Self> {
        let before = out.len();
        out.resize(before + FRONT_BYTES, 0);
        Some(Self {
            piece,
            page_bytes,
            predictor: HeaderPredictor::new(&array(piece, 0)?),
            templates: Templates::new(),
            records: 0,
            link: 0,
            last_xid: 0,
            heads: Vec::with_capacity(piece.len() / 16),
            pages: Vec::with_capacity(piece.len() / page_bytes * 2),
            masks: Vec::with_capacity(piece.len() / 16),
            text: Text { end: out.len(), before, bytes: out },
        })
    }

    /// Takes records apart from `at` on, and says where it ended.
    fn records(&mut self, mut at: usize) -> usize {
        let mut previous = None;
        while at < self.piece.len() {
            let pages = self.pages.len();
            let Some((begin, end)) = self.record(at, previous) else {
                // Of a record that is left as it is, so are the pages that it lies on.
                self.pages.truncate(pages);
                break;
            };
            previous = Some(self.predictor.base.wrapping_add(begin as u64));
            at = end;
        }
        at
    }

    /// Takes apart the record at `at`, and says where it begins and where the next one may.
    /// `None` when it is to be left as it is: not all here, or not what can be put back.
    fn record(&mut self, at: usize, previous: Option<u64>) -> Option<(usize, usize)> {
        let mut begin = at;
        if at.is_multiple_of(self.page_bytes) {
            self.page(at, 0)?;
            begin += SHORT_HEADER_BYTES;
        }
        let piece = self.piece;
        let total = u32_at(piece, begin)? as usize;
        if total < HEADER_BYTES {
            return None;
        }
        let offset = begin % self.page_bytes;
        if offset + total <= self.page_bytes {
            let end = begin + total;
            let next = zeros_to(piece, end)?;
            let (header, body) = piece[begin..end].split_first_chunk()?;
            let head = self.head(header, body.len(), checksum(header, body), previous)?;
            self.body(head, body, begin);
            return Some((begin, next));
        }
        let mut header = [0; HEADER_BYTES];
        let end = self.gather(begin, total, &mut header)?;
        let next = zeros_to(piece, end)?;
        let body = self.text.behind(total - HEADER_BYTES);
        let sum = checksum(&header, body);
        self.head(&header, total - HEADER_BYTES, sum, previous)?;
        self.text.end += total - HEADER_BYTES;
        Some((begin, next))
    }

    /// Collects a record that lies on several pages, its body behind the text, and says where it
    /// ends.
    fn gather(&mut self, begin: usize, total: usize, header: &mut RecordHeader) -> Option<usize> {
        let (mut from, mut to) = (begin, begin.next_multiple_of(self.page_bytes));
        let mut gathered = 0;
        loop {
            let mut part = self.piece.get(from..to)?;
            if gathered < HEADER_BYTES {
                let rest = &mut header[gathered..];
                let (first, body) = part.split_at(rest.len().min(part.len()));
                rest[..first.len()].copy_from_slice(first);
                gathered += first.len();
                part = body;
            }
            self.text.put_behind(gathered.saturating_sub(HEADER_BYTES), part);
            gathered += part.len();
            if gathered == total {
                return Some(to);
            }
            let left = total - gathered;
            self.page(to, left)?;
            from = to + SHORT_HEADER_BYTES;
            to = from + left.min(self.page_bytes - SHORT_HEADER_BYTES);
        }
    }

    /// Tells the header of the page at `at`.
    fn page(&mut self, at: usize, left: usize) -> Option<()> {
        let header: Header = array(self.piece, at)?;
        if header == self.predictor.header(at, left) {
            self.pages.push(0);
        } else {
            self.pages.push(1);
            self.pages.extend_from_slice(&header);
        }
        self.predictor.note(&header);
        Some(())
    }

    /// Tells the header of a record when it follows from the rest; `sum` is the record's checksum.
    fn head(
        &mut self,
        header: &RecordHeader,
        body_bytes: usize,
        sum: u32,
        previous: Option<u64>,
    ) -> Option<Head> {
        let link = u64_at(header, 8)?;
        let follows = previous.is_none_or(|previous| previous == link)
            && header[18..20] == [0, 0]
            && u32_at(header, 20) == Some(sum);
        if !follows {
            return None;
        }
        let head = Head {
            body_bytes: body_bytes as u32,
            xid: u32_at(header, 4)?,
            info: header[16],
            rmid: header[17],
        };
        if previous.is_none() {
            self.link = link;
        }
        head.write(&mut self.last_xid, &mut self.heads);
        self.records += 1;
        Some(head)
    }

    /// Tells the body of a record that begins at `begin` and lies on one page.
    fn body(&mut self, head: Head, body: &[u8], begin: usize) {
        let template = is_alike(head, begin % self.page_bytes, self.page_bytes)
            .then(|| self.templates.exchange(head, begin + HEADER_BYTES))
            .flatten();
        match template {
            Some(at) => {
                let template = &self.piece[at..at + body.len()];
                self.text.append_different(template, body, &mut self.masks);
            }
            None => self.text.append(body),
        }
    }

    fn finish(self, start: usize) {
        let Self { page_bytes, records, link, heads, pages, masks, text, .. } = self;
        let Text { bytes, end, before } = text;
        bytes.truncate(end);
        let text_bytes = end - before - FRONT_BYTES;
        let columns = [heads.len(), pages.len(), masks.len(), text_bytes];
        Front { page_bytes, start, records, link, columns }.write(&mut bytes[before..]);
        for column in [heads, pages, masks] {
            bytes.extend_from_slice(&column);
        }
    }
}

/// The end of the record's padding when it is zeros.
fn zeros_to(piece: &[u8], end: usize) -> Option<usize> {
    let next = end.next_multiple_of(8);
    let above_padding = 64 - 8 * (next - end) as u32;
    // A record is longer than a word.
    let last = u64_at(piece, next.checked_sub(8)?)?;
    (last.checked_shr(above_padding).unwrap_or(0) == 0).then_some(next)
}

/// The column with the bytes of bodies, with room behind its end.
struct Text<'o> {
    bytes: &'o mut Vec<u8>,
    end: usize,
    /// Where the front begins.
    before: usize,
}

impl Text<'_> {
    /// The next bytes, with a value that does not matter.
    fn room(&mut self, length: usize) -> &mut [u8] {
        if self.bytes.len() < self.end + length {
            self.bytes.resize(self.end + length + TEXT_STEP_BYTES, 0);
        }
        &mut self.bytes[self.end..self.end + length]
    }

    fn append(&mut self, bytes: &[u8]) {
        self.put_behind(0, bytes);
        self.end += bytes.len();
    }

    /// Writes bytes that lie so far behind the text's end, and may yet be left there.
    fn put_behind(&mut self, distance: usize, bytes: &[u8]) {
        self.room(distance + bytes.len())[distance..].copy_from_slice(bytes);
    }

    /// What was written behind the text's end.
    fn behind(&self, length: usize) -> &[u8] {
        &self.bytes[self.end..self.end + length]
    }

    /// Appends those bytes of `body` that are not as in `template`, and to `masks` which they are.
    fn append_different(&mut self, template: &[u8], body: &[u8], masks: &mut Vec<u8>) {
        // What is kept is written in vectors, of which the last may not be full.
        let room = self.room(body.len() + SLACK_BYTES);
        let mut mask_of = [0; BODY_BYTES_MAX / 8];
        let kept = differing(template, body, room, &mut mask_of);
        masks.extend_from_slice(&mask_of[..body.len().div_ceil(8)]);
        self.end += kept;
    }
}
