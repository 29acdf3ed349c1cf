//! The threads that push: take what is queued, store it, and note on the board what became of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lifeboat_engine::LogFile;
use lifeboat_repo::{Cluster, RepoError};
use lifeboat_units::Silent;

use super::super::PushError;
use super::super::batch::{Desk, Prepared, Stored, Storer};
use super::super::note::ErrorNote;
use super::super::order::{need, pause, share};
use super::super::shed::GapError;
use super::board::{Failure, Stage, Turn};
use super::{LOOK_QUIET, Work};
use crate::ports::Ports;

/// What a failure is due to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Repository,
    /// Another repository lies at its place.
    Replaced,
    /// Other content is archived under the file's name.
    Diverged,
    /// This file, for another reason.
    File,
}

/// Turns that are prepared and wait for those before them, by number.
///
/// So a thread goes on with the next turn instead of waiting for another thread's, and still
/// nothing is archived before what comes before it.
#[derive(Default)]
pub(super) struct Parked<'a>(Mutex<BTreeMap<u64, (Turn, Prepared<'a>)>>);

impl<'a> Parked<'a> {
    fn put(&self, turn: Turn, prepared: Prepared<'a>) {
        let mut parked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parked.insert(turn.number, (turn, prepared));
    }

    fn take(&self, number: u64) -> Option<(Turn, Prepared<'a>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}

impl Work<'_> {
    pub(super) fn push_until_stopped<'s>(&'s self, parked: &Parked<'s>) {
        let mut desk = Desk::new(self.pusher.settings.push);
        while self.step(parked, &mut desk).is_some() || self.wait_for_work() {}
    }

    /// Waits until there may be something to do; false when all threads are to end.
    fn wait_for_work(&self) -> bool {
        let board = self.board();
        let go_on = !board.stop;
        if go_on {
            // A lost wake-up costs no more than this.
            drop(self.changed.wait_timeout(board, LOOK_QUIET));
        }
        go_on
    }

