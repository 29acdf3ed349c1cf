//! What the threads of a pusher share.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::time::Duration;

use lifeboat_engine::LogFile;

/// What the threads share.
#[derive(Default)]
pub(super) struct Board {
    /// To be pushed, first in need first.
    pub(super) queue: VecDeque<LogFile>,
    /// Being pushed.
    pub(super) busy: HashSet<LogFile>,
    /// Turns under way: each stores only once all before it are over.
    pub(super) turns: BTreeSet<u64>,
    /// How many turns there were.
    pub(super) turn_count: u64,
    /// Acknowledged, and the acknowledgement lies in the spool.
    pub(super) done: HashSet<LogFile>,
    /// What was settled since the looking thread began its look.
    pub(super) settled: HashSet<LogFile>,
    /// Files that could not be stored, and when each is tried again.
    pub(super) failed: HashMap<LogFile, Failure>,
    /// Until then nothing is pushed: the repository failed.
    pub(super) rest_until: Duration,
    /// How often in a row it failed.
    pub(super) failures: u32,
    /// Whether gaps lie in the spool that are to be recorded before anything is pushed.
    pub(super) gaps: bool,
    /// Whether a thread is recording them.
    pub(super) recording: bool,
    /// Why the spool cannot be written to; the pusher then ends.
    pub(super) broken: Option<io::Error>,
    /// Whether all threads are to end.
    pub(super) stop: bool,
}

impl Board {
    /// Begins the next turn.
    pub(super) fn turn(&mut self, files: Vec<LogFile>) -> Turn {
        self.turn_count += 1;
        self.turns.insert(self.turn_count);
        Turn { number: self.turn_count, files }
    }
}

/// A file that could not be stored.
pub(super) struct Failure {
    /// How often in a row.
    pub(super) count: u32,
    /// When it is tried again, by the monotonic clock.
    pub(super) retry_at: Duration,
    /// It is archived with other content.
    pub(super) diverged: bool,
}

/// What one thread does next. Turns are numbered in the order of need.
pub(super) struct Turn {
    pub(super) number: u64,
    /// None at all when gaps are to be recorded.
    pub(super) files: Vec<LogFile>,
}
