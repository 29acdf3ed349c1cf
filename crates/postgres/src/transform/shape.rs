//! What a page looks like, and whether its parts account for all of its bytes.

use lifeboat_engine::TransformError;

use super::columns::zigzag64;
use crate::page::{ALIGNMENT, HEADER_BYTES, PageHeader, is_zero};

/// Copied as it is.
pub(super) const RAW: u8 = 0;
/// All bytes zero.
pub(super) const ZERO: u8 = 1;
/// Items with a heap tuple's header of 24 bytes.
pub(super) const HEAP: u8 = 2;
/// Items with an index tuple's header of 8 bytes.
pub(super) const INDEX: u8 = 3;
/// Bits of a page's kind byte that say which of these it is.
const KIND: u8 = 0x03;
/// Bits of a heap page's kind byte: how many leading words of each row become columns.
const WORDS_SHIFT: u32 = 2;
/// Most leading words of a row that become columns.
pub(super) const WORDS_MAX: usize = 4;
/// Added to `HEAP` or `INDEX` when the space between line pointers and tuples is not zero.
pub(super) const HOLE: u8 = 0x80;

/// Bytes of a heap tuple that become columns: `SizeofHeapTupleHeader` and the byte after it.
pub(super) const HEAP_HEADER: usize = 24;

/// Bytes of an index tuple that become columns: `sizeof(IndexTupleData)`.
pub(super) const INDEX_HEADER: usize = 8;

/// Length of an index tuple whose key is one word, which becomes a column too.
pub(super) const WORD_TUPLE: usize = 16;

/// What the byte says that stands for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(pub(super) u8);

impl Kind {
    /// `RAW`, `ZERO`, `HEAP` or `INDEX`.
    pub(super) fn base(self) -> u8 {
        self.0 & KIND
    }

    pub(super) fn has_header(self) -> bool {
        matches!(self.base(), HEAP | INDEX)
    }

    pub(super) fn has_hole(self) -> bool {
        self.0 & HOLE != 0
    }

    /// How many leading words of each row become columns.
    pub(super) fn words(self) -> usize {
        usize::from((self.0 & !HOLE) >> WORDS_SHIFT)
    }

    /// The same page, with so many leading words.
    pub(super) fn with_words(self, words: usize) -> Self {
        Self(self.0 | (words as u8) << WORDS_SHIFT)
    }

    /// Whether the splitter writes such a byte.
    pub(super) fn is_known(self) -> bool {
        match self.base() {
            HEAP => self.words() <= WORDS_MAX,
            INDEX => self.words() == 0,
            _ => self.0 == self.base(),
        }
    }
}

/// A line pointer. Source: `ItemIdData` in `src/include/storage/itemid.h`.
#[derive(Clone, Copy)]
pub(super) struct Item(pub(super) u32);

impl Item {
    /// Where the tuple begins in the page; a line pointer's number in a redirection.
    pub(super) fn offset(self) -> usize {
        (self.0 & 0x7FFF) as usize
    }

    /// Length of the tuple, 0 when there is none.
    pub(super) fn length(self) -> usize {
        (self.0 >> 17) as usize
    }

    /// Length with the padding after it.
    pub(super) fn room(self) -> usize {
        self.length().next_multiple_of(ALIGNMENT)
    }

    /// Whether it has a tuple: `ItemIdHasStorage`.
    pub(super) fn is_stored(self) -> bool {
        self.length() != 0
    }
}

/// How much of what an extent or a page has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) items: usize,
    pub(super) heap: usize,
    pub(super) index: usize,
    /// Those of `index` that have a key of one word.
    pub(super) keys: usize,
    /// Rows whose first word, second word and so on is in a column.
    pub(super) words: [usize; WORDS_MAX],
    /// Bytes of tuples that are in no column.
    pub(super) bodies: usize,
    /// Bytes of special spaces and holes.
    pub(super) rest: usize,
    /// Pages with a header.
    pub(super) headers: usize,
    pub(super) raw: usize,
}

impl Counts {
    /// Counts one stored item of a page of this kind; false when it is too short for it.
    #[inline]
    pub(super) fn add_item(&mut self, kind: Kind, item: Item) -> bool {
        if kind.base() == HEAP {
            let Some(body) = item.room().checked_sub(HEAP_HEADER) else { return false };
            let words = row_words(kind, body);
            for count in &mut self.words[..words] {
                *count += 1;
            }
            self.heap += 1;
            self.bodies += body - words * 8;
        } else {
            self.index += 1;
            if item.room() == WORD_TUPLE {
                self.keys += 1;
            } else {
                // A stored item has room for 8 bytes at least.
                self.bodies += item.room() - INDEX_HEADER;
            }
        }
        true
    }

    /// Counts a page's header, special space and hole.
    pub(super) fn add_frame(&mut self, kind: Kind, frame: &Frame, page_bytes: usize) {
        self.headers += 1;
        self.items += frame.items;
        self.rest += page_bytes - frame.special;
        if kind.has_hole() {
            self.rest += frame.upper - frame.lower;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.items += other.items;
        self.heap += other.heap;
        self.index += other.index;
        self.keys += other.keys;
        for (count, more) in self.words.iter_mut().zip(other.words) {
            *count += more;
        }
        self.bodies += other.bodies;
        self.rest += other.rest;
        self.headers += other.headers;
        self.raw += other.raw;
    }
}

/// How many words of a row with a body of so many bytes are in columns.
#[inline]
pub(super) fn row_words(kind: Kind, body_bytes: usize) -> usize {
    kind.words().min(body_bytes / 8)
}

/// The inner borders of a page, checked against each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) items: usize,
    pub(super) lower: usize,
    pub(super) upper: usize,
    pub(super) special: usize,
}

