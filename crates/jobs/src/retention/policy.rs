//! What is to be kept, and why.

use std::collections::BTreeSet;
use std::time::Duration;

use lifeboat_repo::BackupId;
use serde::Serialize;

/// What is to be kept. A backup that any rule keeps stays; without a rule all stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The newest so many good backups, at least one.
    pub keep_count: Option<u32>,
    /// Every moment of so long a past.
    pub keep_window: Option<Duration>,
    /// Backups that stay whatever the rules say.
    pub holds: BTreeSet<BackupId>,
    /// Packs that no backup ever listed are left alone for so long: they may belong to a backup
    /// that is being taken.
    pub grace: Duration,
}

impl Default for Policy {
    /// Keeps all; a grace period of a day.
    fn default() -> Self {
        Self {
            keep_count: None,
            keep_window: None,
            holds: BTreeSet::new(),
            grace: Duration::from_secs(24 * 3600),
        }
    }
}

impl Policy {
    /// Whether any rule says what may go.
    pub fn has_rule(&self) -> bool {
        self.keep_count.is_some() || self.keep_window.is_some()
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepReason {
    /// No rule says what may go.
    NoRule,
    /// Held by the operator.
    Held,
    /// Somebody reads it.
    Read,
    /// One of the newest that are to be kept.
    Count,
    /// It ended within the window.
    Window,
    /// The window's first moments are reached from it.
    WindowStart,
    /// The newest good one.
    LastGood,
    /// It has damaged pages: it does not count, and takes no other's place.
    Damaged,
}

impl KeepReason {
    /// The reason in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoRule => "no rule says what may go",
            Self::Held => "held",
            Self::Read => "it is being read",
            Self::Count => "one of the newest",
            Self::Window => "within the window",
            Self::WindowStart => "the window's first moments are reached from it",
            Self::LastGood => "the newest good one",
            Self::Damaged => "it has damaged pages and does not count",
        }
    }
}

/// Why a backup goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveReason {
    /// Enough newer good ones are there.
    Count,
    /// It ended before the window, and a newer one reaches the window's first moments.
    Window,
    /// Both rules let it go.
    CountAndWindow,
}

impl RemoveReason {
    /// The reason in words; goes into the journal.
    pub fn words(self) -> &'static str {
        match self {
            Self::Count => "enough newer backups are kept",
            Self::Window => "it lies before the window that is kept",
            Self::CountAndWindow => "enough newer backups are kept, and it lies before the window",
        }
    }
}
