//! What WAL is there, and which moments it reaches.

use lifeboat_engine::{Lsn, SegmentName, SegmentNo, SystemId, TimelineId};
use lifeboat_repo::BackupId;
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use crate::inventory::{Inventory, InventoryError, SegmentRange, Unreadable};
use crate::ports::Ports;

/// The archived WAL of a cluster, and what it reaches.
#[derive(Debug, Clone, Serialize)]
pub struct WalReport {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// By system; more than one after an upgrade.
    pub systems: Vec<SystemWal>,
    /// What can be restored to: from a backup's end to the last segment that follows without a
    /// gap.
    pub windows: Vec<Window>,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// The archived WAL of one system.
#[derive(Debug, Clone, Serialize)]
pub struct SystemWal {
    /// The system.
    pub system: SystemId,
    /// Its timelines, oldest first.
    pub timelines: Vec<TimelineWal>,
}

/// The archived WAL of one timeline.
#[derive(Debug, Clone, Serialize)]
pub struct TimelineWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// Size of its segments.
    pub segment_bytes: ByteCount,
    /// How many whole segments are there.
    pub segments: u64,
    /// Their size on storage.
    pub stored_bytes: ByteCount,
    /// Consecutive segments.
    pub ranges: Vec<SegmentRange>,
    /// What is missing between two ranges.
    pub gaps: Vec<Gap>,
    /// Partial segments: where a timeline was left.
    pub partials: Vec<String>,
    /// Whether its history file is there.
    pub history: HistoryState,
    /// From which timeline it descends directly, and where it left it.
    pub parent: Option<(TimelineId, Lsn)>,
    /// Last commit that begins in its newest segment, by the server's clock.
    pub last_commit: Option<Timestamp>,
    /// When its newest segment was archived, by lifeboat's clock.
    pub archived_at: Option<Timestamp>,
}

/// Whether the history file of a timeline is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryState {
    /// The first timeline has none.
    NotNeeded,
    /// It is there.
    Present,
    /// It is not: recovery would end on an older timeline.
    Missing,
}

/// Segments that are missing between two that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// First segment that is missing.
    pub first: SegmentName,
    /// Last segment that is missing.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
}

/// A stretch of the past that can be restored to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The system.
    pub system: SystemId,
    /// The timeline along which recovery goes.
    pub timeline: TimelineId,
    /// The oldest backup from which it is reached.
    pub backup: BackupId,
    /// How many backups lie in it.
    pub backups: u64,
    /// Its first position: the backup's consistent end.
    pub from: Lsn,
    /// That moment, by the server's clock.
    pub from_at: Timestamp,
    /// Its last position: the end of the last segment that follows without a gap.
    pub to: Lsn,
    /// Last commit that is known there, by the server's clock.
    pub to_at: Option<Timestamp>,
}

/// Says what WAL of a cluster is there, and which moments it reaches.
pub fn list(ports: &Ports<'_>) -> Result<WalReport, InventoryError> {
    let _ = ports;
    todo!()
}
