//! Retention on a toy history.

mod history_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use history_support::between::Between;
use history_support::{SYSTEM, World, backup_id, day, pages};
use lifeboat_engine::{LogFile, Lsn};
use lifeboat_jobs::inventory::{Inventory, SegmentRange};
use lifeboat_jobs::retention::{KeepReason, Plan, Policy, apply, plan};
use lifeboat_jobs::verify::{self, VerifySettings};
use lifeboat_jobs::wal::{NotedReading, READING_FILE, RecoveryState, read_on};
use lifeboat_repo::{BackupId, Cluster, Fact, ReadPurpose, Reading};
use lifeboat_store::{Key, Store};
use lifeboat_testkit::{Fault, FaultyStore, Schedule, SimClock, ToyEngine, toy};
use lifeboat_units::Clock;
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
    let young = Key::new(young).unwrap();
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

#[test]
fn what_somebody_reads_stays_with_its_wal_until_the_note_lapses() {
    let world = history();
    let read = [backup_id(0)];
    let begin = |purpose| Reading::begin(&world.cluster, purpose, &read, &world.clock).unwrap();
    let the_plan = || {
        let mut inventory = inventory(&world);
        inventory.note_readings(&world.cluster, world.clock.now()).unwrap();
        plan(&inventory, &count(1), world.clock.now())
    };
    let before = plan(&inventory(&world), &count(1), day(31));
    let restore = begin(ReadPurpose::Restore);
    let planned = the_plan();
    assert_eq!(kept(&planned), [backup_id(0), backup_id(30)]);
    assert_eq!(planned.keep[0].reasons, [KeepReason::Read]);
    assert!(planned.logs.is_empty() && planned.notes[0].contains("a restore"), "{planned:?}");
    // A plan from before the note lets it go; carried out, it does not.
    let report = apply(&world.ports(), &before).unwrap();
    assert_eq!((report.removed.len(), report.logs), (2, 0), "{report:?}");
    assert_eq!(report.skipped, [backup_id(0)]);
    check(&world, "beside a reader");
    // Its recovery reads on, though the process that left the note is gone.
    let recovery = begin(ReadPurpose::Recovery).leave();
    restore.end().unwrap();
    world.clock.advance(Duration::from_secs(23 * 3600));
    assert_eq!(kept(&the_plan()), [backup_id(0), backup_id(30)]);
    world.clock.advance(Duration::from_secs(2 * 3600));
    let last = the_plan();
    assert_eq!(kept(&last), [backup_id(30)]);
    assert_eq!(apply(&world.ports(), &last).unwrap().removed, [backup_id(0)]);
    let is_there = |world: &World| world.objects().keys().any(|key| key.ends_with(&recovery));
    assert!(is_there(&world), "another host's clock may be late");
    world.clock.advance(Duration::from_secs(24 * 3600));
    apply(&world.ports(), &the_plan()).unwrap();
    assert!(!is_there(&world), "swept");
}

#[test]
fn while_a_note_of_who_reads_cannot_be_read_nothing_goes() {
    let world = history();
    let the_plan = plan(&inventory(&world), &count(1), day(31));
    let key = "clusters/main/reading/20260201T120000Z-00000000";
    world.store.put(&Key::new(key).unwrap(), b"\x01nonsense").unwrap();
    let before = durable(&world);
    let report = apply(&world.ports(), &the_plan).unwrap();
    assert_eq!(durable(&world), before);
    assert!(report.notes.iter().any(|n| n.contains("20260201T120000Z-00000000")), "{report:?}");
    world.clock.set(day(32)); // until then
    assert_eq!(apply(&world.ports(), &the_plan).unwrap().removed.len(), 3);
}

