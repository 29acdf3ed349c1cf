//! The background pusher, with a toy server whose archiver removes what it was told is archived.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_engine::{LogFacts, LogFile};
use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::wal::push::ack::{Errand, Kind, Settings, Target};
use lifeboat_jobs::wal::push::client::{Answer, Call};
use lifeboat_jobs::wal::push::note::ErrorNote;
use lifeboat_jobs::wal::push::pusher::{Pusher, PusherSettings, Work};
use lifeboat_jobs::wal::push::shed::PendingGap;
use lifeboat_jobs::wal::push::spool::Spool;
use lifeboat_jobs::wal::{self, PushError, PushSettings};
use lifeboat_repo::Cluster;
use lifeboat_store::{Key, MemoryStore, Store};
use lifeboat_testkit::{Fault, FaultyStore, HookedEngine, Schedule, SimClock, ToyEngine, toy};
use lifeboat_units::{Cancel, Clock};
use proptest::prelude::*;

mod history_support;

use history_support::{PAGE, SYSTEM, World};

/// A server's directory: its segments and its archiver's notes.
struct Server {
    home: tempfile::TempDir,
    next: u64,
    /// What was told to be archived, with the content it had.
    told: BTreeMap<LogFile, Vec<u8>>,
}

impl Server {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        toy::data_directory(home.path(), &toy::identity(SYSTEM, PAGE)).unwrap();
        fs::create_dir(home.path().join("pg_wal/archive_status")).unwrap();
        let server = Self { home, next: 1, told: BTreeMap::new() };
        server.spool().create().unwrap();
        server
    }

    fn spool(&self) -> Spool {
        Spool::of(self.home.path())
    }

    fn path(&self, file: LogFile) -> PathBuf {
        self.home.path().join("pg_wal").join(file.to_string())
    }

    fn ready(&self, file: LogFile) -> PathBuf {
        self.home.path().join(format!("pg_wal/archive_status/{file}.ready"))
    }

    fn finish(&mut self) -> LogFile {
        let name = toy::segment_name(1, self.next);
        let file = LogFile::Segment(name);
        self.next += 1;
        fs::write(self.path(file), toy::segment(SYSTEM, name, &LogFacts::default())).unwrap();
        fs::write(self.ready(file), "").unwrap();
        file
    }

    /// One call of the archiver for the oldest file; true when it was told that it is archived.
    /// What was archived is removed at once, as a busy server does.
    fn archive(&mut self, target: Target, clock: &SimClock) -> Option<Result<Answer, PushError>> {
        let mut waiting =
            lifeboat_engine::Engine::waiting_logs(&ToyEngine, self.home.path()).unwrap();
        waiting.sort();
        let file = *waiting.first()?;
        let path = self.path(file);
        let answer = call(self.home.path(), &path, target, clock);
        if matches!(answer, Ok(Answer::Acknowledged(_))) {
            self.told.insert(file, fs::read(&path).unwrap());
            fs::remove_file(self.ready(file)).unwrap();
            fs::remove_file(path).unwrap();
        }
        Some(answer)
    }
}

/// A call that waits for nobody.
fn call(
    directory: &Path,
    path: &Path,
    target: Target,
    clock: &SimClock,
) -> Result<Answer, PushError> {
    let call = Call {
        engine: &ToyEngine,
        clock,
        cancel: &Cancel::default(),
        directory,
        path,
        errand: errand(target),
        timeout: Duration::ZERO,
    };
    call.run(&mut |_, _| Ok(()))
}

fn target() -> Target {
    Target::of("memory", "main")
}

/// What a call for a target wants when nothing overrides its configuration.
fn errand(target: Target) -> Errand {
    Errand { target, settings: Settings::of(Path::new("/etc/lifeboat.toml"), &[]) }
}

