//! Checking a page, and reshaping pages so that they compress well.

use crate::log::Lsn;

/// What a look at one page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVerdict {
    /// Looks right; its checksum, if it carries one, holds.
    Valid,
    /// All bytes zero: a page that was allocated and not yet written. Valid.
    Zero,
    /// The checksum does not match.
    BadChecksum {
        /// What the content gives.
        computed: u16,
        /// What the page says.
        stored: u16,
    },
    /// The header cannot be that of a page.
    BadHeader,
}

impl PageVerdict {
    /// Whether a restore of this page would give something that the server rejects.
    pub fn is_damage(self) -> bool {
        matches!(self, Self::BadChecksum { .. } | Self::BadHeader)
    }
}

/// Knows an engine's pages.
pub trait PageFormat: Send + Sync {
    /// Checks one page.
    ///
    /// - Shape: `page` has exactly the cluster's page size.
    /// - `number` counts over all segment files of the relation fork.
    fn check(&self, number: u32, page: &[u8]) -> PageVerdict;
    /// The end of the log record that changed this page last; `None` when the page does not tell,
    /// such as a page of zeros. Changes that need no record (hints) leave it as it was.
    ///
    /// - Shape: `page` is one that `check` did not find damaged.
    fn changed_at(&self, page: &[u8]) -> Option<Lsn> {
        let _ = page;
        None
    }
}

/// A reversible reordering of the bytes of whole pages.
///
/// Law: `join(split(x)) == x` for every `x`, damaged and random pages included. `split` may
/// decline by returning false where it would not help.
pub trait PageTransform: Send + Sync {
    /// Number of this transform in the repository format; never re-used for another.
    fn id(&self) -> u8;
    /// Appends the reordered form of `pages` to `out`; false (and `out` unchanged) to decline.
    ///
    /// - Shape: `pages` is a whole number of pages, at least one.
    fn split(&self, pages: &[u8], out: &mut Vec<u8>) -> bool;
    /// Appends the original bytes to `out`.
    ///
    /// - `length` is the number of bytes that must come out; the caller has bounded it.
    /// - Errors when `split` is no output of [`PageTransform::split`]; never panics, and never
    ///   allocates more than a small multiple of `length`.
    fn join(&self, split: &[u8], length: usize, out: &mut Vec<u8>) -> Result<(), TransformError>;
}

/// The bytes are not what [`PageTransform::split`] writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reordered pages cannot be put back in order: {0}")]
pub struct TransformError(pub &'static str);
