//! The background fetcher of `wal get`, on a toy system and real files.

mod history_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use history_support::{PAGE, SYSTEM, World, day};
use lifeboat_engine::{SegmentName, TimelineId};
use lifeboat_jobs::wal::{
    self, GetOutcome, PREFETCH_DIRECTORY, Prefetch, PrefetchClaim, RecoveryState,
};
use lifeboat_store::{Key, Store};
use lifeboat_testkit::{ToyEngine, toy};

const ORIGIN: &str = "memory: main";

/// A data directory that recovers.
struct Recovering {
    directory: tempfile::TempDir,
}

impl Recovering {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        toy::data_directory(directory.path(), &toy::identity(SYSTEM, PAGE)).unwrap();
        fs::write(directory.path().join(toy::RECOVERY_MARK), "").unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn destination(&self) -> PathBuf {
        self.path().join("pg_wal/RECOVERYXLOG")
    }

    /// Asks the fetcher only; true when it served the segment.
    fn served(&self, number: u64, state: Option<&RecoveryState>) -> bool {
        self.served_of(ORIGIN, name(number), state)
    }

    /// Waits until the fetcher has begun with a segment, and asks for it.
    fn is_served(&self, number: u64, state: Option<&RecoveryState>) -> bool {
        until("it is fetched", || self.fetched().contains(&number));
        self.served(number, state)
    }

    fn served_of(&self, origin: &str, name: SegmentName, state: Option<&RecoveryState>) -> bool {
        let destination = self.destination();
        let _ = fs::remove_file(&destination);
        let asked = (name.to_string(), destination.as_path());
        let asked = (asked.0.as_str(), asked.1);
        match wal::get_ahead(&ToyEngine, self.path(), origin, asked, state) {
            Some(GetOutcome::Fetched { .. }) => {
                let content = fs::read(&destination).unwrap();
                let log = lifeboat_engine::LogFacts {
                    last_commit: Some(day(0)),
                    ..lifeboat_engine::LogFacts::default()
                };
                assert_eq!(content, toy::segment(SYSTEM, name, &log), "{name}");
                true
            }
            Some(GetOutcome::NotThere { .. }) => panic!("a fetcher never says that"),
            None => {
                assert!(!destination.exists());
                false
            }
        }
    }

    /// Numbers of the segments that lie in the prefetch directory.
    fn fetched(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.path().join(PREFETCH_DIRECTORY));
        let names = entries.into_iter().flatten().flatten().map(|e| e.file_name());
        let mut numbers: Vec<u64> = names
            .filter_map(|name| {
                let name: SegmentName = name.to_str()?.split('.').next()?.parse().ok()?;
                Some(name.number(toy::segment_size())?.0)
            })
            .collect();
        numbers.sort_unstable();
        numbers
    }

    fn is_clean(&self) -> bool {
        !self.path().join(PREFETCH_DIRECTORY).exists()
    }
}

