//! Retention on a toy history.

mod history_support;

use std::time::Duration;

use history_support::{World, backup_id, day, pages};
use lifeboat_engine::Lsn;
use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::retention::{KeepReason, Plan, Policy, apply, plan};
use lifeboat_jobs::verify::{self, VerifySettings};
use lifeboat_store::Store;
use lifeboat_testkit::{Fault, FaultyStore, Schedule, ToyEngine};
use proptest::prelude::*;

/// Four backups on days 0, 10, 20 and 30; each changes one page and takes two segments; WAL from
/// segment 1 to 40.
fn history() -> World {
    let world = World::new();
    world.archive(0, 1, 1..=40);
    let mut previous = None;
    for (n, start) in [(0, 1), (10, 11), (20, 21), (30, 31)] {
        let mut content = pages(64, 0);
        content[usize::try_from(n).unwrap() * 512] ^= 0xff;
        let files = [("base/1", content), ("base/2", pages(8, 9))];
        previous = Some(world.backup(n, start, &files, previous.as_ref()));
    }
    world.clock.set(day(31));
    world
}

fn inventory(world: &World) -> Inventory {
    Inventory::load(&world.cluster, &ToyEngine).unwrap()
}

fn count(n: u32) -> Policy {
    Policy { keep_count: Some(n), ..Policy::default() }
}

fn kept(plan: &Plan) -> Vec<lifeboat_repo::BackupId> {
    plan.keep.iter().map(|k| k.backup).collect()
}

fn check(world: &World, what: &str) {
    let settings = VerifySettings { backups: None, jobs: 1 };
    let report = verify::run(&world.ports(), &settings).unwrap();
    assert!(report.is_clean(), "{what}: {:?}", report.findings);
}

#[test]
fn a_window_keeps_the_backup_from_which_its_first_moment_is_reached() {
    let world = history();
    let window = Policy { keep_window: Some(Duration::from_secs(5 * 86_400)), ..Policy::default() };
    let plan = plan(&inventory(&world), &window, day(31));
    assert_eq!(kept(&plan), [backup_id(20), backup_id(30)]);
    assert_eq!(plan.keep[0].reasons, [KeepReason::WindowStart]);
    assert_eq!(plan.logs[0].before.to_string(), "000000010000000000000015", "segment 21");
}

#[test]
fn a_damaged_backup_takes_no_good_ones_place() {
    let world = history();
    world.backup_with(31, 38, &[("base/1", pages(4, 1))], None, |f| f.damaged_pages = 3);
    let plan = plan(&inventory(&world), &count(1), day(32));
    assert_eq!(kept(&plan), [backup_id(30), backup_id(31)]);
}

#[test]
fn without_a_rule_and_for_held_backups_nothing_goes() {
    let world = history();
    let inventory = inventory(&world);
    assert!(plan(&inventory, &Policy::default(), day(31)).is_empty());
    let held = Policy { holds: [backup_id(0)].into(), ..count(1) };
    let plan = plan(&inventory, &held, day(31));
    assert_eq!(kept(&plan), [backup_id(0), backup_id(30)]);
    assert!(plan.logs.is_empty(), "what a held backup needs stays: {:?}", plan.logs);
}

#[test]
fn a_branch_that_was_given_up_goes_only_when_it_is_older_than_all_that_is_kept() {
    let world = history();
    let left = Lsn(5 << 20);
    world.archive_history(1, 2, &[(1, left)]);
    world.archive(1, 2, 5..=6);
    world.archive_history(30, 3, &[(1, left)]);
    world.archive(31, 3, 5..=6);
    let plan = plan(&inventory(&world), &count(1), day(31));
    let gone: Vec<_> = plan.logs.iter().map(|l| (l.timeline.0, l.files)).collect();
    assert_eq!(gone, [(1, 30), (2, 2)]);
    apply(&world.ports(), &plan).unwrap();
    let objects = world.objects();
    assert!(objects.keys().any(|k| k.ends_with("00000002.history")), "histories stay");
}

#[test]
fn what_was_planned_is_done_and_what_stays_is_whole() {
    let world = history();
    let plan = plan(&inventory(&world), &count(2), day(31));
    let report = apply(&world.ports(), &plan).unwrap();
    assert_eq!(report.removed, [backup_id(0), backup_id(10)]);
    assert_eq!(report.logs, 20);
    assert!(report.skipped.is_empty() && report.packs > 0, "{report:?}");
    check(&world, "after expiry");
    let again = apply(&world.ports(), &plan).unwrap();
    assert_eq!((again.packs, again.logs, again.removed.len()), (0, 0, 0));
}

#[test]
fn a_manifest_that_cannot_be_read_stops_collection() {
    let world = history();
    let plan_made = plan(&inventory(&world), &count(1), day(31));
    let key = world.cluster.manifest_key(backup_id(20)).unwrap();
    world.store.delete(&key).unwrap();
    world.store.put(&key, b"LBMANIF\x01 nonsense of some length").unwrap();
    let report = apply(&world.ports(), &plan_made).unwrap();
    assert_eq!((report.packs, report.logs), (0, 0), "{report:?}");
    assert!(report.notes.iter().any(|n| n.contains("no pack was removed")), "{report:?}");
}

