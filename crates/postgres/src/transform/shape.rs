//! What a page looks like, and whether its parts account for all of its bytes.

use lifeboat_engine::TransformError;

use crate::page::{ALIGNMENT, HEADER_BYTES, PageHeader, is_zero};

/// Copied as it is.
pub(super) const RAW: u8 = 0;
/// All bytes zero.
pub(super) const ZERO: u8 = 1;
/// Items with a heap tuple's header of 24 bytes.
pub(super) const HEAP: u8 = 2;
/// Items with an index tuple's header of 8 bytes.
pub(super) const INDEX: u8 = 3;
/// Added to `HEAP` or `INDEX` when the space between line pointers and tuples is not zero.
pub(super) const HOLE: u8 = 0x80;

/// Bytes of a heap tuple that become columns: `SizeofHeapTupleHeader` and the byte after it.
pub(super) const HEAP_HEADER: usize = 24;

/// Bytes of an index tuple that become columns: `sizeof(IndexTupleData)`.
pub(super) const INDEX_HEADER: usize = 8;

/// Length of an index tuple whose key is one word, which becomes a column too.
pub(super) const WORD_TUPLE: usize = 16;

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
    pub(super) words: usize,
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
    pub(super) fn add_item(&mut self, kind: u8, item: Item) -> bool {
        if kind & !HOLE == HEAP {
            self.heap += 1;
            self.bodies += item.room().wrapping_sub(HEAP_HEADER);
            return item.room() >= HEAP_HEADER;
        }
        self.index += 1;
        if item.room() == WORD_TUPLE {
            self.words += 1;
            return true;
        }
        self.bodies += item.room().wrapping_sub(INDEX_HEADER);
        item.room() >= INDEX_HEADER
    }

    /// Counts a page's header, special space and hole.
    pub(super) fn add_frame(&mut self, kind: u8, frame: &Frame, page_bytes: usize) {
        self.headers += 1;
        self.items += frame.items;
        self.rest += page_bytes - frame.special;
        if kind & HOLE != 0 {
            self.rest += frame.upper - frame.lower;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.items += other.items;
        self.heap += other.heap;
        self.index += other.index;
        self.words += other.words;
        self.bodies += other.bodies;
        self.rest += other.rest;
        self.headers += other.headers;
        self.raw += other.raw;
    }
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
    pub(super) fn survey(&mut self, page: &[u8]) -> (u8, Counts) {
        let raw = (RAW, Counts { raw: 1, ..Counts::default() });
        let Some(header) = PageHeader::parse(page) else { return raw };
        if header.upper == 0 {
            return if is_zero(page) { (ZERO, Counts::default()) } else { raw };
        }
        let Some(frame) = Frame::of(&header, self.page_bytes) else { return raw };
        let kind = if frame.special == self.page_bytes { HEAP } else { INDEX };
        let hole = if is_zero(&page[frame.lower..frame.upper]) { 0 } else { HOLE };
        let mut counts = Counts::default();
        counts.add_frame(kind | hole, &frame, self.page_bytes);
        let items = &page[HEADER_BYTES..frame.lower];
        let tiled = match tiles_downwards(items, &frame, kind, &mut counts) {
            Some(fits) => fits,
            None => self.tiles_somehow(items, &frame),
        };
        if tiled { (kind | hole, counts) } else { raw }
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

/// The usual case: each tuple lies directly below the one before. Counts the items on the way.
/// `None` when they lie in another order; `Some(false)` when a tuple is too short.
fn tiles_downwards(items: &[u8], frame: &Frame, kind: u8, counts: &mut Counts) -> Option<bool> {
    let (mut expected, mut downwards) = (frame.special, true);
    for item in items_of(items) {
        if item.is_stored() {
            if !counts.add_item(kind, item) {
                return Some(false);
            }
            expected = expected.wrapping_sub(item.room());
            downwards &= item.offset() == expected;
        }
    }
    (downwards && expected == frame.upper).then_some(true)
}
