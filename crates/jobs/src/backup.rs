//! Takes a backup.

use std::time::Duration;

use lifeboat_engine::{Lsn, Origin, TimelineId};
use lifeboat_repo::{BackupId, Compression, Totals};
use lifeboat_units::Timestamp;
use serde::Serialize;

use crate::facts::DamagedPage;
use crate::ports::Ports;

/// How to take a backup.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Threads that read, compare, compress and seal.
    pub jobs: usize,
    /// How to compress.
    pub compression: Compression,
    /// A note by the operator.
    pub note: Option<String>,
    /// How long to wait for a WAL segment to arrive before giving up.
    pub archive_timeout: Duration,
}

/// What was backed up.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The backup.
    pub id: BackupId,
    /// The backup it was compared with; `None` for a first one.
    pub compared_with: Option<BackupId>,
    /// Timeline of the server.
    pub timeline: TimelineId,
    /// Replay begins here.
    pub start_lsn: Lsn,
    /// Consistent from here on.
    pub stop_lsn: Lsn,
    /// When it began.
    pub began_at: Timestamp,
    /// When all of it was stored.
    pub ended_at: Timestamp,
    /// Sums.
    pub totals: Totals,
    /// How many pages were damaged in the data directory.
    pub damaged_pages: u64,
    /// The damaged pages, at most the first thousand.
    pub damage: Vec<DamagedPage>,
}
