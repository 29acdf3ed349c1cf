//! Something happens between two calls of a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_store::{Batch, Entry, Key, MemoryStore, Store, StoreError};

/// A store before one of whose calls something happens.
pub struct Between<F> {
    store: MemoryStore,
    left: AtomicUsize,
    happens: F,
}

impl<F: Fn() + Send + Sync> Between<F> {
    /// The store; nothing happens yet.
    pub fn new(store: &MemoryStore, happens: F) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), left: AtomicUsize::new(usize::MAX), happens })
    }

    /// Lets it happen before this call, counted from 1.
    pub fn happens_before(&self, call: usize) {
        self.left.store(call, Ordering::SeqCst);
    }

    fn call(&self) -> &MemoryStore {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            (self.happens)();
        }
        &self.store
    }
}

impl<F: Fn() + Send + Sync> Store for Between<F> {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        self.call().put(key, body)
    }
    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        self.call().batch()
    }
    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        self.call().get(key, limit_bytes)
    }
    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.call().get_range(key, offset, length, into)
    }
    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.call().size(key)
    }
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        self.call().list(prefix, each)
    }
    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.call().delete(key)
    }
    fn location(&self) -> String {
        self.store.location()
    }
}
