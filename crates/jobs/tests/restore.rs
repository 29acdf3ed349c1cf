//! Plans of restores, and restores that are cut short.

mod history_support;
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_engine::{Directory, LogFile, Lsn, Tablespace};
use lifeboat_jobs::restore::{
    self, RESTORING_MARK, RestoreError, RestorePlan, Target, TimelineChoice,
};
use lifeboat_repo::BackupId;
use lifeboat_store::Key;
use lifeboat_testkit::toy_log::Files;
use lifeboat_testkit::toy_server::lock;
use lifeboat_testkit::{Fault, FaultyStore, Schedule, toy};
use lifeboat_units::{Clock, Timestamp};
use world::World;
use world::random::Random;
use world::restored::request;

/// Two backups, and after each a transaction and a restore point, all archived; then a
/// transaction that is not.
struct History {
    world: World,
    backups: [BackupId; 2],
    /// Number, time, position before, and content after the transaction behind each backup.
    moments: Vec<(u32, Timestamp, Lsn, Files)>,
    unarchived: u32,
}

fn history() -> History {
    let mut random = Random(11);
    let world = World::new(random.fork());
    let mut commit = |world: &World, file| {
        let before = lock(&world.server).history().len();
        let xid = world.commit((0..4).map(|page| world::change(&mut random, file, page)).collect());
        let server = lock(&world.server);
        (xid, world.clock.now(), server.history()[before].start, server.files().clone())
    };
    commit(&world, 0);
    let (mut ids, mut moments) = (Vec::new(), Vec::new());
    for n in 1..3 {
        ids.push(world.backup().unwrap().id);
        moments.push(commit(&world, n));
        world.clock.advance(std::time::Duration::from_secs(60));
        let name = format!("point {n}");
        lock(&world.server).restore_point(&name, world.clock.now()).unwrap();
        world.archive();
    }
    let unarchived = commit(&world, 9).0;
    History { world, backups: [ids[0], ids[1]], moments, unarchived }
}

fn plan(world: &World, into: &Path, target: Target) -> Result<RestorePlan, RestoreError> {
    restore::plan(&world.ports(), &request(into, target))
}

#[test]
fn every_target_is_reached_from_the_newest_backup_before_it() {
    let history = history();
    let world = &history.world;
    let [first, second] = history.backups;
    for (moment, backup) in [(0, first), (1, second)] {
        let (xid, at, _, files) = &history.moments[moment];
        let targets = [
            Target::Xid(u64::from(*xid)),
            Target::Time(*at),
            Target::Time(*at + std::time::Duration::from_secs(30)),
            Target::Name(format!("point {}", moment + 1)),
        ];
        for target in targets {
            let chosen = plan(world, &world.fresh(), target.clone()).unwrap();
            assert_eq!(chosen.backup, backup, "{target:?}: {chosen:#?}");
            assert!(world.content_at(target.clone()).unwrap() == *files, "{target:?}");
        }
    }
    let latest = plan(world, &world.fresh(), Target::Latest).unwrap();
    assert_eq!(latest.backup, second);
    assert!(world.content_at(Target::Latest).unwrap() == history.moments[1].3);
    let asked = plan(world, &world.fresh(), Target::Backup(first)).unwrap();
    assert_eq!(asked.backup, first);
}

#[test]
fn what_cannot_be_reached_is_refused_in_words_and_nothing_is_written() {
    let history = history();
    let world = &history.world;
    let into = world.fresh();
    let id: BackupId = "20200101T000000Z-00000001".parse().unwrap();
    let cases: [(&str, Target, Refused); 9] = [
        ("before all", Target::Time(Timestamp::UNIX_EPOCH), too_early),
        ("before the first backup", Target::Lsn(Lsn(1)), too_early),
        ("after all", Target::Lsn(Lsn(1 << 40)), too_late),
        ("now", Target::Time(world.clock.now()), too_late),
        (
            "tomorrow",
            Target::Time(world.clock.now() + std::time::Duration::from_secs(86_400)),
            too_late,
        ),
        ("no such point", Target::Name("point".to_owned()), not_found),
        ("no such transaction", Target::Xid(4_000_000_000), not_found),
        ("before the first backup", Target::Xid(100), not_found),
        ("not archived", Target::Xid(u64::from(history.unarchived)), not_found),
    ];
    for (words, target, right) in cases {
        let error = plan(world, &into, target).unwrap_err();
        assert!(right(&error), "{words}: {error}");
        assert!(!into.exists(), "{words}");
    }
    assert!(plan(world, &into, Target::Backup(id)).is_err());
    let mut other = request(&into, Target::Latest);
    other.timeline = TimelineChoice::Number(lifeboat_engine::TimelineId(7));
    let error = restore::plan(&world.ports(), &other).unwrap_err();
    assert!(matches!(error, RestoreError::Timeline { .. }), "{error}");
    let empty = World::new(Random(1));
    let error = plan(&empty, &into, Target::Latest).unwrap_err();
    assert!(matches!(error, RestoreError::NoBackup { .. }), "{error}");
}

