//! Archives and fetches WAL.

use std::path::Path;

use lifeboat_engine::{SystemId, TimelineId};
use lifeboat_repo::Compression;
use serde::{Deserialize, Serialize};

use crate::inventory::SegmentRange;
use crate::ports::Ports;

/// Lies in the root of a restored data directory until its recovery is over: tells `wal get`
/// what recovery must be able to reach.
pub const RECOVERY_FILE: &str = "lifeboat.recovery";
/// Lies beside it, mode 0600: the unlocked keys, so that recovery needs nobody to type.
pub const RECOVERY_KEY_FILE: &str = "lifeboat.recovery.key";

/// What recovery of a restored directory needs, written by a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryState {
    /// Version of this file's format.
    pub version: u32,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Whose WAL it is.
    pub system: SystemId,
    /// The segments that recovery will ask for before it can be at its end, in order. One of
    /// them that cannot be had is a failure, never the end of the archive.
    pub needed: Vec<SegmentRange>,
    /// Timelines whose history files must be found.
    pub histories: Vec<TimelineId>,
    /// A standby: keeps waiting instead of failing.
    pub standby: bool,
}
