//! The fetcher: runs in the background while a server recovers, fetches ahead on threads, and
//! answers who asks. It ends by itself.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lifeboat_engine::{LogFile, SegmentName, SegmentSize, SystemId};
use lifeboat_repo::{LogReader, RepoError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::place::place;
use super::super::reading::read_on;
use super::super::state::RecoveryState;
use super::ask::{PREFETCH_DIRECTORY, Reply, Request, SOCKET, WAIT_MAX, binding, receive, send};
use super::lookahead::Lookahead;
use super::shelf::{Answer, Fetch, Item, Shelf};
use super::{Prefetch, check_content};
use crate::ports::Ports;

/// How often it looks whether recovery still goes on.
const TICK: Duration = Duration::from_millis(500);
/// So many segments' room is left to the server: a full disk would end its recovery.
const FREE_SEGMENTS_MIN: u64 = 8;

/// The prefetch directory of a data directory, held by one process at a time and emptied.
#[derive(Debug)]
pub struct PrefetchClaim {
    place: PathBuf,
    data_directory: PathBuf,
    /// Locked as long as it is open, however its process ends.
    opened: File,
}

impl PrefetchClaim {
    /// Takes the prefetch directory, made where it is missing, and removes what an earlier
    /// fetcher left in it. `None` when another process holds it, or this process belongs to
    /// another user than the data directory.
    pub fn take(data_directory: &Path) -> io::Result<Option<Self>> {
        if fs::metadata(data_directory)?.uid() != rustix::process::geteuid().as_raw() {
            return Ok(None); // the server could not move what another user fetched
        }
        let place = data_directory.join(PREFETCH_DIRECTORY);
        match DirBuilder::new().mode(0o700).create(&place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(
                (rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW).bits() as i32
            )
            .open(&place)?;
        match opened.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => {}
        }
        let claim = Self { place, data_directory: data_directory.to_owned(), opened };
        if !claim.is_in_place() {
            return Ok(None); // removed by the one who held it before
        }
        for entry in fs::read_dir(&claim.place)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(Some(claim))
    }

    /// Whether the directory that is held is still the one of that name.
    fn is_in_place(&self) -> bool {
        match (self.opened.metadata(), fs::symlink_metadata(&self.place)) {
            (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Whether there is room for one more segment, and the server keeps what it may need.
    fn has_room(&self, size: SegmentSize) -> bool {
        rustix::fs::fstatvfs(&self.opened).is_ok_and(|found| {
            let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
            free_bytes >= (FREE_SEGMENTS_MIN + 1) * size.bytes()
        })
    }

    fn remove(&self) {
        if self.is_in_place() {
            let _ = fs::remove_dir_all(&self.place);
        }
    }
}

/// Fetches ahead of a recovering server until recovery is over, stops asking or is given another
/// state; then removes everything.
///
/// - `served` is the segment that the server was given just now; what follows is fetched.
/// - `origin` as told to [`super::get_ahead`].
/// - Errors: what kept it from beginning. Later ones are told by nobody: what it could not fetch
///   is asked for in the foreground, which says why.
pub fn prefetch(
    ports: &Ports<'_>,
    settings: &Prefetch,
    claim: &PrefetchClaim,
    served: SegmentName,
    origin: &str,
) -> io::Result<()> {
    let directory = claim.data_directory.clone();
    let state = RecoveryState::read(&directory).map_err(io::Error::other)?;
    let identity = ports.engine.directory_identity(&directory).map_err(io::Error::other)?;
    let system = state.as_ref().map_or(identity.system_id, |state| state.system);
    let segments = settings.segments as usize;
    let lookahead = Lookahead { size: identity.log_segment, segments, state: state.clone() };
    let listener = UnixListener::bind(claim.place.join(SOCKET))?;
    listener.set_nonblocking(true)?;
    let fetcher = Fetcher {
        ports,
        claim,
        size: identity.log_segment,
        system,
        origin,
        binding: binding(&directory, origin, system),
        had_server: ports.engine.has_server(&directory),
        idle: settings.idle,
        state,
        reads_on: Mutex::default(),
        inner: Mutex::new(Inner {
            shelf: Shelf::new(lookahead, served),
            over: false,
            useful_at: Instant::now(),
        }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs.max(1) {
            scope.spawn(|| fetcher.work());
        }
        while !fetcher.is_over() {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(|| fetcher.serve(stream));
                }
                // Nobody, or an error that must not make it spin.
                Err(_) => wait_for_caller(&listener),
            }
        }
        fetcher.close();
    });
    claim.remove();
    Ok(())
}

fn wait_for_caller(listener: &UnixListener) {
    let timeout = Timespec::try_from(TICK).expect("half a second");
    let mut descriptors = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    if poll(&mut descriptors, Some(&timeout)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Fetcher<'a> {
    ports: &'a Ports<'a>,
    claim: &'a PrefetchClaim,
    size: SegmentSize,
    system: SystemId,
    origin: &'a str,
    binding: String,
    /// A server ran when it began: when that one stops, recovery has stopped.
    had_server: bool,
    idle: Duration,
    state: Option<RecoveryState>,
    /// Held by the thread that sees to the note of this recovery.
    reads_on: Mutex<()>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    shelf: Shelf,
    over: bool,
    /// When recovery last took something, or went on.
    useful_at: Instant,
}

impl Fetcher<'_> {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is nobody left to fetch for.
    fn is_over(&self) -> bool {
        let directory = &self.claim.data_directory;
        let engine = self.ports.engine;
        let inner = self.lock();
        inner.over
            || inner.useful_at.elapsed() > self.idle
            || self.ports.cancel.is_cancelled()
            || !self.claim.is_in_place()
            || engine.recovery_mark(directory).is_none()
            || (self.had_server && !engine.has_server(directory))
            || binding(directory, self.origin, self.system) != self.binding
    }

    fn close(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Answers one caller.
    fn serve(&self, mut stream: UnixStream) {
        // Whoever goes away is no concern of ours; what was given to it is removed later.
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let reply = match receive(&stream) {
            Ok(Request::Get { file, binding }) if binding == self.binding => self.give(file),
            // Another state, repository or program: what was fetched is void.
            Ok(Request::Get { .. } | Request::End) => {
                self.close();
                Reply::No
            }
            Err(_) => Reply::No,
        };
        let _ = send(&mut stream, &reply);
    }

    fn give(&self, segment: SegmentName) -> Reply {
        let until = Instant::now() + WAIT_MAX;
        let mut inner = self.lock();
        if inner.shelf.asked() != segment {
            inner.useful_at = Instant::now();
        }
        let (mut answer, removed) = inner.shelf.ask(segment);
        for item in removed {
            let _ = fs::remove_file(self.path(item));
        }
        self.changed.notify_all(); // there is room again, or another way to go
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match answer {
                Answer::Take(item) => {
                    inner.useful_at = Instant::now();
                    return Reply::Take { name: item.file_name(), size_bytes: self.size.bytes() };
                }
                Answer::Wait if !left.is_zero() && !inner.over => {}
                Answer::Wait | Answer::No => return Reply::No,
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            answer = inner.shelf.answer(segment);
        }
    }

    fn path(&self, item: Item) -> PathBuf {
        self.claim.place.join(item.file_name())
    }

    /// One thread.
    fn work(&self) {
        let mut reader = self.ports.cluster.log_reader();
        let mut inner = self.lock();
        while !inner.over {
            let Some(item) = inner.shelf.next() else {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(inner);
            let fetch = self.fetch(item, &mut reader);
            inner = self.lock();
            if !inner.shelf.done(item, fetch) {
                let _ = fs::remove_file(self.path(item));
            }
            self.changed.notify_all();
        }
    }

    /// Fetches one whole segment, checked as for the server itself. Nothing else counts: a
    /// segment that is not archived whole is left to the foreground.
    fn fetch(&self, item: Item, reader: &mut LogReader) -> Fetch {
        let file = LogFile::Segment(item.segment);
        let read = self.ports.cluster.read_log_with(&place(self.system, file), reader);
        let facts = match read {
            Ok(head) => head.facts,
            Err(error) => return failure(&error),
        };
        let content = reader.content();
        let size = self.size.bytes();
        if check_content(self.ports, file, self.system, facts, content).is_err()
            || content.len() as u64 != size
        {
            return Fetch::Failed;
        }
        if !self.claim.has_room(self.size) {
            return Fetch::NoRoom;
        }
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create_new(true).mode(0o600).open(self.path(item))?;
            file.write_all(content)
        };
        match write() {
            Ok(()) => {
                // One thread does; the others need not wait for it.
                if let Ok(_one) = self.reads_on.try_lock() {
                    let (directory, state) = (&self.claim.data_directory, self.state.as_ref());
                    read_on(self.ports, directory, state, file);
                }
                Fetch::Whole
            }
            Err(_) => Fetch::NoRoom,
        }
    }
}

fn failure(error: &RepoError) -> Fetch {
    if error.is_not_found() { Fetch::NotThere } else { Fetch::Failed }
}
