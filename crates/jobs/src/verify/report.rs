//! What verification found.

use lifeboat_repo::BackupId;
use lifeboat_units::ByteCount;
use serde::Serialize;

/// What was read, and what is wrong with it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// What was read.
    pub counts: Counts,
    /// What is wrong, each with what it touches.
    pub findings: Vec<Finding>,
    /// What a person should know and what harms nothing: waste, gaps that were recorded, names
    /// that lifeboat does not use.
    pub notes: Vec<String>,
    /// Seconds it took.
    pub seconds: f64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Backups whose manifest was read.
    pub backups: u64,
    /// Files, in all these backups together.
    pub files: u64,
    /// Pages whose hash was compared, each place on storage once.
    pub pages: u64,
    /// Extents that were opened.
    pub extents: u64,
    /// Chunks of file tables and parts of page maps that were opened.
    pub index_boxes: u64,
    /// Packs that are referred to.
    pub packs: u64,
    /// Archived WAL files that were read.
    pub segments: u64,
    /// Events of the journal.
    pub events: u64,
    /// Bytes read from storage.
    pub read_bytes: ByteCount,
    /// Packs to which no backup refers: waste that `expire` removes.
    pub waste_packs: u64,
    /// Their size.
    pub waste_bytes: ByteCount,
}

/// What is wrong with one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of damage.
    pub kind: FindingKind,
    /// The object, such as `data/20261122T231501Z-1a2b3c4d/000017 at 8`.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Backups that cannot be restored whole because of it.
    pub backups: Vec<BackupId>,
    /// The first files that it touches.
    pub files: Vec<String>,
    /// How many files it touches.
    pub files_count: u64,
    /// What can no longer be reached, in words.
    pub reach: Option<String>,
}

/// Kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A backup was listed once, was never removed, and is gone.
    Vanished,
    /// A manifest cannot be read, or contradicts what it lists.
    Manifest,
    /// A data key does not open.
    DataKey,
    /// A pack is missing, or its table of contents is wrong.
    Pack,
    /// A chunk of a file table or a part of a page map is wrong.
    Index,
    /// An extent cannot be opened.
    Extent,
    /// A page is not the one that was backed up.
    Page,
    /// An archived WAL file is wrong.
    Wal,
    /// WAL that a backup needs, or that lies between what is there, is missing.
    WalMissing,
    /// An event of the journal cannot be read.
    Journal,
}
