//! A store that remembers the order of calls.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_store::{Batch, Entry, Key, Store, StoreError};

/// A call of the store's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::put`]
    Put,
    /// [`Store::batch`]
    Batch,
    /// [`Batch::put`]
    BatchPut,
    /// [`Batch::commit`]
    BatchCommit,
    /// [`Store::get`]
    Get,
    /// [`Store::get_range`]
    GetRange,
    /// [`Store::size`]
    Size,
    /// [`Store::list`]
    List,
    /// [`Store::delete`]
    Delete,
    /// [`Store::sweep_temporaries`]
    Sweep,
    /// [`Store::confirm`]
    Confirm,
}

type Log = Arc<Mutex<Vec<(Operation, String)>>>;

/// Passes every call on and writes it down when it begins. Clones share the record.
#[derive(Debug, Clone)]
pub struct RecordingStore<S> {
    inner: S,
    log: Log,
}

impl<S: Store> RecordingStore<S> {
    /// Records the calls of `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, log: Log::default() }
    }

    /// The calls so far: what, and of which key or prefix (empty for a batch and its commit).
    pub fn record(&self) -> Vec<(Operation, String)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the calls so far.
    pub fn clear(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The store behind.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn note(&self, operation: Operation, key: &str) {
        note(&self.log, operation, key);
    }
}

fn note(log: &Log, operation: Operation, key: &str) {
    log.lock().unwrap_or_else(PoisonError::into_inner).push((operation, key.to_owned()));
}

impl<S: Store> Store for RecordingStore<S> {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        self.note(Operation::Put, key.as_str());
        self.inner.put(key, body)
    }

    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        self.note(Operation::Batch, "");
        let inner = self.inner.batch()?;
        Ok(Box::new(RecordingBatch { inner, log: Arc::clone(&self.log) }))
    }

    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        self.note(Operation::Get, key.as_str());
        self.inner.get(key, limit_bytes)
    }

    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.note(Operation::GetRange, key.as_str());
        self.inner.get_range(key, offset, length, into)
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.note(Operation::Size, key.as_str());
        self.inner.size(key)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        self.note(Operation::List, prefix);
        self.inner.list(prefix, each)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.note(Operation::Delete, key.as_str());
        self.inner.delete(key)
    }

    fn sweep_temporaries(&self, prefix: &str, older_than: Duration) -> Result<u64, StoreError> {
        self.note(Operation::Sweep, prefix);
        self.inner.sweep_temporaries(prefix, older_than)
    }

    fn confirm(&self, key: &Key) -> Result<(), StoreError> {
        self.note(Operation::Confirm, key.as_str());
        self.inner.confirm(key)
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

struct RecordingBatch {
    inner: Box<dyn Batch>,
    log: Log,
}

impl Batch for RecordingBatch {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        note(&self.log, Operation::BatchPut, key.as_str());
        self.inner.put(key, body)
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        note(&self.log, Operation::BatchCommit, "");
        self.inner.commit()
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_store::conformance::run_all;
    use lifeboat_store::{Key, MemoryStore, Store};

    use super::{Operation, RecordingStore};

    #[test]
    fn the_record_is_in_the_order_of_the_calls_and_changes_nothing() {
        let store = RecordingStore::new(MemoryStore::new());
        let report = run_all(&store, "probe");
        assert!(report.is_clean(), "{report}");
        store.clear();
        let key = Key::new("a/b").unwrap();
        let batch = store.batch().unwrap();
        batch.put(&key, b"body").unwrap();
        batch.commit().unwrap();
        store.list("a/", &mut |_| ()).unwrap();
        store.delete(&key).unwrap();
        let record = store.record();
        let calls: Vec<_> = record.iter().map(|(op, key)| (*op, key.as_str())).collect();
        let expected = [
            (Operation::Batch, ""),
            (Operation::BatchPut, "a/b"),
            (Operation::BatchCommit, ""),
            (Operation::List, "a/"),
            (Operation::Delete, "a/b"),
        ];
        assert_eq!(calls, expected);
    }
}
