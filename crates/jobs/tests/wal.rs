//! Archiving and fetching WAL of a toy system.

mod history_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use history_support::{PAGE, SYSTEM, World, backup_id, day};
use lifeboat_engine::{LogFacts, LogFile, Lsn, SystemId, TimelineId};
use lifeboat_jobs::inventory::SegmentRange;
use lifeboat_jobs::succession;
use lifeboat_jobs::wal::{
    self, GetError, GetOutcome, HistoryState, PushError, PushSettings, Pushed, RecoveryState,
};
use lifeboat_repo::RepoError;
use lifeboat_store::{Key, Store};
use lifeboat_testkit::{Fault, FaultyStore, Schedule, toy};
use lifeboat_units::{Clock, Explain};

/// A data directory of `system`, and the path of a file in its log directory.
fn directory(system: SystemId) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    toy::data_directory(directory.path(), &toy::identity(system, PAGE)).unwrap();
    directory
}

fn segment_file(directory: &Path, system: SystemId, number: u64) -> PathBuf {
    let name = toy::segment_name(1, number);
    let path = directory.join("pg_wal").join(name.to_string());
    fs::write(&path, toy::segment(system, name, &LogFacts::default())).unwrap();
    path
}

fn push(world: &World, path: &Path) -> Result<wal::PushReport, PushError> {
    wal::push(&world.ports(), &PushSettings::default(), path)
}

fn state(first: u64, last: u64) -> RecoveryState {
    RecoveryState {
        version: 1,
        cluster: "main".to_owned(),
        system: SYSTEM,
        needed: vec![SegmentRange {
            first: toy::segment_name(1, first),
            last: toy::segment_name(1, last),
            segments: last - first + 1,
            stored_bytes: 0,
        }],
        histories: vec![TimelineId(2)],
        standby: false,
        last: None,
        tail_to: None,
        left: Vec::new(),
    }
}

#[test]
fn the_same_again_is_success_and_other_content_is_refused() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    let path = segment_file(directory.path(), SYSTEM, 1);
    let first = push(&world, &path).unwrap();
    assert_eq!(first.outcome, Pushed::Stored);
    assert!(first.stored_bytes.0 > 0 && first.size_bytes.0 == 1 << 20);
    let again = push(&world, &path).unwrap();
    assert_eq!((again.outcome, again.stored_bytes.0), (Pushed::AlreadyThere, 0));
    let mut content = fs::read(&path).unwrap();
    *content.last_mut().unwrap() = 1;
    fs::write(&path, content).unwrap();
    let before = world.objects();
    assert!(matches!(push(&world, &path).unwrap_err(), PushError::Diverged { .. }));
    assert_eq!(world.objects(), before);
}

#[test]
fn what_is_no_log_file_or_of_another_system_is_refused() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    let foreign = segment_file(directory.path(), SystemId(5), 1);
    assert!(matches!(push(&world, &foreign).unwrap_err(), PushError::Foreign { .. }));
    let misnamed = directory.path().join("pg_wal/000000010000000000000009");
    fs::rename(segment_file(directory.path(), SYSTEM, 1), &misnamed).unwrap();
    assert!(matches!(push(&world, &misnamed).unwrap_err(), PushError::NoSegment { .. }));
    let other = directory.path().join("pg_wal/postgresql.conf");
    assert!(matches!(push(&world, &other).unwrap_err(), PushError::Name { .. }));
    let missing = directory.path().join("pg_wal/00000002.history");
    assert!(matches!(push(&world, &missing).unwrap_err(), PushError::Read { .. }));
    assert!(!world.objects().keys().any(|k| k.contains("/wal/")));
}

#[test]
fn a_system_that_is_not_the_newest_backups_may_not_share_its_name() {
    let world = World::new();
    let mine = directory(SYSTEM);
    push(&world, &segment_file(mine.path(), SYSTEM, 1)).unwrap();
    world.backup(0, 1, &[], None);
    let other = directory(SystemId(5));
    let error = push(&world, &segment_file(other.path(), SystemId(5), 1)).unwrap_err();
    assert!(matches!(&error, PushError::OtherSystem { .. }) && error.help().is_some(), "{error}");
    push(&world, &segment_file(mine.path(), SYSTEM, 2)).unwrap();
}

