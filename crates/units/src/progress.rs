//! Where a job says how far it is, and how it is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a job reports how far it is. Listeners: the terminal, JSON lines, tests.
/// Calls are cheap, never fail and never block.
pub trait Progress: Send + Sync {
    /// A new stage begins; `total` in the unit in which [`Progress::advance`] will count.
    fn stage(&self, stage: Stage, total: Option<Work>);
    /// This much more of the current stage is done.
    fn advance(&self, done: Work);
    /// Something that a person should know although the job goes on.
    fn warn(&self, note: &Note);
}

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Proving that archiving works before a backup copies anything.
    CheckingArchive,
    /// Waiting for the server to start or stop its backup mode.
    ServerBackupMode,
    /// Reading the data directory.
    Copying,
    /// Waiting until the WAL that a backup needs is in the repository.
    WaitingForWal,
    /// Writing restored files.
    Restoring,
    /// Making written files durable.
    Syncing,
    /// Reading the repository back.
    Verifying,
    /// Removing what nobody refers to.
    Collecting,
    /// Waiting for a server to recover.
    Recovering,
}

impl Stage {
    /// The stage in words for a progress line.
    pub fn words(self) -> &'static str {
        match self {
            Self::CheckingArchive => "checking that WAL arrives",
            Self::ServerBackupMode => "waiting for the server's checkpoint",
            Self::Copying => "copying",
            Self::WaitingForWal => "waiting for the last WAL",
            Self::Restoring => "restoring",
            Self::Syncing => "making it durable",
            Self::Verifying => "verifying",
            Self::Collecting => "collecting",
            Self::Recovering => "replaying WAL",
        }
    }
}

/// Work is counted in one unit per stage, said in the type and not in a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Bytes of the database or of storage, as the stage says.
    Bytes(u64),
    /// Files or objects.
    Files(u64),
    /// WAL segments.
    Segments(u64),
}

impl Work {
    /// The bare number, in the unit of the variant.
    pub fn amount(self) -> u64 {
        match self {
            Self::Bytes(n) | Self::Files(n) | Self::Segments(n) => n,
        }
    }
}

/// A warning: the job goes on, a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// One sentence: what and where.
    pub message: String,
}

impl Note {
    /// A note with this sentence.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// A listener that hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: Stage, _: Option<Work>) {}
    fn advance(&self, _: Work) {}
    fn warn(&self, _: &Note) {}
}

/// Tells a running job to stop at the next safe point. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the job to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