type Refused = fn(&RestoreError) -> bool;

fn too_early(error: &RestoreError) -> bool {
    matches!(error, RestoreError::TooEarly { .. })
}

fn too_late(error: &RestoreError) -> bool {
    matches!(error, RestoreError::TooLate { .. })
}

fn not_found(error: &RestoreError) -> bool {
    matches!(error, RestoreError::NotFound { .. })
}

/// Takes the segment away in which the transaction behind the first backup ended.
fn make_gap(history: &History) {
    let name = history.moments[0].2.segment(toy::segment_size());
    let name = toy::segment_name(1, name.0);
    let place = toy::place(world::SYSTEM, LogFile::Segment(name));
    let suffix = format!("{}/{:08X}/{}", place.system, place.timeline, place.name);
    let keys: Vec<Key> = history.world.store.snapshot().into_keys().collect();
    let key = keys.iter().find(|key| key.as_str().ends_with(&suffix)).unwrap();
    assert!(history.world.store.remove(key));
}

#[test]
fn a_target_in_a_gap_is_refused_and_one_on_either_side_is_reached() {
    let history = history();
    make_gap(&history);
    let world = &history.world;
    let (xid, at, start, _) = &history.moments[0];
    let gap = |error: &RestoreError| matches!(error, RestoreError::Gap { .. });
    let into = world.fresh();
    assert!(gap(&plan(world, &into, Target::Time(*at)).unwrap_err()));
    assert!(gap(&plan(world, &into, Target::Lsn(*start)).unwrap_err()));
    assert!(not_found(&plan(world, &into, Target::Xid(u64::from(*xid))).unwrap_err()));
    let [first, second] = history.backups;
    assert_eq!(plan(world, &into, Target::Backup(first)).unwrap().backup, first);
    for target in [Target::Latest, Target::Time(history.moments[1].1)] {
        assert_eq!(plan(world, &into, target.clone()).unwrap().backup, second);
        assert!(world.content_at(target).unwrap() == history.moments[1].3);
    }
}

#[test]
fn when_the_newest_manifest_is_damaged_the_older_backup_is_taken_and_it_is_said() {
    let history = history();
    let world = &history.world;
    let key = world.cluster.manifest_key(history.backups[1]).unwrap();
    assert!(world.store.corrupt(&key, |body| *body.last_mut().unwrap() ^= 1));
    let plan = plan(world, &world.fresh(), Target::Latest).unwrap();
    assert_eq!(plan.backup, history.backups[0]);
    let noted = plan.notes.iter().any(|note| note.contains(&history.backups[1].to_string()));
    assert!(noted, "{:?}", plan.notes);
    assert!(world.content_at(Target::Latest).unwrap() == history.moments[1].3);
    let damaged = |error: &RestoreError| matches!(error, RestoreError::Repo(_));
    for (asked, none_is_whole) in [(history.backups[1], false), (history.backups[0], true)] {
        if none_is_whole {
            let key = world.cluster.manifest_key(asked).unwrap();
            assert!(world.store.corrupt(&key, |body| *body.last_mut().unwrap() ^= 1));
        }
        let request = request(&world.fresh(), Target::Backup(asked));
        let error = restore::plan(&world.ports(), &request).unwrap_err();
        assert!(damaged(&error), "{error}");
    }
}

#[test]
fn a_place_that_holds_anything_is_refused_and_one_that_was_cut_short_is_written_anew() {
    let history = history();
    let world = &history.world;
    let into = world.fresh();
    fs::create_dir(&into).unwrap();
    fs::write(into.join("precious"), b"letters").unwrap();
    let occupied = |error: &RestoreError| matches!(error, RestoreError::Occupied { .. });
    assert!(occupied(&plan(world, &into, Target::Latest).unwrap_err()));
    assert_eq!(fs::read(into.join("precious")).unwrap(), b"letters");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 1);
    let data = world.home.path().join("data");
    assert!(occupied(&plan(world, &data, Target::Latest).unwrap_err()));

    fs::write(into.join(RESTORING_MARK), b"").unwrap();
    world.restore(&world.cluster, &into, Target::Latest).unwrap();
    assert!(!into.join("precious").exists() && !into.join(RESTORING_MARK).exists());
    assert!(world.recover(&world.cluster, &into).unwrap() == history.moments[1].3);
}

#[test]
fn what_comes_between_plan_and_apply_is_not_overwritten() {
    let history = history();
    let world = &history.world;
    let into = world.fresh();
    let request = request(&into, Target::Latest);
    let plan = restore::plan(&world.ports(), &request).unwrap();
    fs::create_dir(&into).unwrap();
    fs::write(into.join("precious"), b"letters").unwrap();
    let error = restore::apply(&world.ports(), &plan, &request).unwrap_err();
    assert!(matches!(error, RestoreError::Occupied { .. }), "{error}");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 1);
}

