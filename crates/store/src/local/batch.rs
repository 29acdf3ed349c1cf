//! Many objects, one barrier.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Advice, fadvise, fstat, syncfs};

use super::barrier::barrier_device;
use super::publish::{publish, remove_temporary};
use super::tree::directory_of;
use super::{LocalStore, sync_directory};
use crate::contract::Batch;
use crate::error::StoreError;
use crate::key::Key;

/// Up to this many files are kept open and synced one by one. More are closed as they are
/// written, and one `syncfs` makes them durable.
///
/// Measured on ext4 on a virtual disk that others used too. 60 files of 16 MiB, written out early:
/// the barrier takes 10 to 20 ms with either, 0.4 s where nothing was written out before. 64 of
/// 4 KiB: 0.16 s with `fdatasync` each, 0.01 s with `syncfs`; 5000 of 4 KiB: 1.3 to 10 s (a journal
/// commit for each) and 0.2 s. But `syncfs` also waits for what others wrote to that file system,
/// such as a database beside the repository, so it is kept for numbers where nothing else will do.
const FILES_HELD_MAX: usize = 64;

/// A commit keeps up to this many directories open before it syncs them.
const DIRECTORIES_HELD_MAX: usize = 64;

/// From this size on, writing to the device begins at once and not only at the barrier.
const EARLY_BYTES_MIN: usize = 1 << 20;

/// A batch of a [`LocalStore`]; dropping it removes its temporaries.
pub(super) struct LocalBatch {
    store: LocalStore,
    /// The root, opened before the first write: `syncfs` reports through it every write that
    /// failed since, also of files that are closed by then.
    barrier: OwnedFd,
    /// The device on which `syncfs` may be relied on; `None`: nowhere.
    syncfs_device: Option<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: HashSet<Key>,
    written: Vec<Written>,
    files_held: usize,
    syncfs_needed: bool,
}

struct Written {
    key: Key,
    temporary: String,
    /// Open until it is synced; `None` when `syncfs` will do it, or it was synced at once.
    file: Option<File>,
}

impl LocalBatch {
    pub(super) fn begin(store: LocalStore) -> Result<Self, StoreError> {
        let barrier = store.root.open()?;
        let syncfs_device = barrier_device(&barrier);
        Ok(Self { store, barrier, syncfs_device, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the directory of a temporary of this batch. It is there: it is not empty.
    fn directory(&self, directory: &str) -> Result<OwnedFd, StoreError> {
        self.store.root.directory("commit", directory)?.ok_or_else(|| {
            self.store.root.failed("commit", directory, std::io::ErrorKind::NotFound.into())
        })
    }

    /// Makes the bodies of all temporaries durable.
    fn sync_bodies(&self, written: &[Written], syncfs_needed: bool) -> Result<(), StoreError> {
        let failed = |key: &Key, source| self.store.root.failed("sync", key.as_str(), source);
        if syncfs_needed {
            let key = &written[0].key; // there are more than FILES_HELD_MAX
            return syncfs(&self.barrier).map_err(|errno| failed(key, errno.into()));
        }
        for one in written {
            if let Some(file) = &one.file {
                file.sync_data().map_err(|source| failed(&one.key, source))?;
            }
        }
        Ok(())
    }
}

impl Batch for LocalBatch {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        if !self.state().keys.insert(key.clone()) {
            return Err(self.store.root.already_exists(key));
        }
        let result = self.put_new(key, body);
        if result.is_err() {
            self.state().keys.remove(key);
        }
        result
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let (written, syncfs_needed) = {
            let state = &mut *self.state();
            (std::mem::take(&mut state.written), state.syncfs_needed)
        };
        let mut pending = Pending { batch: &self, written };
        self.sync_bodies(&pending.written, syncfs_needed)?;
        pending.publish_all()
    }
}

impl LocalBatch {
    fn put_new(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let (directory, temporary, file) = self.store.write(key, body)?;
        if body.len() >= EARLY_BYTES_MIN {
            // Linux starts to write dirty pages out when told that they are not needed
            // (`mm/fadvise.c`), and keeps the database's pages in memory rather than ours.
            // Nothing depends on it.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        let by_syncfs = self.syncfs_device.is_some()
            && fstat(&file).is_ok_and(|status| Some(status.st_dev) == self.syncfs_device);
        let mut state = self.state();
        let file = if state.files_held < FILES_HELD_MAX {
            state.files_held += 1;
            Some(file)
        } else if by_syncfs {
            state.syncfs_needed = true;
            None
        } else {
            drop(state);
            if let Err(source) = file.sync_data() {
                remove_temporary(&directory, &temporary);
                return Err(self.store.root.failed("sync", key.as_str(), source));
            }
            state = self.state();
            None
        };
        state.written.push(Written { key: key.clone(), temporary, file });
        Ok(())
    }
}

impl Drop for LocalBatch {
    fn drop(&mut self) {
        let written = std::mem::take(&mut self.state().written);
        drop(Pending { batch: self, written });
    }
}

/// Temporaries that are still to be published; those that remain when it is dropped are removed.
struct Pending<'a> {
    batch: &'a LocalBatch,
    written: Vec<Written>,
}

impl Pending<'_> {
    /// Makes all visible, then syncs each directory once: the first of these syncs commits the
    /// file system's journal for all.
    fn publish_all(&mut self) -> Result<(), StoreError> {
        let store = &self.batch.store;
        self.written.sort_by(|a, b| a.key.cmp(&b.key));
        let mut directories: Vec<(String, OwnedFd)> = Vec::new();
        while let Some(next) = self.written.last() {
            let path = directory_of(&next.key);
            if directories.last().is_none_or(|(open, _)| open != path) {
                if directories.len() == DIRECTORIES_HELD_MAX {
                    self.sync_directories(&mut directories)?;
                }
                directories.push((path.to_owned(), self.batch.directory(path)?));
            }
            let (Some((_, directory)), Some(one)) = (directories.last(), self.written.pop()) else {
                break; // both were just seen to be there
            };
            match publish(store.root.publish, directory, &one.temporary, one.key.name()) {
                Ok(true) => {}
                Ok(false) => return Err(store.refuse_existing(directory, &one.key)),
                Err(source) => return Err(store.root.failed("commit", one.key.as_str(), source)),
            }
        }
        self.sync_directories(&mut directories)
    }

    fn sync_directories(&self, directories: &mut Vec<(String, OwnedFd)>) -> Result<(), StoreError> {
        let root = &self.batch.store.root;
        directories.drain(..).try_for_each(|(path, directory)| {
            sync_directory(&directory).map_err(|source| root.failed("sync", &path, source))
        })
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        for one in self.written.drain(..) {
            if let Ok(Some(directory)) =
                self.batch.store.root.directory("clean up", directory_of(&one.key))
            {
                remove_temporary(&directory, &one.temporary);
            }
        }
    }
}
