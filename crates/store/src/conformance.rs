//! One check per promise of the [`Store`] contract, for every back end: in its tests, and against
//! the storage of a user.
//!
//! That an object survives power loss cannot be seen from here. A back end shows it by the order
//! of its writes (`docs/format/store.md`); here it is checked that what `put` acknowledged is there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};

use crate::contract::{Entry, Store};
use crate::error::StoreError;
use crate::key::Key;

/// A check: uses only keys below the namespace, and removes what it put.
pub type Check = fn(&dyn Store, &str) -> Result<(), String>;

/// Every check, with the promise that it is about.
pub const CHECKS: [(&str, Check); 12] = [
    ("1: what put acknowledged is there, byte by byte", promise_1_acknowledged_is_there),
    ("2: a reader sees the whole object or none", promise_2_whole_or_none),
    ("3: put never replaces", promise_3_put_never_replaces),
    ("3: of many writers of one key exactly one wins", promise_3_one_writer_wins),
    ("4: list shows what was put before it began", promise_4_list_shows_all),
    ("5: a batch is invisible until commit, then whole", promise_5_invisible_until_commit),
    ("5: a dropped batch leaves nothing that counts", promise_5_dropped_leaves_nothing),
    ("5: a batch never replaces", promise_5_batch_never_replaces),
    ("6: delete removes, and a second time is no error", promise_6_delete_removes),
    ("7: what is missing is NotFound", promise_7_missing_is_not_found),
    ("limits: get refuses more than its limit", limits_get_refuses_more),
    ("limits: get_range gives exactly the range or Truncated", limits_ranges_are_exact),
];

/// Sizes that back ends treat differently: nothing, less than a block, blocks, more than a buffer.
const SIZES_BYTES: [usize; 6] = [0, 1, 4095, 4096, 70_000, 1 << 20];
/// No check puts anything longer.
const LIMIT_BYTES: u64 = 2 << 20;
const WRITERS: usize = 8;
const ROUNDS: usize = 8;

/// What [`run_all`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Each check by name, and what it complained about, if it did.
    pub results: Vec<(&'static str, Result<(), String>)>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.results.iter().all(|(_, result)| result.is_ok())
    }

    /// The promises that were broken, with the complaint.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.results
            .iter()
            .filter_map(|(name, result)| Some((*name, result.as_ref().err()?.as_str())))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, result) in &self.results {
            match result {
                Ok(()) => writeln!(f, "kept    {name}")?,
                Err(complaint) => writeln!(f, "BROKEN  {name}: {complaint}")?,
            }
        }
        Ok(())
    }
}

/// Runs every check below `namespace`, which must be an unused key, and leaves nothing behind.
pub fn run_all(store: &dyn Store, namespace: &str) -> Report {
    let mut report = Report::default();
    if let Err(complaint) = require_unused(store, namespace) {
        report.results.push(("the namespace is unused", Err(complaint)));
        return report;
    }
    for (number, (name, check)) in CHECKS.iter().enumerate() {
        report.results.push((name, check(store, &format!("{namespace}/c{number}"))));
    }
    report.results.push(("everything was removed again", require_unused(store, namespace)));
    report
}

fn require_unused(store: &dyn Store, namespace: &str) -> Result<(), String> {
    match listing(store, &format!("{namespace}/"))?.into_keys().next() {
        Some(key) => Err(format!("`{key}` is there; the checks would disturb it")),
        None => Ok(()),
    }
}

/// Promise 1, as far as it can be seen: after `Ok`, `get`, `size` and ranges give the body.
pub fn promise_1_acknowledged_is_there(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    for (seed, size) in SIZES_BYTES.into_iter().enumerate() {
        let key = probe.key(&format!("size-{size}"))?;
        let body = body(seed as u64, size);
        store.put(&key, &body).map_err(|error| failed("put", &error))?;
        expect_body(store, &key, &body)?;
    }
    // Depth, and every kind of character.
    let key = probe.key("Deep/a.b/c_d/e-f/0/1/2/3/NAME")?;
    store.put(&key, b"x").map_err(|error| failed("put", &error))?;
    expect_body(store, &key, b"x")
}

/// Promise 2: while objects are written, a reader finds none or all of each.
pub fn promise_2_whole_or_none(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let keys: Vec<Key> =
        (0..ROUNDS).map(|n| probe.key(&format!("{n}"))).collect::<Result<_, _>>()?;
    let size = 1 << 20;
    let (current, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                let last_round = done.load(Ordering::SeqCst);
                let n = current.load(Ordering::SeqCst);
                look_for_halves(store, &keys[n as usize], &body(n, size))?;
                if last_round {
                    return Ok(());
                }
            }
        });
        let mut written = Ok(());
        for (n, key) in keys.iter().enumerate() {
            current.store(n as u64, Ordering::SeqCst);
            written = store.put(key, &body(n as u64, size)).map_err(|e| failed("put", &e));
            if written.is_err() {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
        written.and(join(reader))
    })
}

