//! Backups of a toy server that goes on writing, on a store that fails at every call in turn.

mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat_engine::{Engine, LogFile, Lsn, PageVerdict, TimelineId};
use lifeboat_jobs::Ports;
use lifeboat_jobs::backup::{self, BackupError, BackupSettings};
use lifeboat_jobs::facts::BackupFacts;
use lifeboat_jobs::restore::Target;
use lifeboat_jobs::verify::{self, VerifySettings};
use lifeboat_repo::{BackupId, RepoError, lease};
use lifeboat_store::{Key, Store};
use lifeboat_testkit::toy_log::{Change, Files, path};
use lifeboat_testkit::toy_server::{Hints, Moment, lock};
use lifeboat_testkit::{Fault, FaultyStore, HookedEngine, Schedule, ToyEngine, ToyOrigin, toy};
use lifeboat_units::Clock;
use world::archiver::ArchivingClock;
use world::random::Random;
use world::warnings::Warnings;
use world::{SYSTEM, World};

/// A server with a few files.
fn small() -> (World, Random) {
    let mut random = Random(7);
    let world = World::new(random.fork());
    for file in 0..4 {
        world.commit((0..8).map(|page| world::change(&mut random, file, page)).collect());
    }
    (world, random)
}

fn content(world: &World, id: BackupId) -> Files {
    world.content_at(Target::Backup(id)).unwrap_or_else(|e| panic!("backup {id}: {e}"))
}

fn verified(world: &World, what: &str) {
    let backups = Some(world.cluster.backups().unwrap());
    let report = verify::run(&world.ports(), &VerifySettings { backups, jobs: 1 }).unwrap();
    assert!(report.findings.is_empty(), "{what}: {:#?}", report.findings);
}

/// One failure of every kind at every store call of a backup.
fn sweep(start: &World, baseline: Option<(BackupId, &Files)>) {
    let mut calls = 0;
    for call in 0.. {
        let mut hit = false;
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let world = start.fork();
            let store = FaultyStore::new(world.store.clone(), Schedule::At(call, fault));
            let result = world
                .through(store.clone())
                .map_err(BackupError::from)
                .and_then(|cluster| world.backup_with(&cluster, &ToyEngine, |_| {}));
            hit |= store.fault_was_hit();
            assert!(result.is_ok() || store.fault_was_hit(), "{what}: {result:?}");
            verified(&world, &what);
            if let Some((id, files)) = baseline {
                assert!(content(&world, id) == *files, "{what}");
            }
            world.clock.advance(lease::LAPSE);
            let next = world.backup().unwrap_or_else(|e| panic!("{what}: the next one: {e}"));
            assert!(content(&world, next.id) == *lock(&world.server).files(), "{what}");
        }
        if !hit {
            break;
        }
        calls = call;
    }
    assert!(calls > 15, "the sweep met only {calls} calls");
}

#[test]
fn a_first_backup_cut_short_at_any_store_call_lists_nothing_half() {
    sweep(&small().0, None);
}

#[test]
fn an_incremental_backup_cut_short_at_any_store_call_harms_nothing_that_was_there() {
    let (world, mut random) = small();
    let baseline = world.backup().unwrap();
    let files = lock(&world.server).files().clone();
    world.commit(vec![world::change(&mut random, 1, 3), Change::Remove { file: 2 }]);
    sweep(&world, Some((baseline.id, &files)));
}

#[test]
fn files_that_vanish_grow_shrink_or_appear_after_the_listing_are_repaired_by_the_log() {
    let (world, mut random) = small();
    let report = world
        .backup_with(&world.cluster, &ToyEngine, |moment| {
            if moment == Moment::Listed {
                world.commit(vec![
                    Change::Remove { file: 0 },
                    world::change(&mut random, 1, 20),
                    Change::Truncate { file: 2, pages: 3 },
                    world::change(&mut random, 9, 0),
                ]);
            }
        })
        .unwrap();
    let expected = lock(&world.server).files().clone();
    assert!(!expected.contains_key(&path(0)) && expected.contains_key(&path(9)));
    assert!(content(&world, report.id) == expected);
}