#[test]
fn packs_of_a_backup_that_may_be_under_way_are_left_alone() {
    let world = history();
    let mut packs = Vec::new();
    let prefix = format!("clusters/main/data/{}/", backup_id(30));
    world.store.list(&prefix, &mut |entry| packs.push(entry.key)).unwrap();
    let young = packs[0].as_str().replace("20260131T000000Z", "20260131T120000Z");
    let young = lifeboat_store::Key::new(young).unwrap();
    world.store.put(&young, b"pack of an unfinished backup").unwrap();
    let empty = plan(&inventory(&world), &Policy::default(), day(31));
    assert_eq!(apply(&world.ports(), &empty).unwrap().packs_waiting, 1);
    world.clock.set(day(33));
    assert_eq!(apply(&world.ports(), &empty).unwrap().packs, 1);
    check(&world, "after the grace period");
}

/// Everything but the journal and leases, whose names hold random numbers.
fn durable(world: &World) -> Vec<String> {
    let objects = world.objects().into_keys();
    objects.filter(|k| !k.contains("/journal/") && !k.contains("/lease/")).collect()
}

#[test]
fn expiry_cut_short_at_any_store_call_harms_nothing_and_the_next_run_ends_it() {
    let start = World::new();
    start.archive(0, 1, 1..=8);
    let mut previous = None;
    for (n, segment) in [(0, 1), (10, 4), (20, 7)] {
        let files = [("base/1", pages(64, 0)), ("base/2", pages(8, n as u8))];
        previous = Some(start.backup(n, segment, &files, previous.as_ref()));
    }
    start.clock.set(day(31));
    let dry_world = start.fork();
    let dry = FaultyStore::new(dry_world.store.clone(), Schedule::None);
    let dry_cluster = dry_world.through(dry.clone());
    let the_plan = plan(&inventory(&dry_world), &count(1), day(31));
    let before = dry.calls();
    apply(&dry_world.ports_of(&dry_cluster), &the_plan).unwrap();
    let calls = dry.calls() - before;
    assert!(calls > 30, "{calls}");
    let goal = durable(&dry_world).len();
    for call in 0..calls {
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let world = start.fork();
            // Opening the repository takes `before` calls.
            let store = FaultyStore::new(world.store.clone(), Schedule::At(before + call, fault));
            let cluster = world.through(store.clone());
            let _ = apply(&world.ports_of(&cluster), &the_plan);
            assert!(store.fault_was_hit(), "{what}: the test tested nothing");
            check(&world, &what);
            let next = plan(&inventory(&world), &count(1), day(31));
            // The lease of a run that died lapses.
            world.clock.advance(Duration::from_secs(3600));
            apply(&world.ports(), &next).unwrap();
            check(&world, &what);
            assert_eq!(durable(&world).len(), goal, "{what}");
        }
    }
}

proptest! {
    /// Laws: nothing is both kept and removed, and nothing is forgotten; the newest good backup
    /// stays; so many good ones stay as the rule says, as long as there are; every moment of the
    /// window that could be reached still can; a stricter count removes no less.
    #[test]
    fn plans_obey_simple_laws(
        damaged in proptest::collection::vec(any::<bool>(), 1..9),
        keep_count in proptest::option::of(1u32..6),
        window_days in proptest::option::of(0u64..90),
    ) {
        let world = World::new();
        for (n, bad) in damaged.iter().enumerate() {
            let n = n as i64;
            world.backup_with(n * 10, n as u64 * 10 + 1, &[], None, |f| {
                f.damaged_pages = u64::from(*bad);
            });
        }
        let now = day(damaged.len() as i64 * 10);
        let window = window_days.map(|d| Duration::from_secs(d * 86_400));
        let policy = Policy { keep_count, keep_window: window, ..Policy::default() };
        let inventory = inventory(&world);
        let plan = plan(&inventory, &policy, now);
        let kept = kept(&plan);
        prop_assert_eq!(kept.len() + plan.remove.len(), damaged.len());
        prop_assert!(plan.remove.iter().all(|r| !kept.contains(&r.backup)));
        let good: Vec<_> = inventory.backups.iter().filter(|b| b.facts.damaged_pages == 0).collect();
        if let Some(newest) = good.last() {
            prop_assert!(kept.contains(&newest.id()));
        } else {
            prop_assert!(plan.remove.is_empty());
        }
        let kept_good = good.iter().filter(|b| kept.contains(&b.id())).count();
        if let Some(count) = keep_count {
            prop_assert!(kept_good >= good.len().min(count as usize));
        }
        if let Some(window) = window {
            let begins = now.checked_sub(window).unwrap();
            let opener = good.iter().rev().find(|b| b.facts.stopped_at < begins);
            for backup in &good {
                let needed = backup.facts.stopped_at >= begins
                    || opener.is_some_and(|o| o.id() == backup.id());
                prop_assert!(!needed || kept.contains(&backup.id()));
            }
        }
        if keep_count.is_none() && window.is_none() {
            prop_assert!(plan.is_empty());
        }
    }
}
