//! WAL to columns. Takes in only what joining gives back as it is.

use super::BODY_BYTES_MAX;
use super::columns::{Head, Templates, is_alike, nonzero_bytes, padded};
use super::front::{FRONT_BYTES, Front};
use super::pages::{Header, HeaderPredictor};
use crate::bytes::{array, u16_at, u32_at, u64_at};
use crate::wal::{
    FIRST_IS_CONTRECORD, LONG_HEADER, LONG_HEADER_BYTES, RECORD_HEADER_BYTES as HEADER_BYTES,
    SHORT_HEADER_BYTES, crc32c,
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
    /// A record that lies on several pages.
    scratch: Vec<u8>,
}

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
            scratch: Vec::new(),
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
            let (head, body) = self.head(&piece[begin..end], previous)?;
            self.body(head, body, begin);
            return Some((begin, next));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let end = self.gather(begin, total, &mut scratch);
        let next = end.and_then(|end| {
            let next = zeros_to(piece, end)?;
            let (_, body) = self.head(&scratch, previous)?;
            self.text.append(body);
            Some(next)
        });
        self.scratch = scratch;
        Some((begin, next?))
    }

    /// Collects a record that lies on several pages, and says where it ends.
    fn gather(&mut self, begin: usize, total: usize, scratch: &mut Vec<u8>) -> Option<usize> {
        let mut page = begin + (self.page_bytes - begin % self.page_bytes);
        scratch.clear();
        scratch.extend_from_slice(&self.piece[begin..page]);
        loop {
            let left = total - scratch.len();
            self.page(page, left)?;
            let from = page + SHORT_HEADER_BYTES;
            let to = from + left.min(self.page_bytes - SHORT_HEADER_BYTES);
            scratch.extend_from_slice(self.piece.get(from..to)?);
            if scratch.len() == total {
                return Some(to);
            }
            page += self.page_bytes;
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

    /// Tells the header of a record when it follows from the rest, and gives its body.
    fn head<'r>(&mut self, whole: &'r [u8], previous: Option<u64>) -> Option<(Head, &'r [u8])> {
        let (header, body) = whole.split_first_chunk::<HEADER_BYTES>()?;
        let link = u64_at(header, 8)?;
        let follows = previous.is_none_or(|previous| previous == link)
            && header[18..20] == [0, 0]
            && u32_at(header, 20) == Some(crc32c(body, &header[..20]));
        if !follows {
            return None;
        }
        let head = Head {
            body_bytes: body.len() as u32,
            xid: u32_at(header, 4)?,
            info: header[16],
            rmid: header[17],
        };
        if previous.is_none() {
            self.link = link;
        }
        head.write(&mut self.last_xid, &mut self.heads);
        self.records += 1;
        Some((head, body))
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
    piece.get(end..next)?.iter().all(|byte| *byte == 0).then_some(next)
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
        self.room(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Appends those bytes of `body` that are not as in `template`, and to `masks` which they are.
    fn append_different(&mut self, template: &[u8], body: &[u8], masks: &mut Vec<u8>) {
        let (old, old_rest) = template.as_chunks::<8>();
        let (new, new_rest) = body.as_chunks::<8>();
        // Each word writes eight bytes, of which the last may not count.
        let room = self.room(body.len() + 8);
        let mut mask_of = [0; BODY_BYTES_MAX / 8];
        let mut kept = 0;
        for ((old, new), mask) in old.iter().zip(new).zip(&mut mask_of) {
            *mask = keep(u64::from_le_bytes(*old), u64::from_le_bytes(*new), room, &mut kept);
        }
        if !new_rest.is_empty() {
            mask_of[new.len()] = keep(padded(old_rest), padded(new_rest), room, &mut kept);
        }
        masks.extend_from_slice(&mask_of[..body.len().div_ceil(8)]);
        self.end += kept;
    }
}

/// Writes those bytes of `new` that are not as in `old` behind the `kept` ones, and says which they
/// are; what follows them has a value that does not matter. Without a branch for each byte: which
/// ones differ is hard to foretell.
#[inline(always)]
fn keep(old: u64, new: u64, out: &mut [u8], kept: &mut usize) -> u8 {
    let (mask, ones) = nonzero_bytes(old ^ new);
    if mask != 0
        && let Some(out) = out.get_mut(*kept..).and_then(|out| out.first_chunk_mut::<8>())
    {
        let mut at = 0;
        for byte in 0..8 {
            out[at & 7] = (new >> (8 * byte)) as u8;
            at += (ones >> (8 * byte)) as usize & 1;
        }
        *kept += at;
    }
    mask
}
