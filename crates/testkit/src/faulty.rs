//! A store that fails at a chosen call.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_store::{Batch, Entry, Key, Store, StoreError};

use crate::recording::Operation;

/// What happens at the chosen call. Whatever it is, the caller gets an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The call has no effect.
    ErrorBefore,
    /// The call has its effect; only the answer is lost.
    ErrorAfter,
    /// The call is cut short. The contract forbids visible halves, so of a `put` nothing is
    /// visible (its first bytes may lie in a temporary), and of a commit the first half of the
    /// objects is, each whole.
    Torn {
        /// How many bytes of the body were written before.
        keep_bytes: usize,
    },
    /// The process dies before the call has an effect: this and every later call fails.
    Die,
    /// The process dies when the call has had its effect: this and every later call fails.
    DieAfter,
}

impl Fault {
    /// One of each.
    pub const ALL: [Self; 5] = [
        Self::ErrorBefore,
        Self::ErrorAfter,
        Self::Torn { keep_bytes: 7 },
        Self::Die,
        Self::DieAfter,
    ];
}

/// When a [`FaultyStore`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Never; calls are counted only.
    None,
    /// At the call of this number, the first being 0.
    At(u64, Fault),
}

/// Counts the calls of a store, those of its batches included, and fails at a chosen one.
///
/// Clones share the count and the fault. Calls from several threads are numbered in the order in
/// which they come.
#[derive(Debug, Clone)]
pub struct FaultyStore<S> {
    inner: S,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    schedule: Schedule,
    calls: u64,
    hit: Option<Operation>,
    dead: bool,
}

/// What is left to do of one call.
enum Turn {
    Pass,
    Fail,
    FailAfterEffect,
    Tear,
}

