//! A store that fails at any call of a backup, in any way.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use lifeboat_repo::{
    BackupId, Compression, LogPlace, Protection, PushOutcome, RepoError, Repository, TailPlace,
};
use lifeboat_store::{MemoryStore, Store};
use lifeboat_testkit::{Fault, FaultyStore, Schedule};
use support::{Files, Take};

fn changed_files() -> Files {
    let mut files = support::some_files();
    files.get_mut("base/1/1259").unwrap()[5000] ^= 1;
    files.insert("base/1/9999".to_owned(), vec![7; 3000]);
    files.remove("global/1233");
    files
}

/// Opens the repository and takes a second backup, as a process does from its first call on.
fn second_backup<S: Store + 'static>(store: S) -> Option<BackupId> {
    let repository = support::open(store, 99).ok()?;
    let cluster = support::main_cluster(&repository);
    let manifest = support::take_backup(&cluster, &changed_files(), &Take::at(20)).ok()??;
    Some(manifest.id)
}

#[test]
fn a_backup_cut_short_at_any_store_call_harms_nothing_that_was_there() {
    let (baseline, first) = support::with_baseline();
    let baseline = baseline.snapshot();
    let fresh = || MemoryStore::from_snapshot(baseline.clone());
    let dry = FaultyStore::new(fresh(), Schedule::None);
    assert!(second_backup(dry.clone()).is_some());
    let mut struck = BTreeSet::new();
    for call in 0..dry.calls() {
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let store = FaultyStore::new(fresh(), Schedule::At(call, fault));
            let reported = second_backup(store.clone());
            assert!(store.fault_was_hit(), "{what}: the test tested nothing");
            struck.insert(format!("{:?}", store.hit().unwrap()));
            let healed = store.heal();
            for (key, body) in &baseline {
                assert_eq!(&healed.get(key, u64::MAX).unwrap(), &**body, "{what}: {key}");
            }
            let cluster = support::main_cluster(&support::open(healed, 100).unwrap());
            let listed = cluster.backups().unwrap();
            assert!(listed.contains(&first), "{what}");
            assert!(reported.is_none_or(|id| listed.contains(&id)), "{what}: reported, not listed");
            // What is listed is whole, whether its writer learnt of it or not.
            for id in listed {
                let files = support::read_backup(&cluster, id).unwrap();
                let expected = if id == first { support::some_files() } else { changed_files() };
                assert!(files == expected, "{what}: {id}");
            }
            let next = support::take_backup(&cluster, &changed_files(), &Take::at(30));
            let next = next.unwrap().unwrap();
            assert!(support::read_backup(&cluster, next.id).unwrap() == changed_files(), "{what}");
        }
    }
    let struck: Vec<_> = struck.iter().map(String::as_str).collect();
    assert_eq!(struck, ["Batch", "BatchCommit", "BatchPut", "Get", "GetRange", "List", "Put"]);
}

#[test]
fn making_a_repository_can_be_cut_short_anywhere_and_repeated() {
    fn make(store: impl Store + 'static) -> Result<Repository, RepoError> {
        let entropy = Arc::new(support::Seeded::new(5));
        Repository::create(Arc::new(store), &Protection::Open, support::at(0), entropy)
    }
    let dry = FaultyStore::new(MemoryStore::new(), Schedule::None);
    make(dry.clone()).unwrap();
    for call in 0..dry.calls() {
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let store = FaultyStore::new(MemoryStore::new(), Schedule::At(call, fault));
            let made = make(store.clone());
            assert!(store.fault_was_hit(), "{what}: the test tested nothing");
            let healed = store.heal();
            if made.is_err() && support::open(healed.clone(), 6).is_err() {
                make(healed.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            let cluster = support::main_cluster(&support::open(healed, 6).unwrap());
            let files = support::some_files();
            let id = support::take_backup(&cluster, &files, &Take::at(1)).unwrap().unwrap().id;
            assert!(support::read_backup(&cluster, id).unwrap() == files, "{what}");
        }
    }
}

#[test]
fn a_log_file_pushed_over_a_failing_store_is_whole_or_absent_and_can_be_pushed_again() {
    let (baseline, _) = support::with_baseline();
    let baseline = baseline.snapshot();
    let fresh = || MemoryStore::from_snapshot(baseline.clone());
    let place = LogPlace { system: "7".into(), timeline: 1, name: "0".repeat(24) };
    let content = support::Seeded::new(4).bytes(3 << 20);
    let push = |store: &dyn Fn() -> Result<Repository, RepoError>| {
        let cluster = support::main_cluster(&store()?);
        let facts = serde_json::Value::Null;
        cluster.push_log(&place, &content, Compression::Auto, support::at(5), facts)
    };
    let dry = FaultyStore::new(fresh(), Schedule::None);
    push(&|| support::open(dry.clone(), 8)).unwrap();
    for call in 0..dry.calls() {
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let store = FaultyStore::new(fresh(), Schedule::At(call, fault));
            let first = push(&|| support::open(store.clone(), 8));
            assert!(store.fault_was_hit(), "{what}: the test tested nothing");
            let healed = store.heal();
            let again = push(&|| support::open(healed.clone(), 9)).unwrap();
            assert!(!matches!(again, PushOutcome::Different { .. }), "{what}");
            assert!(first.is_err() || again == PushOutcome::AlreadyThere, "{what}");
            let cluster = support::main_cluster(&support::open(healed, 10).unwrap());
            assert!(cluster.read_log(&place).unwrap().1 == content, "{what}");
        }
    }
}

#[test]
fn a_tail_pushed_over_a_failing_store_is_whole_or_absent_and_can_be_pushed_again() {
    let (baseline, _) = support::with_baseline();
    let baseline = baseline.snapshot();
    let fresh = || MemoryStore::from_snapshot(baseline.clone());
    let of = LogPlace { system: "7".into(), timeline: 1, name: "0".repeat(24) };
    let place = TailPlace { of, from: 100, to: 100 + (1 << 16) };
    let content = support::Seeded::new(4).bytes(1 << 16);
    let push = |store: &dyn Fn() -> Result<Repository, RepoError>| {
        let cluster = support::main_cluster(&store()?);
        let facts = serde_json::Value::Null;
        cluster.push_tail(&place, &content, Compression::Auto, support::at(5), facts)
    };
    let dry = FaultyStore::new(fresh(), Schedule::None);
    push(&|| support::open(dry.clone(), 8)).unwrap();
    for call in 0..dry.calls() {
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let store = FaultyStore::new(fresh(), Schedule::At(call, fault));
            let first = push(&|| support::open(store.clone(), 8));
            assert!(store.fault_was_hit(), "{what}: the test tested nothing");
            let healed = store.heal();
            let again = push(&|| support::open(healed.clone(), 9)).unwrap();
            assert!(!matches!(again, PushOutcome::Different { .. }), "{what}");
            assert!(first.is_err() || again == PushOutcome::AlreadyThere, "{what}");
            let cluster = support::main_cluster(&support::open(healed, 10).unwrap());
            assert!(cluster.read_tail(&place).unwrap().1 == content, "{what}");
            // Other content under the same name changes nothing.
            let other = vec![0; content.len()];
            let facts = serde_json::Value::Null;
            let refused =
                cluster.push_tail(&place, &other, Compression::Auto, support::at(6), facts);
            assert!(matches!(refused.unwrap(), PushOutcome::Different { .. }), "{what}");
            assert!(cluster.read_tail(&place).unwrap().1 == content, "{what}");
        }
    }
}