/// Runs one pusher for so many rounds, letting a second pass after each.
fn rounds(
    directory: &Path,
    clock: &SimClock,
    connect: &(dyn Fn() -> Result<Cluster, ErrorNote> + Sync),
    target: Target,
    each: impl FnMut(&Work<'_>) -> bool,
) {
    rounds_with(directory, clock, connect, (target, None), each);
}

/// The same, with a limit for what waits.
fn rounds_with(
    directory: &Path,
    clock: &SimClock,
    connect: &(dyn Fn() -> Result<Cluster, ErrorNote> + Sync),
    (target, backlog_max): (Target, Option<u64>),
    mut each: impl FnMut(&Work<'_>) -> bool,
) {
    let cancel = Cancel::default();
    let wait = |at_most| clock.sleep(at_most);
    let work = Work::new(Pusher {
        directory,
        engine: &ToyEngine,
        clock,
        cancel: &cancel,
        connect,
        wait: &wait,
        log: &|_| {},
        settings: PusherSettings {
            push: PushSettings::default(),
            jobs: 2,
            idle: Duration::from_secs(1),
            target,
            backlog_max,
        },
    });
    while each(&work) {
        clock.sleep(Duration::from_secs(1));
    }
}

/// Every file that the server was told is archived is in the repository, and equal.
fn all_is_there(server: &Server, world: &World) {
    for (file, content) in &server.told {
        let (_, stored) = world.cluster.read_log(&toy::place(SYSTEM, *file)).unwrap();
        assert!(stored == *content, "{file} is not what was archived");
    }
}

#[test]
fn what_waits_is_pushed_ahead_and_acknowledged_once() {
    let (world, mut server) = (World::new(), Server::new());
    for _ in 0..20 {
        server.finish();
    }
    let connect = || Ok(world.cluster.clone());
    let clock = world.clock.clone();
    let directory = server.home.path().to_owned();
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    assert_eq!(server.spool().list().unwrap().acks.len(), 20);
    for _ in 0..20 {
        assert!(matches!(server.archive(target(), &clock), Some(Ok(Answer::Acknowledged(_)))));
    }
    all_is_there(&server, &world);
    // Without their notes the acknowledgements are stale.
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    assert_eq!(server.spool().list().unwrap(), Default::default());
}

/// Turns are prepared ahead, and none is stored while the repository is gone.
#[test]
fn what_was_prepared_is_not_stored_where_the_repository_is_gone() {
    let (world, mut server) = (World::new(), Server::new());
    let clock = world.clock.clone();
    let directory = server.home.path().to_owned();
    let marker = Key::new("repository.json").unwrap();
    let body = world.store.get(&marker, 1 << 20).unwrap();
    for _ in 0..20 {
        server.finish();
    }
    let connect = || Ok(world.cluster.clone());
    world.store.delete(&marker).unwrap();
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    assert!(server.spool().list().unwrap().acks.is_empty());
    assert!(!world.objects().keys().any(|key| key.contains("/wal/")), "something was stored");
    world.store.put(&marker, &body).unwrap();
    clock.sleep(Duration::from_secs(60));
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    while !matches!(server.archive(target(), &clock), None | Some(Err(_))) {}
    all_is_there(&server, &world);
    assert_eq!(server.told.len(), 20);
}

#[test]
fn an_acknowledgement_of_another_file_or_target_is_removed_and_the_file_pushed_anew() {
    let (world, mut server) = (World::new(), Server::new());
    let clock = world.clock.clone();
    let directory = server.home.path().to_owned();
    let connect = || Ok(world.cluster.clone());
    let file = server.finish();
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    let other = Target::of("elsewhere", "main");
    assert!(server.spool().answer(&server.path(file), other).is_none());
    assert!(server.spool().answer(&server.path(file), target()).is_some());
    // Another file of the same name: the same bytes, written anew.
    let bytes = fs::read(server.path(file)).unwrap();
    fs::remove_file(server.path(file)).unwrap();
    fs::write(server.path(file), bytes).unwrap();
    assert!(server.spool().answer(&server.path(file), target()).is_none());
    let answer = server.archive(target(), &clock).unwrap();
    assert!(matches!(answer, Err(PushError::NoAnswer { .. })), "{answer:?}");
    assert!(server.spool().list().unwrap().acks.is_empty(), "what does not count is removed");
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    assert!(matches!(server.archive(target(), &clock), Some(Ok(Answer::Acknowledged(_)))));
    all_is_there(&server, &world);
}

#[test]
fn a_refusal_is_told_to_the_call_that_waits() {
    let (world, mut server) = (World::new(), Server::new());
    let clock = world.clock.clone();
    let directory = server.home.path().to_owned();
    let connect = || Ok(world.cluster.clone());
    let files: Vec<_> = (0..6).map(|_| server.finish()).collect();
    // Another content is archived under the first name.
    let name = toy::segment_name(1, 1);
    let taken = toy::segment(SYSTEM, name, &LogFacts { commits: 9, ..LogFacts::default() });
    let place = toy::place(SYSTEM, files[0]);
    let facts = serde_json::Value::Null;
    world.cluster.push_log(&place, &taken, Default::default(), clock.now(), facts).unwrap();
    rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
    let listing = server.spool().list().unwrap();
    assert_eq!((listing.acks.len(), listing.notes.clone()), (0, vec![files[0]]));
    // The call forgives, so that the pusher tries at once, and is told what it says then.
    let answer = server.archive(target(), &clock).unwrap();
    assert!(matches!(answer, Err(PushError::NoAnswer { .. })), "{answer:?}");
    assert!(server.spool().list().unwrap().notes.is_empty());
    let tried = Mutex::new(0);
    rounds(&directory, &clock, &connect, target(), |work| {
        *tried.lock().unwrap() += work.round().unwrap();
        false
    });
    assert!(*tried.lock().unwrap() >= 1);
    let note = server.spool().note(files[0]).unwrap();
    assert_eq!(note.code().0, "LB-WAL-002");
    assert!(server.spool().list().unwrap().acks.is_empty(), "what follows it is left alone");
}

#[test]
fn a_call_for_a_file_that_no_server_announced_is_left_to_the_foreground() {
    let (world, mut server) = (World::new(), Server::new());
    let file = server.finish();
    fs::remove_file(server.ready(file)).unwrap();
    let answer = call(server.home.path(), &server.path(file), target(), &world.clock);
    assert_eq!(answer.unwrap(), Answer::NotAnnounced);
}

#[test]
fn a_call_whose_note_is_taken_back_while_it_waits_is_left_to_the_foreground() {
    let (world, mut server) = (World::new(), Server::new());
    let file = server.finish();
    let (path, ready) = (server.path(file), server.ready(file));
    let spool = server.spool();
    let held = spool.try_lock().unwrap().expect("nobody has it");
    spool.sign(&held, errand(target())).unwrap();
    let call = Call {
        engine: &ToyEngine,
        clock: &world.clock,
        cancel: &Cancel::default(),
        directory: server.home.path(),
        path: &path,
        errand: errand(target()),
        timeout: Duration::from_secs(60),
    };
    let began = world.clock.monotonic();
    let answer = std::thread::scope(|scope| {
        let waits = scope.spawn(|| call.run(&mut |_, _| panic!("a pusher lives")));
        fs::remove_file(&ready).unwrap();
        waits.join().unwrap()
    });
    assert_eq!(answer.unwrap(), Answer::NotAnnounced);
    assert!(world.clock.monotonic() - began < Duration::from_secs(60));
}

/// A call looks, and the pusher may acknowledge the file before the call goes on.
#[test]
fn a_call_removes_an_acknowledgement_only_when_it_does_not_count() {
    let (world, mut server) = (World::new(), Server::new());
    let file = server.finish();
    let (path, spool) = (server.path(file), server.spool());
    let home = server.home.path().to_owned();
    let (cluster, clock) = (world.cluster.clone(), world.clock.clone());
    let engine = HookedEngine::at_waiting(Arc::new(move || {
        rounds(&home, &clock, &|| Ok(cluster.clone()), target(), |work| {
            work.round().unwrap();
            false
        });
    }));
    let call = Call {
        engine: &engine,
        clock: &world.clock,
        cancel: &Cancel::default(),
        directory: server.home.path(),
        path: &path,
        errand: errand(target()),
        timeout: Duration::ZERO,
    };
    let answer = call.run(&mut |_, _| panic!("it is acknowledged"));
    assert!(matches!(answer, Ok(Answer::Acknowledged(_))), "{answer:?}");
    // Another file of this name.
    let content = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(path.with_extension("new"), content).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    assert_eq!(spool.list().unwrap().acks, [file]);
    spool.forget_void(&path, file, target());
    assert_eq!(spool.list().unwrap().acks, []);
}

#[test]
fn a_pusher_that_began_with_other_words_makes_room_for_one_that_has_them() {
    let (world, mut server) = (World::new(), Server::new());
    let file = server.finish();
    let (path, spool) = (server.path(file), server.spool());
    spool.create().unwrap();
    let living = spool.try_lock().unwrap().expect("nobody has it");
    spool.sign(&living, errand(target())).unwrap();
    let words = ["wal.push-jobs=1".to_owned()];
    let settings = Settings::of(Path::new("/etc/lifeboat.toml"), &words);
    let call = |errand| {
        Call {
            engine: &ToyEngine,
            clock: &world.clock,
            cancel: &Cancel::default(),
            directory: server.home.path(),
            path: &path,
            errand,
            timeout: Duration::from_secs(1),
        }
        .run(&mut |lock, spool| {
            assert!(!spool.is_lock(&living), "the one that lives sees that it is to end");
            assert!(spool.is_lock(&lock));
            rounds(server.home.path(), &world.clock, &|| Ok(world.cluster.clone()), target(), {
                let mut rounds = 1;
                move |work| {
                    work.round().unwrap();
                    rounds -= 1;
                    rounds > 0
                }
            });
            Ok(())
        })
    };
    let same = call(errand(target()));
    assert!(matches!(same, Err(PushError::NoAnswer { .. })), "nobody is started: {same:?}");
    assert!(spool.is_lock(&living));
    let answer = call(Errand { target: target(), settings });
    assert!(matches!(answer, Ok(Answer::Acknowledged(_))), "{answer:?}");
    let (signed, _) = spool.signed().expect("a pusher was started");
    assert_eq!(signed.settings, settings);
}

#[test]
fn a_spool_that_cannot_be_written_to_or_pushers_that_die_leave_it_to_the_foreground() {
    let (world, mut server) = (World::new(), Server::new());
    let file = server.finish();
    let path = server.path(file);
    let mut starts = 0;
    let call = Call {
        engine: &ToyEngine,
        clock: &world.clock,
        cancel: &Cancel::default(),
        directory: server.home.path(),
        path: &path,
        errand: errand(target()),
        timeout: Duration::from_secs(60),
    };
    let answer = call.run(&mut |_, _| {
        starts += 1;
        Ok(())
    });
    assert!(matches!(answer, Ok(Answer::Unusable(_))), "{answer:?}");
    assert_eq!(starts, 2);
    server.spool().clear().unwrap();
    fs::write(server.spool().directory(), "a file").unwrap();
    let answer = call.run(&mut |_, _| panic!("nothing can be started"));
    assert!(matches!(answer, Ok(Answer::Unusable(_))), "{answer:?}");
}

#[test]
fn over_the_limit_the_oldest_segments_are_given_up_and_the_gap_is_recorded_first() {
    let (world, mut server) = (World::new(), Server::new());
    let (clock, directory) = (world.clock.clone(), server.home.path().to_owned());
    let files: Vec<_> = (0..6).map(|_| server.finish()).collect();
    let away =
        || Err(ErrorNote::of(&world.cluster.log_head(&toy::place(SYSTEM, files[0])).unwrap_err()));
    let limit = (target(), Some(4 << 20));
    let mut left = 3;
    rounds_with(&directory, &clock, &away, limit, |work| {
        work.round().unwrap();
        left -= 1;
        left > 0
    });
    let kinds = |file| server.spool().answer(&server.path(file), target()).map(|ack| ack.kind);
    let given_up = Some(Kind::GivenUp);
    assert_eq!((kinds(files[0]), kinds(files[1]), kinds(files[2])), (given_up, given_up, None));
    let pending = server.spool().pending_gaps().unwrap();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].first.to_string(), files[0].to_string());
    assert_eq!(pending[0].last.to_string(), files[1].to_string());
    assert!(server.spool().backup_is_wanted());
    // The repository is back: the gap is recorded, then the rest is pushed.
    let back = || Ok(world.cluster.clone());
    let mut tries = 0;
    rounds_with(&directory, &clock, &back, limit, |work| {
        work.round().unwrap();
        tries += 1;
        tries < 3
    });
    assert!(server.spool().pending_gaps().unwrap().is_empty());
    let inventory = Inventory::load(&world.cluster, &ToyEngine).unwrap();
    let gaps = wal::given_up(&world.cluster, &inventory).unwrap();
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].last.to_string(), files[1].to_string());
    assert!(gaps[0].backup_needed);
    assert_eq!(world.cluster.logs().unwrap().len(), 4, "what was within the limit is stored");
    a_backup_after_the_gap_answers_it(&server, &world);
    // Without a limit nothing is ever given up.
    (0..50).for_each(|_| _ = server.finish());
    rounds(&directory, &clock, &away, target(), |work| work.round().unwrap() > 0);
    assert!(server.spool().pending_gaps().unwrap().is_empty());
}

