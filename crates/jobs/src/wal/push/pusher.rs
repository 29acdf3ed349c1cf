//! The background pusher: looks ahead, pushes in parallel, leaves acknowledgements.
//!
//! One thread looks (the spool, the server's notes, whether it is still wanted) and never touches
//! the repository, so that a repository that hangs does not stop it from looking. The others push.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Child;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lifeboat_engine::{Engine, LogFile, TargetState};
use lifeboat_repo::Cluster;
use lifeboat_units::{Cancel, Clock, Silent};

use super::ack::{Ack, FileStamp, Kind, Target};
use super::batch::{Stored, Storer};
use super::note::ErrorNote;
use super::order::{by_need, excess, pause, share, stale};
use super::shed::{GapError, WantedBackup, widen};
use super::spool::Spool;
use super::{Admitted, PushSettings};
use crate::ports::Ports;

/// Pause between two looks for new files, soon after something happened.
const LOOK_BUSY: Duration = Duration::from_millis(10);
/// Pause between two looks when nothing happened for a second.
const LOOK_QUIET: Duration = Duration::from_millis(50);
/// How often it is asked whether the pusher is still wanted, and whether the server lives.
const ASK: Duration = Duration::from_secs(1);

/// How to push in the background.
#[derive(Debug, Clone, Copy)]
pub struct PusherSettings {
    /// How each file is pushed.
    pub push: PushSettings,
    /// Threads that push.
    pub jobs: usize,
    /// The pusher ends when it had nothing to do for so long.
    pub idle: Duration,
    /// Where to.
    pub target: Target,
    /// How much WAL may wait before the oldest of it is given up, in bytes.
    pub backlog_max: Option<u64>,
}

/// Starts a backup.
pub type StartBackup<'a> = dyn Fn() -> io::Result<Child> + 'a;

/// Opens the cluster's part of the repository; may take long.
pub type Connect<'a> = dyn Fn() -> Result<Cluster, ErrorNote> + Sync + 'a;

/// What a pusher works with.
pub struct Pusher<'a> {
    /// The data directory.
    pub directory: &'a Path,
    /// What knows the database.
    pub engine: &'a dyn Engine,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Set when it is to end.
    pub cancel: &'a Cancel,
    /// Opens the repository.
    pub connect: &'a Connect<'a>,
    /// Takes lines for the log.
    pub log: &'a (dyn Fn(&str) + Sync),
    /// How to push.
    pub settings: PusherSettings,
}

/// A pusher at work.
pub struct Work<'a> {
    pusher: Pusher<'a>,
    spool: Spool,
    cluster: OnceLock<Cluster>,
    connecting: Mutex<()>,
    admitted: Admitted,
    board: Mutex<Board>,
    changed: Condvar,
}

/// What the threads share.
#[derive(Default)]
struct Board {
    /// To be pushed, first in need first.
    queue: VecDeque<LogFile>,
    /// Being pushed.
    busy: HashSet<LogFile>,
    /// Acknowledged, and the acknowledgement lies in the spool.
    done: HashSet<LogFile>,
    /// What was settled since the looking thread began its look.
    settled: HashSet<LogFile>,
    failed: HashMap<LogFile, Failure>,
    /// Until then nothing is pushed: the repository failed.
    rest_until: Duration,
    /// How often in a row it failed.
    failures: u32,
    /// Whether gaps lie in the spool that are to be recorded before anything is pushed.
    gaps: bool,
    /// Whether a thread is recording them.
    recording: bool,
    /// Why the spool cannot be written to; the pusher then ends.
    broken: Option<io::Error>,
    stop: bool,
}

struct Failure {
    count: u32,
    retry_at: Duration,
}

