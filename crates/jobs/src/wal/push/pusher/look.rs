//! The thread that looks: at the spool, at the server's notes, and whether it is still wanted. It
//! never touches the repository.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_engine::{LogFile, TargetState};

use super::super::ack::{Ack, FileStamp, Kind};
use super::super::order::{by_need, excess, stale};
use super::super::shed::{PendingGap, WantedBackup, widen};
use super::{LOOK_QUIET, StartBackup, Work};

/// Pause between two looks for new files, soon after something happened.
const LOOK_BUSY: Duration = Duration::from_millis(10);
/// With so many files queued, what is new can wait: to look costs time for each file that waits.
const QUEUE_LONG: usize = 128;
/// How often it is asked whether the pusher is still wanted, and whether the server lives.
const ASK: Duration = Duration::from_secs(1);

impl Work<'_> {
    pub(super) fn look_until_done(
        &self,
        lock: &File,
        wanted: &dyn Fn() -> bool,
        start_backup: &StartBackup<'_>,
    ) -> io::Result<()> {
        let mut backup = WantedBackup::default();
        let clock = self.pusher.clock;
        let (mut active_at, mut asked_at) = (clock.monotonic(), clock.monotonic());
        let mut idle_max = self.pusher.settings.idle;
        loop {
            let busy = self.look()?;
            if let Some(error) = self.board().broken.take() {
                (self.pusher.log)(&format!("cannot write acknowledgements: {error}"));
                return Err(error);
            }
            if self.board().replaced {
                return Ok(());
            }
            let now = clock.monotonic();
            // What is asked of the repository now would only fail again.
            let well = !busy && self.board().failures == 0 && self.cluster.get().is_some();
            if busy || backup.tend(&self.spool, (now, well), start_backup, self.pusher.log) {
                active_at = now;
            }
            let idle = now.saturating_sub(active_at);
            if idle >= idle_max || self.pusher.cancel.is_cancelled() {
                return Ok(());
            }
            if now.saturating_sub(asked_at) >= ASK {
                asked_at = now;
                if !self.spool.is_lock(lock) || !wanted() {
                    return Ok(());
                }
                // Nothing more will come, and the directory should not be held.
                let state = self.pusher.engine.inspect_target(self.pusher.directory);
                if !matches!(state, Ok(TargetState::Running { .. })) {
                    idle_max = idle_max.min(ASK);
                }
            }
            let queued = self.board().queue.len(); // the board must not be held while we wait
            match queued {
                QUEUE_LONG.. => clock.sleep(LOOK_QUIET),
                _ if idle < ASK => (self.pusher.wait)(LOOK_BUSY),
                _ => (self.pusher.wait)(LOOK_QUIET),
            }
        }
    }

    /// Compares the spool with what the server waits for, and queues what is to be pushed. Says
    /// whether anything is queued or being pushed.
    pub(super) fn look(&self) -> io::Result<bool> {
        self.board().settled.clear();
        // In this order: see `stale`.
        let known = self.spool.list()?;
        let mut files = self
            .pusher
            .engine
            .waiting_logs(self.pusher.directory)
            .map_err(|error| io::Error::other(error.to_string()))?;
        by_need(&mut files);
        let waiting: HashSet<LogFile> = files.iter().copied().collect();
        let (acks, notes): (HashSet<_>, HashSet<_>) =
            (known.acks.iter().copied().collect(), known.notes.iter().copied().collect());
        stale(&known.acks, &waiting).into_iter().for_each(|file| self.spool.forget(file));
        stale(&known.notes, &waiting).into_iter().for_each(|file| self.spool.forgive(file));
        let shed = self.shed(&files, &acks)?;
        let now = self.pusher.clock.monotonic();
        let mut board = self.board();
        let board = &mut *board;
        board.gaps = shed || !known.gaps.is_empty();
        board.done.retain(|file| waiting.contains(file));
        board.failed.retain(|file, _| waiting.contains(file));
        for (file, failure) in &mut board.failed {
            if !notes.contains(file) && !board.settled.contains(file) && failure.retry_at > now {
                // A call took the note away: it waits.
                failure.retry_at = now;
                board.rest_until = now;
            }
        }
        let mut queue = VecDeque::new();
        for file in files {
            if board.busy.contains(&file) || board.settled.contains(&file) {
                continue;
            }
            if acks.contains(&file) {
                if board.done.contains(&file) {
                    continue;
                }
                if self.spool.answer(&self.path(file), self.pusher.settings.target).is_some() {
                    board.done.insert(file);
                    continue;
                }
                self.spool.forget(file);
            }
            board.done.remove(&file);
            let failure = board.failed.get(&file);
            if failure.is_none_or(|failure| failure.retry_at <= now) {
                queue.push_back(file);
            }
            // Another server writes the same log: what follows here is not what follows there.
            if failure.is_some_and(|failure| failure.diverged) {
                break;
            }
        }
        board.queue = queue;
        if (!board.queue.is_empty() || board.gaps) && board.rest_until <= now {
            self.changed.notify_all();
        }
        Ok(!board.queue.is_empty() || !board.busy.is_empty() || board.gaps)
    }

    /// Gives up the oldest segments that wait, where there is a limit and they are over it. Says
    /// whether there were such.
    fn shed(&self, files: &[LogFile], acks: &HashSet<LogFile>) -> io::Result<bool> {
        let Some(limit) = self.pusher.settings.backlog_max else { return Ok(false) };
        let waiting: Vec<LogFile> = {
            let board = self.board();
            let open = |f: &&LogFile| !acks.contains(f) && !board.settled.contains(f);
            files.iter().filter(open).copied().collect()
        };
        let first = waiting.iter().find(|file| matches!(file, LogFile::Segment(_)));
        let Some(first) = first else { return Ok(false) };
        // The server may have taken it away at this moment; then the next look decides.
        let Ok(data) = std::fs::metadata(self.path(*first)) else { return Ok(false) };
        let excess = excess(&waiting, data.len(), limit);
        if excess.is_empty() {
            return Ok(false);
        }
        let identity = self.pusher.engine.directory_identity(self.pusher.directory);
        let system = identity.map_err(|error| io::Error::other(error.to_string()))?.system_id;
        let how = (system, self.pusher.clock.now(), "pg_wal was over wal.backlog-max");
        {
            let _only = self.gaps_changing.lock().unwrap_or_else(PoisonError::into_inner);
            for gap in widen(&self.spool.pending_gaps()?, &excess, how) {
                self.spool.leave_gap(&gap)?;
                let PendingGap { first, last, reason, .. } = &gap;
                (self.pusher.log)(&format!("given up: {first} to {last}: {reason}"));
            }
        }
        self.board().gaps = true;
        for file in excess {
            let Ok(data) = std::fs::symlink_metadata(self.path(file)) else { continue };
            self.spool.acknowledge(&Ack {
                kind: Kind::GivenUp,
                file: file.to_string(),
                system: system.to_string(),
                target: self.pusher.settings.target,
                stamp: FileStamp::of(&data),
                digest: "-".to_owned(),
            })?;
            self.spool.forgive(file);
            let mut board = self.board();
            board.settled.insert(file);
            board.done.insert(file);
        }
        Ok(true)
    }
}