impl<S: Store + Clone + 'static> FaultyStore<S> {
    /// A store over `inner` that fails as `schedule` says.
    pub fn new(inner: S, schedule: Schedule) -> Self {
        let state = State { schedule, calls: 0, hit: None, dead: false };
        Self { inner, state: Arc::new(Mutex::new(state)) }
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Whether the chosen call came. A test in which it did not has tested nothing.
    pub fn fault_was_hit(&self) -> bool {
        self.hit().is_some()
    }

    /// Which call the fault struck.
    pub fn hit(&self) -> Option<Operation> {
        self.state().hit
    }

    /// The store behind, as the next process finds it.
    pub fn heal(&self) -> S {
        self.inner.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, operation: Operation) -> Turn {
        let mut state = self.state();
        let call = state.calls;
        state.calls += 1;
        match state.schedule {
            _ if state.dead => Turn::Fail,
            Schedule::At(chosen, fault) if chosen == call => {
                state.hit = Some(operation);
                state.dead = matches!(fault, Fault::Die | Fault::DieAfter);
                match fault {
                    Fault::ErrorBefore | Fault::Die => Turn::Fail,
                    Fault::ErrorAfter | Fault::DieAfter => Turn::FailAfterEffect,
                    Fault::Torn { .. } => Turn::Tear,
                }
            }
            _ => Turn::Pass,
        }
    }

    fn fault(&self, operation: &'static str, key: &str) -> StoreError {
        StoreError::Io {
            operation,
            key: key.to_owned(),
            location: self.inner.location(),
            source: io::Error::other("a fault of the test"),
        }
    }

    /// Runs a call whose only partial effect is none.
    fn call<T>(
        &self,
        (operation, words, key): (Operation, &'static str, &str),
        effect: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match self.turn(operation) {
            Turn::Pass => effect(),
            Turn::Fail | Turn::Tear => Err(self.fault(words, key)),
            Turn::FailAfterEffect => effect().and_then(|_| Err(self.fault(words, key))),
        }
    }
}

impl<S: Store + Clone + 'static> Store for FaultyStore<S> {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        self.call((Operation::Put, "store", key.as_str()), || self.inner.put(key, body))
    }

    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        self.call((Operation::Batch, "begin a batch for", ""), || self.inner.batch().map(drop))?;
        Ok(Box::new(FaultyBatch { store: self.clone(), written: Mutex::default() }))
    }

    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        self.call((Operation::Get, "read", key.as_str()), || self.inner.get(key, limit_bytes))
    }

    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.call((Operation::GetRange, "read", key.as_str()), || {
            self.inner.get_range(key, offset, length, into)
        })
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.call((Operation::Size, "look up", key.as_str()), || self.inner.size(key))
    }

    /// A listing that fails after its effect, or torn, has shown some of its entries.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        let turn = self.turn(Operation::List);
        if !matches!(turn, Turn::Fail) {
            self.inner.list(prefix, &mut |entry| entries.push(entry))?;
        }
        if matches!(turn, Turn::Tear) {
            entries.truncate(entries.len() / 2);
        }
        entries.into_iter().for_each(each);
        if matches!(turn, Turn::Pass) { Ok(()) } else { Err(self.fault("list", prefix)) }
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.call((Operation::Delete, "delete", key.as_str()), || self.inner.delete(key))
    }

    fn sweep_temporaries(&self, prefix: &str, older_than: Duration) -> Result<u64, StoreError> {
        self.call((Operation::Sweep, "sweep", prefix), || {
            self.inner.sweep_temporaries(prefix, older_than)
        })
    }

    fn confirm(&self, key: &Key) -> Result<(), StoreError> {
        self.call((Operation::Confirm, "sync", key.as_str()), || self.inner.confirm(key))
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

/// Keeps what is put until commit, so that a commit can be cut in half.
struct FaultyBatch<S> {
    store: FaultyStore<S>,
    written: Mutex<Vec<(Key, Vec<u8>)>>,
}

impl<S: Store + Clone + 'static> Batch for FaultyBatch<S> {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let call = (Operation::BatchPut, "store", key.as_str());
        self.store.call(call, || {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.push((key.clone(), body.to_vec()));
            Ok(())
        })
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let Self { store, written } = *self;
        let mut written = written.into_inner().unwrap_or_else(PoisonError::into_inner);
        let turn = store.turn(Operation::BatchCommit);
        if matches!(turn, Turn::Fail) {
            return Err(store.fault("commit", ""));
        }
        if matches!(turn, Turn::Tear) {
            written.truncate(written.len() / 2);
        }
        let batch = store.inner.batch()?;
        written.iter().try_for_each(|(key, body)| batch.put(key, body))?;
        batch.commit()?;
        if matches!(turn, Turn::Pass) { Ok(()) } else { Err(store.fault("commit", "")) }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_store::conformance::run_all;
    use lifeboat_store::{Key, LocalStore, MemoryStore, Store, StoreError};

    use super::{Fault, FaultyStore, Schedule};
    use crate::recording::Operation;

    fn key(n: u32) -> Key {
        Key::new(format!("objects/{n}")).unwrap()
    }

    /// One call of each kind; goes on after errors, as a careless caller would.
    fn call_everything<S: Store>(store: &S) -> Vec<Result<(), StoreError>> {
        let mut results = vec![store.put(&key(0), b"first body")];
        match store.batch() {
            Ok(batch) => {
                results.push(Ok(()));
                results.extend((1..4).map(|n| batch.put(&key(n), b"batched body")));
                results.push(batch.commit());
            }
            Err(error) => results.push(Err(error)),
        }
        results.push(store.get(&key(0), 99).map(drop));
        results.push(store.get_range(&key(0), 1, 2, &mut Vec::new()));
        results.push(store.size(&key(0)).map(drop));
        results.push(store.confirm(&key(0)));
        results.push(store.list("", &mut |_| ()));
        results.push(store.delete(&key(0)));
        results
    }

    fn visible<S: Store>(store: &S) -> Vec<String> {
        let mut keys = Vec::new();
        store.list("", &mut |entry| keys.push(entry.key.name().to_owned())).unwrap();
        keys.sort();
        for name in &keys {
            let n = name.parse().unwrap();
            let whole = if n == 0 { &b"first body"[..] } else { b"batched body" };
            assert_eq!(store.get(&key(n), 99).unwrap(), whole);
        }
        keys
    }

    #[test]
    fn without_a_fault_every_promise_is_kept() {
        let store = FaultyStore::new(MemoryStore::new(), Schedule::None);
        let report = run_all(&store, "probe");
        assert!(report.is_clean(), "{report}");
        assert!(store.calls() > 0 && !store.fault_was_hit());
    }

    #[test]
    fn each_fault_strikes_each_call_once_and_leaves_only_whole_objects() {
        let dry = FaultyStore::new(MemoryStore::new(), Schedule::None);
        assert!(call_everything(&dry).iter().all(Result::is_ok));
        assert_eq!(dry.calls(), 12);
        for call in 0..dry.calls() {
            for fault in Fault::ALL {
                let directory = tempfile::tempdir().unwrap();
                let disk = LocalStore::open(directory.path()).unwrap();
                let store = FaultyStore::new(disk, Schedule::At(call, fault));
                let results = call_everything(&store);
                assert!(store.fault_was_hit(), "call {call} {fault:?}");
                let first = results.iter().position(Result::is_err);
                assert_eq!(first, Some(call as usize), "call {call} {fault:?}");
                if matches!(fault, Fault::Die | Fault::DieAfter) {
                    let after = &results[call as usize..];
                    assert!(after.iter().all(Result::is_err), "call {call} {fault:?}");
                }
                visible(&store.heal());
            }
        }
    }

    #[test]
    fn each_fault_has_the_effect_that_it_is_named_for() {
        let torn = Fault::Torn { keep_bytes: 7 };
        let cases = [
            // A put: call 0. What is visible after it alone.
            (0, Fault::ErrorBefore, Operation::Put, vec!["1", "2", "3"]),
            (0, Fault::ErrorAfter, Operation::Put, vec!["1", "2", "3"]), // deleted at the end
            (0, torn, Operation::Put, vec!["1", "2", "3"]),
            (0, Fault::Die, Operation::Put, vec![]),
            (0, Fault::DieAfter, Operation::Put, vec!["0"]),
            // The second put of a batch.
            (3, Fault::ErrorBefore, Operation::BatchPut, vec!["1", "3"]),
            (3, Fault::ErrorAfter, Operation::BatchPut, vec!["1", "2", "3"]),
            (3, torn, Operation::BatchPut, vec!["1", "3"]),
            (3, Fault::Die, Operation::BatchPut, vec!["0"]),
            // The commit of three.
            (5, Fault::ErrorBefore, Operation::BatchCommit, vec![]),
            (5, Fault::ErrorAfter, Operation::BatchCommit, vec!["1", "2", "3"]),
            (5, torn, Operation::BatchCommit, vec!["1"]),
            (5, Fault::Die, Operation::BatchCommit, vec!["0"]),
            (5, Fault::DieAfter, Operation::BatchCommit, vec!["0", "1", "2", "3"]),
            // The delete at the end.
            (11, Fault::ErrorBefore, Operation::Delete, vec!["0", "1", "2", "3"]),
            (11, Fault::ErrorAfter, Operation::Delete, vec!["1", "2", "3"]),
        ];
        for (call, fault, operation, expected) in cases {
            let store = FaultyStore::new(MemoryStore::new(), Schedule::At(call, fault));
            call_everything(&store);
            assert_eq!(store.hit(), Some(operation), "call {call} {fault:?}");
            assert_eq!(visible(&store.heal()), expected, "call {call} {fault:?}");
        }
    }

    #[test]
    fn a_fault_beyond_the_last_call_is_known_not_to_have_struck() {
        let store = FaultyStore::new(MemoryStore::new(), Schedule::At(99, Fault::Die));
        assert!(call_everything(&store).iter().all(Result::is_ok));
        assert!(!store.fault_was_hit());
    }
}