impl<'a> Work<'a> {
    /// Begins; looks for nothing yet.
    pub fn new(pusher: Pusher<'a>) -> Self {
        let spool = Spool::of(pusher.directory);
        Self {
            pusher,
            spool,
            cluster: OnceLock::new(),
            connecting: Mutex::default(),
            admitted: Admitted::default(),
            board: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Pushes until nothing is left to do, or the pusher is no longer wanted.
    ///
    /// - `lock` is held by this process.
    /// - `wanted` says whether configuration and program are still those that it began with.
    /// - `start_backup` is called when WAL was given up and the repository is back.
    pub fn run(
        &self,
        lock: &File,
        wanted: &dyn Fn() -> bool,
        start_backup: &StartBackup<'_>,
    ) -> io::Result<()> {
        self.spool.sweep()?;
        std::thread::scope(|scope| {
            for _ in 0..self.pusher.settings.jobs.max(1) {
                scope.spawn(|| self.push_until_stopped());
            }
            let ended = self.look_until_done(lock, wanted, start_backup);
            self.board().stop = true;
            self.changed.notify_all();
            ended
        })
    }

    /// One look and all the pushing that it finds, in this thread: for tests. Says how many files
    /// were tried.
    pub fn round(&self) -> io::Result<usize> {
        self.look()?;
        let (mut tried, mut content) = (0, Vec::new());
        while let Some(files) = self.take() {
            tried += files.len();
            self.push(&files, &mut content);
        }
        match self.board().broken.take() {
            Some(error) => Err(error),
            None => Ok(tried),
        }
    }

    fn look_until_done(
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
            clock.sleep(if idle < ASK { LOOK_BUSY } else { LOOK_QUIET });
        }
    }

    /// Compares the spool with what the server waits for, and queues what is to be pushed. Says
    /// whether anything is queued or being pushed.
    fn look(&self) -> io::Result<bool> {
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
        self.shed(&files, &acks)?;
        let now = self.pusher.clock.monotonic();
        let mut board = self.board();
        let board = &mut *board;
        board.gaps = !known.gaps.is_empty();
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
            if board.failed.get(&file).is_none_or(|failure| failure.retry_at <= now) {
                queue.push_back(file);
            }
        }
        board.queue = queue;
        if (!board.queue.is_empty() || board.gaps) && board.rest_until <= now {
            self.changed.notify_all();
        }
        Ok(!board.queue.is_empty() || !board.busy.is_empty() || board.gaps)
    }

    /// Gives up the oldest segments that wait, where there is a limit and they are over it.
    fn shed(&self, files: &[LogFile], acks: &HashSet<LogFile>) -> io::Result<()> {
        let Some(limit) = self.pusher.settings.backlog_max else { return Ok(()) };
        let waiting: Vec<LogFile> = {
            let board = self.board();
            let open = |f: &&LogFile| !acks.contains(f) && !board.settled.contains(f);
            files.iter().filter(open).copied().collect()
        };
        let first = waiting.iter().find(|file| matches!(file, LogFile::Segment(_)));
        let Some(first) = first else { return Ok(()) };
        // The server may have taken it away at this moment; then the next look decides.
        let Ok(data) = std::fs::metadata(self.path(*first)) else { return Ok(()) };
        let excess = excess(&waiting, data.len(), limit);
        if excess.is_empty() {
            return Ok(());
        }
        let identity = self.pusher.engine.directory_identity(self.pusher.directory);
        let system = identity.map_err(|error| io::Error::other(error.to_string()))?.system_id;
        let how = (system, self.pusher.clock.now(), "pg_wal was over wal.backlog-max");
        for gap in widen(&self.spool.pending_gaps()?, &excess, how) {
            self.spool.leave_gap(&gap)?;
            (self.pusher.log)(&format!("given up: {} to {}: {}", gap.first, gap.last, gap.reason));
        }
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
            board.gaps = true;
        }
        Ok(())
    }

    fn path(&self, file: LogFile) -> std::path::PathBuf {
        let log = self.pusher.engine.log_directory();
        self.pusher.directory.join(log).join(file.to_string())
    }

    fn push_until_stopped(&self) {
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
    fn take(&self) -> Option<Vec<LogFile>> {
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

    fn push(&self, files: &[LogFile], content: &mut Vec<u8>) {
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
                let repository = matches!(error, super::PushError::Repo { .. });
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

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
