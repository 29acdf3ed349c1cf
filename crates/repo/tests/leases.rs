//! Who has a cluster, seen by two holders.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_repo::crypt::{BoxKind, Scope};
use lifeboat_repo::lease::{Holder, LAPSE};
use lifeboat_repo::{Cluster, Lease, Purpose, RepoError};
use lifeboat_store::{Batch, Entry, Key, MemoryStore, Store, StoreError};
use lifeboat_testkit::{Fault, FaultyStore, Schedule, SimClock};
use support::Seeded;

fn world() -> (MemoryStore, Cluster, SimClock) {
    let store = MemoryStore::new();
    let cluster = support::main_cluster(&support::create(store.clone(), 1));
    (store, cluster, SimClock::new(support::at(0)))
}

fn acquire(cluster: &Cluster, clock: &SimClock) -> Result<Lease, RepoError> {
    Lease::acquire(cluster, Purpose::Backup, clock)
}

fn is_busy(cluster: &Cluster, clock: &SimClock) -> bool {
    matches!(acquire(cluster, clock), Err(RepoError::Busy { .. }))
}

fn numbers(store: &MemoryStore) -> Vec<u64> {
    let keys = store.snapshot().into_keys();
    keys.filter(|key| key.as_str().contains("/lease/"))
        .map(|key| key.name().parse().unwrap())
        .collect()
}

/// Puts a lease as another process would have left it.
fn plant(cluster: &Cluster, number: u64, holder: &Holder, clock: &SimClock) {
    use lifeboat_units::Clock;
    let now = clock.now().to_string();
    let plain = serde_json::json!({
        "holder": holder, "token": "other", "purpose": "expire",
        "since": now, "renewed": now, "released": false
    });
    let name = format!("lease/{number:012}");
    let keyring = cluster.repository().keyring();
    let scope = Scope::object(keyring.repository, cluster.name(), &name);
    let (plain, mut body) = (plain.to_string(), vec![1]);
    let random = Seeded::new(number);
    keyring.index.seal_single(&scope, BoxKind::Lease, plain.as_bytes(), &random, &mut body);
    cluster.store().put(&cluster.key(&name).unwrap(), &body).unwrap();
}

#[test]
fn one_has_it_until_it_is_given_back() {
    let (store, cluster, clock) = world();
    let mut lease = acquire(&cluster, &clock).unwrap();
    assert!(is_busy(&cluster, &clock));
    assert_eq!(numbers(&store), [1]);
    lease.check().unwrap();
    for _ in 0..30 {
        clock.advance(Duration::from_secs(60));
        lease.renew(&clock).unwrap();
        assert!(is_busy(&cluster, &clock));
    }
    assert_eq!(numbers(&store), [31]);
    lease.release().unwrap();
    let second = acquire(&cluster, &clock).unwrap();
    assert_eq!(numbers(&store), [33], "no number comes twice: 32 said that it was given back");
    drop(second);
    acquire(&cluster, &clock).unwrap().release().unwrap();
    let elsewhere = cluster.repository().cluster("other".parse().unwrap());
    let _one = acquire(&cluster, &clock).unwrap();
    let _two = acquire(&elsewhere, &clock).unwrap();
}

#[test]
fn a_dead_process_of_this_machine_is_noticed_at_once() {
    let (_, cluster, clock) = world();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    plant(&cluster, 4, &Holder { pid, process_start: 1, ..Holder::this_process() }, &clock);
    acquire(&cluster, &clock).unwrap().release().unwrap();
    // The number lives, but it is another process by now.
    let me = Holder::this_process();
    let start = me.process_start - 1;
    plant(&cluster, 100, &Holder { process_start: start, ..me.clone() }, &clock);
    acquire(&cluster, &clock).unwrap().release().unwrap();
    plant(&cluster, 200, &me, &clock);
    assert!(is_busy(&cluster, &clock), "it lives");
}