fn look_for_halves(store: &dyn Store, key: &Key, whole: &[u8]) -> Result<(), String> {
    match store.size(key) {
        Ok(size) if size != whole.len() as u64 => {
            return Err(format!("`{key}` had {size} bytes while it was written"));
        }
        Ok(_) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(failed("size", &error)),
    }
    match store.get(key, LIMIT_BYTES) {
        Ok(body) if body != whole => {
            Err(format!("a reader saw {} other bytes of `{key}`", body.len()))
        }
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(failed("get", &error)),
    }
}

/// Promise 3: a second `put` of a key is refused, and the first body stays.
pub fn promise_3_put_never_replaces(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let key = probe.key("once")?;
    store.put(&key, b"first").map_err(|error| failed("put", &error))?;
    for second in [&b"second, and longer"[..], b"first", b""] {
        expect_already_exists("put", store.put(&key, second))?;
        expect_body(store, &key, b"first")?;
    }
    Ok(())
}

/// Promise 3 under concurrency: one `Ok`, and everyone reads the winner's whole body.
pub fn promise_3_one_writer_wins(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    for round in 0..ROUNDS {
        let key = probe.key(&format!("race-{round}"))?;
        let start = Barrier::new(WRITERS);
        let results: Vec<Result<(), StoreError>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|n| {
                    let (key, start) = (&key, &start);
                    scope.spawn(move || {
                        let body = body(n as u64, 10_000 + n);
                        start.wait();
                        store.put(key, &body)
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join()).collect::<Result<_, _>>()
        })
        .map_err(|_| "a writer panicked".to_owned())?;
        let winners: Vec<usize> =
            results.iter().enumerate().filter(|(_, r)| r.is_ok()).map(|(n, _)| n).collect();
        for result in results.into_iter().filter(Result::is_err) {
            expect_already_exists("put", result)?;
        }
        match winners[..] {
            [winner] => expect_body(store, &key, &body(winner as u64, 10_000 + winner))?,
            _ => return Err(format!("{} of {WRITERS} writers were told Ok", winners.len())),
        }
    }
    Ok(())
}

/// Promise 4: what was put before `list` began is in it, once, with its size, and below the
/// prefix only. Writers that go on meanwhile hide nothing.
pub fn promise_4_list_shows_all(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let mut expected = BTreeMap::new();
    for n in 0..60 {
        let key = probe.key(&format!("in/{}/{n}", n % 7))?;
        store.put(&key, &body(n, n as usize)).map_err(|error| failed("put", &error))?;
        expected.insert(key, n);
    }
    for beside in ["in.0", "in-", "inn/0", "other/in/0"] {
        store.put(&probe.key(beside)?, b"beside").map_err(|error| failed("put", &error))?;
    }
    let prefix = format!("{namespace}/in/");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 60..200 {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let key = probe.key(&format!("in/{}/{n}", n % 7))?;
                store.put(&key, b"more").map_err(|error| failed("put", &error))?;
            }
            Ok(())
        });
        let mut result = Ok(());
        for _ in 0..ROUNDS {
            result = result.and_then(|()| {
                let found = listing(store, &prefix)?;
                expected.iter().try_for_each(|(key, size)| match found.get(key) {
                    Some(found) if found == size => Ok(()),
                    Some(found) => Err(format!("`{key}` is listed with {found} bytes, not {size}")),
                    None => Err(format!("`{key}` is missing in the list of `{prefix}`")),
                })
            });
        }
        stop.store(true, Ordering::SeqCst);
        result.and(join(writer))
    })?;
    if !listing(store, &format!("{namespace}/nothing/"))?.is_empty() {
        return Err("a prefix without objects lists some".to_owned());
    }
    let all = listing(store, &format!("{namespace}/"))?;
    let beside = probe.key("other/in/0")?;
    if all.contains_key(&beside) { Ok(()) } else { Err(format!("`{beside}` is not listed")) }
}