#[test]
fn a_system_that_continues_the_cluster_takes_its_place_and_can_give_it_back() {
    let world = World::new();
    let (old, new) = (directory(SYSTEM), directory(SystemId(5)));
    push(&world, &segment_file(old.path(), SYSTEM, 1)).unwrap();
    world.backup(0, 1, &[], None);
    let continue_by = |system: SystemId| {
        let now = world.ports().clock.now();
        succession::record(&world.cluster, now, &toy::identity(system, 8192)).unwrap()
    };
    assert_eq!(continue_by(SYSTEM), None, "it is the cluster already");
    let continued = continue_by(SystemId(5)).unwrap();
    assert_eq!((continued.from, continued.to), (SYSTEM, SystemId(5)));
    let current = succession::current(&world.cluster).unwrap().unwrap();
    assert_eq!(current.continues.map(|(from, _)| from), Some(SYSTEM));
    push(&world, &segment_file(new.path(), SystemId(5), 1)).unwrap();
    // A third is as foreign as ever; the old one goes on only where it was.
    let other = directory(SystemId(6));
    let error = push(&world, &segment_file(other.path(), SystemId(6), 1)).unwrap_err();
    assert!(matches!(&error, PushError::OtherSystem { since: None, .. }), "{error}");
    push(&world, &segment_file(old.path(), SYSTEM, 2)).unwrap();
    let error = push(&world, &segment_file(old.path(), SYSTEM, 9)).unwrap_err();
    assert!(matches!(&error, PushError::OtherSystem { since: Some(_), .. }), "{error}");
    assert!(error.help().unwrap().contains("was continued"), "{:?}", error.help());
    assert!(continue_by(SYSTEM).is_some());
    push(&world, &segment_file(old.path(), SYSTEM, 9)).unwrap();
    assert_eq!(succession::current(&world.cluster).unwrap().unwrap().system, SYSTEM);
}

#[test]
fn a_history_file_needs_the_data_directory_and_a_segment_does_not() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    let history = directory.path().join("pg_wal/00000002.history");
    fs::write(&history, toy::history(&[(1, Lsn(1 << 20))])).unwrap();
    push(&world, &history).unwrap();
    let segment = segment_file(directory.path(), SYSTEM, 1);
    fs::remove_file(directory.path().join(toy::CONTROL_FILE)).unwrap();
    push(&world, &segment).unwrap();
    let error = push(&world, &history).unwrap_err();
    assert!(matches!(error, PushError::Identity { .. }), "{error}");
}

#[test]
fn a_push_that_fails_at_any_store_call_succeeds_when_repeated() {
    let directory = directory(SYSTEM);
    let path = segment_file(directory.path(), SYSTEM, 1);
    let start = World::new();
    let mut hits = 0;
    for call in 0..8 {
        for fault in Fault::ALL {
            let world = start.fork();
            let opening = 1; // the repository's marker
            let store = FaultyStore::new(world.store.clone(), Schedule::At(opening + call, fault));
            let cluster = world.through(store.clone());
            let result = wal::push(&world.ports_of(&cluster), &PushSettings::default(), &path);
            hits += u32::from(store.fault_was_hit());
            assert!(result.is_ok() || store.fault_was_hit(), "call {call} {fault:?}");
            let there = world.objects().keys().any(|k| k.contains("/wal/"));
            assert!(result.is_err() || there, "success before it is stored: {call} {fault:?}");
            push(&world, &path).unwrap();
            let name = toy::segment_name(1, 1).to_string();
            let to = directory.path().join("pg_wal/RECOVERYXLOG");
            wal::get(&world.ports(), &name, &to, None).unwrap();
            assert_eq!(fs::read(&to).unwrap(), fs::read(&path).unwrap());
        }
    }
    assert!(hits >= 15, "{hits}");
}

