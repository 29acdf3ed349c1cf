//! What everything above the store relies on.

use std::sync::Arc;
use std::time::Duration;

use crate::error::StoreError;
use crate::key::Key;

/// Flat, immutable objects. Everything above relies on exactly these promises:
///
/// 1. `put` returns `Ok` only when the object survives power loss.
/// 2. A reader sees the whole object or none, whatever became of its writer.
/// 3. `put` of an existing key is [`StoreError::AlreadyExists`], never a replacement.
/// 4. `list` shows every object whose `put` returned before `list` began.
/// 5. What went into a [`Batch`] is invisible until `commit`; `commit` returns `Ok` only when all
///    of it survives power loss. A batch that is dropped leaves nothing that counts.
/// 6. `delete` of a missing key is `Ok`; after it, `get` says [`StoreError::NotFound`].
/// 7. `NotFound` is said only when the store certainly looked and the object is not there; a
///    store that cannot be reached, or whose root is missing, gives another error.
///
/// After any other error the caller does not know whether the object exists; it asks.
pub trait Store: Send + Sync {
    /// Stores one object durably.
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError>;
    /// Begins a batch: many objects, one barrier.
    fn batch(&self) -> Result<Box<dyn Batch>, StoreError>;
    /// Reads a whole object. [`StoreError::TooLarge`] when it is longer than `limit_bytes`, before
    /// anything is allocated.
    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError>;
    /// Reads exactly `length` bytes from `offset` into `into`, replacing its content.
    /// [`StoreError::Truncated`] when the object ends before that.
    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError>;
    /// Size of an object in bytes.
    fn size(&self, key: &Key) -> Result<u64, StoreError>;
    /// Calls `each` for every object whose key begins with `prefix`, in no order.
    ///
    /// `prefix` is empty or ends in `/`. A prefix without objects is not an error.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError>;
    /// Removes an object, durably.
    fn delete(&self, key: &Key) -> Result<(), StoreError>;
    /// Removes what killed writers left half written below `prefix` (as in [`Store::list`]) and
    /// did not touch for `older_than`; says how many. Only collection calls it, under its lease.
    ///
    /// A store in which nothing half written can lie has nothing to do.
    fn sweep_temporaries(&self, prefix: &str, older_than: Duration) -> Result<u64, StoreError> {
        let _ = (prefix, older_than);
        Ok(0)
    }
    /// Makes an object durable that is visible: it may be another writer's, who was killed before
    /// the object was synced. Whoever relies on an object that it did not put asks first.
    ///
    /// A store in which whatever is visible is durable has nothing to do.
    fn confirm(&self, key: &Key) -> Result<(), StoreError> {
        let _ = key;
        Ok(())
    }
    /// Where this is, for messages; without secrets.
    fn location(&self) -> String;
}

/// Objects that become visible and durable together, for one barrier instead of many.
pub trait Batch: Send + Sync {
    /// Writes one object. A key that exists already is found now or at commit.
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError>;
    /// Makes all durable, then visible. After an error some may be visible, none half.
    fn commit(self: Box<Self>) -> Result<(), StoreError>;
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// Its size.
    pub size_bytes: u64,
}

/// What points to a store is one.
macro_rules! forward {
    ($pointer:ty) => {
        impl<S: Store + ?Sized> Store for $pointer {
            fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
                (**self).put(key, body)
            }
            fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
                (**self).batch()
            }
            fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
                (**self).get(key, limit_bytes)
            }
            fn get_range(
                &self,
                key: &Key,
                offset: u64,
                length: usize,
                into: &mut Vec<u8>,
            ) -> Result<(), StoreError> {
                (**self).get_range(key, offset, length, into)
            }
            fn size(&self, key: &Key) -> Result<u64, StoreError> {
                (**self).size(key)
            }
            fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
                (**self).list(prefix, each)
            }
            fn delete(&self, key: &Key) -> Result<(), StoreError> {
                (**self).delete(key)
            }
            fn sweep_temporaries(
                &self,
                prefix: &str,
                older_than: Duration,
            ) -> Result<u64, StoreError> {
                (**self).sweep_temporaries(prefix, older_than)
            }
            fn confirm(&self, key: &Key) -> Result<(), StoreError> {
                (**self).confirm(key)
            }
            fn location(&self) -> String {
                (**self).location()
            }
        }
    };
}
forward!(Box<S>);
forward!(Arc<S>);
