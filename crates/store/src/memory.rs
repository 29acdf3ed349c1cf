//! A store in memory, for tests and simulations.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::contract::{Batch, Entry, Store};
use crate::error::StoreError;
use crate::key::{Key, check_prefix};

/// Everything a [`MemoryStore`] held at one moment. Bodies are shared, so a copy is cheap.
pub type Snapshot = BTreeMap<Key, Arc<Vec<u8>>>;

/// Objects in memory. Clones share their content.
///
/// As in [`LocalStore`](crate::LocalStore), one object's key cannot be another one's directory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<Snapshot>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store with this content, shared with no other.
    pub fn from_snapshot(snapshot: Snapshot) -> Self {
        Self { objects: Arc::new(Mutex::new(snapshot)) }
    }

    /// What is there now.
    pub fn snapshot(&self) -> Snapshot {
        self.objects().clone()
    }

    /// Changes the body of an object, as a failing disk or an adversary would. Whether it is there.
    pub fn corrupt(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        match self.objects().get_mut(key) {
            Some(body) => {
                change(Arc::make_mut(body));
                true
            }
            None => false,
        }
    }

    /// Takes an object away, as a failing disk or an adversary would. Whether it was there.
    pub fn remove(&self, key: &Key) -> bool {
        self.objects().remove(key).is_some()
    }

    fn objects(&self) -> MutexGuard<'_, Snapshot> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self, key: &Key) -> Result<Arc<Vec<u8>>, StoreError> {
        let body = self.objects().get(key).cloned();
        body.ok_or_else(|| StoreError::NotFound { key: key.clone(), location: self.location() })
    }

    fn insert(&self, objects: &mut Snapshot, key: &Key, body: Vec<u8>) -> Result<(), StoreError> {
        if objects.contains_key(key) {
            return Err(StoreError::AlreadyExists { key: key.clone(), location: self.location() });
        }
        if is_also_a_directory(objects, key) {
            return Err(StoreError::Io {
                operation: "store",
                key: key.to_string(),
                location: self.location(),
                source: io::ErrorKind::NotADirectory.into(),
            });
        }
        objects.insert(key.clone(), Arc::new(body));
        Ok(())
    }
}

/// Whether `key` lies below an object, or an object below `key`.
fn is_also_a_directory(objects: &Snapshot, key: &Key) -> bool {
    let text = key.as_str();
    let below_one = text
        .match_indices('/')
        .any(|(at, _)| Key::new(&text[..at]).is_ok_and(|above| objects.contains_key(&above)));
    let directory = format!("{text}/");
    below_one
        || objects
            .range((Bound::Excluded(key.clone()), Bound::Unbounded))
            .take_while(|(other, _)| other.as_str().starts_with(text))
            .any(|(other, _)| other.as_str().starts_with(&directory))
}

impl Store for MemoryStore {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        self.insert(&mut self.objects(), key, body.to_vec())
    }

    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        Ok(Box::new(MemoryBatch { store: self.clone(), state: Mutex::default() }))
    }

    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        let body = self.body(key)?;
        let size_bytes = body.len() as u64;
        if size_bytes > limit_bytes {
            return Err(StoreError::TooLarge { key: key.clone(), size_bytes, limit_bytes });
        }
        Ok(body.to_vec())
    }

    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let body = self.body(key)?;
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| body.get(start..start.checked_add(length)?));
        let Some(range) = range else {
            return Err(StoreError::Truncated {
                key: key.clone(),
                size_bytes: body.len() as u64,
                wanted_bytes: offset.saturating_add(length as u64),
            });
        };
        into.clear();
        into.extend_from_slice(range);
        Ok(())
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        Ok(self.body(key)?.len() as u64)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        check_prefix(prefix)?;
        let entries: Vec<Entry> = self
            .objects()
            .iter()
            .filter(|(key, _)| key.as_str().starts_with(prefix))
            .map(|(key, body)| Entry { key: key.clone(), size_bytes: body.len() as u64 })
            .collect();
        entries.into_iter().for_each(each); // not under the lock: `each` may use the store
        Ok(())
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.objects().remove(key);
        Ok(())
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }
}

struct MemoryBatch {
    store: MemoryStore,
    state: Mutex<BatchState>,
}

#[derive(Default)]
struct BatchState {
    keys: HashSet<Key>,
    written: Vec<(Key, Vec<u8>)>,
}

impl Batch for MemoryBatch {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.keys.insert(key.clone()) {
            let location = self.store.location();
            return Err(StoreError::AlreadyExists { key: key.clone(), location });
        }
        state.written.push((key.clone(), body.to_vec()));
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let Self { store, state } = *self;
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut objects = store.objects();
        state.written.into_iter().try_for_each(|(key, body)| store.insert(&mut objects, &key, body))
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryStore;
    use crate::conformance::run_all;
    use crate::{Key, Store, StoreError};

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn every_promise_is_kept() {
        let store = MemoryStore::new();
        let report = run_all(&store, "probe");
        assert!(report.is_clean(), "{report}");
        assert!(store.snapshot().is_empty());
    }

    #[test]
    fn clones_share_and_snapshots_do_not() {
        let store = MemoryStore::new();
        store.put(&key("a"), b"body").unwrap();
        let (clone, snapshot) = (store.clone(), store.snapshot());
        assert!(clone.corrupt(&key("a"), |body| body[0] ^= 1));
        assert!(clone.remove(&key("a")) && !clone.remove(&key("a")));
        assert!(!clone.corrupt(&key("a"), Vec::clear));
        assert!(store.size(&key("a")).unwrap_err().is_not_found());
        assert_eq!(MemoryStore::from_snapshot(snapshot).get(&key("a"), 9).unwrap(), b"body");
    }

    #[test]
    fn an_object_is_no_directory_as_on_a_disk() {
        let store = MemoryStore::new();
        store.put(&key("a/b"), b"body").unwrap();
        store.put(&key("a/b-c/d"), b"body").unwrap();
        for refused in ["a", "a/b/c", "a/b/c/d", "a/b-c"] {
            let error = store.put(&key(refused), b"body").unwrap_err();
            assert!(matches!(error, StoreError::Io { .. }), "{refused}");
        }
        store.put(&key("a/b-"), b"body").unwrap();
    }
}
