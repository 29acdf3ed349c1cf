//! The directory that is written: whose it is, and how it is emptied and synced.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::RESTORING_MARK;
use super::error::RestoreError;

/// Where PostgreSQL keeps its WAL, in a data directory.
pub const WAL: &str = "pg_wal";
/// WAL that was found in the directory of a delta restore and that is nowhere else.
pub const SET_ASIDE: &str = "lifeboat.set-aside";

/// Entries of the place itself that no restore removes: its own, and the file system's.
pub fn is_kept(name: &[u8]) -> bool {
    [RESTORING_MARK.as_bytes(), SET_ASIDE.as_bytes(), b"lost+found"].contains(&name)
}

/// How much is free where a directory is or will be, in bytes; `None` where nobody can tell.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let found = directory.ancestors().find_map(|d| rustix::fs::statvfs(d).ok())?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Holds a directory for one restore, as long as what is returned lives; another is refused, but on
/// a file system that cannot lock a directory.
pub fn hold(place: &Path) -> Result<File, RestoreError> {
    let directory = File::open(place).map_err(|source| failed("open", place, source))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(RestoreError::Busy { path: place.to_owned() }),
        Ok(()) | Err(_) => Ok(directory),
    }
}

/// Who is to own what is written: only root can give files away.
#[derive(Debug, Clone, Copy)]
pub struct Owner(Option<(u32, u32)>);

impl Owner {
    /// The owner that the directory has or, where there is none yet, its parent's. No server runs
    /// as root: where that would be the owner, the one that was named for this case.
    pub fn of(directory: &Path, instead_of_root: Option<(u32, u32)>) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let found = directory.ancestors().find_map(|d| fs::metadata(d).ok());
        let owner = found.map(|data| (data.uid(), data.gid()));
        match owner {
            Some((0, _)) | None => Self(instead_of_root.or(owner)),
            owner => Self(owner),
        }
    }

    /// Gives an open file or directory to the owner.
    pub fn give(self, file: &File) -> io::Result<()> {
        match self.0 {
            Some((uid, gid)) => std::os::unix::fs::fchown(file, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Whether this is to own it and does not.
    pub fn lacks(self, data: &fs::Metadata) -> bool {
        self.0.is_some_and(|owner| owner != (data.uid(), data.gid()))
    }

    /// Gives a path to the owner; a link itself, not what it leads to.
    pub fn give_path(self, path: &Path) -> io::Result<()> {
        match self.0 {
            Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

/// Removes what lies in a directory that an earlier restore left unfinished. The mark goes last,
/// so that a second cut leaves it unfinished still.
pub fn clear(place: &Path) -> Result<(), RestoreError> {
    let fail = |source| failed("clear", place, source);
    for entry in fs::read_dir(place).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if is_kept(entry.file_name().as_bytes()) {
            continue;
        }
        // A link is removed, never followed.
        let path = entry.path();
        let removed = match entry.file_type().map_err(fail)?.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(|source| failed("clear", &path, source))?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), RestoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| failed("sync", path, source))
}

/// A failure to write.
pub fn failed(operation: &'static str, path: &Path, source: io::Error) -> RestoreError {
    RestoreError::Write { operation, path: path.to_owned(), source }
}
