//! Reads everything back and checks it.

pub mod error;
pub mod report;

pub use error::VerifyError;
pub use report::{Counts, Finding, FindingKind, VerifyReport};

use lifeboat_repo::BackupId;

use crate::ports::Ports;

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifySettings {
    /// These backups and the WAL that makes them consistent; `None` for all that is there.
    pub backups: Option<Vec<BackupId>>,
    /// Threads that read and check.
    pub jobs: usize,
}

/// Reads back and checks everything that is referred to: seals, digests, every page's hash.
///
/// Damage is a finding in the report. An error means that it could not be found out.
pub fn run(ports: &Ports<'_>, settings: &VerifySettings) -> Result<VerifyReport, VerifyError> {
    let _ = (ports, settings);
    todo!()
}
