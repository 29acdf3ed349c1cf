//! Reorders the bytes of pages so that they compress better and faster, and puts them back.
//!
//! Format: `docs/format/transform.md`.
//! Source of the page layout: PostgreSQL `src/include/storage/bufpage.h` (pages), `itemid.h`
//! (line pointers), `src/include/access/htup_details.h` (heap tuples), `itup.h` (index tuples).

mod columns;
mod join;
mod shape;
mod split;

pub(crate) use columns::{unzigzag, zigzag};
use lifeboat_engine::{Transform, TransformError};

/// Number of this transform in the repository format.
const ID: u8 = 1;

/// Splits pages into columns: headers, line pointers, tuple headers, keys, bodies.
///
/// - Law: `join(split(x)) == x` for every `x`.
/// - Speed: one pass to measure, one to write; no allocation per tuple.
/// - Checked by: `split_pages_join_to_what_they_were`, `a_real_cluster_splits_and_joins`.
#[derive(Debug, Clone, Copy)]
pub struct SplitPages {
    page_bytes: usize,
}

impl SplitPages {
    /// For pages of this size, in bytes: a power of two from 1 KiB to 32 KiB. With any other
    /// size it declines to split.
    pub fn new(page_bytes: u32) -> Self {
        Self { page_bytes: page_bytes as usize }
    }

    fn page_size_is_possible(&self) -> bool {
        self.page_bytes.is_power_of_two() && (1 << 10..=1 << 15).contains(&self.page_bytes)
    }
}

impl Transform for SplitPages {
    fn id(&self) -> u8 {
        ID
    }

    fn split(&self, pages: &[u8], out: &mut Vec<u8>) -> bool {
        self.page_size_is_possible()
            && !pages.is_empty()
            && pages.len().is_multiple_of(self.page_bytes)
            && split::split(self.page_bytes, pages, out)
    }

    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), TransformError> {
        if !self.page_size_is_possible() || !out.len().is_multiple_of(self.page_bytes) {
            return Err(TransformError("not a whole number of pages"));
        }
        join::join(self.page_bytes, split, out)
    }
}
