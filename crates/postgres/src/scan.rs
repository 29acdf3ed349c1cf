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

/// Lists the data directory `root` of a cluster, for a backup.
///
/// - Shape: sorted; parents before children; without the control file.
/// - What vanishes while it is being listed is left out quietly; what cannot be read is an error.
/// - Checked by: `the_listing_is_what_pg_basebackup_copies`, on 15, 17 and 18.
pub fn list(root: &Path, identity: &ClusterIdentity) -> Result<Listing, ScanError> {
    let mut walk = Walk::new(root, identity)?;
    walk.root()?;
    tablespace::list(&mut walk)?;
    Ok(walk.finish())
}

#[cfg(test)]
mod tests;
