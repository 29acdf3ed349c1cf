//! Each check of the conformance suite complains about a store that breaks its promise.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use lifeboat_store::conformance::{CHECKS, run_all};
use lifeboat_store::{Batch, Entry, Key, MemoryStore, Store, StoreError};

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    LosesTheLastByte,
    SizeIsOneTooMany,
    WritesInTwoSteps,
    Replaces,
    ReplacesSilentlyInARace,
    ForgetsSomeInList,
    ListsBesideThePrefix,
    ListsTwice,
    ListsAWrongSize,
    BatchIsVisibleAtOnce,
    BatchKeepsWhatWasDropped,
    CommitForgetsOne,
    CommitReplaces,
    DeleteDoesNothing,
    DeleteOfMissingFails,
    DeleteTakesTheNeighbour,
    MissingIsAnotherError,
    MissingIsEmpty,
    IgnoresTheLimit,
    ShortRangesAreOk,
    RangesAreAppended,
}

use Flaw::*;

/// Each flaw, and a check (the beginning of its name) that has to find it.
const EXPECTED: [(Flaw, &str); 21] = [
    (LosesTheLastByte, "1: what put"),
    (SizeIsOneTooMany, "1: what put"),
    (WritesInTwoSteps, "2: a reader"),
    (Replaces, "3: put never"),
    (ReplacesSilentlyInARace, "3: of many"),
    (ForgetsSomeInList, "4: list"),
    (ListsBesideThePrefix, "4: list"),
    (ListsTwice, "4: list"),
    (ListsAWrongSize, "4: list"),
    (BatchIsVisibleAtOnce, "5: a batch is"),
    (BatchKeepsWhatWasDropped, "5: a dropped"),
    (CommitForgetsOne, "5: a batch is"),
    (CommitReplaces, "5: a batch never"),
    (DeleteDoesNothing, "6: delete"),
    (DeleteOfMissingFails, "6: delete"),
    (DeleteTakesTheNeighbour, "6: delete"),
    (MissingIsAnotherError, "7: what is"),
    (MissingIsEmpty, "7: what is"),
    (IgnoresTheLimit, "limits: get refuses"),
    (ShortRangesAreOk, "limits: get_range"),
    (RangesAreAppended, "limits: get_range"),
];

#[derive(Clone)]
struct Flawed {
    inner: MemoryStore,
    flaw: Flaw,
}

impl Flawed {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn replace(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        self.inner.remove(key);
        self.inner.put(key, body)
    }

    fn broken(&self, key: &Key) -> StoreError {
        StoreError::Io {
            operation: "read",
            key: key.to_string(),
            location: self.location(),
            source: io::ErrorKind::TimedOut.into(),
        }
    }

    fn missing(&self, key: &Key, error: StoreError) -> Result<(), StoreError> {
        match self.flaw {
            MissingIsAnotherError if error.is_not_found() => Err(self.broken(key)),
            MissingIsEmpty if error.is_not_found() => Ok(()),
            _ => Err(error),
        }
    }
}