/// Who writes to the store cannot hold an expiry up for ever; what a newer program wrote may.
#[test]
fn nonsense_that_is_named_far_ahead_holds_nothing() {
    let world = history();
    let the_plan = plan(&inventory(&world), &count(1), day(31));
    let [nonsense, newer] = ["20990201T120000Z-00000000", "20990201T120000Z-00000001"];
    let put = |name: &str, body: &[u8]| {
        let key = Key::new(format!("clusters/main/reading/{name}")).unwrap();
        world.store.put(&key, body).unwrap();
        key
    };
    put(nonsense, b"\x01nonsense");
    let held = put(newer, b"\x02of a later version");
    let before = durable(&world);
    apply(&world.ports(), &the_plan).unwrap();
    assert_eq!(durable(&world), before);
    world.store.delete(&held).unwrap();
    let report = apply(&world.ports(), &the_plan).unwrap();
    assert_eq!(report.removed.len(), 3);
    let mut inventory = inventory(&world);
    inventory.note_readings(&world.cluster, day(31)).unwrap();
    let said = plan(&inventory, &count(1), day(31)).notes.join("\n");
    assert!(said.contains(nonsense) && said.contains("counts for nothing"), "{said}");
}

#[test]
fn a_recovery_renews_its_note_when_it_is_due() {
    let (world, directory) = (history(), tempfile::tempdir().unwrap());
    let read = [backup_id(0)];
    let reading = Reading::begin(&world.cluster, ReadPurpose::Recovery, &read, &world.clock);
    let first = NotedReading { note: reading.unwrap().leave(), backup: backup_id(0) };
    let path = directory.path().join(READING_FILE);
    std::fs::write(&path, first.encode()).unwrap();
    let name = |number| toy::segment_name(1, number);
    let range = SegmentRange { first: name(1), last: name(20), segments: 20, stored_bytes: 0 };
    let state = RecoveryState {
        version: 1,
        cluster: "main".to_owned(),
        system: SYSTEM,
        needed: vec![range],
        histories: Vec::new(),
        standby: false,
        last: None,
        tail_to: None,
        left: Vec::new(),
    };
    let fetched = |number, state| {
        let file = LogFile::Segment(name(number));
        read_on(&world.ports(), directory.path(), state, file);
        NotedReading::read(directory.path()).unwrap().note
    };
    assert_eq!(fetched(3, Some(&state)), first.note, "it is young");
    world.clock.advance(Duration::from_secs(5 * 3600));
    assert_eq!(fetched(21, Some(&state)), first.note, "the plan does not name it");
    assert_eq!(fetched(4, None), first.note, "nobody restored this");
    let second = fetched(4, Some(&state));
    assert_ne!(second, first.note);
    let live = world.cluster.readings(world.clock.now()).unwrap().live;
    let [live] = &live[..] else { panic!("{live:?}") };
    assert_eq!((&live.name, &live.backups[..]), (&second, &read[..]));
    assert_eq!(fetched(5, Some(&state)), second);
    // A repository that takes nothing is no reason to stop.
    world.clock.advance(Duration::from_secs(5 * 3600));
    let opens = FaultyStore::new(world.store.clone(), Schedule::None);
    drop(world.through(opens.clone()));
    let fails = Schedule::At(opens.calls(), Fault::ErrorBefore);
    let store = FaultyStore::new(world.store.clone(), fails);
    let cluster = world.through(store.clone());
    let file = LogFile::Segment(name(6));
    read_on(&world.ports_of(&cluster), directory.path(), Some(&state), file);
    assert!(store.fault_was_hit());
    assert_eq!(NotedReading::read(directory.path()).unwrap().note, second);
}

