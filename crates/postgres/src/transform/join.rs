//! Columns to pages. Every length that is read here is a claim.

use lifeboat_engine::TransformError;

use super::columns::{
    COLUMNS, HeapPredictor, HeapWords, IndexPredictor, ItemPredictor, WordPredictor, cut, sizes,
};
use super::shape::{
    Counts, Frame, HEAP, HEAP_HEADER, INDEX_HEADER, Item, Kind, RAW, WORD_TUPLE, WORDS_MAX, ZERO,
    row_words,
};
use crate::page::{HEADER_BYTES, PageHeader};

const SHORT: TransformError = TransformError("cut short");

/// Fills `out`, a whole number of pages, with the pages that were split.
pub(super) fn join(page_bytes: usize, split: &[u8], out: &mut [u8]) -> Result<(), TransformError> {
    let pages = out.len() / page_bytes;
    let kinds = split.get(..pages).ok_or(SHORT)?;
    let (frames, items, counts) = plan(page_bytes, kinds, split)?;
    let columns = cut(split, sizes(pages, page_bytes, &counts))?;
    let mut joiner = Joiner::new(columns, counts);
    let (mut frames, mut items) = (frames.iter(), &items[..]);
    for (kind, page) in kinds.iter().zip(out.chunks_exact_mut(page_bytes)) {
        let kind = Kind(*kind);
        match kind.base() {
            ZERO => page.fill(0),
            RAW => page.copy_from_slice(joiner.raw.take(page_bytes)?),
            _ => {
                page.fill(0);
                let frame = frames.next().ok_or(SHORT)?;
                let of_page = items.split_off(..frame.items).ok_or(SHORT)?;
                joiner.page(kind, frame, of_page, page)?;
            }
        }
    }
    Ok(())
}

/// Reads what decides the sizes of all columns: kinds, headers and line pointers.
fn plan(
    page_bytes: usize,
    kinds: &[u8],
    split: &[u8],
) -> Result<(Vec<Frame>, Vec<Item>, Counts), TransformError> {
    let mut counts = Counts::default();
    let mut with_header = 0;
    for kind in kinds.iter().map(|kind| Kind(*kind)) {
        if !kind.is_known() {
            return Err(TransformError("a page of an unknown kind"));
        }
        counts.raw += usize::from(kind.base() == RAW);
        with_header += usize::from(kind.has_header());
    }
    let headers = split.get(kinds.len()..).ok_or(SHORT)?;
    let headers = headers.get(..with_header * HEADER_BYTES).ok_or(SHORT)?;
    let shaped = kinds.iter().map(|kind| Kind(*kind)).filter(|kind| kind.has_header());
    let mut frames = Vec::with_capacity(with_header);
    for (number, kind) in shaped.clone().enumerate() {
        let header = header_of(headers, with_header, number);
        let frame = PageHeader::parse(&header)
            .and_then(|header| Frame::of(&header, page_bytes))
            .ok_or(TransformError("a page header that was never split"))?;
        counts.add_frame(kind, &frame, page_bytes);
        frames.push(frame);
    }
    // Frames bound the number of line pointers by the bytes of the pages.
    let after = &split[kinds.len() + headers.len()..];
    let upper = after.get(..counts.items * 2).ok_or(SHORT)?;
    let lower = after.get(counts.items * 2..counts.items * 4).ok_or(SHORT)?;
    let mut halves = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
    let mut items = Vec::with_capacity(counts.items);
    for (kind, frame) in shaped.zip(&frames) {
        let mut predictor = ItemPredictor::new(frame.special);
        for (upper, lower) in halves.by_ref().take(frame.items) {
            let item = predictor.decode(u16::from_le_bytes(*upper), u16::from_le_bytes(*lower));
            if item.is_stored() {
                frame.check(item)?;
                if !counts.add_item(kind, item) {
                    return Err(TransformError("a tuple shorter than its header"));
                }
            }
            items.push(item);
        }
    }
    Ok((frames, items, counts))
}

/// One page's header out of the columns of all.
fn header_of(headers: &[u8], count: usize, number: usize) -> [u8; HEADER_BYTES] {
    let (fields, _) = headers.as_chunks::<2>();
    let mut header = [0; HEADER_BYTES];
    for (column, field) in header.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *field = fields[column * count + number];
    }
    header
}

/// Reads values one after another.
struct Column<'a>(&'a [u8]);

impl<'a> Column<'a> {
    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], TransformError> {
        self.0.split_off(..length).ok_or(SHORT)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], TransformError> {
        let (value, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*value)
    }

    #[inline]
    fn word(&mut self) -> Result<u32, TransformError> {
        self.array().map(u32::from_le_bytes)
    }
}

/// Reads words that were written as eight columns of bytes.
struct Planes<'a> {
    planes: [&'a [u8]; 8],
    at: usize,
}

impl<'a> Planes<'a> {
    fn new(column: &'a [u8], words: usize) -> Self {
        let planes = std::array::from_fn(|i| &column[i * words..(i + 1) * words]);
        Self { planes, at: 0 }
    }

