//! Checking a page.

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
