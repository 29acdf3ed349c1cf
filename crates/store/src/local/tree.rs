//! Directories below a store's root: walking, making, and making them durable.
//!
//! Every step is relative to an open directory and never follows a symbolic link, so that a
//! directory that is removed and made anew by somebody else is noticed and not written to.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, RawDir, Uid, fchown, mkdirat, openat};
use rustix::io::Errno;

use super::publish::Publish;
use crate::error::StoreError;
use crate::key::Key;

/// Only the owner may enter.
const DIRECTORY_MODE: Mode = Mode::RWXU;
/// How often a directory that somebody removes at the same moment is made anew.
pub(super) const TRIES_MAX: usize = 64;

/// User and group that a new file is given to.
pub(super) type Heir = (Uid, Gid);

/// The root directory of a store, and how failures below it are reported.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) publish: Publish,
}

impl Root {
    /// The root in words.
    pub(super) fn location(&self) -> String {
        self.path.display().to_string()
    }

    /// Opens the root. Whatever goes wrong, nothing below it can be said to be missing.
    pub(super) fn open(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &self.path, flags, Mode::empty()).map_err(|errno| StoreError::Unreachable {
            location: self.location(),
            source: errno.into(),
        })
    }

    /// Opens a directory below the root (`""` is the root itself); `None` when it is certainly
    /// not there.
    pub(super) fn directory(
        &self,
        operation: &'static str,
        directory: &str,
    ) -> Result<Option<OwnedFd>, StoreError> {
        let mut current = self.open()?;
        for part in directory.split('/').filter(|part| !part.is_empty()) {
            current = match open_directory(&current, part) {
                Ok(child) => child,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(self.failed(operation, directory, errno.into())),
            };
        }
        Ok(Some(current))
    }

    /// To whom a new file or directory is to be given: to the owner of the root, when that is
    /// another than this process and this process is the system's administrator. What it kept for
    /// itself, the owner could neither read nor remove.
    pub(super) fn heir(&self, root: &OwnedFd) -> rustix::io::Result<Option<Heir>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let status = rustix::fs::fstat(root)?;
        let heir = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
        Ok((!heir.0.is_root()).then_some(heir))
    }

    /// Opens the directory of an object that is about to be written; makes what is missing.
    ///
    /// A directory is synced into its parent before anything is put into it. So one that holds
    /// anything is known to be durable, and only empty ones, which a crash may have left, are
    /// synced again: pushing into an old directory costs no extra barrier.
    pub(super) fn make_directory(&self, key: &Key) -> Result<(OwnedFd, Option<Heir>), StoreError> {
        let mut last = Errno::NOENT;
        for _ in 0..TRIES_MAX {
            let root = self.open()?;
            let made = self
                .heir(&root)
                .and_then(|heir| Ok((make_below(root, directory_of(key), heir)?, heir)));
            match made {
                Ok(made) => return Ok(made),
                // Somebody removed one of them at this moment, because it was empty.
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    last = errno;
                    break;
                }
            }
        }
        Err(self.failed("make the directory of", key.as_str(), last.into()))
    }

    /// The error for a failed operation; a lack of space has its own.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        key: &str,
        source: io::Error,
    ) -> StoreError {
        let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
        match Key::new(key) {
            Ok(key) if full.contains(&source.raw_os_error()) => {
                StoreError::Full { key, location: self.location(), source }
            }
            _ => {
                StoreError::Io { operation, key: key.to_owned(), location: self.location(), source }
            }
        }
    }

    /// The error for an object that is not there.
    pub(super) fn not_found(&self, key: &Key) -> StoreError {
        StoreError::NotFound { key: key.clone(), location: self.location() }
    }

    /// The error for an object that is there already.
    pub(super) fn already_exists(&self, key: &Key) -> StoreError {
        StoreError::AlreadyExists { key: key.clone(), location: self.location() }
    }
}

/// Makes a directory and its parents, and syncs each into the one above it.
pub(super) fn create_durable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()), // `/` is there
    };
    if !path.is_dir() {
        create_durable(parent)?;
        match std::fs::DirBuilder::new().mode(DIRECTORY_MODE.bits()).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    } else if std::fs::read_dir(path)?.next().is_some() {
        return Ok(()); // somebody relies on it already
    }
    // A parent that may be entered but not read cannot be synced, and was not made by us.
    match File::open(parent) {
        Ok(directory) => directory.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory part of a key, without a slash at its end; empty for the root.
pub(super) fn directory_of(key: &Key) -> &str {
    key.as_str().rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Opens one directory, never through a symbolic link.
pub(super) fn open_directory(parent: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// One try of [`Root::make_directory`]; `NOENT` when a directory vanished on the way.
fn make_below(root: OwnedFd, path: &str, heir: Option<Heir>) -> rustix::io::Result<OwnedFd> {
    let (mut parent, mut current) = (None, root);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let child = match open_directory(&current, part) {
            Err(Errno::NOENT) => {
                settle(parent.as_ref(), &current)?;
                match mkdirat(&current, part, DIRECTORY_MODE) {
                    Ok(()) => {
                        let child = open_directory(&current, part)?;
                        if let Some((user, group)) = heir {
                            fchown(&child, Some(user), Some(group))?;
                        }
                        child
                    }
                    Err(Errno::EXIST) => open_directory(&current, part)?,
                    Err(errno) => return Err(errno),
                }
            }
            other => other?,
        };
        parent = Some(std::mem::replace(&mut current, child));
    }
    settle(parent.as_ref(), &current)?;
    Ok(current)
}

/// Syncs `child` into `parent` unless something in it proves that this was done.
fn settle(parent: Option<&OwnedFd>, child: &OwnedFd) -> rustix::io::Result<()> {
    match parent {
        Some(parent) if is_empty(child)? => rustix::fs::fsync(parent),
        _ => Ok(()),
    }
}

fn is_empty(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Calls `each` with the name and kind of every entry but `.` and `..`. A directory that was
/// removed after it was opened has none.
pub(super) fn read_directory(
    directory: &OwnedFd,
    mut each: impl FnMut(&[u8], FileType) -> Result<(), StoreError>,
    failed: impl Fn(io::Error) -> StoreError,
) -> Result<(), StoreError> {
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        };
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}