#[test]
fn what_is_certainly_not_there_is_told_from_what_recovery_needs() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    world.archive(0, 1, 1..=2);
    let to = directory.path().join("pg_wal/RECOVERYXLOG");
    let get =
        |name: &str, state: Option<&RecoveryState>| wal::get(&world.ports(), name, &to, state);
    let name = |n| toy::segment_name(1, n).to_string();
    assert!(matches!(get(&name(2), None).unwrap(), GetOutcome::Fetched { .. }));
    assert!(matches!(get(&name(3), None).unwrap(), GetOutcome::NotThere { .. }));
    let mut state = state(1, 3);
    for needed in [name(3), "00000002.history".to_owned()] {
        let error = get(&needed, Some(&state)).unwrap_err();
        assert!(matches!(error, GetError::NeededMissing { .. }), "{error}");
    }
    for probe in [name(4), "00000003.history".to_owned()] {
        assert!(matches!(get(&probe, Some(&state)).unwrap(), GetOutcome::NotThere { .. }));
    }
    state.standby = true;
    assert!(matches!(get(&name(3), Some(&state)).unwrap(), GetOutcome::NotThere { .. }));
    // The server's own marks count: somebody may have turned the one into the other.
    let mark = directory.path().join(toy::RECOVERY_MARK);
    fs::write(&mark, "").unwrap();
    assert!(get(&name(3), Some(&state)).is_err(), "it would be promoted too early");
    fs::write(directory.path().join(toy::STANDBY_MARK), "").unwrap();
    state.standby = false;
    assert!(matches!(get(&name(3), Some(&state)).unwrap(), GetOutcome::NotThere { .. }));
}

/// As where its file system is unmounted: the directory below is there, and empty.
#[test]
fn a_repository_that_went_away_is_neither_the_end_of_the_wal_nor_a_place_to_store() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    let [first, second] = [1, 2].map(|n| segment_file(directory.path(), SYSTEM, n));
    push(&world, &first).unwrap();
    let marker = Key::new("repository.json").unwrap();
    let body = world.store.get(&marker, 1 << 20).unwrap();
    world.store.delete(&marker).unwrap();
    for path in [&first, &second] {
        let error = push(&world, path).unwrap_err();
        let PushError::Repo { source: RepoError::Gone { .. }, .. } = error else {
            panic!("{error}");
        };
    }
    let to = directory.path().join("pg_wal/RECOVERYXLOG");
    let name = toy::segment_name(1, 3).to_string();
    let error = wal::get(&world.ports(), &name, &to, None).unwrap_err();
    assert!(matches!(error, GetError::Repo { source: RepoError::Gone { .. }, .. }), "{error}");
    world.store.put(&marker, &body).unwrap();
    assert!(push(&world, &second).is_ok());
    let outcome = wal::get(&world.ports(), &name, &to, None).unwrap();
    assert!(matches!(outcome, GetOutcome::NotThere { .. }));
}

#[test]
fn a_standby_that_was_set_up_by_hand_is_not_stopped() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    world.archive(0, 1, 1..=1);
    let to = directory.path().join("pg_wal/RECOVERYXLOG");
    let name = toy::segment_name(1, 1).to_string();
    let dead = FaultyStore::new(world.store.clone(), Schedule::At(1, Fault::Die));
    let cluster = world.through(dead);
    let ports = world.ports_of(&cluster);
    assert!(wal::get(&ports, &name, &to, None).is_err());
    fs::write(directory.path().join(toy::STANDBY_MARK), "").unwrap();
    let outcome = wal::get(&ports, &name, &to, None).unwrap();
    assert!(matches!(outcome, GetOutcome::NotThere { .. }));
    assert!(matches!(
        wal::get(&world.ports(), &name, &to, None).unwrap(),
        GetOutcome::Fetched { .. }
    ));
}

#[test]
fn a_partial_segment_is_not_served_as_a_whole_one() {
    let (world, directory) = (World::new(), directory(SYSTEM));
    let whole = segment_file(directory.path(), SYSTEM, 1);
    let partial = whole.with_extension("partial");
    fs::rename(&whole, &partial).unwrap();
    push(&world, &partial).unwrap();
    let name = toy::segment_name(1, 1).to_string();
    assert!(matches!(
        wal::get(&world.ports(), &name, &whole, None).unwrap(),
        GetOutcome::NotThere { .. }
    ));
    assert!(!whole.exists());
}