#[test]
fn a_restore_that_is_cancelled_leaves_what_cannot_be_started() {
    let history = history();
    let world = &history.world;
    let into = world.fresh();
    let request = request(&into, Target::Latest);
    let plan = restore::plan(&world.ports(), &request).unwrap();
    world.cancel.cancel();
    let error = restore::apply(&world.ports(), &plan, &request).unwrap_err();
    assert!(matches!(error, RestoreError::Cancelled), "{error}");
    assert!(into.join(RESTORING_MARK).exists() && !into.join(toy::CONTROL_FILE).exists());
}

#[test]
fn a_restore_cut_short_at_any_store_call_cannot_be_started_and_succeeds_when_repeated() {
    let history = history();
    let world = &history.world;
    let into = world.fresh();
    let (mut calls, mut marked) = (0, 0);
    for call in 1.. {
        let mut hit = false;
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            let store = FaultyStore::new(world.store.clone(), Schedule::At(call, fault));
            let cluster = world.through(store.clone()).unwrap();
            let result = world.restore(&cluster, &into, Target::Latest);
            hit |= store.fault_was_hit();
            if let Err(error) = result {
                assert!(store.fault_was_hit(), "{what}: {error}");
                assert!(!into.join(toy::CONTROL_FILE).exists(), "{what}");
                assert_eq!(into.exists(), into.join(RESTORING_MARK).exists(), "{what}");
                marked += u32::from(into.exists());
                world.restore(&world.cluster, &into, Target::Latest).unwrap();
            }
            assert!(!into.join(RESTORING_MARK).exists(), "{what}");
            let files = world.recover(&world.cluster, &into).unwrap();
            assert!(files == history.moments[1].3, "{what}");
            fs::remove_dir_all(&into).unwrap();
        }
        if !hit {
            break;
        }
        calls = call;
    }
    assert!(calls > 10 && marked > 10, "{calls} calls, {marked} cut while writing");
}

#[test]
fn tablespaces_go_only_where_nothing_lies_and_only_those_of_the_backup() {
    let world = history_support::World::new();
    let home = world::directory();
    let was = home.path().join("was");
    world.archive(0, 1, 1..=4);
    world.backup_with(0, 1, &[], None, |facts| {
        facts.tablespaces = vec![Tablespace { oid: 16_400, location: was.clone() }];
    });
    let into = home.path().join("restored");
    let occupied = home.path().join("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("precious"), b"letters").unwrap();
    let cases: [(&str, PathBuf, PathBuf); 5] = [
        ("none of the backup's", home.path().join("other"), home.path().join("new")),
        ("not absolute", was.clone(), "new".into()),
        ("in the data directory", was.clone(), into.join("new")),
        ("around the data directory", was.clone(), home.path().to_owned()),
        ("occupied", was.clone(), occupied),
    ];
    for (words, old, new) in cases {
        let mut request = request(&into, Target::Latest);
        request.tablespaces = vec![(old, new)];
        let error = restore::plan(&world.ports(), &request).unwrap_err();
        assert!(matches!(error, RestoreError::Tablespace { .. }), "{words}: {error}");
        assert!(!into.exists(), "{words}");
    }
    let mut request = request(&into, Target::Latest);
    request.tablespaces = vec![(was.clone(), home.path().join("new"))];
    let plan = restore::plan(&world.ports(), &request).unwrap();
    assert_eq!(plan.tablespaces, [(was, home.path().join("new"))]);
}

#[test]
fn a_manifest_that_names_a_path_outside_the_target_is_refused_before_anything_is_written() {
    let evil = ["../outside", "/etc/outside", "base/../../outside", "base//x", "./x", "a/./b"];
    for path in evil {
        for kind in 0..3 {
            let world = history_support::World::new();
            let home = world::directory();
            world.archive(0, 1, 1..=4);
            world.backup_with(0, 1, &[], None, |facts| match kind {
                0 => facts.directories.push(Directory { path: path.to_owned(), mode: 0o700 }),
                1 => facts.control_file.path = path.to_owned(),
                _ => facts.generated.push(lifeboat_jobs::facts::StoredFile::new(path, b"x")),
            });
            let into = home.path().join("a/restored");
            let request = request(&into, Target::Latest);
            let error = restore::plan(&world.ports(), &request)
                .and_then(|plan| restore::apply(&world.ports(), &plan, &request))
                .unwrap_err();
            let words = lifeboat_jobs::inventory::chain(&error);
            assert!(words.contains("path"), "{path} {kind}: {words}");
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{path} {kind}");
        }
    }
}
