//! Objects as files below one directory. Layout and order of writes: `docs/format/store.md`.

mod barrier;
mod batch;
mod publish;
mod sweep;
mod tree;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use barrier::barrier_device;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::contract::{Batch, Entry, Store};
use crate::error::StoreError;
use crate::key::Key;
use publish::{Publish, publish, remove_temporary, temporary_name, write_temporary};
use tree::{Root, TRIES_MAX, create_durable, directory_of, read_directory};

/// A store in a directory of this machine, or of a file server that is mounted here.
///
/// Clones are the same store. Nothing is kept open between calls, so a file system that is
/// mounted anew is found again.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: Arc<Root>,
}

impl LocalStore {
    /// Opens the store in a directory that exists.
    ///
    /// - Errors: [`StoreError::Unreachable`] when it does not, or is no directory.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self::publishing(root, Publish::Link);
        store.root.open()?;
        Ok(store)
    }

    /// Makes the directory (mode 0700) and its parents where they are missing, durably, and opens
    /// the store in it. A directory that exists is taken as it is.
    ///
    /// - Errors: [`StoreError::Unreachable`] when it cannot be made, or is no directory.
    pub fn create(root: &Path) -> Result<Self, StoreError> {
        let store = Self::publishing(root, Publish::Link);
        create_durable(root).map_err(|source| StoreError::Unreachable {
            location: store.root.location(),
            source,
        })?;
        store.root.open()?;
        Ok(store)
    }

    fn publishing(root: &Path, publish: Publish) -> Self {
        Self { root: Arc::new(Root { path: root.to_owned(), publish }) }
    }

    /// Opens the file of an object and says how long it is.
    fn open_object(&self, key: &Key) -> Result<(File, u64), StoreError> {
        let failed = |source| self.root.failed("read", key.as_str(), source);
        let Some(directory) = self.root.directory("read", directory_of(key))? else {
            return Err(self.root.not_found(key));
        };
        // Without NONBLOCK a FIFO of that name would hang the reader.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&directory, key.name(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Err(self.root.not_found(key)),
            Err(Errno::LOOP) => return Err(failed(not_a_file())),
            Err(errno) => return Err(failed(errno.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(failed(not_a_file())) }
    }

    /// Size of the object of this name in an open directory; `None` when there is none.
    fn size_in(
        &self,
        operation: &'static str,
        directory: &OwnedFd,
        key: &Key,
    ) -> Result<Option<u64>, StoreError> {
        let failed = |source| self.root.failed(operation, key.as_str(), source);
        match statat(directory, key.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile => {
                Ok(Some(status.st_size.unsigned_abs()))
            }
            Ok(_) => Err(failed(not_a_file())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Refuses a key that is there. It may be another writer's that is visible but not yet synced;
    /// after `AlreadyExists` the caller relies on it, so it is made durable first.
    fn refuse_existing(&self, directory: &OwnedFd, key: &Key) -> StoreError {
        match sync_directory(directory) {
            Ok(()) => self.root.already_exists(key),
            Err(source) => self.root.failed("sync", key.as_str(), source),
        }
    }

    /// Writes a temporary for `key` into its directory, which is made where it is missing.
    fn write(&self, key: &Key, body: &[u8]) -> Result<(OwnedFd, String, File), StoreError> {
        let mut last = io::Error::from(Errno::NOENT);
        for _ in 0..TRIES_MAX {
            let (directory, heir) = self.root.make_directory(key)?;
            if self.size_in("store", &directory, key)?.is_some() {
                return Err(self.refuse_existing(&directory, key));
            }
            let temporary = temporary_name(key.name());
            match write_temporary(&directory, &temporary, heir, body) {
                Ok(file) => return Ok((directory, temporary, file)),
                // Somebody removed the directory because it was empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
                Err(error) => return Err(self.root.failed("store", key.as_str(), error)),
            }
        }
        Err(self.root.failed("store", key.as_str(), last))
    }

    /// Lists one directory; directories in it are added to `pending`.
    fn list_directory(
        &self,
        prefix: &str,
        pending: &mut Vec<String>,
        each: &mut dyn FnMut(Entry),
    ) -> Result<(), StoreError> {
        let Some(directory) = self.root.directory("list", prefix)? else {
            return Ok(());
        };
        let visit = |name: &[u8], kind: FileType| {
            // What cannot be a key is not ours: temporaries, `lost+found`, snapshots.
            let text = std::str::from_utf8(name).unwrap_or_default();
            let Ok(key) = Key::new(format!("{prefix}{text}")) else { return Ok(()) };
            let failed = |source| self.root.failed("list", key.as_str(), source);
            let kind = match kind {
                FileType::Unknown => match statat(&directory, text, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(status) => FileType::from_raw_mode(status.st_mode),
                    Err(Errno::NOENT) => return Ok(()),
                    Err(errno) => return Err(failed(errno.into())),
                },
                known => known,
            };
            match kind {
                FileType::Directory => pending.push(format!("{key}/")),
                FileType::RegularFile => {
                    if let Some(size_bytes) = self.size_in("list", &directory, &key)? {
                        each(Entry { key, size_bytes });
                    }
                }
                // Passing over it would hide what lies behind it from whoever collects.
                _ => return Err(failed(not_a_file())),
            }
            Ok(())
        };
        let failed = |source| self.root.failed("list", prefix, source);
        read_directory(&directory, visit, failed)
    }

    /// Removes directories that have become empty, from the deepest up. Nothing depends on it.
    fn prune_directories(&self, key: &Key) {
        let mut path = directory_of(key);
        while !path.is_empty() {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let Ok(Some(directory)) = self.root.directory("delete", parent) else { return };
            if unlinkat(&directory, name, AtFlags::REMOVEDIR).is_err() {
                return;
            }
            path = parent;
        }
    }
}

impl Store for LocalStore {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let (directory, temporary, file) = self.write(key, body)?;
        if let Err(error) = file.sync_data() {
            remove_temporary(&directory, &temporary);
            return Err(self.root.failed("sync", key.as_str(), error));
        }
        match publish(self.root.publish, &directory, &temporary, key.name()) {
            Ok(true) => sync_directory(&directory)
                .map_err(|source| self.root.failed("sync", key.as_str(), source)),
            Ok(false) => Err(self.refuse_existing(&directory, key)),
            Err(source) => Err(self.root.failed("store", key.as_str(), source)),
        }
    }

    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        Ok(Box::new(batch::LocalBatch::begin(self.clone())?))
    }

    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        let (file, size_bytes) = self.open_object(key)?;
        if size_bytes > limit_bytes {
            return Err(StoreError::TooLarge { key: key.clone(), size_bytes, limit_bytes });
        }
        let mut body = Vec::new();
        self.read_exactly(&file, key, (0, size_bytes), &mut body)?;
        Ok(body)
    }

    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let (file, size_bytes) = self.open_object(key)?;
        let wanted_bytes = offset.saturating_add(length as u64);
        if wanted_bytes > size_bytes {
            return Err(StoreError::Truncated { key: key.clone(), size_bytes, wanted_bytes });
        }
        self.read_exactly(&file, key, (offset, length as u64), into)
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        match self.root.directory("look up", directory_of(key))? {
            Some(directory) => self.size_in("look up", &directory, key)?,
            None => None,
        }
        .ok_or_else(|| self.root.not_found(key))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        crate::key::check_prefix(prefix)?;
        let mut pending = vec![prefix.to_owned()];
        while let Some(prefix) = pending.pop() {
            self.list_directory(&prefix, &mut pending, each)?;
        }
        Ok(())
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let failed = |source| self.root.failed("delete", key.as_str(), source);
        let Some(directory) = self.root.directory("delete", directory_of(key))? else {
            return Ok(());
        };
        match unlinkat(&directory, key.name(), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        }
        // Durable before the next: a manifest must not come back after what it names is gone.
        sync_directory(&directory).map_err(failed)?;
        self.prune_directories(key);
        Ok(())
    }

    fn sweep_temporaries(&self, prefix: &str, older_than: Duration) -> Result<u64, StoreError> {
        sweep::sweep(&self.root, prefix, older_than)
    }

    fn confirm(&self, key: &Key) -> Result<(), StoreError> {
        // Bodies are synced before they get their name; only the name may be in memory alone.
        match self.root.directory("sync", directory_of(key))? {
            Some(directory) => sync_directory(&directory)
                .map_err(|source| self.root.failed("sync", key.as_str(), source)),
            None => Err(self.root.not_found(key)),
        }
    }

    fn location(&self) -> String {
        self.root.location()
    }
}

impl LocalStore {
    /// Reads `(offset, length)` of an open object.
    fn read_exactly(
        &self,
        file: &File,
        key: &Key,
        (offset, length): (u64, u64),
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let failed = |source| self.root.failed("read", key.as_str(), source);
        let length = usize::try_from(length).map_err(|_| failed(out_of_memory()))?;
        into.truncate(length); // what stays is overwritten, and need not be zeroed again
        into.try_reserve_exact(length - into.len()).map_err(|_| failed(out_of_memory()))?;
        into.resize(length, 0);
        file.read_exact_at(into, offset).map_err(failed)
    }
}

fn sync_directory(directory: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(directory)?)
}

fn not_a_file() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "something that is not a regular file has the name of an object",
    )
}

fn out_of_memory() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

#[cfg(test)]
mod tests;