fn name(number: u64) -> SegmentName {
    toy::segment_name(1, number)
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Does something while a fetcher runs that was started after `served`; waits until it ended.
fn while_fetching(
    world: &World,
    recovering: &Recovering,
    (served, segments): (u64, u32),
    act: impl FnOnce(),
) {
    let settings = Prefetch { segments, jobs: 2, idle: Duration::from_secs(30) };
    std::thread::scope(|scope| {
        let claim = PrefetchClaim::take(recovering.path()).unwrap().unwrap();
        let socket = recovering.path().join(PREFETCH_DIRECTORY).join("socket");
        let fetching = scope.spawn(move || {
            wal::prefetch(&world.ports(), &settings, &claim, name(served), ORIGIN).unwrap();
        });
        until("it listens", || socket.exists());
        act();
        let _ = fs::remove_file(recovering.path().join(toy::RECOVERY_MARK));
        until("it ends with recovery", || fetching.is_finished());
    });
    assert!(recovering.is_clean(), "{:?}", recovering.fetched());
}

fn state(last: Option<u64>) -> RecoveryState {
    RecoveryState {
        version: 1,
        cluster: "main".to_owned(),
        system: SYSTEM,
        needed: Vec::new(),
        histories: vec![TimelineId(2)],
        standby: false,
        last: last.map(name),
        tail_to: None,
        left: Vec::new(),
    }
}

fn object(world: &World, number: u64) -> (Key, Vec<u8>) {
    let name = name(number).to_string();
    let (key, body) = world.objects().into_iter().find(|(k, _)| k.ends_with(&name)).unwrap();
    (Key::new(key).unwrap(), body)
}

#[test]
fn what_lies_ahead_is_served_once_and_never_more_than_allowed() {
    let (world, recovering) = (World::new(), Recovering::new());
    world.archive(0, 1, 1..=9);
    while_fetching(&world, &recovering, (1, 3), || {
        for number in 2..=9 {
            assert!(recovering.is_served(number, None), "{number}");
            assert!(recovering.fetched().len() <= 3, "{:?}", recovering.fetched());
            assert!(!recovering.served(number, None), "it was taken");
        }
        assert!(!recovering.served(10, None), "that it is not there is for others to find out");
        // Back again, as a server that was started anew.
        assert!(!recovering.served(1, None));
        assert!(recovering.is_served(2, None));
    });
    assert!(!recovering.served(3, None), "nobody is there");
}

#[test]
fn damage_ahead_is_not_served_and_does_not_stop_the_rest() {
    let (world, recovering) = (World::new(), Recovering::new());
    world.archive(0, 1, 1..=4);
    let (key, mut body) = object(&world, 3);
    *body.last_mut().unwrap() ^= 1;
    world.store.delete(&key).unwrap();
    world.store.put(&key, &body).unwrap();
    while_fetching(&world, &recovering, (1, 4), || {
        assert!(recovering.is_served(2, None));
        assert!(!recovering.served(3, None));
        assert!(recovering.is_served(4, None));
    });
}

#[test]
fn nothing_behind_the_end_of_recovery_is_fetched_or_served() {
    let (world, recovering) = (World::new(), Recovering::new());
    world.archive(0, 1, 1..=6);
    let state = state(Some(4));
    state.write(recovering.path()).unwrap();
    while_fetching(&world, &recovering, (1, 5), || {
        assert!(recovering.is_served(2, Some(&state)));
        assert!(recovering.is_served(3, Some(&state)));
        until("all that may be seen is fetched", || recovering.fetched() == [4]);
        assert!(!recovering.served(5, Some(&state)));
        assert!(!recovering.served(6, Some(&state)));
    });
}

#[test]
fn another_state_system_repository_or_timeline_voids_everything() {
    let world = World::new();
    world.archive(0, 1, 1..=6);
    world.archive(0, 2, 3..=6);
    let states = [Some(state(None)), None];
    let recoverings = [Recovering::new(), Recovering::new()];
    for (recovering, state) in recoverings.iter().zip(&states) {
        if let Some(state) = state {
            state.write(recovering.path()).unwrap();
        }
        while_fetching(&world, recovering, (1, 2), || {
            assert!(recovering.is_served(2, state.as_ref()));
            let other = toy::segment_name(2, 3);
            assert!(!recovering.served_of(ORIGIN, other, state.as_ref()));
            until("the other timeline is fetched", || recovering.fetched() == [4, 5]);
            let next = toy::segment_name(2, 4);
            assert!(recovering.served_of(ORIGIN, next, state.as_ref()));
            // The same restore again has another state file: what is there is not for it.
            self::state(None).write(recovering.path()).unwrap();
            assert!(!recovering.served_of(
                ORIGIN,
                toy::segment_name(2, 5),
                Some(&self::state(None))
            ));
            until("it ends", || recovering.is_clean());
        });
    }
    let recovering = Recovering::new();
    while_fetching(&world, &recovering, (1, 2), || {
        assert!(!recovering.served_of("memory: other", name(2), None));
        until("it ends", || recovering.is_clean());
    });
    let recovering = Recovering::new();
    while_fetching(&world, &recovering, (1, 2), || {
        let mut state = state(None);
        state.system = lifeboat_engine::SystemId(5);
        assert!(!recovering.served(2, Some(&state)), "of another system");
    });
}

#[test]
fn one_fetcher_at_a_time_and_leftovers_are_served_to_nobody() {
    let (world, recovering) = (World::new(), Recovering::new());
    world.archive(0, 1, 1..=3);
    let place = recovering.path().join(PREFETCH_DIRECTORY);
    // As a killed fetcher leaves them, or a copy of the directory: a socket without a listener.
    fs::create_dir(&place).unwrap();
    fs::write(place.join(format!("{}.1", name(2))), vec![0; toy::SEGMENT_BYTES]).unwrap();
    drop(std::os::unix::net::UnixListener::bind(place.join("socket")).unwrap());
    assert!(!recovering.served(2, None));
    while_fetching(&world, &recovering, (1, 2), || {
        assert!(PrefetchClaim::take(recovering.path()).unwrap().is_none(), "a second one");
        assert!(recovering.is_served(2, None));
        wal::finish_recovery(recovering.path()).unwrap();
        until("it ends", || recovering.is_clean());
    });
    wal::finish_recovery(recovering.path()).unwrap();
}

#[test]
fn a_fetcher_is_started_only_where_it_has_something_to_do() {
    let (world, recovering) = (World::new(), Recovering::new());
    world.archive(0, 1, 1..=2);
    let worth = |number, state: Option<&RecoveryState>| {
        wal::worth_prefetching(&world.ports(), recovering.path(), name(number), state)
    };
    assert!(worth(1, None));
    assert!(!worth(2, None), "the end of the archive");
    assert!(!worth(1, Some(&state(Some(1)))), "the end of what recovery may see");
    fs::remove_file(recovering.path().join(toy::RECOVERY_MARK)).unwrap();
    assert!(!worth(1, None), "nothing recovers here");
}

#[test]
fn a_fetcher_that_nobody_asks_ends() {
    let (world, recovering) = (World::new(), Recovering::new());
    world.archive(0, 1, 1..=2);
    let claim = PrefetchClaim::take(recovering.path()).unwrap().unwrap();
    let settings = Prefetch { segments: 2, jobs: 1, idle: Duration::from_millis(50) };
    wal::prefetch(&world.ports(), &settings, &claim, name(1), ORIGIN).unwrap();
    assert!(recovering.is_clean());
}
