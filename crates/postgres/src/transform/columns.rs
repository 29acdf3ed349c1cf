//! The columns of a split extent, and what each value is predicted from.

use lifeboat_engine::TransformError;

use super::shape::{Counts, Item, WORDS_MAX};
use crate::page::{ALIGNMENT, HEADER_BYTES};

/// Sizes of all columns, in the order in which they are stored.
pub(super) fn sizes(pages: usize, page_bytes: usize, counts: &Counts) -> [usize; COLUMNS] {
    [
        pages,
        counts.headers * HEADER_BYTES,
        counts.items * 2,
        counts.items * 2,
        counts.heap * 4,
        counts.heap * 4,
        counts.heap * 4,
        counts.heap * 4,
        counts.heap * 8,
        counts.index * 8,
        counts.keys * 8,
        counts.words.iter().sum::<usize>() * 8,
        counts.bodies,
        counts.rest,
        counts.raw * page_bytes,
    ]
}

/// Number of columns.
pub(super) const COLUMNS: usize = 15;

/// Cuts `bytes` into columns of these sizes, which must be all of it.
pub(super) fn cut(
    mut bytes: &[u8],
    sizes: [usize; COLUMNS],
) -> Result<[&[u8]; COLUMNS], TransformError> {
    let mut columns: [&[u8]; COLUMNS] = [&[]; COLUMNS];
    for (column, size) in columns.iter_mut().zip(sizes) {
        *column = bytes.split_off(..size).ok_or(TransformError("cut short"))?;
    }
    if bytes.is_empty() { Ok(columns) } else { Err(TransformError("longer than it should be")) }
}

/// Maps small differences of either sign to small numbers.
pub(crate) fn zigzag(difference: u32) -> u32 {
    (difference << 1) ^ ((difference as i32 >> 31) as u32)
}

/// Undoes [`zigzag`].
pub(crate) fn unzigzag(value: u32) -> u32 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// Maps small differences of either sign to small numbers.
pub(super) fn zigzag64(difference: u64) -> u64 {
    (difference << 1) ^ ((difference as i64 >> 63) as u64)
}

