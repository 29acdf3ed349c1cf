//! Decides what goes and what stays, from facts alone: no clock, no I/O.

use lifeboat_engine::{SegmentName, SystemId, TimelineId};
use lifeboat_repo::BackupId;
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use super::policy::{KeepReason, Policy, RemoveReason};
use crate::inventory::Inventory;

/// What retention would do and why. Printed as it is by `--dry-run`; the only input of
/// [`super::apply()`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The rules it follows.
    pub policy: Policy,
    /// The moment it was made for, by lifeboat's clock.
    pub at: Timestamp,
    /// Backups that stay, oldest first.
    pub keep: Vec<Kept>,
    /// Backups that go, oldest first.
    pub remove: Vec<Removed>,
    /// WAL that goes.
    pub logs: Vec<LogRemoval>,
    /// Why less goes than the rules allow.
    pub notes: Vec<String>,
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The backup.
    pub backup: BackupId,
    /// Why; at least one reason.
    pub reasons: Vec<KeepReason>,
}

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The backup.
    pub backup: BackupId,
    /// Why.
    pub reason: RemoveReason,
}

/// WAL of one timeline that goes: every file of a segment before a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogRemoval {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment that would be kept.
    pub before: SegmentName,
    /// How many files go.
    pub files: u64,
    /// Their size on storage.
    pub stored_bytes: ByteCount,
}

impl Plan {
    /// Whether it would change nothing but waste.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.logs.is_empty()
    }
}

/// Decides what goes and what stays.
pub fn plan(inventory: &Inventory, policy: &Policy, now: Timestamp) -> Plan {
    let _ = (inventory, policy, now);
    todo!()
}
