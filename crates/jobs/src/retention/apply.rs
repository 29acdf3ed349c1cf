//! Carries a plan out.

use lifeboat_repo::BackupId;
use lifeboat_units::ByteCount;
use serde::Serialize;

use super::error::RetentionError;
use super::plan::Plan;
use crate::ports::Ports;

/// What retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Backups that were removed, oldest first.
    pub removed: Vec<BackupId>,
    /// Backups of the plan that were left alone, because what is there changed since it was made.
    pub skipped: Vec<BackupId>,
    /// Packs that were removed.
    pub packs: u64,
    /// Their size on storage.
    pub packs_bytes: ByteCount,
    /// Packs to which nobody refers and which are too young to be removed.
    pub packs_waiting: u64,
    /// WAL files that were removed.
    pub logs: u64,
    /// Their size on storage.
    pub logs_bytes: ByteCount,
    /// Events of the journal that were dropped, because what they tell is long gone.
    pub events_dropped: u64,
    /// Temporaries of killed writers that were removed.
    pub temporaries: u64,
    /// What a person should know, such as why packs were left alone.
    pub notes: Vec<String>,
}

/// Carries a plan out, under the cluster's lease.
pub fn apply(ports: &Ports<'_>, plan: &Plan) -> Result<Report, RetentionError> {
    let _ = (ports, plan);
    todo!()
}