/// Promise 5: nothing of a batch is seen before `commit`, all of it afterwards; several threads
/// may put into it.
pub fn promise_5_invisible_until_commit(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let prefix = format!("{namespace}/");
    let count = 100; // more than a back end may keep open at a time
    let keys: Vec<Key> =
        (0..count).map(|n| probe.key(&format!("{}/{n}", n % 5))).collect::<Result<_, _>>()?;
    let batch = store.batch().map_err(|error| failed("batch", &error))?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                let (keys, batch) = (&keys, &batch);
                scope.spawn(move || {
                    (thread..count).step_by(4).try_for_each(|n| {
                        let body = body(n as u64, 100 * n);
                        batch.put(&keys[n], &body).map_err(|error| failed("batch put", &error))
                    })
                })
            })
            .collect();
        writers.into_iter().try_for_each(join)
    })?;
    if let Some(key) = listing(store, &prefix)?.into_keys().next() {
        return Err(format!("`{key}` is listed before commit"));
    }
    expect_not_found("get", store.get(&keys[0], LIMIT_BYTES))?;
    batch.commit().map_err(|error| failed("commit", &error))?;
    for (n, key) in keys.iter().enumerate() {
        expect_body(store, key, &body(n as u64, 100 * n))?;
    }
    match listing(store, &prefix)?.len() {
        listed if listed == count => Ok(()),
        listed => Err(format!("{listed} of {count} objects are listed after commit")),
    }
}

/// Promise 5: what was put into a batch that is dropped does not exist, and its keys are free.
pub fn promise_5_dropped_leaves_nothing(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let keys = [probe.key("a")?, probe.key("b/c")?];
    let batch = store.batch().map_err(|error| failed("batch", &error))?;
    for key in &keys {
        batch.put(key, b"dropped").map_err(|error| failed("batch put", &error))?;
    }
    drop(batch);
    if let Some(key) = listing(store, &format!("{namespace}/"))?.into_keys().next() {
        return Err(format!("`{key}` is listed although its batch was dropped"));
    }
    for key in &keys {
        expect_not_found("get", store.get(key, LIMIT_BYTES))?;
        store.put(key, b"later").map_err(|error| failed("put", &error))?;
        expect_body(store, key, b"later")?;
    }
    Ok(())
}

/// Promise 5 with 3: a batch finds keys that exist before it, or that appear meanwhile.
pub fn promise_5_batch_never_replaces(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let (before, between) = (probe.key("before")?, probe.key("between")?);
    store.put(&before, b"first").map_err(|error| failed("put", &error))?;
    let batch = store.batch().map_err(|error| failed("batch", &error))?;
    expect_already_exists("commit", batch.put(&before, b"second").and_then(|()| batch.commit()))?;
    expect_body(store, &before, b"first")?;

    let batch = store.batch().map_err(|error| failed("batch", &error))?;
    batch.put(&between, b"second").map_err(|error| failed("batch put", &error))?;
    store.put(&between, b"first").map_err(|error| failed("put", &error))?;
    expect_already_exists("commit", batch.commit())?;
    expect_body(store, &between, b"first")
}

/// Promise 6: what is deleted is not found, listed or in the way of a new object.
pub fn promise_6_delete_removes(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let (key, stays) = (probe.key("d/gone")?, probe.key("d/stays")?);
    store.delete(&key).map_err(|error| failed("delete of a missing key", &error))?;
    for object in [&key, &stays] {
        store.put(object, b"body").map_err(|error| failed("put", &error))?;
    }
    for _ in 0..2 {
        store.delete(&key).map_err(|error| failed("delete", &error))?;
        expect_not_found("get", store.get(&key, LIMIT_BYTES))?;
    }
    let listed: Vec<Key> = listing(store, &format!("{namespace}/"))?.into_keys().collect();
    if listed != [stays.clone()] {
        return Err(format!("after delete, {listed:?} are listed"));
    }
    expect_body(store, &stays, b"body")?;
    store.put(&key, b"new").map_err(|error| failed("put after delete", &error))?;
    expect_body(store, &key, b"new")
}

/// Promise 7, as far as it can be seen on a store that is well: a missing object, beside others or
/// in a directory of its own, is `NotFound` for each way to read it.
pub fn promise_7_missing_is_not_found(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    store.put(&probe.key("here")?, b"here").map_err(|error| failed("put", &error))?;
    for name in ["hers", "her", "here.", "nowhere/at/all"] {
        let key = probe.key(name)?;
        expect_not_found("get", store.get(&key, LIMIT_BYTES))?;
        expect_not_found("get_range", store.get_range(&key, 0, 0, &mut Vec::new()))?;
        expect_not_found("size", store.size(&key))?;
    }
    Ok(())
}