#[test]
fn with_a_repository_that_is_there_a_gap_is_recorded_before_anything_is_pushed() {
    let (world, mut server) = (World::new(), Server::new());
    let (clock, directory) = (world.clock.clone(), server.home.path().to_owned());
    let files: Vec<_> = (0..6).map(|_| server.finish()).collect();
    let stored = |file| world.cluster.has_log(&toy::place(SYSTEM, file)).unwrap();
    let back = || {
        assert!(!stored(files[2]), "nothing is stored before the repository was opened");
        Ok(world.cluster.clone())
    };
    rounds_with(&directory, &clock, &back, (target(), Some(4 << 20)), |work| {
        work.round().unwrap();
        assert!(server.spool().pending_gaps().unwrap().is_empty(), "the gap goes first");
        false
    });
    let inventory = Inventory::load(&world.cluster, &ToyEngine).unwrap();
    let gaps = wal::given_up(&world.cluster, &inventory).unwrap();
    assert_eq!(gaps.len(), 1);
    assert!(stored(files[2]) && stored(files[5]) && !stored(files[0]));
}

#[test]
fn a_gap_that_grows_while_it_is_recorded_stays_to_be_recorded() {
    let (world, server) = (World::new(), Server::new());
    let (spool, segment) = (server.spool(), |number| toy::segment_name(1, number));
    let gap = |last| PendingGap {
        at: world.clock.now(),
        system: SYSTEM,
        first: segment(1),
        last: segment(last),
        reason: "why".to_owned(),
    };
    spool.leave_gap(&gap(2)).unwrap();
    let recorded = || {
        let inventory = Inventory::load(&world.cluster, &ToyEngine).unwrap();
        wal::given_up(&world.cluster, &inventory).unwrap()
    };
    let changing = Mutex::default();
    std::thread::scope(|scope| {
        let held = changing.lock().unwrap();
        let recording = scope.spawn(|| spool.record_gaps(&world.cluster, &changing).unwrap());
        while recorded().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        spool.leave_gap(&gap(3)).unwrap();
        drop(held);
        assert!(recording.join().unwrap(), "there is one left");
    });
    assert_eq!(spool.pending_gaps().unwrap(), [gap(3)]);
    assert!(!spool.record_gaps(&world.cluster, &changing).unwrap());
    assert!(spool.pending_gaps().unwrap().is_empty());
    assert!(recorded().iter().any(|gap| gap.last == segment(3)), "{:?}", recorded());
}