#[test]
fn a_store_that_fails_never_ends_recovery_and_nothing_altered_is_served() {
    let directory = directory(SYSTEM);
    let start = World::new();
    start.archive(0, 1, 1..=1);
    let name = toy::segment_name(1, 1).to_string();
    let to = directory.path().join("pg_wal/RECOVERYXLOG");
    for call in 1..6 {
        // A passing failure is tried again; a store that stays away is an error.
        for (fault, recovers) in [(Fault::ErrorBefore, true), (Fault::Die, false)] {
            let world = start.fork();
            let store = FaultyStore::new(world.store.clone(), Schedule::At(call, fault));
            let cluster = world.through(store.clone());
            let began = world.clock.monotonic();
            let result = wal::get(&world.ports_of(&cluster), &name, &to, None);
            if store.fault_was_hit() {
                assert_eq!(result.is_ok(), recovers, "call {call} {fault:?}");
                assert!(world.clock.monotonic() > began, "it waited");
                assert!(world.clock.monotonic() - began <= Duration::from_secs(10));
            }
            let mut standby = state(1, 1);
            standby.standby = true;
            let outcome = wal::get(&world.ports_of(&cluster), &name, &to, Some(&standby));
            assert!(outcome.is_ok(), "a standby is never stopped");
        }
    }
    fs::remove_file(&to).unwrap();
    let key = start.objects().into_keys().find(|k| k.ends_with(&name)).unwrap();
    let key = lifeboat_store::Key::new(key).unwrap();
    let body = start.store.get(&key, 1 << 30).unwrap();
    for at in 0..body.len() {
        let world = &start;
        world.store.delete(&key).unwrap();
        let mut bad = body.clone();
        bad[at] ^= 1;
        world.store.put(&key, &bad).unwrap();
        let result = wal::get(&world.ports(), &name, &to, None);
        assert!(result.is_err() && !to.exists(), "byte {at}: {result:?}");
    }
    assert!(fs::read_dir(directory.path().join("pg_wal")).unwrap().next().is_none());
}

#[test]
fn the_listing_shows_ranges_gaps_and_what_is_reached() {
    let world = World::new();
    world.archive(1, 1, 1..=4);
    world.archive(1, 1, 6..=7);
    let left = Lsn((3 << 20) + 100);
    world.archive_history(2, 2, &[(1, left)]);
    world.archive(2, 2, 3..=5);
    world.archive(2, 3, 9..=9);
    world.backup(0, 1, &[], None);
    let report = wal::list(&world.ports()).unwrap();
    let [one, two, three] = &report.systems[0].timelines[..] else { panic!("{report:?}") };
    assert_eq!((one.ranges.len(), one.segments, one.history), (2, 6, HistoryState::NotNeeded));
    assert_eq!(one.gaps.len(), 1);
    assert_eq!(one.gaps[0].first, toy::segment_name(1, 5));
    assert_eq!(two.parent, Some((TimelineId(1), left)));
    assert_eq!((two.history, two.last_commit), (HistoryState::Present, Some(day(2))));
    assert_eq!(three.history, HistoryState::Missing);
    let windows: Vec<_> = report.windows.iter().map(|w| (w.timeline.0, w.backup, w.to)).collect();
    assert_eq!(windows, [(1, backup_id(0), Lsn(5 << 20)), (2, backup_id(0), Lsn(6 << 20))]);
    assert!(serde_json::to_string(&report).is_ok());
}

#[test]
fn waiting_ends_when_the_segment_is_there_or_the_time_is_over() {
    let world = World::new();
    let wait = |seconds| {
        let timeout = Duration::from_secs(seconds);
        wal::wait_for(&world.ports(), SYSTEM, toy::segment_name(1, 1), timeout)
    };
    assert!(!wait(30).unwrap());
    assert_eq!(world.clock.monotonic(), Duration::from_secs(30));
    world.archive(0, 1, 1..=1);
    assert!(wait(0).unwrap());
}

#[test]
fn the_recovery_state_reads_back_is_private_and_goes_with_its_key() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(RecoveryState::read(directory.path()).unwrap(), None);
    let state = state(1, 3);
    state.write(directory.path()).unwrap();
    state.write(directory.path()).unwrap();
    assert_eq!(RecoveryState::read(directory.path()).unwrap(), Some(state));
    let path = directory.path().join(wal::RECOVERY_FILE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(directory.path().join(wal::RECOVERY_KEY_FILE), "key").unwrap();
    fs::write(&path, r#"{"version": 2}"#).unwrap();
    assert!(RecoveryState::read(directory.path()).is_err());
    wal::finish_recovery(directory.path()).unwrap();
    wal::finish_recovery(directory.path()).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let probe = LogFile::Partial(toy::segment_name(1, 1));
    assert!(!self::state(1, 3).needs(probe));
}
