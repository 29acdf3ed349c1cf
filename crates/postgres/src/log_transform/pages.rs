//! Headers of WAL pages, as they follow from their places.

use crate::wal::{FIRST_IS_CONTRECORD, SHORT_HEADER_BYTES};

/// `XLP_BKP_REMOVABLE` in `xlog_internal.h`: whether images of pages may be left out. Set on every
/// page unless a backup is running.
const REMOVABLE: u16 = 0x0004;

/// Foretells the header of each page from that of the one before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderPredictor {
    magic: [u8; 2],
    removable: u16,
    timeline: [u8; 4],
    /// Position of the piece's first byte.
    pub base: u64,
}

/// Bytes of a page's header.
pub(super) type Header = [u8; SHORT_HEADER_BYTES];

impl HeaderPredictor {
    /// Begins with the header of the piece's first page.
    pub fn new(first: &Header) -> Self {
        let [m0, m1, i0, i1, t0, t1, t2, t3, address @ ..] = *first;
        let [a0, a1, a2, a3, a4, a5, a6, a7, ..] = address;
        Self {
            magic: [m0, m1],
            removable: u16::from_le_bytes([i0, i1]) & REMOVABLE,
            timeline: [t0, t1, t2, t3],
            base: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        }
    }

    /// The header of the page at this offset, when `left` bytes of a record go on in it.
    pub fn header(&self, offset: usize, left: usize) -> Header {
        let continues = if left > 0 { FIRST_IS_CONTRECORD } else { 0 };
        let mut header = [0; SHORT_HEADER_BYTES];
        header[..2].copy_from_slice(&self.magic);
        header[2..4].copy_from_slice(&(self.removable | continues).to_le_bytes());
        header[4..8].copy_from_slice(&self.timeline);
        header[8..16].copy_from_slice(&self.base.wrapping_add(offset as u64).to_le_bytes());
        header[16..20].copy_from_slice(&(left as u32).to_le_bytes());
        header
    }

    /// Notes what the header of the page was that came next.
    pub fn note(&mut self, header: &Header) {
        *self = Self { base: self.base, magic: self.magic, ..Self::new(header) };
    }
}