#[test]
fn a_file_that_vanishes_and_comes_back_while_others_are_read_is_the_new_one() {
    let (world, random) = small();
    let (world, random) = (Arc::new(world), std::sync::Mutex::new(random));
    let (checked, inner) = (AtomicU64::new(0), Arc::clone(&world));
    let engine = HookedEngine::at_pages(Arc::new(move |_, _| {
        let page = checked.fetch_add(1, Ordering::Relaxed);
        if page % 5 == 0 {
            let mut random = random.lock().unwrap();
            let again = world::change(&mut random, 3, (page % 8) as u32);
            inner.commit(vec![Change::Remove { file: 3 }, again]);
        }
        None
    }));
    let report = world.backup_with(&world.cluster, &engine, |_| {}).unwrap();
    assert!(content(&world, report.id) == *lock(&world.server).files());
}

/// An engine to which pages that begin with these bytes look damaged.
fn seeing_damage(mark: [u8; 8], meanwhile: impl Fn() + Send + Sync + 'static) -> impl Engine {
    HookedEngine::at_pages(Arc::new(move |_, page| {
        page.starts_with(&mark).then(|| {
            meanwhile();
            PageVerdict::BadChecksum { computed: 0x1111, stored: 0x2222 }
        })
    }))
}

fn mark_of(world: &World, file: u32, page: usize) -> [u8; 8] {
    let server = lock(&world.server);
    server.files()[&path(file)][page * 512..page * 512 + 8].try_into().unwrap()
}

#[test]
fn a_damaged_page_that_stays_so_is_reported_by_file_and_page_and_one_that_changes_is_accepted() {
    let (world, mut random) = small();
    let mark = mark_of(&world, 2, 5);
    let stays = seeing_damage(mark, || {});
    let report = world.backup_with(&world.cluster, &stays, |_| {}).unwrap();
    assert_eq!(report.damaged_pages, 1);
    assert_eq!((report.damage[0].path.as_str(), report.damage[0].page), ("base/1/2", 5));
    assert!(report.damage[0].what.contains("2222"), "{}", report.damage[0].what);

    let (server, clock) = (Arc::clone(&world.server), world.clock.clone());
    let new = world::change(&mut random, 2, 5);
    let changes = seeing_damage(mark, move || {
        lock(&server).transaction(vec![new.clone()], clock.now()).unwrap();
    });
    let report = world.backup_with(&world.cluster, &changes, |_| {}).unwrap();
    assert_eq!((report.damaged_pages, report.damage.len()), (0, 0));
    assert!(content(&world, report.id) == *lock(&world.server).files());
}

/// How many pages the next backup, which reads all of them, checks, if pages of which this is true
/// look damaged.
fn checked(world: &World, damaged: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> u64 {
    let checks = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&checks);
    let engine = HookedEngine::at_pages(Arc::new(move |_, page| {
        count.fetch_add(1, Ordering::Relaxed);
        damaged(page).then_some(PageVerdict::BadChecksum { computed: 1, stored: 2 })
    }));
    let settings = BackupSettings { full_read: true, ..world::settings() };
    world.backup_as(&world.cluster, &engine, |_| {}, (Hints::True, settings)).unwrap();
    checks.load(Ordering::Relaxed)
}

fn proven(world: &World) -> bool {
    let newest = *world.cluster.backups().unwrap().last().unwrap();
    BackupFacts::of(&world.cluster.manifest(newest).unwrap()).unwrap().proven
}

#[test]
fn a_page_that_was_right_and_is_the_same_is_not_checked_again() {
    let (world, mut random) = small();
    assert_eq!((checked(&world, |_| false), proven(&world)), (32, true));
    assert_eq!((checked(&world, |_| false), proven(&world)), (0, true));
    world.commit(vec![world::change(&mut random, 1, 3), world::change(&mut random, 7, 0)]);
    assert_eq!((checked(&world, |_| false), proven(&world)), (2, true));
}

