//! Pages to columns.

use super::columns::{COLUMNS, HeapPredictor, IndexPredictor, ItemPredictor, WordPredictor, sizes};
use super::shape::{
    Counts, Frame, HEAP, HEAP_HEADER, INDEX_HEADER, Item, Kind, Surveyor, WORD_TUPLE, WORDS_MAX,
    ZERO, items_of, row_words,
};
use crate::bytes::array;
use crate::page::{HEADER_BYTES, PageHeader};

/// Appends the split form of whole pages; false when no page would gain from it.
pub(super) fn split(page_bytes: usize, pages: &[u8], out: &mut Vec<u8>) -> bool {
    let mut surveyor = Surveyor::new(page_bytes);
    let mut counts = Counts::default();
    let before = out.len();
    for page in pages.chunks_exact(page_bytes) {
        let (kind, of_page) = surveyor.survey(page);
        counts.add(&of_page);
        out.push(kind.0);
    }
    if counts.headers == 0 {
        out.truncate(before);
        return false;
    }
    let sizes = sizes(pages.len() / page_bytes, page_bytes, &counts);
    out.resize(before + sizes.iter().sum::<usize>(), 0);
    let mut rest = &mut out[before..];
    // The sizes are those of the slice, so nothing is left empty here.
    let columns = sizes.map(|size| rest.split_off_mut(..size).unwrap_or_default());
    Splitter::new(columns, counts).run(page_bytes, pages);
    true
}

/// Writes fixed-size values one after another.
struct Column<'a>(&'a mut [u8]);

impl Column<'_> {
    #[inline]
    fn put<const N: usize>(&mut self, value: [u8; N]) {
        if let Some(place) = self.0.split_off_mut(..N) {
            place.copy_from_slice(&value);
        }
    }

    #[inline]
    fn put_slice(&mut self, bytes: &[u8]) {
        if let Some(place) = self.0.split_off_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Writes words as eight columns of bytes: first all lowest bytes, last all highest.
struct Planes<'a> {
    planes: [&'a mut [u8]; 8],
    at: usize,
}

impl<'a> Planes<'a> {
    fn new(mut column: &'a mut [u8], words: usize) -> Self {
        let planes = std::array::from_fn(|_| column.split_off_mut(..words).unwrap_or_default());
        Self { planes, at: 0 }
    }

    #[inline]
    fn put(&mut self, word: u64) {
        for (plane, byte) in self.planes.iter_mut().zip(word.to_le_bytes()) {
            if let Some(place) = plane.get_mut(self.at) {
                *place = byte;
            }
        }
        self.at += 1;
    }
}

struct Splitter<'a> {
    kinds: &'a [u8],
    headers: &'a mut [u8],
    header_count: usize,
    headers_done: usize,
    item_upper: Column<'a>,
    item_lower: Column<'a>,
    heap: HeapColumns<'a>,
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

fn word_columns(mut column: &mut [u8], counts: Counts) -> [Planes<'_>; WORDS_MAX] {
    counts
        .words
        .map(|words| Planes::new(column.split_off_mut(..words * 8).unwrap_or_default(), words))
}

struct HeapColumns<'a> {
    xmin: Column<'a>,
    xmax: Column<'a>,
    cid: Column<'a>,
    block: Column<'a>,
    tail: Column<'a>,
}

impl<'a> Splitter<'a> {
    fn new(columns: [&'a mut [u8]; COLUMNS], counts: Counts) -> Self {
        let [
            kinds,
            headers,
            upper,
            lower,
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
            kinds,
            headers,
            header_count: counts.headers,
            headers_done: 0,
            item_upper: Column(upper),
            item_lower: Column(lower),
            heap: HeapColumns {
                xmin: Column(xmin),
                xmax: Column(xmax),
                cid: Column(cid),
                block: Column(block),
                tail: Column(tail),
            },
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

    fn run(mut self, page_bytes: usize, pages: &[u8]) {
        for (kind, page) in self.kinds.iter().zip(pages.chunks_exact(page_bytes)) {
            let frame = PageHeader::parse(page).and_then(|header| Frame::of(&header, page_bytes));
            match (Kind(*kind), frame) {
                (kind, Some(frame)) if kind.has_header() => self.page(kind, &frame, page),
                (kind, _) if kind.base() == ZERO => {}
                _ => self.raw.put_slice(page),
            }
        }
    }

    fn page(&mut self, kind: Kind, frame: &Frame, page: &[u8]) {
        self.header(page);
        if kind.has_hole() {
            self.rest.put_slice(&page[frame.lower..frame.upper]);
        }
        self.rest.put_slice(&page[frame.special..]);
        let items = &page[HEADER_BYTES..frame.lower];
        let mut predictor = ItemPredictor::new(frame.special);
        for item in items_of(items) {
            let (upper, lower) = predictor.encode(item);
            self.item_upper.put(upper.to_le_bytes());
            self.item_lower.put(lower.to_le_bytes());
        }
        if kind.base() == HEAP {
            self.heap_page(kind, page, items);
        } else {
            self.index_page(page, items);
        }
    }

    /// Header fields, two bytes each, column by column over the pages of the extent.
    fn header(&mut self, page: &[u8]) {
        let (fields, _) = page[..HEADER_BYTES].as_chunks::<2>();
        for (number, field) in fields.iter().enumerate() {
            let at = (number * self.header_count + self.headers_done) * 2;
            self.headers[at..at + 2].copy_from_slice(field);
        }
        self.headers_done += 1;
    }

    fn heap_page(&mut self, kind: Kind, page: &[u8], items: &[u8]) {
        self.heap_predictor.begin_page();
        let mut first = true;
        for (number, item) in items_of(items).enumerate().filter(|(_, item)| item.is_stored()) {
            let tuple = tuple(page, item);
            let Some((header, body)) = tuple.split_first_chunk::<HEAP_HEADER>() else { continue };
            let words = self.heap_predictor.encode(header, number, first);
            first = false;
            self.heap.xmin.put(words.xmin.to_le_bytes());
            self.heap.xmax.put(words.xmax.to_le_bytes());
            self.heap.cid.put(words.cid.to_le_bytes());
            self.heap.block.put(words.block.to_le_bytes());
            self.heap.tail.put(words.tail.to_le_bytes());
            let (words, body) = body.split_at(row_words(kind, body.len()) * 8);
            for (number, word) in words.as_chunks::<8>().0.iter().enumerate() {
                let word = self.word_predictor.encode(number, u64::from_le_bytes(*word));
                self.words[number].put(word);
            }
            self.bodies.put_slice(body);
        }
    }

    fn index_page(&mut self, page: &[u8], items: &[u8]) {
        for item in items_of(items).filter(|item| item.is_stored()) {
            let tuple = tuple(page, item);
            let Some((header, body)) = tuple.split_first_chunk::<INDEX_HEADER>() else { continue };
            self.places.put(self.index_predictor.encode(*header));
            if tuple.len() == WORD_TUPLE {
                let key = array(body, 0).map_or(0, u64::from_le_bytes);
                self.keys.put(self.index_predictor.encode_key(key));
            } else {
                self.bodies.put_slice(body);
            }
        }
    }
}

#[inline]
fn tuple(page: &[u8], item: Item) -> &[u8] {
    &page[item.offset()..item.offset() + item.room()]
}