/// Undoes [`zigzag64`].
pub(super) fn unzigzag64(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

/// Predicts line pointers: each tuple as long as the one before, and directly below it.
pub(super) struct ItemPredictor {
    upper_half: u16,
    offset: usize,
}

impl ItemPredictor {
    /// At the beginning of a page whose special space begins here.
    pub(super) fn new(special: usize) -> Self {
        Self { upper_half: 0, offset: special }
    }

    /// Two differences in place of a line pointer.
    #[inline]
    pub(super) fn encode(&mut self, item: Item) -> (u16, u16) {
        let upper = (item.0 >> 16) as u16;
        let lower = (item.0 as u16).wrapping_sub(self.lower_half(item));
        let difference = upper.wrapping_sub(self.upper_half);
        self.note(item, upper);
        (difference, lower)
    }

    /// Undoes [`ItemPredictor::encode`].
    #[inline]
    pub(super) fn decode(&mut self, difference: u16, lower: u16) -> Item {
        let upper = self.upper_half.wrapping_add(difference);
        let half = self.lower_half(Item(u32::from(upper) << 16));
        let item = Item(u32::from(upper) << 16 | u32::from(half.wrapping_add(lower)));
        self.note(item, upper);
        item
    }

    /// What the lower half should be, when the upper one (the length) is known.
    #[inline]
    fn lower_half(&self, item: Item) -> u16 {
        const NORMAL: u16 = 0x8000; // LP_NORMAL in itemid.h, its lower bit
        match item.is_stored() {
            true => (self.offset.wrapping_sub(item.room()) as u16 & 0x7FFF) | NORMAL,
            false => 0,
        }
    }

    #[inline]
    fn note(&mut self, item: Item, upper: u16) {
        self.upper_half = upper;
        if item.is_stored() {
            self.offset = item.offset();
        }
    }
}

/// Predicts heap tuple headers: each like the one before, its `t_ctid` its own place.
///
/// Source: `HeapTupleHeaderData` in `src/include/access/htup_details.h`.
#[derive(Default)]
pub(super) struct HeapPredictor {
    xmin: u32,
    xmax: u32,
    block: u32,
    /// Block of the first tuple of the page.
    page_block: u32,
    tail: u64,
}

/// The words that stand for one heap tuple header.
pub(super) struct HeapWords {
    pub(super) xmin: u32,
    pub(super) xmax: u32,
    pub(super) cid: u32,
    pub(super) block: u32,
    pub(super) tail: u64,
}

impl HeapPredictor {
    /// At the beginning of a page: its tuples should lie one block further.
    pub(super) fn begin_page(&mut self) {
        self.block = self.page_block.wrapping_add(1);
    }

    /// `number` is the tuple's line pointer, counted from 0.
    #[inline]
    pub(super) fn encode(&mut self, header: &[u8; 24], number: usize, first: bool) -> HeapWords {
        let [a, b, c, d, e, f] = words(header);
        // BlockIdData is two halves, the upper one first; then the line pointer's number.
        let block = d.rotate_left(16);
        let tail = u64::from(f) << 32 | u64::from(e);
        let own = tail.wrapping_sub(number as u64 + 1);
        let words = HeapWords {
            xmin: zigzag(a.wrapping_sub(self.xmin)),
            xmax: zigzag(b.wrapping_sub(self.xmax)),
            cid: c,
            block: zigzag(block.wrapping_sub(self.block)),
            tail: own ^ self.tail,
        };
        (self.xmin, self.xmax, self.block, self.tail) = (a, b, block, own);
        if first {
            self.page_block = block;
        }
        words
    }

    /// Undoes [`HeapPredictor::encode`].
    #[inline]
    pub(super) fn decode(&mut self, words: &HeapWords, number: usize, first: bool) -> [u8; 24] {
        self.xmin = self.xmin.wrapping_add(unzigzag(words.xmin));
        self.xmax = self.xmax.wrapping_add(unzigzag(words.xmax));
        self.block = self.block.wrapping_add(unzigzag(words.block));
        self.tail ^= words.tail;
        if first {
            self.page_block = self.block;
        }
        let tail = self.tail.wrapping_add(number as u64 + 1);
        let mut header = [0; 24];
        let (fields, _) = header.as_chunks_mut::<4>();
        fields[0] = self.xmin.to_le_bytes();
        fields[1] = self.xmax.to_le_bytes();
        fields[2] = words.cid.to_le_bytes();
        fields[3] = self.block.rotate_left(16).to_le_bytes();
        fields[4] = (tail as u32).to_le_bytes();
        fields[5] = ((tail >> 32) as u32).to_le_bytes();
        header
    }
}

fn words(header: &[u8; 24]) -> [u32; 6] {
    let (words, _) = header.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

/// Predicts the leading words of rows: each like the same word of the row before.
#[derive(Default)]
pub(super) struct WordPredictor([u64; WORDS_MAX]);

impl WordPredictor {
    /// The word that stands for word `number` of a row.
    #[inline]
    pub(super) fn encode(&mut self, number: usize, word: u64) -> u64 {
        let difference = word.wrapping_sub(self.0[number]);
        self.0[number] = word;
        zigzag64(difference)
    }

    /// Undoes [`WordPredictor::encode`].
    #[inline]
    pub(super) fn decode(&mut self, number: usize, word: u64) -> u64 {
        self.0[number] = self.0[number].wrapping_add(unzigzag64(word));
        self.0[number]
    }
}

/// Predicts index tuples: each points to where the one before points, or near; keys of one
/// word grow evenly.
///
/// Source: `IndexTupleData` in `src/include/access/itup.h`.
#[derive(Default)]
pub(super) struct IndexPredictor {
    place: u64,
    info: u64,
    key: u64,
}

/// Bits of a block number and a line pointer's number together.
const PLACE_BITS: u32 = 48;

impl IndexPredictor {
    /// The word that stands for `t_tid` and `t_info`.
    #[inline]
    pub(super) fn encode(&mut self, header: [u8; ALIGNMENT]) -> u64 {
        let (place, info) = parts(u64::from_le_bytes(header));
        // Sign-extended from 48 bits, so that the zigzag form has 48 bits too.
        let difference = place.wrapping_sub(self.place) << (64 - PLACE_BITS);
        let difference = (difference as i64 >> (64 - PLACE_BITS)) as u64;
        let word = zigzag64(difference) & PLACE_MASK | (info ^ self.info) << PLACE_BITS;
        (self.place, self.info) = (place, info);
        word
    }

    /// Undoes [`IndexPredictor::encode`].
    #[inline]
    pub(super) fn decode(&mut self, word: u64) -> [u8; ALIGNMENT] {
        self.place = self.place.wrapping_add(unzigzag64(word & PLACE_MASK)) & PLACE_MASK;
        self.info ^= word >> PLACE_BITS;
        let block = (self.place >> 16) as u32;
        let word = u64::from(block.rotate_left(16))
            | (self.place & 0xFFFF) << 32
            | self.info << PLACE_BITS;
        word.to_le_bytes()
    }

    /// The word that stands for a key.
    #[inline]
    pub(super) fn encode_key(&mut self, key: u64) -> u64 {
        let word = zigzag64(key.wrapping_sub(self.key));
        self.key = key;
        word
    }

    /// Undoes [`IndexPredictor::encode_key`].
    #[inline]
    pub(super) fn decode_key(&mut self, word: u64) -> u64 {
        self.key = self.key.wrapping_add(unzigzag64(word));
        self.key
    }
}

const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// Block and line pointer number as one number that grows along the table; and `t_info`.
fn parts(word: u64) -> (u64, u64) {
    let block = (word as u32).rotate_left(16);
    (u64::from(block) << 16 | (word >> 32 & 0xFFFF), word >> PLACE_BITS)
}