#[test]
fn damage_is_found_again_until_it_is_mended_also_where_nothing_changed() {
    let (world, mut random) = small();
    let mark = mark_of(&world, 2, 5);
    for _ in 0..3 {
        let damaged = seeing_damage(mark, || {});
        let report = world.backup_with(&world.cluster, &damaged, |_| {}).unwrap();
        assert_eq!((report.damaged_pages, proven(&world)), (1, false));
    }
    // Nobody can tell any more, as after checksums were switched off: the page is what it was.
    for _ in 0..2 {
        let report = world.backup().unwrap();
        assert_eq!((report.damaged_pages, proven(&world)), (1, false));
        assert!(report.damage[0].what.contains("2222"), "{}", report.damage[0].what);
        assert_eq!((checked(&world, |_| false), proven(&world)), (32, false));
    }
    // Zeros are no better, as `zero_damaged_pages` makes them.
    let file = fs::File::options().write(true).open(world.home.path().join("data/base/1/2"));
    file.unwrap().write_all_at(&[0; 512], 5 * 512).unwrap();
    let report = world.backup().unwrap();
    assert_eq!((report.damaged_pages, proven(&world)), (1, false));
    world.commit(vec![world::change(&mut random, 2, 5)]);
    assert_eq!((checked(&world, |_| false), proven(&world)), (32, true));
    assert_eq!(checked(&world, |_| false), 0);
}

#[test]
fn a_page_that_was_accepted_only_because_it_changed_is_checked_by_the_next_backup() {
    let (world, random) = small();
    const MARK: &[u8] = b"torn";
    let page = |random: &mut Random| {
        let mut page = world::page(random);
        page[100..104].copy_from_slice(MARK);
        Change::Page { file: 2, page: 5, bytes: page }
    };
    let random = std::sync::Mutex::new(random);
    world.commit(vec![page(&mut random.lock().unwrap())]);
    // As if it were written to at every look: it never looks right, and never the same.
    let (server, clock) = (Arc::clone(&world.server), world.clock.clone());
    let torn = move |found: &[u8]| {
        let torn = &found[100..104] == MARK;
        if torn {
            let change = page(&mut random.lock().unwrap());
            lock(&server).transaction(vec![change], clock.now()).unwrap();
        }
        torn
    };
    assert_eq!(checked(&world, torn), 32 + 5);
    let newest = *world.cluster.backups().unwrap().last().unwrap();
    let facts = BackupFacts::of(&world.cluster.manifest(newest).unwrap()).unwrap();
    assert_eq!((facts.damaged_pages, facts.proven), (0, false));
    // What is taken over unread is no better for it.
    world.backup().unwrap();
    assert!(!proven(&world));
    assert_eq!((checked(&world, |_| false), proven(&world)), (32, true));
}

#[test]
fn a_large_file_with_holes_costs_only_what_changed() {
    let (world, mut random) = small();
    let far = [0, 8_191, 8_192, 20_000, 39_999];
    let mut changes = vec![Change::Truncate { file: 5, pages: 40_000 }];
    changes.extend(far.map(|page| world::change(&mut random, 5, page)));
    world.commit(changes);
    let first = world.backup().unwrap();
    assert!(content(&world, first.id) == *lock(&world.server).files());
    world
        .commit(vec![world::change(&mut random, 5, 20_000), world::change(&mut random, 5, 30_000)]);
    let second = world.backup().unwrap();
    assert_eq!((second.compared_with, second.totals.pages_new), (Some(first.id), 2));
    assert!(content(&world, second.id) == *lock(&world.server).files());
    world.commit(vec![Change::Truncate { file: 5, pages: 8_192 }]);
    let third = world.backup().unwrap();
    assert_eq!(third.totals.pages_new, 0);
    assert!(content(&world, third.id) == *lock(&world.server).files());
}

