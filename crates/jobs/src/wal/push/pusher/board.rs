//! What the threads of a pusher share.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
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
    /// Turns under way: each is finished only once all before it are over.
    pub(super) turns: BTreeMap<u64, Stage>,
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
    /// Whether another repository lies at the place of the one that was opened: the next pusher
    /// opens it with the keys of its time.
    pub(super) replaced: bool,
    /// Whether all threads are to end.
    pub(super) stop: bool,
}

impl Board {
    /// Begins the next turn.
    pub(super) fn turn(&mut self, files: Vec<LogFile>) -> Turn {
        self.turn_count += 1;
        self.turns.insert(self.turn_count, Stage::Working);
        Turn { number: self.turn_count, files }
    }

    /// How many turns wait for those before them.
    pub(super) fn parked(&self) -> usize {
        self.turns.values().filter(|stage| **stage == Stage::Parked).count()
    }

    /// The turn that nothing stands before, when it waits to be finished; its caller finishes it.
    pub(super) fn due(&mut self) -> Option<u64> {
        let mut first = self.turns.first_entry().filter(|first| *first.get() == Stage::Parked)?;
        first.insert(Stage::Working);
        Some(*first.key())
    }
}

/// How far a turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A thread has it.
    Working,
    /// It is prepared, and waits for the turns before it.
    Parked,
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
