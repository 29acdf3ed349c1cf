//! What stands in front of the columns.

use lifeboat_engine::TransformError;

use super::SHORT;
use crate::bytes::{u32_at, u64_at};
use crate::wal::SHORT_HEADER_BYTES;

/// Bytes in front of the columns.
pub(super) const FRONT_BYTES: usize = 33;

/// What stands in front of the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Front {
    /// Size of a page of WAL, in bytes.
    pub page_bytes: usize,
    /// Where the first record begins that was taken apart.
    pub start: usize,
    /// How many records were taken apart.
    pub records: usize,
    /// `xl_prev` of the first one.
    pub link: u64,
    /// Lengths of the columns heads, pages, masks and text, in bytes.
    pub columns: [usize; 4],
}

impl Front {
    pub fn write(&self, out: &mut [u8]) {
        out[0] = self.page_bytes.ilog2() as u8;
        out[1..5].copy_from_slice(&(self.start as u32).to_le_bytes());
        out[5..9].copy_from_slice(&(self.records as u32).to_le_bytes());
        out[9..17].copy_from_slice(&self.link.to_le_bytes());
        for (number, length) in self.columns.iter().enumerate() {
            let at = 17 + number * 4;
            out[at..at + 4].copy_from_slice(&(*length as u32).to_le_bytes());
        }
    }

    /// Reads it; `length` is that of the original bytes.
    pub fn read(split: &[u8], length: usize) -> Result<Self, TransformError> {
        let number = |at| u32_at(split, at).map(|n| n as usize).ok_or(SHORT);
        let exponent = *split.first().ok_or(SHORT)?;
        if !(10..=16).contains(&exponent) {
            return Err(TransformError("an impossible size of pages"));
        }
        let front = Self {
            page_bytes: 1 << exponent,
            start: number(1)?,
            records: number(5)?,
            link: u64_at(split, 9).ok_or(SHORT)?,
            columns: [number(17)?, number(21)?, number(25)?, number(29)?],
        };
        let fits = length.is_multiple_of(front.page_bytes)
            && (SHORT_HEADER_BYTES..length).contains(&front.start)
            && front.start.is_multiple_of(8);
        if fits { Ok(front) } else { Err(TransformError("records that begin where none can")) }
    }
}
