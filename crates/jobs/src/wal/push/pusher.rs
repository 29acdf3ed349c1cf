//! The background pusher: looks ahead, pushes in parallel, leaves acknowledgements.
//!
//! One thread looks (the spool, the server's notes, whether it is still wanted) and never touches
//! the repository, so that a repository that hangs does not stop it from looking. The others push.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lifeboat_engine::{Engine, LogFile};
use lifeboat_repo::Cluster;
use lifeboat_units::{Cancel, Clock};

use self::board::Board;
use self::send::Parked;
use super::ack::Target;
use super::batch::Desk;
use super::note::ErrorNote;
use super::spool::Spool;
use super::{Admitted, PushSettings};

mod board;
mod look;
mod send;

/// Pause between two looks when nothing happened for a second.
const LOOK_QUIET: Duration = Duration::from_millis(50);

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
    /// Waits so long at most; less when the server announced a file.
    pub wait: &'a (dyn Fn(Duration) + Sync),
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
    /// Held while a gap in the spool is left, or taken away.
    gaps_changing: Mutex<()>,
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
            gaps_changing: Mutex::default(),
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
        let parked = Parked::default();
        std::thread::scope(|scope| {
            for _ in 0..self.pusher.settings.jobs.max(1) {
                scope.spawn(|| self.push_until_stopped(&parked));
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
        self.round_on(1)
    }

    /// The same on so many threads.
    pub fn round_on(&self, threads: usize) -> io::Result<usize> {
        self.look()?;
        let (tried, parked) = (AtomicUsize::new(0), Parked::default());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut desk = Desk::new(self.pusher.settings.push);
                    while let Some(taken) = self.step(&parked, &mut desk) {
                        tried.fetch_add(taken, Ordering::Relaxed);
                    }
                });
            }
        });
        match self.board().broken.take() {
            Some(error) => Err(error),
            None => Ok(tried.into_inner()),
        }
    }

    fn path(&self, file: LogFile) -> std::path::PathBuf {
        let log = self.pusher.engine.log_directory();
        self.pusher.directory.join(log).join(file.to_string())
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