    /// Finishes a turn that is due, or takes the next. Says how many files were taken; `None` when
    /// there is nothing to do.
    pub(super) fn step<'s>(&'s self, parked: &Parked<'s>, desk: &mut Desk) -> Option<usize> {
        let due = self.board().due();
        if let Some((turn, prepared)) = due.and_then(|number| parked.take(number)) {
            self.finish(&turn, Some(prepared), desk);
            return Some(0);
        }
        let turn = self.take()?;
        let taken = turn.files.len();
        match self.prepare(&turn, desk) {
            Some(prepared) if !self.is_first(&turn) => {
                let number = turn.number;
                parked.put(turn, prepared);
                self.board().turns.insert(number, Stage::Parked);
            }
            prepared => self.finish(&turn, prepared, desk),
        }
        Some(taken)
    }

    /// Takes the next files; `None` when there are none, or the repository rests. No files at all
    /// when gaps are to be recorded first.
    fn take(&self) -> Option<Turn> {
        let mut board = self.board();
        let idle = board.queue.is_empty() && !board.gaps;
        let jobs = self.pusher.settings.jobs.max(1);
        if idle || board.stop || board.recording || board.parked() >= jobs {
            return None;
        }
        if board.rest_until > self.pusher.clock.monotonic() {
            return None;
        }
        if board.gaps {
            board.recording = true;
            return Some(board.turn(Vec::new()));
        }
        // After a failure one file finds out whether the repository is back.
        let count = match board.failures {
            0 => share(board.queue.len(), jobs),
            _ => 1,
        };
        let count = count.min(board.queue.len());
        let files: Vec<_> = board.queue.drain(..count).collect();
        board.busy.extend(&files);
        Some(board.turn(files))
    }

    fn is_first(&self, turn: &Turn) -> bool {
        self.board().turns.first_key_value().is_none_or(|(first, _)| *first == turn.number)
    }

    /// Does of a turn what may be done before those before it are over; `None` where that is all.
    fn prepare<'s>(&'s self, turn: &Turn, desk: &mut Desk) -> Option<Prepared<'s>> {
        let files = &turn.files;
        match self.connected() {
            Ok(cluster) if files.is_empty() => self.record_gaps(cluster),
            Err(note) if files.is_empty() => self.gaps_failed(&note),
            Ok(cluster) => return Some(self.storer(cluster).prepare(files, desk)),
            Err(note) => {
                files.iter().for_each(|file| self.fail(*file, &note, Fault::Repository));
            }
        }
        None
    }

    /// Ends a turn that is the first, and stores what was prepared if it may.
    fn finish<'s>(&'s self, turn: &Turn, prepared: Option<Prepared<'s>>, desk: &mut Desk) {
        if let (Some(prepared), Some(cluster)) = (prepared, self.cluster.get())
            && self.may_store(turn)
        {
            let stored = self.storer(cluster).finish(&turn.files, prepared, desk);
            stored.into_iter().for_each(|stored| self.settle(stored));
        }
        let mut board = self.board();
        board.busy.retain(|file| !turn.files.contains(file));
        board.turns.remove(&turn.number);
        drop(board);
        self.changed.notify_all();
    }

    /// Not where a file before it is archived with other content: another server writes the same
    /// log, and whatever follows here is not what follows there. Not while the repository rests:
    /// one file will find out whether it is back.
    fn may_store(&self, turn: &Turn) -> bool {
        let Some(first) = turn.files.first().map(|file| need(*file)) else { return true };
        let board = self.board();
        let mut diverged = board.failed.iter().filter(|(_, failure)| failure.diverged);
        !board.gaps
            && board.rest_until <= self.pusher.clock.monotonic()
            && !diverged.any(|(file, _)| need(*file) < first)
    }

    fn storer<'s>(&'s self, cluster: &'s Cluster) -> Storer<'s> {
        Storer {
            ports: Ports {
                cluster,
                engine: self.pusher.engine,
                clock: self.pusher.clock,
                progress: &Silent,
                cancel: self.pusher.cancel,
            },
            directory: self.pusher.directory,
            target: self.pusher.settings.target,
            admitted: &self.admitted,
        }
    }

    fn record_gaps(&self, cluster: &Cluster) {
        match self.spool.record_gaps(cluster, &self.gaps_changing) {
            Ok(left) => {
                let mut board = self.board();
                (board.gaps, board.recording, board.failures) = (left, false, 0);
            }
            Err(GapError::Repo(error)) => self.gaps_failed(&ErrorNote::of(&error)),
            Err(GapError::Spool(error)) => {
                let mut board = self.board();
                board.recording = false;
                board.broken = Some(error);
            }
        }
    }

    /// The repository cannot be reached: nothing is pushed past a gap that is not recorded, and
    /// the call that waits for the first file is told.
    fn gaps_failed(&self, note: &ErrorNote) {
        let first = self.board().queue.pop_front();
        if let Some(file) = first {
            self.fail(file, note, Fault::File);
        }
        let now = self.pusher.clock.monotonic();
        let mut board = self.board();
        board.recording = false;
        board.failures += 1;
        board.rest_until = now.saturating_add(pause(board.failures));
    }

    /// The cluster, opened by the first thread that needs it.
    fn connected(&self) -> Result<&Cluster, ErrorNote> {
        if let Some(cluster) = self.cluster.get() {
            return Ok(cluster);
        }
        let _one = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = self.cluster.get() {
            return Ok(cluster);
        }
        let cluster = (self.pusher.connect)()?;
        Ok(self.cluster.get_or_init(|| cluster))
    }

    fn settle(&self, (file, outcome): Stored) {
        let ack = match outcome {
            Ok(ack) => ack,
            Err(error) => {
                let fault = match &error {
                    PushError::Repo { source: RepoError::ForeignKey { .. }, .. } => Fault::Replaced,
                    PushError::Repo { .. } => Fault::Repository,
                    PushError::Diverged { .. } => Fault::Diverged,
                    _ => Fault::File,
                };
                return self.fail(file, &ErrorNote::of(&error), fault);
            }
        };
        let written = self.spool.acknowledge(&ack);
        self.spool.forgive(file);
        let mut board = self.board();
        board.busy.remove(&file);
        match written {
            Ok(()) => {
                board.settled.insert(file);
                board.done.insert(file);
                board.failed.remove(&file);
                board.failures = 0;
            }
            Err(error) => board.broken = Some(error),
        }
    }

    fn fail(&self, file: LogFile, note: &ErrorNote, fault: Fault) {
        (self.pusher.log)(&note.line());
        let written = self.spool.complain(file, note);
        let now = self.pusher.clock.monotonic();
        let mut board = self.board();
        board.busy.remove(&file);
        board.settled.insert(file);
        let count = board.failed.get(&file).map_or(1, |failure| failure.count + 1);
        let (retry_at, diverged) = (now.saturating_add(pause(count)), fault == Fault::Diverged);
        board.failed.insert(file, Failure { count, retry_at, diverged });
        if diverged {
            board.queue.clear(); // the next look decides anew
        }
        board.replaced |= fault == Fault::Replaced;
        if matches!(fault, Fault::Repository | Fault::Replaced) {
            board.failures += 1;
            board.rest_until = now.saturating_add(pause(board.failures));
        }
        if let Err(error) = written {
            board.broken = Some(error);
        }
    }
}