/// Segments 1 and 2 were given up.
fn a_backup_after_the_gap_answers_it(server: &Server, world: &World) {
    let spool = server.spool();
    let still = |why| {
        assert!(spool.answer_wanted(&world.cluster, &ToyEngine).unwrap(), "{why}");
        assert!(spool.backup_is_wanted(), "{why}");
    };
    still("there is no backup");
    world.backup(1, 2, &[], None);
    still("it needs what was given up");
    world.backup(2, 3, &[], None);
    fs::write(spool.directory().join("000000010000000000000009.gap"), "unrecorded").unwrap();
    still("another gap is not recorded yet");
    fs::remove_file(spool.directory().join("000000010000000000000009.gap")).unwrap();
    assert!(!spool.answer_wanted(&world.cluster, &ToyEngine).unwrap());
    assert!(!spool.backup_is_wanted());
}

/// What happens next in a history.
#[derive(Debug, Clone)]
enum Step {
    Finish,
    Archive,
    Round,
    /// A pusher that is killed at this call of the store.
    Killed(u64, usize),
    /// The store fails at this call and works again afterwards.
    Fails(u64, usize),
    /// The pusher is killed after the store, before it wrote these acknowledgements.
    LosesSpool,
    /// An acknowledgement is torn.
    Tears(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Finish),
        4 => Just(Step::Archive),
        2 => Just(Step::Round),
        2 => (0..40u64, 0..Fault::ALL.len()).prop_map(|(at, fault)| Step::Killed(at, fault)),
        2 => (0..40u64, 0..Fault::ALL.len()).prop_map(|(at, fault)| Step::Fails(at, fault)),
        1 => Just(Step::LosesSpool),
        1 => (0..200usize).prop_map(Step::Tears),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Law: what the server was told is archived is in the repository and equal, whatever fails
    /// and whoever is killed; and when all works again, everything gets there.
    #[test]
    fn a_server_never_loses_a_segment_that_is_not_stored(steps in prop::collection::vec(step(), 1..40)) {
        let (world, mut server) = (World::new(), Server::new());
        let clock = world.clock.clone();
        let directory = server.home.path().to_owned();
        for step in steps {
            match step {
                Step::Finish => _ = server.finish(),
                Step::Archive => _ = server.archive(target(), &clock),
                Step::Round => {
                    let connect = || Ok(world.cluster.clone());
                    rounds(&directory, &clock, &connect, target(), |work| {
                        work.round().unwrap();
                        false
                    });
                }
                Step::Killed(at, fault) | Step::Fails(at, fault) => {
                    let faulty: FaultyStore<MemoryStore> =
                        FaultyStore::new(world.store.clone(), Schedule::At(at, Fault::ALL[fault]));
                    let connect = || {
                        let reopened = toy::reopen(&world.cluster, Arc::new(faulty.clone()));
                        reopened.map_err(|error| ErrorNote::of(&error))
                    };
                    let mut left = if matches!(step, Step::Killed(..)) { 1 } else { 3 };
                    rounds(&directory, &clock, &connect, target(), |work| {
                        work.round().unwrap();
                        left -= 1;
                        left > 0
                    });
                }
                Step::LosesSpool => {
                    server.spool().clear().unwrap();
                    server.spool().create().unwrap();
                }
                Step::Tears(keep) => {
                    if let Some(file) = server.spool().list().unwrap().acks.first() {
                        let path = server.spool().directory().join(format!("{file}.ack"));
                        let bytes = fs::read(&path).unwrap();
                        let keep = keep.min(bytes.len().saturating_sub(1)); // torn before, perhaps
                        fs::write(&path, &bytes[..keep]).unwrap();
                    }
                }
            }
            all_is_there(&server, &world);
        }
        let connect = || Ok(world.cluster.clone());
        for _ in 0..server.next {
            rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
            server.archive(target(), &clock);
        }
        all_is_there(&server, &world);
        prop_assert_eq!(server.told.len() as u64, server.next - 1);
    }
}