impl Store for Flawed {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        match self.flaw {
            LosesTheLastByte => self.inner.put(key, &body[..body.len().saturating_sub(1)]),
            Replaces => self.replace(key, body),
            WritesInTwoSteps => {
                self.inner.put(key, &body[..body.len() / 2])?;
                std::thread::sleep(std::time::Duration::from_millis(5));
                self.replace(key, body)
            }
            ReplacesSilentlyInARace => {
                if self.inner.size(key).is_ok() {
                    return self.inner.put(key, body);
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
                let _ = self.replace(key, body); // another racer may come between
                Ok(())
            }
            _ => self.inner.put(key, body),
        }
    }

    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        Ok(Box::new(FlawedBatch { store: self.clone(), written: Mutex::default() }))
    }

    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        let limit_bytes = if self.has(IgnoresTheLimit) { u64::MAX } else { limit_bytes };
        let body = self.inner.get(key, limit_bytes);
        body.or_else(|error| self.missing(key, error).map(|()| Vec::new()))
    }

    fn get_range(
        &self,
        key: &Key,
        offset: u64,
        length: usize,
        into: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let before = into.clone();
        match self.inner.get_range(key, offset, length, into) {
            Err(StoreError::Truncated { .. }) if self.has(ShortRangesAreOk) => Ok(()),
            Err(error) => self.missing(key, error),
            Ok(()) => {
                if self.has(RangesAreAppended) {
                    into.splice(0..0, before);
                }
                Ok(())
            }
        }
    }

    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        match self.inner.size(key) {
            Ok(size) => Ok(size + u64::from(self.has(SizeIsOneTooMany))),
            Err(error) => self.missing(key, error).map(|()| 0),
        }
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        let mut number = 0;
        let mut visit = |mut entry: Entry| {
            number += 1;
            entry.size_bytes += u64::from(self.has(ListsAWrongSize));
            if self.has(ListsTwice) {
                each(entry.clone());
            }
            if !(self.has(ForgetsSomeInList) && number % 10 == 0) {
                each(entry);
            }
        };
        if self.has(ListsBesideThePrefix) {
            let short = prefix.trim_end_matches('/');
            return self.inner.list("", &mut |entry| {
                if entry.key.as_str().starts_with(short) {
                    visit(entry);
                }
            });
        }
        self.inner.list(prefix, &mut visit)
    }

    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        match self.flaw {
            DeleteDoesNothing => Ok(()),
            DeleteOfMissingFails => self.inner.size(key).map(|_| self.inner.remove(key)).map(drop),
            DeleteTakesTheNeighbour => {
                let directory = key.as_str().rsplit_once('/').map_or("", |(path, _)| path);
                let mut neighbours = Vec::new();
                self.inner.list(&format!("{directory}/"), &mut |e| neighbours.push(e.key))?;
                neighbours.iter().try_for_each(|key| self.inner.delete(key))
            }
            _ => self.inner.delete(key),
        }
    }

    fn location(&self) -> String {
        format!("{:?}", self.flaw)
    }
}

struct FlawedBatch {
    store: Flawed,
    written: Mutex<Vec<(Key, Vec<u8>)>>,
}

impl Batch for FlawedBatch {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        if self.store.has(BatchIsVisibleAtOnce) {
            return self.store.put(key, body);
        }
        self.written.lock().unwrap().push((key.clone(), body.to_vec()));
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let mut written = std::mem::take(&mut *self.written.lock().unwrap());
        if self.store.has(CommitForgetsOne) {
            written.pop();
        }
        written.iter().try_for_each(|(key, body)| match self.store.flaw {
            CommitReplaces => self.store.replace(key, body),
            _ => self.store.inner.put(key, body),
        })
    }
}

impl Drop for FlawedBatch {
    fn drop(&mut self) {
        if self.store.has(BatchKeepsWhatWasDropped) {
            for (key, body) in self.written.lock().unwrap().drain(..) {
                let _ = self.store.inner.put(&key, &body);
            }
        }
    }
}

#[test]
fn each_check_complains_about_a_store_that_breaks_its_promise() {
    let mut proven = BTreeSet::new();
    for (flaw, check) in EXPECTED {
        let store = Flawed { inner: MemoryStore::new(), flaw };
        let report = run_all(&store, "probe");
        let found = report.broken().find(|(name, _)| name.starts_with(check));
        let (name, complaint) =
            found.unwrap_or_else(|| panic!("{flaw:?} was not found:\n{report}"));
        assert!(!complaint.is_empty());
        proven.insert(name);
    }
    let all: BTreeSet<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    assert_eq!(proven, all, "a check that never failed proves nothing");
}

#[test]
fn the_checks_do_not_touch_a_namespace_in_use() {
    let store = MemoryStore::new();
    let key = Key::new("probe/c0/size-0").unwrap();
    store.put(&key, b"precious").unwrap();
    assert!(!run_all(&store, "probe").is_clean());
    assert_eq!(store.get(&key, 99).unwrap(), b"precious");
    assert_eq!(store.snapshot().len(), 1);
}

#[test]
fn what_stays_behind_is_reported() {
    let store = Flawed { inner: MemoryStore::new(), flaw: DeleteDoesNothing };
    let report = run_all(&store, "probe");
    assert!(report.broken().any(|(name, _)| name == "everything was removed again"), "{report}");
    assert!(report.to_string().contains("BROKEN"));
}