/// `get` gives an object as long as its limit, and refuses a longer one.
pub fn limits_get_refuses_more(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let key = probe.key("limited")?;
    store.put(&key, &body(1, 1000)).map_err(|error| failed("put", &error))?;
    match store.get(&key, 1000) {
        Ok(found) if found == body(1, 1000) => {}
        other => return Err(format!("get at the limit: {}", outcome(&other))),
    }
    match store.get(&key, 999) {
        Err(StoreError::TooLarge { size_bytes: 1000, limit_bytes: 999, .. }) => Ok(()),
        other => Err(format!("get above the limit: {}", outcome(&other))),
    }
}

/// `get_range` gives exactly what lies there, whatever the buffer held, and never less.
pub fn limits_ranges_are_exact(store: &dyn Store, namespace: &str) -> Result<(), String> {
    let probe = Probe::new(store, namespace);
    let key = probe.key("ranges")?;
    let whole = body(2, 10_000);
    store.put(&key, &whole).map_err(|error| failed("put", &error))?;
    let mut into = b"what was there before".to_vec();
    for (offset, length) in [(0, 10_000), (0, 0), (1, 4096), (9_999, 1), (10_000, 0), (5, 3)] {
        store
            .get_range(&key, offset as u64, length, &mut into)
            .map_err(|error| failed("get_range", &error))?;
        if into != whole[offset..offset + length] {
            return Err(format!("{length} bytes from {offset} are others than those put"));
        }
    }
    for (offset, length) in [(0, 10_001), (10_000, 1), (10_001, 0), (u64::MAX, 2)] {
        match store.get_range(&key, offset, length, &mut into) {
            Err(StoreError::Truncated { size_bytes: 10_000, .. }) => {}
            other => {
                return Err(format!("{length} bytes from {offset} of 10000: {}", outcome(&other)));
            }
        }
    }
    Ok(())
}

/// Hands out keys below a namespace and deletes their objects when dropped.
struct Probe<'a> {
    store: &'a dyn Store,
    namespace: &'a str,
    keys: Mutex<Vec<Key>>,
}

impl<'a> Probe<'a> {
    fn new(store: &'a dyn Store, namespace: &'a str) -> Self {
        Self { store, namespace, keys: Mutex::default() }
    }

    fn key(&self, name: &str) -> Result<Key, String> {
        let key = Key::new(format!("{}/{name}", self.namespace))
            .map_err(|error| failed("the namespace", &error))?;
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key.clone());
        Ok(key)
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        for key in self.keys.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = self.store.delete(&key); // what stays is reported by `run_all`
        }
    }
}

/// Bytes that tell a seed, a length and a position from others.
fn body(seed: u64, length: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ length as u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 33)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn listing(store: &dyn Store, prefix: &str) -> Result<BTreeMap<Key, u64>, String> {
    let mut found = BTreeMap::new();
    let mut complaint = None;
    store
        .list(prefix, &mut |Entry { key, size_bytes }| {
            if !key.as_str().starts_with(prefix) {
                complaint = Some(format!("the list of `{prefix}` shows `{key}`"));
            } else if found.insert(key.clone(), size_bytes).is_some() {
                complaint = Some(format!("the list of `{prefix}` shows `{key}` twice"));
            }
        })
        .map_err(|error| failed("list", &error))?;
    complaint.map_or(Ok(found), Err)
}

fn expect_body(store: &dyn Store, key: &Key, whole: &[u8]) -> Result<(), String> {
    let size = store.size(key).map_err(|error| failed("size", &error))?;
    let found = store.get(key, LIMIT_BYTES).map_err(|error| failed("get", &error))?;
    let mut range = Vec::new();
    store
        .get_range(key, 0, whole.len(), &mut range)
        .map_err(|error| failed("get_range", &error))?;
    if size == whole.len() as u64 && found == whole && range == whole {
        Ok(())
    } else {
        Err(format!(
            "`{key}`: {} bytes were put; size says {size}, get gave {}, and they differ",
            whole.len(),
            found.len()
        ))
    }
}

fn expect_not_found<T>(operation: &str, result: Result<T, StoreError>) -> Result<(), String> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => Err(format!("{operation} of a missing object: {}", outcome(&other))),
    }
}

fn expect_already_exists(operation: &str, result: Result<(), StoreError>) -> Result<(), String> {
    match result {
        Err(error) if error.is_already_exists() => Ok(()),
        other => Err(format!("{operation} of an existing object: {}", outcome(&other))),
    }
}

fn outcome<T>(result: &Result<T, StoreError>) -> String {
    match result {
        Ok(_) => "was told Ok, with other content than expected, or where an error was due".into(),
        Err(error) => failed("it", error),
    }
}

fn failed(operation: &str, error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{operation} failed: {error}{}", cause.unwrap_or_default())
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<(), String>>) -> Result<(), String> {
    thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
}