#[test]
fn a_process_that_ended_and_was_not_waited_for_is_dead_too() {
    let (_, cluster, clock) = world();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::sleep(Duration::from_millis(2));
    }
    plant(&cluster, 1, &Holder { pid: child.id(), ..Holder::this_process() }, &clock);
    acquire(&cluster, &clock).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_holder_elsewhere_is_waited_for() {
    let me = Holder::this_process();
    let elsewhere = [
        Holder { boot: "another".to_owned(), host: "db2".to_owned(), ..me.clone() },
        // A container of this machine: the same boot, other process numbers.
        Holder { pid_namespace: "pid:[1]".to_owned(), ..me.clone() },
        Holder { boot: String::new(), ..me.clone() },
        Holder { pid_namespace: String::new(), ..me },
    ];
    for holder in elsewhere {
        let (store, cluster, clock) = world();
        plant(&cluster, 4, &Holder { pid: 4_000_000, ..holder }, &clock);
        assert!(is_busy(&cluster, &clock));
        clock.advance(LAPSE - Duration::from_secs(1));
        assert!(is_busy(&cluster, &clock), "not yet");
        clock.advance(Duration::from_secs(1));
        let lease = acquire(&cluster, &clock).unwrap();
        assert_eq!(numbers(&store), [5]);
        lease.release().unwrap();
    }
}

#[test]
fn a_lost_lease_is_noticed_and_what_its_loser_does_harms_nobody() {
    let (store, cluster, clock) = world();
    let mut slept = acquire(&cluster, &clock).unwrap();
    clock.advance(LAPSE);
    let mut second = acquire(&cluster, &clock).unwrap();
    for lost in [slept.check(), slept.renew(&clock)] {
        assert!(matches!(lost, Err(RepoError::LeaseLost { .. })), "{lost:?}");
    }
    second.renew(&clock).unwrap();
    second.check().unwrap();
    drop(slept);
    second.check().unwrap();
    assert!(is_busy(&cluster, &clock));
    let held = numbers(&store);
    assert_eq!(held.len(), 1);
    second.release().unwrap();
    assert!(numbers(&store)[0] > held[0]);
}

/// The second holder came and went while the first one slept: the first must not go on as if
/// nothing had happened, for packs may have been collected in the meantime.
#[test]
fn a_lease_that_was_another_s_in_between_stays_lost() {
    let (_, cluster, clock) = world();
    let mut slept = acquire(&cluster, &clock).unwrap();
    clock.advance(LAPSE);
    acquire(&cluster, &clock).unwrap().release().unwrap();
    for lost in [slept.check(), slept.renew(&clock)] {
        assert!(matches!(lost, Err(RepoError::LeaseLost { .. })), "{lost:?}");
    }
    let third = acquire(&cluster, &clock).unwrap();
    drop(slept);
    third.check().unwrap();
}

type Meanwhile = Box<dyn FnOnce() + Send>;

/// A store in which something happens between a holder's look and what it does next.
#[derive(Clone)]
struct Racing {
    inner: MemoryStore,
    after_list: Arc<Mutex<Option<Meanwhile>>>,
}

impl Store for Racing {
    fn put(&self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        self.inner.put(key, body)
    }
    fn batch(&self) -> Result<Box<dyn Batch>, StoreError> {
        self.inner.batch()
    }
    fn get(&self, key: &Key, limit_bytes: u64) -> Result<Vec<u8>, StoreError> {
        self.inner.get(key, limit_bytes)
    }
    fn get_range(&self, k: &Key, at: u64, n: usize, to: &mut Vec<u8>) -> Result<(), StoreError> {
        self.inner.get_range(k, at, n, to)
    }
    fn size(&self, key: &Key) -> Result<u64, StoreError> {
        self.inner.size(key)
    }
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StoreError> {
        let listed = self.inner.list(prefix, each);
        let meanwhile = self.after_list.lock().unwrap().take();
        meanwhile.into_iter().for_each(|happens| happens());
        listed
    }
    fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.delete(key)
    }
    fn location(&self) -> String {
        self.inner.location()
    }
}

/// Between the listing and the put, others go through the number that comes next and further: the
/// put succeeds, and the lease is theirs all the same.
#[test]
fn a_number_that_others_have_passed_gives_nothing() {
    let (store, cluster, clock) = world();
    acquire(&cluster, &clock).unwrap().release().unwrap();
    let after_list = Arc::new(Mutex::new(None));
    let racing = Racing { inner: store.clone(), after_list: Arc::clone(&after_list) };
    let slow = support::main_cluster(&support::open(racing, 8).unwrap());
    let me = Holder::this_process();
    let pass = |number: u64| -> Meanwhile {
        let (cluster, clock, me) = (cluster.clone(), clock.clone(), me.clone());
        Box::new(move || plant(&cluster, number, &me, &clock))
    };

    *after_list.lock().unwrap() = Some(pass(9));
    assert!(is_busy(&slow, &clock));
    assert!(after_list.lock().unwrap().is_none(), "it happened");
    assert!(is_busy(&cluster, &clock), "the other has it still");

    store.remove(&Key::new("clusters/main/lease/000000000009").unwrap());
    let mut lease = acquire(&slow, &clock).unwrap();
    *after_list.lock().unwrap() = Some(pass(500));
    let lost = lease.renew(&clock);
    assert!(matches!(lost, Err(RepoError::LeaseLost { .. })), "{lost:?}");
    drop(lease);
    assert!(is_busy(&cluster, &clock), "the other has it still");
}

