//! Plans and writes a restore.
//!
//! The plan decides everything from the inventory: backup, WAL, timelines, landing. Applying it
//! writes files, one barrier, recovery settings, and the control file last: until that is there,
//! the server refuses to start on the directory.

mod compare;
mod delta;
mod error;
mod files;
mod mark;
mod path;
mod place;
mod plan;
mod reading;
mod sweep;
mod tablespaces;
mod target;
mod tasks;
mod write;

use std::path::PathBuf;

use lifeboat_engine::{Lsn, RecoveryMode, TimelineId};
use lifeboat_repo::BackupId;
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use crate::inventory::SegmentRange;
use crate::wal::LeftTimeline;

pub use delta::DeltaPlan;
pub use error::RestoreError;
pub use place::SET_ASIDE;
pub use plan::plan;
pub use sweep::Differences;
pub use write::apply;

/// Lies in every directory that a restore is writing, until it is done.
pub const RESTORING_MARK: &str = "lifeboat.restoring";

/// What to restore, as it was asked for.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The data directory to be made.
    pub into: PathBuf,
    /// The directory may be a data directory of the same system: what is right in it stays.
    pub delta: bool,
    /// Which moment.
    pub target: Target,
    /// Along which timeline.
    pub timeline: TimelineChoice,
    /// Tablespaces that go elsewhere: where they were → where they are to be.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// Threads that read and write.
    pub jobs: usize,
    /// A copy, the successor, or a standby.
    pub mode: RecoveryMode,
    /// Fetches one WAL file (`%f`, `%p`).
    pub restore_command: String,
    /// Runs when recovery is over.
    pub recovery_end_command: Option<String>,
    /// Archives one segment, for the successor.
    pub archive_command: Option<String>,
    /// User and group for files that root would own otherwise: no server runs as root. Used only
    /// when this process is root.
    pub owner_instead_of_root: Option<(u32, u32)>,
}

/// Which moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The end of the WAL.
    Latest,
    /// This backup's own consistent end.
    Backup(BackupId),
    /// The last commit at or before this moment.
    Time(Timestamp),
    /// This position.
    Lsn(Lsn),
    /// The end of this transaction: its whole number, or the lower 32 bits of it alone.
    Xid(u64),
    /// A named restore point.
    Name(String),
}

/// Along which timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineChoice {
    /// The newest that descends from the backup's.
    Latest,
    /// The one the backup was taken on.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What a restore will do. Printed as it is by `--dry-run`.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    /// The backup that is restored.
    pub backup: BackupId,
    /// Why this one.
    pub because: String,
    /// Where it goes.
    pub into: PathBuf,
    /// What was asked for.
    pub target: Target,
    /// Timelines that recovery passes, oldest first.
    pub timelines: Vec<TimelineId>,
    /// WAL that will be replayed.
    pub wal: Vec<SegmentRange>,
    /// Where recovery will land, as far as it is known beforehand, in words.
    pub landing: String,
    /// Position at or before which recovery ends, where it is known beforehand.
    pub landing_lsn: Option<Lsn>,
    /// The last commit time that is known to lie in the WAL, for targets by time and `latest`.
    pub last_commit: Option<Timestamp>,
    /// Size of the restored database, in bytes.
    pub size_bytes: ByteCount,
    /// Files of the restored database.
    pub files: u64,
    /// Tablespaces: where they were, where they will be.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    /// What a person should know, such as damaged pages in the backup.
    pub notes: Vec<String>,
    /// What is done to the directory that is there; `None` when everything is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaPlan>,
    /// What the server is told to recover to. Differs from what was asked for where the end of
    /// the WAL is the same moment.
    #[serde(skip)]
    pub(crate) recover_to: lifeboat_engine::RecoveryTarget,
    /// Recovery must see nothing that is archived after the WAL of this plan: the moment that was
    /// asked for is where it ends.
    #[serde(skip)]
    pub(crate) ends_with_wal: bool,
    /// How far the last segment of the plan was there, if it was not finished: its end is what was
    /// received last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail_to: Option<Lsn>,
    /// Where recovery leaves each timeline that it passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<LeftTimeline>,
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// What was planned.
    pub plan: RestorePlan,
    /// Bytes written, holes left out.
    pub written_bytes: ByteCount,
    /// Bytes of pages and maps read from the repository.
    pub fetched_bytes: ByteCount,
    /// What was found in the directory that was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaReport>,
    /// Seconds it took, without starting the server.
    pub seconds: f64,
}

/// What a delta found and did.
#[derive(Debug, Clone, Serialize)]
pub struct DeltaReport {
    /// Local pages that were compared.
    pub pages_compared: u64,
    /// Pages that were written.
    pub pages_written: u64,
    /// Files that were missing.
    pub files_missing: u64,
    /// Files and links that did not belong and were removed.
    pub files_removed: u64,
    /// Directories that did not belong and were removed.
    pub directories_removed: u64,
    /// WAL files that were moved to `lifeboat.set-aside`.
    pub files_set_aside: u64,
}

/// Words for a mode, in notes.
fn mode_note(mode: RecoveryMode) -> Option<&'static str> {
    match mode {
        RecoveryMode::Copy => {
            Some("the restored server is a copy: it archives nothing, and waits for no standby")
        }
        RecoveryMode::Successor => None,
        RecoveryMode::Standby => Some("the restored server is a standby: it keeps recovering"),
    }
}