/// Threads that push in parallel: what follows a file that is archived with other content is left
/// alone, however the threads fall.
#[test]
fn nothing_is_stored_beyond_a_file_that_another_server_archived() {
    for (foreign, history) in [(1, false), (3, false), (10, false), (1, true)] {
        let (world, mut server) = (World::new(), Server::new());
        for _ in 0..24 {
            server.finish();
        }
        let first = if history {
            let file: LogFile = "00000002.history".parse().unwrap();
            fs::write(server.path(file), toy::history(&[(1, lifeboat_engine::Lsn(4096))])).unwrap();
            fs::write(server.ready(file), "").unwrap();
            world.cluster.push_log(
                &toy::place(SYSTEM, file),
                &toy::history(&[(1, lifeboat_engine::Lsn(8192))]),
                Default::default(),
                world.clock.now(),
                serde_json::Value::Null,
            )
        } else {
            // Of the same system, with other content.
            let name = toy::segment_name(1, foreign);
            let facts = LogFacts { last_commit: Some(world.clock.now()), ..LogFacts::default() };
            world.cluster.push_log(
                &toy::place(SYSTEM, LogFile::Segment(name)),
                &toy::segment(SYSTEM, name, &facts),
                Default::default(),
                world.clock.now(),
                serde_json::Value::Null,
            )
        };
        first.unwrap();
        let before = world.cluster.logs().unwrap().len();
        let (clock, directory) = (world.clock.clone(), server.home.path().to_owned());
        let connect = || Ok(world.cluster.clone());
        let mut left = 12;
        rounds(&directory, &clock, &connect, target(), |work| {
            work.round_on(3).unwrap();
            left -= 1;
            left > 0
        });
        let stored = world.cluster.logs().unwrap().len() - before;
        let expected = if history { 0 } else { foreign as usize - 1 };
        assert_eq!(stored, expected, "before {foreign}, history: {history}");
        let known = server.spool().list().unwrap();
        assert_eq!((known.acks.len(), known.notes.len()), (expected, 1));
        // Once that is no longer so, all goes.
        if !history && foreign == 3 {
            let name = toy::segment_name(1, foreign);
            fs::write(
                server.path(LogFile::Segment(name)),
                world.cluster.read_log(&toy::place(SYSTEM, LogFile::Segment(name))).unwrap().1,
            )
            .unwrap();
            rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
            rounds(&directory, &clock, &connect, target(), |work| work.round().unwrap() > 0);
            assert_eq!(server.spool().list().unwrap().acks.len(), 24);
        }
    }
}