    #[inline]
    fn take(&mut self) -> Result<u64, TransformError> {
        let mut word = [0; 8];
        for (byte, plane) in word.iter_mut().zip(&self.planes) {
            *byte = *plane.get(self.at).ok_or(SHORT)?;
        }
        self.at += 1;
        Ok(u64::from_le_bytes(word))
    }
}

fn word_columns(mut column: &[u8], counts: Counts) -> [Planes<'_>; WORDS_MAX] {
    // The column's size is the sum of these.
    counts.words.map(|words| Planes::new(column.split_off(..words * 8).unwrap_or_default(), words))
}

struct Joiner<'a> {
    headers: &'a [u8],
    header_count: usize,
    headers_done: usize,
    xmin: Column<'a>,
    xmax: Column<'a>,
    cid: Column<'a>,
    block: Column<'a>,
    tail: Column<'a>,
    heap_predictor: HeapPredictor,
    places: Planes<'a>,
    keys: Planes<'a>,
    index_predictor: IndexPredictor,
    words: [Planes<'a>; WORDS_MAX],
    word_predictor: WordPredictor,
    bodies: Column<'a>,
    rest: Column<'a>,
    raw: Column<'a>,
}

impl<'a> Joiner<'a> {
    fn new(columns: [&'a [u8]; COLUMNS], counts: Counts) -> Self {
        let [
            _,
            headers,
            _,
            _,
            xmin,
            xmax,
            cid,
            block,
            tail,
            places,
            keys,
            words,
            bodies,
            rest,
            raw,
        ] = columns;
        Self {
            headers,
            header_count: counts.headers,
            headers_done: 0,
            xmin: Column(xmin),
            xmax: Column(xmax),
            cid: Column(cid),
            block: Column(block),
            tail: Column(tail),
            heap_predictor: HeapPredictor::default(),
            places: Planes::new(places, counts.index),
            keys: Planes::new(keys, counts.keys),
            index_predictor: IndexPredictor::default(),
            words: word_columns(words, counts),
            word_predictor: WordPredictor::default(),
            bodies: Column(bodies),
            rest: Column(rest),
            raw: Column(raw),
        }
    }

    fn page(
        &mut self,
        kind: Kind,
        frame: &Frame,
        items: &[Item],
        page: &mut [u8],
    ) -> Result<(), TransformError> {
        let header = header_of(self.headers, self.header_count, self.headers_done);
        self.headers_done += 1;
        page[..HEADER_BYTES].copy_from_slice(&header);
        if kind.has_hole() {
            let hole = &mut page[frame.lower..frame.upper];
            hole.copy_from_slice(self.rest.take(hole.len())?);
        }
        let special = &mut page[frame.special..];
        special.copy_from_slice(self.rest.take(special.len())?);
        let (places, _) = page[HEADER_BYTES..frame.lower].as_chunks_mut::<4>();
        for (place, item) in places.iter_mut().zip(items) {
            *place = item.0.to_le_bytes();
        }
        if kind.base() == HEAP {
            self.heap_page(kind, items, page)
        } else {
            self.index_page(items, page)
        }
    }

    fn heap_page(
        &mut self,
        kind: Kind,
        items: &[Item],
        page: &mut [u8],
    ) -> Result<(), TransformError> {
        self.heap_predictor.begin_page();
        let mut first = true;
        for (number, item) in items.iter().enumerate().filter(|(_, item)| item.is_stored()) {
            let words = HeapWords {
                xmin: self.xmin.word()?,
                xmax: self.xmax.word()?,
                cid: self.cid.word()?,
                block: self.block.word()?,
                tail: self.tail.array().map(u64::from_le_bytes)?,
            };
            let header = self.heap_predictor.decode(&words, number, first);
            first = false;
            let tuple = tuple(page, *item);
            let (place, body) = tuple.split_first_chunk_mut::<HEAP_HEADER>().ok_or(SHORT)?;
            *place = header;
            let (words, body) = body.split_at_mut(row_words(kind, body.len()) * 8);
            for (number, word) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let difference = self.words[number].take()?;
                *word = self.word_predictor.decode(number, difference).to_le_bytes();
            }
            body.copy_from_slice(self.bodies.take(body.len())?);
        }
        Ok(())
    }

    fn index_page(&mut self, items: &[Item], page: &mut [u8]) -> Result<(), TransformError> {
        for item in items.iter().filter(|item| item.is_stored()) {
            let header = self.index_predictor.decode(self.places.take()?);
            let tuple = tuple(page, *item);
            let is_word = tuple.len() == WORD_TUPLE;
            let (place, body) = tuple.split_first_chunk_mut::<INDEX_HEADER>().ok_or(SHORT)?;
            *place = header;
            if is_word {
                let key = self.index_predictor.decode_key(self.keys.take()?);
                body.copy_from_slice(&key.to_le_bytes());
            } else {
                body.copy_from_slice(self.bodies.take(body.len())?);
            }
        }
        Ok(())
    }
}

/// The place of a tuple that [`Frame::check`] has found to lie inside the page.
#[inline]
fn tuple(page: &mut [u8], item: Item) -> &mut [u8] {
    &mut page[item.offset()..item.offset() + item.room()]
}