#[test]
fn five_thousand_small_files_come_back_and_are_not_stored_twice() {
    let (world, mut random) = small();
    world.commit((10..5_010).map(|file| world::change(&mut random, file, 0)).collect());
    let first = world.backup().unwrap();
    assert_eq!(first.totals.files, 5_004);
    world.commit(vec![world::change(&mut random, 700, 0), Change::Remove { file: 900 }]);
    let second = world.backup().unwrap();
    assert_eq!((second.totals.files, second.totals.pages_new), (5_003, 1));
    assert!(content(&world, second.id) == *lock(&world.server).files());
    let packs = world.store.snapshot().keys().filter(|k| k.as_str().contains("/data/")).count();
    assert!(packs < 20, "{packs} packs");
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_nothing_is_listed() {
    let (world, _) = small();
    let directory = world.home.path().join("data/base/1/77");
    fs::create_dir(&directory).unwrap();
    let error = world.backup().unwrap_err();
    assert!(matches!(&error, BackupError::Read { path, .. } if *path == directory), "{error}");
    assert!(world.cluster.backups().unwrap().is_empty());
    fs::remove_dir(&directory).unwrap();
    world.backup().unwrap();
}

#[test]
fn a_segment_that_does_not_arrive_ends_the_backup_before_anything_is_copied() {
    let (world, _) = small();
    let before = world.clock.monotonic();
    let mut origin = ToyOrigin::new(&world.server, &world.clock, || {});
    let warnings = Warnings::new(&world.clock);
    let ports = Ports { progress: &warnings, ..world.ports() };
    let error = backup::run(&ports, &mut origin, &world::settings()).unwrap_err();
    assert!(matches!(error, BackupError::NotArchived { failure: Some(_), .. }), "{error}");
    assert_eq!(world.clock.monotonic() - before, world::settings().archive_timeout);
    // Whoever waits is told soon why, and once.
    let [(at, said)] = &warnings.take()[..] else { panic!("one warning") };
    assert_eq!((*at - before).as_secs(), 5, "{said}");
    assert!(said.contains("not in the repository yet: ") && said.contains("115 more"), "{said}");
    assert!(!world.store.snapshot().keys().any(|k| k.as_str().contains("/data/")));
    assert!(world.archiver.run());
    world.backup().unwrap();
}

/// As where the directory of the repository is emptied or unmounted: what fails then is not told as
/// a trouble of some file below it.
#[test]
fn a_repository_that_went_away_meanwhile_is_told_as_that_whatever_fails_first() {
    let (start, _) = small();
    let marker = Key::new("repository.json").unwrap();
    let (mut hit_after, mut not_told) = (0, 0);
    for call in 0.. {
        let world = start.fork();
        let store = FaultyStore::new(world.store.clone(), Schedule::At(call, Fault::ErrorBefore));
        let cluster = match world.through(store.clone()) {
            Ok(cluster) => cluster,
            Err(_) => continue,
        };
        let (mut hit_before, gone) = (false, AtomicBool::new(false));
        let archiver = || {
            let _ = gone.load(Ordering::Relaxed) || world.archiver.run();
        };
        let origin = ToyOrigin::new(&world.server, &world.clock, archiver);
        let mut origin = origin.with_meanwhile(|moment| {
            if moment == Moment::Listed {
                hit_before = store.fault_was_hit();
                world.store.delete(&marker).unwrap();
                gone.store(true, Ordering::Relaxed);
            }
        });
        let ports = world.ports_of(&cluster, &ToyEngine, &world.clock);
        let result = backup::run(&ports, &mut origin, &world::settings());
        drop(origin);
        if hit_before || !gone.load(Ordering::Relaxed) {
            continue; // before the backup got so far
        }
        let error = result.unwrap_err();
        if !store.fault_was_hit() {
            assert!(matches!(error, BackupError::Repo(RepoError::Gone { .. })), "{error}");
            break;
        }
        hit_after += 1;
        not_told += u32::from(!matches!(error, BackupError::Repo(RepoError::Gone { .. })));
    }
    // Where the question itself failed, nobody knows.
    assert!(not_told <= 2, "{not_told} of {hit_after}");
    assert!(hit_after > 3, "{hit_after} calls failed after it went away");
}

#[test]
fn a_server_whose_place_another_one_took_is_backed_up_with_a_warning() {
    let (world, _) = small();
    let warned = || {
        let warnings = Warnings::new(&world.clock);
        let clock = ArchivingClock { clock: &world.clock, archiver: &world.archiver };
        let archiver = || {
            world.archiver.run();
        };
        let mut origin = ToyOrigin::new(&world.server, &world.clock, archiver);
        let ports = Ports { progress: &warnings, clock: &clock, ..world.ports() };
        backup::run(&ports, &mut origin, &world::settings()).unwrap();
        warnings.take().into_iter().map(|(_, said)| said).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(warned(), "");
    let place = toy::place(SYSTEM, LogFile::History(TimelineId(2)));
    let history = toy::history(&[(1, Lsn(4096))]);
    let facts = serde_json::json!({});
    let cluster = &world.cluster;
    cluster.push_log(&place, &history, Default::default(), world.clock.now(), facts).unwrap();
    assert!(warned().contains("another one archived timeline 2"));
}
