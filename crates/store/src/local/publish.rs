//! From a temporary file to a visible object, without ever replacing one.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fchown, linkat, openat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::tree::Heir;

/// End of every temporary name; their beginning is a dot, which no key has.
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";
/// Bytes of the object's name that its temporary name repeats, so that the whole stays below the
/// 255 bytes that file systems allow.
const NAME_BYTES_KEPT: usize = 160;

/// How a finished temporary becomes the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publish {
    /// A hard link; where the file system has none, `renameat2(RENAME_NOREPLACE)`.
    Link,
    /// As if there were no hard links. Only tests ask for it.
    #[cfg(test)]
    Rename,
    /// Neither is there. Only tests ask for it.
    #[cfg(test)]
    Nothing,
}

/// A temporary name that no other process, thread or host uses at the same time.
pub(super) fn temporary_name(name: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().hash_one(count);
    let kept = &name[..name.len().min(NAME_BYTES_KEPT)]; // keys are ASCII
    format!(".{kept}.{}-{count}-{random:016x}{TEMPORARY_SUFFIX}", std::process::id())
}

/// Writes a temporary file. After an error nothing is left of it.
pub(super) fn write_temporary(
    directory: impl AsFd,
    temporary: &str,
    heir: Option<Heir>,
    body: &[u8],
) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&directory, temporary, flags, Mode::RUSR | Mode::WUSR)?);
    let given = match heir {
        Some((user, group)) => fchown(&file, Some(user), Some(group)).map_err(io::Error::from),
        None => Ok(()),
    };
    match given.and_then(|()| file.write_all(body)) {
        Ok(()) => Ok(file),
        Err(error) => {
            remove_temporary(&directory, temporary);
            Err(error)
        }
    }
}

/// Removes a temporary; what cannot be removed is swept later.
pub(super) fn remove_temporary(directory: impl AsFd, temporary: &str) {
    let _ = unlinkat(directory, temporary, AtFlags::empty());
}

/// Gives the finished temporary its name. `Ok(false)` when an object of that name is there.
///
/// The temporary name is gone afterwards, whatever the outcome. The directory is not yet synced.
pub(super) fn publish(
    how: Publish,
    directory: impl AsFd,
    temporary: &str,
    name: &str,
) -> io::Result<bool> {
    let directory = directory.as_fd();
    let outcome = match how {
        Publish::Link => link(directory, temporary, name),
        #[cfg(test)]
        Publish::Rename => rename(directory, temporary, name),
        #[cfg(test)]
        Publish::Nothing => Err(unsupported()),
    };
    if !matches!(outcome, Ok(Done::Renamed)) {
        remove_temporary(directory, temporary);
    }
    outcome.map(|done| done != Done::Refused)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Linked,
    Renamed,
    Refused,
}

fn link(directory: BorrowedFd<'_>, temporary: &str, name: &str) -> io::Result<Done> {
    match linkat(directory, temporary, directory, name, AtFlags::empty()) {
        Ok(()) => Ok(Done::Linked),
        // NFS repeats a request whose answer was lost, and then reports our own link as a
        // foreign one; the count of links tells. `link(2)`, under BUGS.
        Err(Errno::EXIST) => {
            let status = rustix::fs::statat(directory, temporary, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(if status.st_nlink == 2 { Done::Linked } else { Done::Refused })
        }
        // What FAT, CIFS and FUSE file systems say when they have no hard links, or no more.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
            rename(directory, temporary, name)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn rename(directory: BorrowedFd<'_>, temporary: &str, name: &str) -> io::Result<Done> {
    match renameat_with(directory, temporary, directory, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Done::Renamed),
        Err(Errno::EXIST) => Ok(Done::Refused),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(unsupported()),
        Err(errno) => Err(errno.into()),
    }
}

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the file system has neither hard links nor a rename that refuses to replace",
    )
}