impl Frame {
    /// The borders that a header tells; `None` when they cannot be those of a page.
    pub(super) fn of(header: &PageHeader, page_bytes: usize) -> Option<Self> {
        let (lower, upper) = (usize::from(header.lower), usize::from(header.upper));
        let items = lower.checked_sub(HEADER_BYTES)?;
        let whole = header.is_sane(page_bytes) && items.is_multiple_of(4);
        let aligned = upper.is_multiple_of(ALIGNMENT);
        (whole && aligned).then_some(Self {
            items: items / 4,
            lower,
            upper,
            special: usize::from(header.special),
        })
    }

    /// Errors when the item does not lie between the borders.
    #[inline]
    pub(super) fn check(&self, item: Item) -> Result<(), TransformError> {
        let offset = item.offset();
        if offset < self.upper || offset + item.room() > self.special {
            return Err(TransformError("a tuple lies outside its page"));
        }
        Ok(())
    }
}

/// Looks at pages; owns the memory that it needs for that.
pub(super) struct Surveyor {
    page_bytes: usize,
    /// Room of the tuple that begins at each multiple of 8 in the page; 0 where none does.
    rooms: Vec<u16>,
}

impl Surveyor {
    pub(super) fn new(page_bytes: usize) -> Self {
        Self { page_bytes, rooms: Vec::new() }
    }

    /// Says how to split a page, and how much of what it has.
    pub(super) fn survey(&mut self, page: &[u8]) -> (Kind, Counts) {
        let raw = (Kind(RAW), Counts { raw: 1, ..Counts::default() });
        let Some(header) = PageHeader::parse(page) else { return raw };
        if header.upper == 0 {
            return if is_zero(page) { (Kind(ZERO), Counts::default()) } else { raw };
        }
        let Some(frame) = Frame::of(&header, self.page_bytes) else { return raw };
        let items = &page[HEADER_BYTES..frame.lower];
        let base = if frame.special == self.page_bytes { HEAP } else { INDEX };
        let hole = if is_zero(&page[frame.lower..frame.upper]) { 0 } else { HOLE };
        let mut kind = Kind(base | hole);
        let tiled = tiles_downwards(items, &frame) || self.tiles_somehow(items, &frame);
        if tiled && base == HEAP {
            kind = kind.with_words(changing_words(page, items));
        }
        let mut counts = Counts::default();
        counts.add_frame(kind, &frame, self.page_bytes);
        let fits =
            tiled && items_of(items).filter(|i| i.is_stored()).all(|i| counts.add_item(kind, i));
        if fits { (kind, counts) } else { raw }
    }

    /// Whether the tuples, in whatever order, cover upper to special without gap or overlap.
    fn tiles_somehow(&mut self, items: &[u8], frame: &Frame) -> bool {
        self.rooms.clear();
        self.rooms.resize(self.page_bytes / ALIGNMENT, 0);
        let mut stored = 0usize;
        for item in items_of(items).filter(|item| item.is_stored()) {
            if !item.offset().is_multiple_of(ALIGNMENT) || frame.check(item).is_err() {
                return false;
            }
            stored += 1;
            self.rooms[item.offset() / ALIGNMENT] = item.room() as u16;
        }
        let mut at = frame.upper;
        while at < frame.special {
            let room = usize::from(self.rooms[at / ALIGNMENT]);
            if room == 0 || stored == 0 {
                return false;
            }
            (at, stored) = (at + room, stored - 1);
        }
        // Two at one place would leave one over.
        at == frame.special && stored == 0
    }
}

pub(super) fn items_of(items: &[u8]) -> impl Iterator<Item = Item> {
    items.as_chunks::<4>().0.iter().map(|word| Item(u32::from_le_bytes(*word)))
}

/// The usual case: each tuple lies directly below the one before.
fn tiles_downwards(items: &[u8], frame: &Frame) -> bool {
    let (mut expected, mut downwards) = (frame.special, true);
    for item in items_of(items).filter(|item| item.is_stored()) {
        expected = expected.wrapping_sub(item.room());
        downwards &= item.offset() == expected;
    }
    downwards && expected == frame.upper
}

/// How many leading words of the rows look like numbers that change a little from row to row:
/// up to the last such word, as long as no other kind of word comes before it.
fn changing_words(page: &[u8], items: &[u8]) -> usize {
    /// Rows that are looked at.
    const SAMPLE: usize = 9;
    /// Differences up to here are small: the upper three bytes of their zigzag form are zero.
    const SMALL: u64 = 1 << 40;
    let mut rows = [[0u64; WORDS_MAX]; SAMPLE];
    let mut count = 0;
    for item in items_of(items).filter(|item| item.room() > HEAP_HEADER).take(SAMPLE) {
        let body = &page[item.offset() + HEAP_HEADER..item.offset() + item.room()];
        for (word, bytes) in rows[count].iter_mut().zip(body.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        count += 1;
    }
    let mut useful = 0;
    for word in 0..WORDS_MAX {
        let differences =
            rows[..count].windows(2).map(|p| zigzag64(p[1][word].wrapping_sub(p[0][word])));
        let (mut small, mut changed) = (0, 0);
        for difference in differences {
            small += usize::from(difference < SMALL);
            changed += usize::from(difference != 0);
        }
        if small * 4 < (count.max(1) - 1) * 3 {
            break;
        }
        if changed > 0 {
            useful = word + 1;
        }
    }
    useful
}
