//! The threads that push: take what is queued, store it, and note on the board what became of it.

use std::sync::PoisonError;

use lifeboat_engine::LogFile;
use lifeboat_repo::Cluster;
use lifeboat_units::Silent;

use super::super::PushError;
use super::super::batch::{Stored, Storer};
use super::super::note::ErrorNote;
use super::super::order::{need, pause, share};
use super::super::shed::GapError;
use super::board::{Failure, Turn};
use super::{LOOK_QUIET, Work};
use crate::ports::Ports;

/// What a failure is due to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Repository,
    /// Other content is archived under the file's name.
    Diverged,
    /// This file, for another reason.
    File,
}

impl Work<'_> {
    pub(super) fn push_until_stopped(&self) {
        let mut content = Vec::new();
        loop {
            if let Some(turn) = self.take() {
                self.push(&turn, &mut content);
                continue;
            }
            let board = self.board();
            if board.stop {
                return;
            }
            // A lost wake-up costs no more than this.
            drop(self.changed.wait_timeout(board, LOOK_QUIET));
        }
    }

    /// Takes the next files; `None` when there are none, or the repository rests. No files at all
    /// when gaps are to be recorded first.
    pub(super) fn take(&self) -> Option<Turn> {
        let mut board = self.board();
        let idle = board.queue.is_empty() && !board.gaps;
        if idle || board.stop || board.recording {
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
            0 => share(board.queue.len(), self.pusher.settings.jobs),
            _ => 1,
        };
        let count = count.min(board.queue.len());
        let files: Vec<_> = board.queue.drain(..count).collect();
        board.busy.extend(&files);
        Some(board.turn(files))
    }

    pub(super) fn push(&self, turn: &Turn, content: &mut Vec<u8>) {
        self.push_files(turn, content);
        let mut board = self.board();
        board.busy.retain(|file| !turn.files.contains(file));
        board.turns.remove(&turn.number);
        drop(board);
        self.changed.notify_all();
    }

    /// Waits until all turns before this one are over. Says whether it may store: not when a file
    /// before it is archived with other content.
    fn in_turn(&self, turn: &Turn) -> bool {
        let mut board = self.board();
        while board.turns.first().is_some_and(|first| *first < turn.number) {
            let waited = self.changed.wait_timeout(board, LOOK_QUIET);
            board = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(first) = turn.files.first().map(|file| need(*file)) else { return true };
        let diverged = board.failed.iter().filter(|(_, failure)| failure.diverged);
        !diverged.into_iter().any(|(file, _)| need(*file) < first)
    }

    fn push_files(&self, turn: &Turn, content: &mut Vec<u8>) {
        let files = &turn.files;
        match self.connected() {
            Ok(cluster) if files.is_empty() => self.record_gaps(cluster),
            Err(note) if files.is_empty() => self.gaps_failed(&note),
            Ok(cluster) => {
                let storer = Storer {
                    ports: Ports {
                        cluster,
                        engine: self.pusher.engine,
                        clock: self.pusher.clock,
                        progress: &Silent,
                        cancel: self.pusher.cancel,
                    },
                    directory: self.pusher.directory,
                    settings: self.pusher.settings.push,
                    target: self.pusher.settings.target,
                    admitted: &self.admitted,
                    in_turn: &|| self.in_turn(turn),
                };
                storer.store(files, content).into_iter().for_each(|stored| self.settle(stored));
            }
            Err(note) => {
                files.iter().for_each(|file| self.fail(*file, &note, Fault::Repository));
            }
        }
    }

    fn record_gaps(&self, cluster: &Cluster) {
        match self.spool.record_gaps(cluster) {
            Ok(()) => {
                let mut board = self.board();
                (board.gaps, board.recording, board.failures) = (false, false, 0);
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
        if fault == Fault::Repository {
            board.failures += 1;
            board.rest_until = now.saturating_add(pause(board.failures));
        }
        if let Err(error) = written {
            board.broken = Some(error);
        }
    }
}
