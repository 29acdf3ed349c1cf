//! What a job writes into a manifest, or beside an archived log file.

use lifeboat_engine::{
    Ancestry, ClusterIdentity, Directory, LogFacts, Lsn, SegmentSize, SystemId, Tablespace,
    TimelineId,
};
use std::collections::BTreeMap;

use lifeboat_repo::{BackupId, Manifest, RepoError};
use lifeboat_units::Timestamp;
use serde::{Deserialize, Serialize};

/// The facts of a backup, in its manifest. Specified in docs/format/manifest.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupFacts {
    /// The engine's name, such as `postgresql`.
    pub engine: String,
    /// The server's version in its own words.
    pub server_version: String,
    /// Whose data these are.
    pub identity: ClusterIdentity,
    /// Timeline on which the backup was taken.
    pub timeline: TimelineId,
    /// Replay begins here.
    pub start_lsn: Lsn,
    /// The backup is consistent from here on.
    pub stop_lsn: Lsn,
    /// When the server entered backup mode, by its own clock.
    pub started_at: Timestamp,
    /// When the server left backup mode, by its own clock.
    pub stopped_at: Timestamp,
    /// A note by the operator.
    pub note: Option<String>,
    /// Directories to be made.
    pub directories: Vec<Directory>,
    /// Tablespaces outside of the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Files that were not copied from the data directory, such as `backup_label`.
    pub generated: Vec<StoredFile>,
    /// The control file; written last by a restore.
    pub control_file: StoredFile,
    /// Pages that were damaged when they were read, at most [`DAMAGE_LISTED_MAX`].
    pub damage: Vec<DamagedPage>,
    /// How many pages were damaged.
    pub damaged_pages: u64,
    /// Whether every page of the backup was seen to be right, by this backup or by the one whose
    /// page it is. Who finds the same page again need not check it again. Backups that were taken
    /// before this was noted do not say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proven: bool,
    /// How the backup found what had changed. Backups that were taken before this was noted do
    /// not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
}

/// How a backup found what had changed since an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The way taken.
    pub way: Way,
    /// Why this way, as the end of a sentence.
    pub because: String,
    /// The server told what changed from here on; only for [`Way::Hints`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_lsn: Option<Lsn>,
    /// … up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_lsn: Option<Lsn>,
    /// Which share of the unchanged parts the sweep read: counts up with every backup that has
    /// one, and is handed on by those that read everything.
    pub sweep: u64,
    /// How many sweeps it takes until everything was read; only for [`Way::Hints`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep_of: Option<u32>,
    /// Pages that the sweep compared although nothing said that they had changed.
    pub swept_pages: u64,
    /// Of those, pages that differed in what needs no WAL (hint bits): no fault.
    pub hint_only_pages: u64,
    /// Pages that differed although nothing said so, at most [`DAMAGE_LISTED_MAX`]; pages that an
    /// earlier backup found lost stay among them until they are something else.
    pub faults: Vec<DamagedPage>,
    /// How many such pages there were.
    pub faulty_pages: u64,
    /// How many of them were zeros: no backup from this one on has them as they were.
    #[serde(default, skip_serializing_if = "is_none")]
    pub lost_pages: u64,
    /// For every backup that stored pages of this one, itself among them: where it ended. A page
    /// that says it changed after that is not the page that was stored.
    pub stops: BTreeMap<BackupId, Lsn>,
}

/// How a backup finds what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// There was nothing to compare with: everything was read and stored.
    First,
    /// Everything was read and compared by hashes.
    Hashes,
    /// Only what the server said had changed was read, and the sweep's share.
    Hints,
}

fn is_none(number: &u64) -> bool {
    *number == 0
}

/// Damaged pages beyond this number are counted and not listed.
pub const DAMAGE_LISTED_MAX: usize = 1000;

impl BackupFacts {
    /// Whether a page of this backup that a server with `identity` still has is known to be right.
    pub fn proves(&self, identity: &ClusterIdentity) -> bool {
        // Before checksums were switched on, nothing said what a page was to be.
        self.proven && self.identity.checksums == identity.checksums
    }

    /// How many pages are known to be lost.
    pub fn lost_pages(&self) -> u64 {
        self.reading.as_ref().map_or(0, |reading| reading.lost_pages)
    }

    /// Whether no page is known to be damaged or lost.
    pub fn is_good(&self) -> bool {
        self.damaged_pages == 0 && self.lost_pages() == 0
    }

    /// The facts in a manifest.
    pub fn of(manifest: &Manifest) -> Result<Self, RepoError> {
        serde_json::from_value(manifest.facts.clone())
            .map_err(|e| RepoError::damaged(format!("manifest {}", manifest.id), e.to_string()))
    }
}

/// A small file that lies in the manifest itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredFile {
    /// Relative to the data directory.
    pub path: String,
    /// Content, hexadecimal.
    pub hex: String,
}

impl StoredFile {
    /// A file of these bytes.
    pub fn new(path: &str, bytes: &[u8]) -> Self {
        use std::fmt::Write;
        let mut hex = String::with_capacity(bytes.len() * 2);
        bytes.iter().for_each(|byte| {
            let _ = write!(hex, "{byte:02x}");
        });
        Self { path: path.to_owned(), hex }
    }

    /// The content; `None` when the digits are none.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        if !self.hex.len().is_multiple_of(2) || !self.hex.is_ascii() {
            return None;
        }
        let digit = |i| u8::from_str_radix(&self.hex[i..i + 2], 16).ok();
        (0..self.hex.len()).step_by(2).map(digit).collect()
    }
}

/// A page that was damaged when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedPage {
    /// File, relative to the data directory.
    pub path: String,
    /// Number of the page within the file.
    pub page: u32,
    /// What is wrong, in words.
    pub what: String,
}

/// What is stored beside an archived segment.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedFacts {
    /// System identifier in the segment; `None` for files that carry none (`.history`).
    pub system: Option<SystemId>,
    /// Segment size; `None` for files that are no segment.
    pub segment: Option<SegmentSize>,
    /// What the segment tells a planner.
    pub log: Option<LogFacts>,
    /// When the server last wrote to the file, as the file system tells it. What ended after it
    /// lies in a later segment, however late this one was archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<Timestamp>,
    /// The past that a history file tells, so that a host without the private key knows which
    /// timeline descends from which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestry: Option<Ancestry>,
}
