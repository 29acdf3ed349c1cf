//! The spool: a directory in the data directory that holds acknowledgements, error notes, and the
//! lock of the one background pusher. Never WAL.
//!
//! Format: docs/format/spool.md. Losing it costs repeated pushes, except for gaps that are still
//! to be recorded, which are synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::LogFile;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::ack::{ACK_BYTES_MAX, Ack, Errand, FileStamp, Settings, Target};
use super::note::ErrorNote;

/// Lies in a data directory that is archived in the background.
pub const SPOOL_DIRECTORY: &str = "lifeboat.spool";
/// A log that is longer is begun anew by the next pusher, in bytes.
const LOG_BYTES_MAX: u64 = 1 << 20;
const LOCK: &str = "lock";
const LOG: &str = "log";
const ACK: &str = "ack";
const ERROR: &str = "error";
const TEMPORARY: &str = "tmp";

/// The spool of one data directory.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
}

/// What lies in a spool, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Files with an acknowledgement.
    pub acks: Vec<LogFile>,
    /// Files with an error note.
    pub notes: Vec<LogFile>,
    /// Names of gaps that are still to be recorded, oldest first.
    pub gaps: Vec<String>,
}

impl Spool {
    /// The spool of a data directory; it need not be there.
    pub fn of(data_directory: &Path) -> Self {
        Self { directory: data_directory.join(SPOOL_DIRECTORY) }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes it, mode 0700.
    pub fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// The acknowledgement that counts for the file at `path`, if there is one.
    ///
    /// Costs one open, one read and one stat. One that does not count is left where it is: see
    /// [`Spool::forget_void`].
    pub fn answer(&self, path: &Path, target: Target) -> Option<Ack> {
        let name = path.file_name()?.to_str()?;
        let file = File::open(self.path(name, ACK)).ok()?;
        let mut bytes = Vec::with_capacity(512);
        file.take(ACK_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let ack = Ack::decode(&bytes)?;
        let stamp = FileStamp::of(&fs::symlink_metadata(path).ok()?);
        ack.counts(name, target, &stamp).then_some(ack)
    }

    /// Leaves an acknowledgement: whole or not at all. Not synced.
    pub fn acknowledge(&self, ack: &Ack) -> io::Result<()> {
        self.replace(&ack.file, ACK, &ack.encode())
    }

    /// Leaves an error for the call that waits for this file.
    pub fn complain(&self, file: LogFile, note: &ErrorNote) -> io::Result<()> {
        self.replace(&file.to_string(), ERROR, &note.encode())
    }

    /// The error that was left for a file.
    pub fn note(&self, file: LogFile) -> Option<ErrorNote> {
        let opened = File::open(self.path(&file.to_string(), ERROR)).ok()?;
        let mut bytes = Vec::new();
        opened.take(ErrorNote::BYTES_MAX).read_to_end(&mut bytes).ok()?;
        ErrorNote::decode(&bytes)
    }

    /// Removes the acknowledgement of a file.
    pub fn forget(&self, file: LogFile) {
        let _ = fs::remove_file(self.path(&file.to_string(), ACK));
    }

    /// Removes the acknowledgement of the file at `path` if it is one that does not count.
    ///
    /// One that counts stays, also when the pusher left it a moment ago: whoever waits for it would
    /// wait until the file was pushed again.
    pub fn forget_void(&self, path: &Path, file: LogFile, target: Target) {
        let there = self.path(&file.to_string(), ACK).exists();
        if there && self.answer(path, target).is_none() {
            self.forget(file);
        }
    }

    /// Removes the error note of a file: the pusher then tries it at once.
    pub fn forgive(&self, file: LogFile) {
        let _ = fs::remove_file(self.path(&file.to_string(), ERROR));
    }

    /// What lies in it.
    pub fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some((stem, kind)) = name.to_str().and_then(|name| name.rsplit_once('.')) else {
                continue;
            };
            match (kind, stem.parse::<LogFile>()) {
                (ACK, Ok(file)) => listing.acks.push(file),
                (ERROR, Ok(file)) => listing.notes.push(file),
                ("gap", _) => listing.gaps.push(stem.to_owned()),
                _ => {}
            }
        }
        listing.gaps.sort();
        Ok(listing)
    }

    /// Removes what a killed pusher left half written. Only the pusher calls it.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|kind| kind == TEMPORARY) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Whether files can be written here: a full disk says no.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.directory.join(format!("probe-{}.{TEMPORARY}", std::process::id()));
        let written = fs::write(&path, [b'x'; 512]);
        let _ = fs::remove_file(&path);
        written
    }

    /// Takes the lock that the pusher holds as long as it lives; `None` when one lives.
    ///
    /// The lock belongs to the open file: it is passed on to the pusher as its standard input.
    pub fn try_lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.directory.join(LOCK))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if self.is_lock(&file) => Ok(Some(file)),
            // Somebody put another lock there at this moment: look again.
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether a pusher lives. Makes nothing: whoever only looks may be another user.
    pub fn is_locked(&self) -> bool {
        let file = File::open(self.directory.join(LOCK));
        file.is_ok_and(|file| {
            matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
        })
    }

    /// Whether this is the lock that lies here now; it is not when somebody removed it, so that
    /// the pusher that holds it ends.
    pub fn is_lock(&self, file: &File) -> bool {
        match (file.metadata(), fs::metadata(self.directory.join(LOCK))) {
            (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Notes in the lock what the pusher does, and its process.
    pub fn sign(&self, mut lock: &File, errand: Errand) -> io::Result<()> {
        let Errand { target, settings } = errand;
        lock.set_len(0)?;
        io::Seek::rewind(&mut lock)?;
        let process = std::process::id();
        lock.write_all(format!("{:016x} {process} {:016x}\n", target.0, settings.0).as_bytes())
    }

    /// What [`Spool::sign`] noted: errand and process.
    pub fn signed(&self) -> Option<(Errand, u32)> {
        let text = fs::read_to_string(self.directory.join(LOCK)).ok()?;
        let mut words = text.split_whitespace();
        let target = Target(u64::from_str_radix(words.next()?, 16).ok()?);
        let process = words.next()?.parse().ok()?;
        // Older programs noted no settings; theirs are not known to be these.
        let settings = words.next().map_or(Some(0), |word| u64::from_str_radix(word, 16).ok())?;
        Some((Errand { target, settings: Settings(settings) }, process))
    }

    /// Removes the lock: the pusher that holds it ends, and another may begin.
    pub fn dismiss(&self) {
        let _ = fs::remove_file(self.directory.join(LOCK));
    }

    /// The pusher's log, to be appended to.
    pub fn open_log(&self) -> io::Result<File> {
        let path = self.directory.join(LOG);
        let long = fs::metadata(&path).is_ok_and(|data| data.len() > LOG_BYTES_MAX);
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600);
        if long {
            options.write(true).truncate(true)
        } else {
            options.append(true)
        };
        options.open(path)
    }

    /// Removes the spool of a data directory: what it acknowledges is no longer what lies there.
    /// A pusher that lives ends.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{name}.{kind}"))
    }

    fn replace(&self, name: &str, kind: &str, body: &[u8]) -> io::Result<()> {
        let temporary = self.directory.join(format!("{name}.{kind}.{TEMPORARY}"));
        let written = fs::write(&temporary, body)
            .and_then(|()| fs::rename(&temporary, self.path(name, kind)));
        written.inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }
}
