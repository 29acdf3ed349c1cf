//! The threads that push: take what is queued, store it, and note on the board what became of it.

use std::sync::PoisonError;

use lifeboat_engine::LogFile;
use lifeboat_repo::Cluster;
use lifeboat_units::Silent;

use super::super::PushError;
use super::super::batch::{Stored, Storer};
use super::super::note::ErrorNote;
use super::super::order::{pause, share};
use super::super::shed::GapError;
use super::board::Failure;
use super::{LOOK_QUIET, Work};
use crate::ports::Ports;

impl Work<'_> {
    pub(super) fn push_until_stopped(&self) {
        let mut content = Vec::new();
        loop {
            if let Some(files) = self.take() {
                self.push(&files, &mut content);
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
    pub(super) fn take(&self) -> Option<Vec<LogFile>> {
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
            return Some(Vec::new());
        }
        // After a failure one file finds out whether the repository is back.
        let count = match board.failures {
            0 => share(board.queue.len(), self.pusher.settings.jobs),
            _ => 1,
        };
        let count = count.min(board.queue.len());
        let files: Vec<_> = board.queue.drain(..count).collect();
        board.busy.extend(&files);
        Some(files)
    }

    pub(super) fn push(&self, files: &[LogFile], content: &mut Vec<u8>) {
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
                };
                storer.store(files, content).into_iter().for_each(|stored| self.settle(stored));
            }
            Err(note) => {
                files.iter().for_each(|file| self.fail(*file, &note, true));
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
            self.fail(file, note, false);
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
                let repository = matches!(error, PushError::Repo { .. });
                return self.fail(file, &ErrorNote::of(&error), repository);
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

    fn fail(&self, file: LogFile, note: &ErrorNote, repository: bool) {
        (self.pusher.log)(&note.line());
        let written = self.spool.complain(file, note);
        let now = self.pusher.clock.monotonic();
        let mut board = self.board();
        board.busy.remove(&file);
        board.settled.insert(file);
        let count = board.failed.get(&file).map_or(1, |failure| failure.count + 1);
        board.failed.insert(file, Failure { count, retry_at: now.saturating_add(pause(count)) });
        if repository {
            board.failures += 1;
            board.rest_until = now.saturating_add(pause(board.failures));
        }
        if let Err(error) = written {
            board.broken = Some(error);
        }
    }
}
