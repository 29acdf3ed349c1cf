//! Restores over a directory that is there: whatever lies in it, what comes out is what a plain
//! restore gives, and nothing outside of it is touched.

mod world;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lifeboat_engine::SystemId;
use lifeboat_jobs::restore::{
    self, RESTORING_MARK, RestoreError, RestoreReport, SET_ASIDE, Target,
};
use lifeboat_jobs::wal::READING_FILE;
use lifeboat_repo::{BackupId, Cluster};
use lifeboat_testkit::toy_log::PAGE_BYTES;
use lifeboat_testkit::toy_server::lock;
use lifeboat_testkit::{Fault, FaultyStore, Schedule, ToyEngine, toy};
use lifeboat_units::Clock;
use proptest::prelude::*;
use world::World;
use world::random::Random;
use world::restored::request;

/// A world with three backups of different states.
fn history(seed: u64) -> (World, Vec<BackupId>) {
    let mut random = Random(seed);
    let world = World::new(random.fork());
    let mut backups = Vec::new();
    for _ in 0..3 {
        (0..12).for_each(|_| world.write(&mut random));
        backups.push(world.backup().unwrap().id);
        world.archive();
    }
    (world, backups)
}

fn delta(world: &World, into: &Path, target: Target) -> Result<RestoreReport, RestoreError> {
    delta_through(world, &world.cluster, into, target)
}

fn delta_through(
    world: &World,
    cluster: &Cluster,
    into: &Path,
    target: Target,
) -> Result<RestoreReport, RestoreError> {
    let ports = world.ports_of(cluster, &ToyEngine, &world.clock);
    let mut request = request(into, target);
    request.delta = true;
    let plan = restore::plan(&ports, &request)?;
    restore::apply(&ports, &plan, &request)
}