#[test]
fn a_store_that_fails_at_any_call_never_gives_two_the_lease() {
    let work = |store: FaultyStore<MemoryStore>, clock: &SimClock| -> Result<(), RepoError> {
        let cluster = support::main_cluster(&support::open(store.clone(), 5)?);
        let mut lease = acquire(&cluster, clock)?;
        let renewed = lease.renew(clock);
        lease.check()?;
        // As long as the check says so, nobody else gets it.
        let other = support::main_cluster(&support::open(store.heal(), 7)?);
        assert!(is_busy(&other, clock), "two have it");
        renewed?;
        lease.check()?;
        lease.release()
    };
    let (baseline, _, clock) = world();
    let fresh = || MemoryStore::from_snapshot(baseline.snapshot());
    let dry = FaultyStore::new(fresh(), Schedule::None);
    work(dry.clone(), &clock).unwrap();
    for call in 0..dry.calls() {
        for fault in Fault::ALL {
            let store = FaultyStore::new(fresh(), Schedule::At(call, fault));
            let _ = work(store.clone(), &clock);
            assert!(store.fault_was_hit(), "call {call} {fault:?}: the test tested nothing");
            let later = SimClock::new(support::at(LAPSE.as_secs() as i64));
            let cluster = support::main_cluster(&support::open(store.heal(), 6).unwrap());
            let lease =
                acquire(&cluster, &later).unwrap_or_else(|e| panic!("call {call} {fault:?}: {e}"));
            lease.check().unwrap();
            lease.release().unwrap();
        }
    }
}

#[test]
fn a_name_that_is_no_lease_is_said_and_not_passed_over() {
    for name in ["7", "000000000007x", "0000000000007"] {
        let (store, cluster, clock) = world();
        let key = Key::new(format!("clusters/main/lease/{name}")).unwrap();
        store.put(&key, b"x").unwrap();
        let error = acquire(&cluster, &clock).map(drop).unwrap_err();
        assert!(error.to_string().contains(key.as_str()), "{error}");
    }
}

#[test]
fn the_journal_comes_in_the_order_in_which_it_happened() {
    use lifeboat_repo::Fact;
    let (_, cluster, _) = world();
    for second in [5, 1, 3, 2, 4, 4] {
        let reason = format!("at {second}");
        let fact = Fact::LogGap {
            system: "7".to_owned(),
            timeline: 1,
            first: "a".to_owned(),
            last: "b".to_owned(),
            reason,
        };
        cluster.record(support::at(second), fact).unwrap();
    }
    let times: Vec<_> = cluster.journal().unwrap().iter().map(|e| e.event.at).collect();
    assert_eq!(times, [1, 2, 3, 4, 4, 5].map(support::at));
    let long = Fact::BackupRemoved {
        id: "20261122T231501Z-00000001".parse().unwrap(),
        reason: "x".repeat(70_000),
    };
    assert!(cluster.record(support::at(9), long).is_err(), "never what cannot be read");
    assert_eq!(cluster.journal().unwrap().len(), 6);
}

/// How long a long journal takes to read: `cargo test -p lifeboat-repo --test leases -- --ignored
/// --nocapture long_journal`.
#[test]
#[ignore = "measures, and proves nothing"]
fn a_long_journal_is_measured() {
    let home = tempfile::tempdir().unwrap();
    let store = lifeboat_store::LocalStore::create(home.path()).unwrap();
    let cluster = support::main_cluster(&support::create(store, 1));
    for second in 0..10_000 {
        let before = format!("{second:024X}");
        let system = "1".to_owned();
        let fact = lifeboat_repo::Fact::LogRemoved { system, timeline: 1, before };
        cluster.record(support::at(second), fact).unwrap();
    }
    let began = std::time::Instant::now();
    let keys = cluster.journal_keys().unwrap();
    eprintln!("listed in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    keys.iter().for_each(|key| drop(cluster.read_event(key.clone()).unwrap()));
    eprintln!("read one by one in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    assert_eq!(cluster.journal().unwrap().len(), 10_000);
    eprintln!("read on several threads in {:?}", began.elapsed());
}