#[test]
fn the_journal_of_years_of_expiry_stays_small() {
    let world = history();
    let removed = |n: i64, timeline: u32, before: u64| {
        let before = format!("{timeline:08X}00000000{before:08X}");
        let fact = Fact::LogRemoved { system: "1".to_owned(), timeline, before };
        world.cluster.record(day(n), fact).unwrap();
    };
    let gap = |n: i64, last: u64| {
        let name = format!("0000000100000000{last:08X}");
        let (first, last, reason) = (name.clone(), name, "a test".to_owned());
        let fact = Fact::LogGap { system: "1".to_owned(), timeline: 1, first, last, reason };
        world.cluster.record(day(n), fact).unwrap();
    };
    (1..=300).for_each(|n| removed(n, 1, 10 * u64::try_from(n).unwrap()));
    removed(5, 2, 7);
    gap(3, 2999); // long ago, and the WAL around it is gone
    gap(4, 3000); // long ago, in WAL that is there
    gap(299, 2000); // not long ago
    let others = 4; // backups that were added
    assert_eq!(world.cluster.journal().unwrap().len(), 300 + 1 + 3 + others);
    world.clock.set(day(300));
    let report = apply(&world.ports(), &plan(&inventory(&world), &Policy::default(), day(300)));
    assert_eq!(report.unwrap().events_dropped, 299 + 1);
    let left = world.cluster.journal().unwrap();
    assert_eq!(left.len(), 1 + 1 + 2 + others);
    let newest = left.iter().find_map(|recorded| match &recorded.event.fact {
        Fact::LogRemoved { timeline: 1, before, .. } => Some(before.clone()),
        _ => None,
    });
    assert_eq!(newest.unwrap(), format!("0000000100000000{:08X}", 3000));
    check(&world, "after the journal was swept");
}

/// Between any two calls of an expiry somebody begins to read a backup that it removes: either the
/// manifest is gone by then, or everything that the backup needs is there afterwards, and after the
/// next expiry too.
#[test]
fn whoever_begins_to_read_beside_an_expiry_is_refused_or_keeps_all_that_it_needs() {
    let start = history();
    let the_plan = plan(&inventory(&start), &count(1), day(31));
    let (mut kept_all, mut refused) = (0, 0);
    for call in 1.. {
        let world = start.fork();
        let needed = std::sync::Mutex::new(None);
        let begun = std::sync::atomic::AtomicBool::new(false);
        let reader = Reader { cluster: world.cluster.clone(), clock: world.clock.clone() };
        let read = Arc::new((needed, begun, reader));
        let reads = Arc::clone(&read);
        let store = Between::new(&world.store, move || {
            reads.1.store(true, Ordering::SeqCst);
            *reads.0.lock().unwrap() = reads.2.begin(backup_id(0));
        });
        let cluster = world.through(Arc::clone(&store));
        store.happens_before(call);
        apply(&world.ports_of(&cluster), &the_plan).unwrap();
        if !read.1.load(Ordering::SeqCst) {
            break; // it makes fewer calls
        }
        match read.0.lock().unwrap().take() {
            None => refused += 1,
            Some(needed) => {
                kept_all += 1;
                for round in ["this expiry", "the next"] {
                    let there = world.objects();
                    let lost: Vec<_> = needed.iter().filter(|k| !there.contains_key(*k)).collect();
                    assert!(lost.is_empty(), "call {call}, after {round}: {lost:?}");
                    apply(&world.ports(), &the_plan).unwrap();
                }
            }
        }
    }
    assert!(kept_all > 5 && refused > 5, "{kept_all} {refused}: the test tested too little");
}

struct Reader {
    cluster: Cluster,
    clock: SimClock,
}

impl Reader {
    /// Begins to read, and gives the names of what is needed; `None` when the backup is gone.
    fn begin(&self, id: BackupId) -> Option<Vec<String>> {
        let reading = Reading::begin(&self.cluster, ReadPurpose::Restore, &[id], &self.clock);
        let reading = reading.unwrap();
        let Ok(manifest) = self.cluster.manifest(id) else {
            reading.end().unwrap();
            return None;
        };
        reading.leave();
        let mut needed = Vec::new();
        manifest.each_pack(|pack| {
            needed.push(format!("clusters/main/data/{}/{:06}", pack.session, pack.number));
        });
        let logs = self.cluster.logs().unwrap();
        let names = logs.iter().map(|log| &log.place);
        needed.extend(names.map(|place| {
            format!("clusters/main/wal/{}/{:08X}/{}", place.system, place.timeline, place.name)
        }));
        Some(needed)
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