/// Everything below a directory: kind, mode, and content or target.
fn tree(root: &Path) -> BTreeMap<PathBuf, (char, u32, Vec<u8>)> {
    fn walk(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, (char, u32, Vec<u8>)>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let entry = entry.unwrap();
            let name = below.join(entry.file_name());
            let data = entry.metadata().unwrap();
            let mode = data.mode() & 0o7777;
            if data.is_dir() {
                found.insert(name.clone(), ('d', mode, Vec::new()));
                walk(root, &name, found);
            } else if data.file_type().is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                found.insert(name, ('l', 0, target.display().to_string().into_bytes()));
            } else {
                found.insert(name, ('f', mode, fs::read(entry.path()).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, Path::new(""), &mut found);
    found.remove(Path::new(READING_FILE)); // random, and missing where no note could be left
    found
}

/// One thing that may have happened to a directory.
#[derive(Debug, Clone, Copy)]
struct Mishap {
    what: u32,
    file: u64,
    place: u64,
}

impl Mishap {
    /// Does it to a file of the directory, or beside one.
    fn happen(self, into: &Path, outside: &Path) {
        let mut files: Vec<PathBuf> = tree(into)
            .into_iter()
            .filter(|(path, (kind, ..))| *kind == 'f' && path != Path::new(toy::CONTROL_FILE))
            .map(|(path, _)| into.join(path))
            .collect();
        if files.is_empty() {
            return;
        }
        let file = files.swap_remove((self.file % files.len() as u64) as usize);
        let length = fs::metadata(&file).unwrap().len();
        let at = self.place % length.max(1);
        let open = || fs::File::options().write(true).open(&file).unwrap();
        let stray = file.with_extension(format!("stray{}-{}", self.what, self.file));
        if fs::symlink_metadata(&stray).is_ok() {
            return;
        }
        match self.what {
            0 => open().write_all_at(&[0x5a], at).unwrap(),
            1 => open().set_len(at).unwrap(),
            2 => open().set_len(length + at + 1).unwrap(),
            3 => fs::remove_file(&file).unwrap(),
            4 => fs::write(&stray, b"does not belong").unwrap(),
            5 => {
                fs::create_dir_all(stray.join("a/b")).unwrap();
                fs::write(stray.join("a/b/c"), b"x").unwrap();
            }
            6 => {
                fs::remove_file(&file).unwrap();
                fs::create_dir(&file).unwrap();
                fs::write(file.join("x"), b"x").unwrap();
            }
            // Links out of the directory: instead of a file, of a directory, and astray.
            7 => {
                fs::remove_file(&file).unwrap();
                symlink(outside.join("precious"), &file).unwrap();
            }
            8 => {
                let directory = file.parent().unwrap();
                if directory != into && !directory.ends_with("global") {
                    fs::remove_dir_all(directory).unwrap();
                    symlink(outside, directory).unwrap();
                }
            }
            9 => {
                symlink(outside, &stray).unwrap();
            }
            // The same file under another name outside.
            10 => {
                let twin = outside.join(format!("twin-{}-{}", self.file, self.place));
                if !twin.exists() {
                    fs::copy(&file, &twin).unwrap();
                    fs::remove_file(&file).unwrap();
                    fs::hard_link(&twin, &file).unwrap();
                }
            }
            11 => fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap(),
            12 => {
                let directory = file.parent().unwrap();
                fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
            }
            // Pages of zeros, as bytes or as a hole.
            13 => open().write_all_at(&vec![0; PAGE_BYTES], at).unwrap(),
            14 => {
                open().set_len(at).unwrap();
                open().set_len(length).unwrap();
            }
            15 => {
                let name = toy::segment_name(1, 900 + self.place % 50).to_string();
                // Where an earlier mishap left a directory of that name, that is enough.
                let _ = fs::write(into.join("pg_wal").join(name), b"stale");
            }
            _ => drop(fs::write(into.join("postmaster.pid.stale"), b"1")),
        }
    }
}

prop_compose! {
    fn mishap()(what in 0u32..17, file: u64, place: u64) -> Mishap {
        Mishap { what, file, place }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Law: over any state of a directory, a delta gives the bytes of a plain restore, and leaves
    /// alone what links lead to.
    #[test]
    fn over_any_directory_a_delta_gives_what_a_plain_restore_gives(
        seed in 0u64..6,
        from in 0usize..4,
        to in 0usize..3,
        mishaps in proptest::collection::vec(mishap(), 0..14),
    ) {
        let (world, backups) = history(seed);
        let (plain, into) = (world.home.path().join("plain"), world.fresh());
        let outside = world.home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), b"letters").unwrap();
        let target = || Target::Backup(backups[to]);
        match backups.get(from) {
            Some(other) => {
                world.restore(&world.cluster, &into, Target::Backup(*other)).unwrap();
            }
            None => copy(lock(&world.server).directory(), &into),
        }
        mishaps.iter().for_each(|mishap| mishap.happen(&into, &outside));
        let twins = tree(&outside);

        let report = delta(&world, &into, target()).unwrap();
        prop_assert!(report.delta.is_some());
        // The same request, but for the place: it is in no file that is written.
        world.restore(&world.cluster, &plain, target()).unwrap();
        let mut ours = tree(&into);
        ours.retain(|path, _| !path.starts_with(SET_ASIDE));
        let theirs = tree(&plain);
        let names = |t: &BTreeMap<PathBuf, _>| t.keys().cloned().collect::<Vec<_>>();
        prop_assert_eq!(names(&ours), names(&theirs));
        for (path, one) in &theirs {
            prop_assert!(one == &ours[path], "{} differs", path.display());
        }
        prop_assert_eq!(tree(&outside), twins);
        let recovered = world.recover(&world.cluster, &into).unwrap();
        prop_assert_eq!(recovered, world.recover(&world.cluster, &plain).unwrap());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for (path, (kind, mode, bytes)) in tree(from) {
        let path = to.join(path);
        if kind == 'd' {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, bytes).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn what_is_right_is_neither_fetched_nor_written() {
    let (world, backups) = history(1);
    let into = world.fresh();
    let target = || Target::Backup(backups[2]);
    world.restore(&world.cluster, &into, target()).unwrap();
    let first = delta(&world, &into, target()).unwrap();
    let found = first.delta.unwrap();
    // What the engine wrote for recovery is the one file that the backup has not.
    assert_eq!((found.pages_written, found.files_removed, found.files_missing), (0, 1, 0));
    assert!(found.pages_compared > 50, "{found:?}");
    assert_eq!(first.written_bytes.0, 0);

    let (path, ..) = tree(&into.join("base")).pop_last().unwrap();
    let file = fs::File::options().write(true).open(into.join("base").join(&path)).unwrap();
    // Pages of zeros need not be fetched.
    let content = fs::read(into.join("base").join(&path)).unwrap();
    let page = content.chunks(PAGE_BYTES).position(|page| page.iter().any(|b| *b != 0)).unwrap();
    file.write_all_at(&[1, 2, 3], (page * PAGE_BYTES + 5) as u64).unwrap();
    let again = delta(&world, &into, target()).unwrap();
    assert_eq!(again.delta.unwrap().pages_written, 1);
    assert!(again.fetched_bytes > first.fetched_bytes);
}

#[test]
fn a_delta_cut_short_at_any_store_call_cannot_be_started_and_succeeds_when_repeated() {
    let (world, backups) = history(2);
    let (into, plain) = (world.fresh(), world.home.path().join("plain"));
    let target = || Target::Backup(backups[0]);
    world.restore(&world.cluster, &plain, target()).unwrap();
    let expected = tree(&plain);
    let (mut calls, mut marked) = (0, 0);
    for call in 1.. {
        let mut hit = false;
        for fault in Fault::ALL {
            let what = format!("call {call} {fault:?}");
            copy(lock(&world.server).directory(), &into);
            let store = FaultyStore::new(world.store.clone(), Schedule::At(call, fault));
            let cluster = world.through(store.clone()).unwrap();
            let result = delta_through(&world, &cluster, &into, target());
            hit |= store.fault_was_hit();
            if let Err(error) = result {
                assert!(store.fault_was_hit(), "{what}: {error}");
                let begun = into.join(RESTORING_MARK).exists();
                // Either nothing was changed, or nothing can be started.
                assert_eq!(begun, !into.join(toy::CONTROL_FILE).exists(), "{what}");
                marked += u32::from(begun);
                // A plain restore takes it too, once it is marked.
                if begun && call % 2 == 0 {
                    world.restore(&world.cluster, &into, target()).unwrap();
                } else {
                    delta(&world, &into, target()).unwrap();
                }
            }
            let mut there = tree(&into);
            there.retain(|path, _| !path.starts_with(SET_ASIDE));
            assert!(there == expected, "{what}");
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
fn only_the_data_of_the_same_system_are_written_over() {
    let (world, backups) = history(3);
    let into = world.fresh();
    let target = || Target::Backup(backups[0]);
    let mut other = toy::identity(SystemId(9), PAGE_BYTES as u32);
    toy::data_directory(&into, &other).unwrap();
    let before = tree(&into);
    let error = delta(&world, &into, target()).unwrap_err();
    assert!(matches!(error, RestoreError::Foreign { .. }), "{error}");
    fs::write(into.join(toy::CONTROL_FILE), b"rubbish").unwrap();
    let error = delta(&world, &into, target()).unwrap_err();
    assert!(matches!(error, RestoreError::Nobodys { .. }), "{error}");
    fs::remove_file(into.join(toy::CONTROL_FILE)).unwrap();
    let error = delta(&world, &into, target()).unwrap_err();
    assert!(matches!(error, RestoreError::Occupied { .. }), "{error}");
    other.system_id = world::SYSTEM;
    toy::data_directory(&into, &other).unwrap();
    assert_eq!(before.len(), tree(&into).len());
    delta(&world, &into, target()).unwrap();
    // Without the word it is refused, whosever it is.
    let error = world.restore(&world.cluster, &into, target()).unwrap_err();
    assert!(matches!(error, RestoreError::Occupied { .. }), "{error}");
}

#[test]
fn wal_that_is_nowhere_else_is_set_aside_and_the_rest_removed() {
    let (world, backups) = history(4);
    let into = world.fresh();
    world.write(&mut Random(77));
    let last = lock(&world.server).switch(world.clock.now()).unwrap().to_string();
    copy(lock(&world.server).directory(), &into);
    let wal = |directory: &Path| {
        let names = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert!(wal(&into.join("pg_wal")).contains(&last));
    // Made ready for use, with what it was before.
    let ready = toy::segment_name(1, 99).to_string();
    fs::copy(into.join("pg_wal").join(&last), into.join("pg_wal").join(ready)).unwrap();
    let bytes = fs::read(into.join("pg_wal").join(&last)).unwrap();
    let report = delta(&world, &into, Target::Backup(backups[1])).unwrap();
    let (done, planned) = (report.delta.unwrap(), report.plan.delta.unwrap());
    assert_eq!(done.files_set_aside, 1);
    assert_eq!(planned.differences.files_removed, done.files_removed, "what is moved stays");
    assert_eq!(wal(&into.join("pg_wal")), Vec::<String>::new());
    assert_eq!(wal(&into.join(SET_ASIDE)), std::slice::from_ref(&last));
    assert_eq!(fs::read(into.join(SET_ASIDE).join(&last)).unwrap(), bytes);
    // It stays there, and another of the same name goes beside it.
    fs::write(into.join("pg_wal").join(&last), &bytes).unwrap();
    delta(&world, &into, Target::Backup(backups[2])).unwrap();
    let mut names = wal(&into.join(SET_ASIDE));
    names.sort();
    assert_eq!(names, [last.clone(), format!("{last}.1")]);
    // One that is archived goes, and one that another server archived with other content stays.
    let logs = world.cluster.logs().unwrap();
    let segments: Vec<_> = logs.iter().filter(|log| log.place.name.len() == 24).collect();
    for (log, change) in segments.iter().zip([false, true]) {
        let (_, mut content) = world.cluster.read_log(&log.place).unwrap();
        *content.last_mut().unwrap() ^= u8::from(change);
        fs::write(into.join("pg_wal").join(&log.place.name), content).unwrap();
    }
    delta(&world, &into, Target::Backup(backups[2])).unwrap();
    let names = wal(&into.join(SET_ASIDE));
    assert!(!names.contains(&segments[0].place.name), "{names:?}");
    assert!(names.contains(&segments[1].place.name), "{names:?}");
}

#[test]
fn a_mark_in_a_directory_that_was_used_since_does_not_make_it_unfinished() {
    let (world, backups) = history(5);
    let into = world.fresh();
    let target = || Target::Backup(backups[2]);
    world.restore(&world.cluster, &into, target()).unwrap();
    delta(&world, &into, target()).unwrap();
    // As after a kill just before the mark goes: complete, and as good as unfinished.
    let mark = format!(
        "words\n{{\"directory\":{into:?},\"system\":\"{}\",\"control\":\"00\",\"delta\":true}}\n",
        world::SYSTEM
    );
    fs::write(into.join(RESTORING_MARK), mark).unwrap();
    let error = world.restore(&world.cluster, &into, target()).unwrap_err();
    assert!(matches!(error, RestoreError::Occupied { .. }), "{error}");
    fs::remove_file(into.join(toy::CONTROL_FILE)).unwrap();
    // WAL that the delta did not come to set aside is not cleared away by a plain restore.
    let name = toy::segment_name(1, 77).to_string();
    fs::write(into.join("pg_wal").join(&name), "perhaps nowhere else").unwrap();
    world.restore(&world.cluster, &into, target()).unwrap();
    let kept = fs::read_to_string(into.join(SET_ASIDE).join(&name)).unwrap();
    assert_eq!(kept, "perhaps nowhere else");
    assert!(!into.join(RESTORING_MARK).exists());
}
