//! Lists what a base backup copies of a data directory.
//!
//! Source of what is copied and what is left out: PostgreSQL `src/backend/backup/basebackup.c`
//! (`excludeDirContents`, `excludeFiles`, `sendDir`) and the documentation, "Backing Up The Data
//! Directory".

mod error;
mod names;
mod tablespace;
mod walk;

use std::path::Path;

use lifeboat_engine::{ClusterIdentity, Listing};

pub use error::ScanError;
pub(crate) use names::decimal;
pub use names::{Fork, RelationFile};
use walk::Walk;
pub(crate) use walk::{Place, is_left_out};

/// A listing, and what it left out although nobody would expect it.
#[derive(Debug, Default)]
pub struct Scan {
    /// What to copy.
    pub listing: Listing,
    /// What was left out, to be told to the user.
    pub skipped: Vec<Skipped>,
}

/// Something in the data directory that a backup does not copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Relative to the data directory.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

/// Lists the data directory `root` of a cluster, for a backup.
///
/// - Shape: sorted; parents before children; without the control file.
/// - What vanishes while it is being listed is left out quietly; what cannot be read is an error.
/// - Checked by: `the_listing_is_what_pg_basebackup_copies`, on 15, 17 and 18.
pub fn list(root: &Path, identity: &ClusterIdentity) -> Result<Scan, ScanError> {
    let mut walk = Walk::new(root, identity)?;
    walk.root()?;
    tablespace::list(&mut walk)?;
    Ok(walk.finish())
}

#[cfg(test)]
mod tests;
