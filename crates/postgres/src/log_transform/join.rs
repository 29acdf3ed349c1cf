//! Columns to WAL. Every length that is read here is a claim.

use lifeboat_engine::TransformError;

use super::SHORT;
use super::columns::{Head, Taker, Templates, is_alike};
use super::differ::merge;
use super::front::{FRONT_BYTES, Front};
use super::pages::{Header, HeaderPredictor};
use crate::bytes::array;
use crate::wal::{RECORD_HEADER_BYTES as HEADER_BYTES, SHORT_HEADER_BYTES, checksum};

const BEYOND: TransformError = TransformError("a record goes beyond the end");

/// Fills `out` with the piece that was split.
pub(super) fn join(split: &[u8], out: &mut [u8]) -> Result<(), TransformError> {
    let front = Front::read(split, out.len())?;
    let mut rest = Taker(split.get(FRONT_BYTES..).ok_or(SHORT)?);
    let [heads, pages, masks, text] = front.columns;
    let mut text = Taker(rest.take(text)?);
    let [heads, pages, masks] = [rest.take(heads)?, rest.take(pages)?, rest.take(masks)?];
    out[..front.start].copy_from_slice(text.take(front.start)?);
    let first: Header = array(out, 0).ok_or(SHORT)?;
    let mut joiner = Joiner {
        page_bytes: front.page_bytes,
        predictor: HeaderPredictor::new(&first),
        templates: Templates::new(),
        link: front.link,
        last_xid: 0,
        heads: Taker(heads),
        pages: Taker(pages),
        masks: Taker(masks),
        text,
        scratch: Vec::new(),
    };
    let mut at = front.start;
    for _ in 0..front.records {
        at = joiner.record(at, out)?;
    }
    let behind = out.get_mut(at..).ok_or(BEYOND)?;
    behind.copy_from_slice(joiner.text.take(behind.len())?);
    let Joiner { heads, pages, masks, text, .. } = joiner;
    match [heads, pages, masks, text, rest].iter().all(|column| column.0.is_empty()) {
        true => Ok(()),
        false => Err(TransformError("more than belongs to it")),
    }
}

struct Joiner<'a> {
    page_bytes: usize,
    predictor: HeaderPredictor,
    templates: Templates,
    /// `xl_prev` of the next record.
    link: u64,
    last_xid: u32,
    heads: Taker<'a>,
    pages: Taker<'a>,
    masks: Taker<'a>,
    text: Taker<'a>,
    /// A record that lies on several pages.
    scratch: Vec<u8>,
}

impl Joiner<'_> {
    /// Puts the next record at `at`, and says where the one after it may begin.
    fn record(&mut self, at: usize, out: &mut [u8]) -> Result<usize, TransformError> {
        let mut begin = at;
        if at.is_multiple_of(self.page_bytes) {
            self.page(at, 0, out)?;
            begin += SHORT_HEADER_BYTES;
        }
        let head = Head::read(&mut self.last_xid, &mut self.heads)?;
        let offset = begin % self.page_bytes;
        let total = HEADER_BYTES + head.body_bytes as usize;
        let end = if offset + total <= self.page_bytes {
            self.on_one_page(head, begin, out)?
        } else {
            self.on_many_pages(head, begin, out)?
        };
        self.link = self.predictor.base.wrapping_add(begin as u64);
        let next = end.next_multiple_of(8);
        out.get_mut(end..next).ok_or(BEYOND)?.fill(0);
        Ok(next)
    }

    fn on_one_page(
        &mut self,
        head: Head,
        begin: usize,
        out: &mut [u8],
    ) -> Result<usize, TransformError> {
        let length = head.body_bytes as usize;
        let body_at = begin + HEADER_BYTES;
        let (before, body) = out.split_at_mut_checked(body_at).ok_or(BEYOND)?;
        let body = body.get_mut(..length).ok_or(BEYOND)?;
        let template = is_alike(head, begin % self.page_bytes, self.page_bytes)
            .then(|| self.templates.exchange(head, body_at))
            .flatten();
        match template {
            // It was put before this record: all of it lies before the header.
            Some(at) => {
                let template = before.get(at..at + length).ok_or(BEYOND)?;
                let masks = self.masks.take(length.div_ceil(8))?;
                merge(template, masks, &mut self.text, body)?;
            }
            None => body.copy_from_slice(self.text.take(length)?),
        }
        let header = self.header(head, body);
        before[begin..].copy_from_slice(&header);
        Ok(body_at + length)
    }

    fn on_many_pages(
        &mut self,
        head: Head,
        begin: usize,
        out: &mut [u8],
    ) -> Result<usize, TransformError> {
        let body = self.text.take(head.body_bytes as usize)?;
        let header = self.header(head, body);
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(&header);
        scratch.extend_from_slice(body);
        let end = self.scatter(&scratch, begin, out);
        self.scratch = scratch;
        end
    }

    /// Puts a record on several pages, and says where it ends.
    fn scatter(
        &mut self,
        mut whole: &[u8],
        begin: usize,
        out: &mut [u8],
    ) -> Result<usize, TransformError> {
        let (mut from, mut to) = (begin, begin + (self.page_bytes - begin % self.page_bytes));
        loop {
            let part = whole.split_off(..to - from).ok_or(SHORT)?;
            out.get_mut(from..to).ok_or(BEYOND)?.copy_from_slice(part);
            if whole.is_empty() {
                return Ok(to);
            }
            self.page(to, whole.len(), out)?;
            from = to + SHORT_HEADER_BYTES;
            to = from + whole.len().min(self.page_bytes - SHORT_HEADER_BYTES);
        }
    }

    /// Puts the header of the page at `at`.
    fn page(&mut self, at: usize, left: usize, out: &mut [u8]) -> Result<(), TransformError> {
        let header = match self.pages.byte()? {
            0 => self.predictor.header(at, left),
            1 => array(self.pages.take(SHORT_HEADER_BYTES)?, 0).ok_or(SHORT)?,
            _ => return Err(TransformError("a page header of an unknown kind")),
        };
        let place = out.get_mut(at..at + SHORT_HEADER_BYTES).ok_or(BEYOND)?;
        place.copy_from_slice(&header);
        self.predictor.note(&header);
        Ok(())
    }

    /// The whole header of a record.
    fn header(&self, head: Head, body: &[u8]) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(HEADER_BYTES as u32 + head.body_bytes).to_le_bytes());
        header[4..8].copy_from_slice(&head.xid.to_le_bytes());
        header[8..16].copy_from_slice(&self.link.to_le_bytes());
        header[16] = head.info;
        header[17] = head.rmid;
        let crc = checksum(&header, body);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        header
    }
}
