//! Fetching WAL while a receiver joins the pieces of a segment, or finishes it, between any two
//! calls of the store.

mod history_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use history_support::between::Between;
use history_support::{PAGE, SYSTEM, World, day};
use lifeboat_engine::{LogFacts, LogFile, Lsn};
use lifeboat_jobs::facts::ArchivedFacts;
use lifeboat_jobs::inventory::SegmentRange;
use lifeboat_jobs::wal::{self, GetOutcome, RecoveryState};
use lifeboat_repo::{Cluster, Compression, TailPlace};
use lifeboat_testkit::toy;

/// The segment that is received.
const NUMBER: u64 = 3;
/// Where its pieces begin and end, in bytes.
const BOUNDS: [u32; 5] = [0, 4096, 10_000, 10_001, 60_000];
/// What is there of it when the restore is planned.
const PLANNED: u32 = 60_000;

fn content() -> Vec<u8> {
    toy::segment(SYSTEM, toy::segment_name(1, NUMBER), &LogFacts::default())
}

fn facts() -> serde_json::Value {
    let facts = ArchivedFacts {
        system: Some(SYSTEM),
        segment: Some(toy::segment_size()),
        log: Some(LogFacts::default()),
        written_at: None,
        ancestry: None,
    };
    serde_json::to_value(facts).unwrap()
}

fn file() -> LogFile {
    LogFile::Segment(toy::segment_name(1, NUMBER))
}

fn put(cluster: &Cluster, from: u32, to: u32) -> TailPlace {
    let place = TailPlace { of: toy::place(SYSTEM, file()), from, to };
    let bytes = &content()[from as usize..to as usize];
    cluster.push_tail(&place, bytes, Compression::None, day(1), facts()).unwrap();
    place
}

fn pieces() -> Vec<TailPlace> {
    let of = toy::place(SYSTEM, file());
    BOUNDS.windows(2).map(|w| TailPlace { of: of.clone(), from: w[0], to: w[1] }).collect()
}

/// What the receiver does meanwhile.
#[derive(Debug, Clone, Copy)]
enum Meanwhile {
    /// Joins all pieces into one, and removes them in this order.
    Joins { last_first: bool },
    /// The same with a part of them.
    JoinsSome,
    /// Stores the finished segment, and has removed so many pieces, in this order.
    Finishes { removed: usize, last_first: bool },
}

impl Meanwhile {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::JoinsSome];
        for last_first in [false, true] {
            all.push(Self::Joins { last_first });
            all.extend((0..=4).map(|removed| Self::Finishes { removed, last_first }));
        }
        all
    }

    fn happen(self, cluster: &Cluster) {
        let remove = |pieces: Vec<TailPlace>, last_first: bool, count: usize| {
            let mut order = pieces;
            if last_first {
                order.reverse();
            }
            order.iter().take(count).for_each(|p| cluster.remove_log(&p.object()).unwrap());
        };
        match self {
            Self::Joins { last_first } => {
                put(cluster, 0, PLANNED);
                remove(pieces(), last_first, 4);
            }
            Self::JoinsSome => {
                put(cluster, BOUNDS[1], BOUNDS[3]);
                remove(pieces()[1..3].to_vec(), false, 2);
            }
            Self::Finishes { removed, last_first } => {
                let (place, whole) = (toy::place(SYSTEM, file()), content());
                let stored = cluster.push_log(&place, &whole, Compression::None, day(1), facts());
                stored.unwrap();
                remove(pieces(), last_first, removed);
            }
        }
    }
}

/// A restore that was planned up to the end of the pieces.
fn state() -> RecoveryState {
    let name = |number| toy::segment_name(1, number);
    let range = SegmentRange { first: name(1), last: name(NUMBER), segments: 3, stored_bytes: 0 };
    let planned = Lsn(NUMBER * toy::segment_size().bytes() + u64::from(PLANNED));
    RecoveryState {
        version: 1,
        cluster: "main".to_owned(),
        system: SYSTEM,
        needed: vec![range],
        histories: Vec::new(),
        standby: false,
        last: None,
        tail_to: Some(planned),
        left: Vec::new(),
    }
}

fn data_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    toy::data_directory(directory.path(), &toy::identity(SYSTEM, PAGE)).unwrap();
    fs::write(directory.path().join(toy::RECOVERY_MARK), "").unwrap();
    directory
}

/// Fetches the segment, and looks that what was planned is in it.
fn get(world: &World, cluster: &Cluster, directory: &Path) -> Result<(), String> {
    let to = directory.join("pg_wal/RECOVERYXLOG");
    let name = file().to_string();
    match wal::get(&world.ports_of(cluster), &name, &to, Some(&state())) {
        Ok(GetOutcome::Fetched { .. }) => {}
        other => return Err(format!("{other:?}")),
    }
    let (got, whole) = (fs::read(&to).unwrap(), content());
    let planned = PLANNED as usize;
    let rest_fits = got[planned..].iter().all(|byte| *byte == 0) || got == whole;
    match got[..planned] == whole[..planned] && got.len() == whole.len() && rest_fits {
        true => Ok(()),
        false => Err("what was fetched is something else".to_owned()),
    }
}

#[test]
fn whatever_a_receiver_does_between_two_looks_recovery_gets_what_was_planned() {
    let directory = data_directory();
    let start = World::new();
    start.archive(1, 1, 1..=NUMBER - 1);
    BOUNDS.windows(2).for_each(|w| drop(put(&start.cluster, w[0], w[1])));
    get(&start, &start.cluster, directory.path()).unwrap();
    for meanwhile in Meanwhile::all() {
        let mut calls = 0;
        for call in 1.. {
            let world = start.fork();
            let happened = Arc::new(AtomicBool::new(false));
            let (receiver, noted) = (world.cluster.clone(), Arc::clone(&happened));
            let store = Between::new(&world.store, move || {
                noted.store(true, Ordering::SeqCst);
                meanwhile.happen(&receiver);
            });
            let cluster = world.through(Arc::clone(&store));
            store.happens_before(call);
            let got = get(&world, &cluster, directory.path());
            assert_eq!(got, Ok(()), "{meanwhile:?} before call {call}");
            if !happened.load(Ordering::SeqCst) {
                break; // it makes fewer calls
            }
            calls = call;
        }
        assert!(calls >= 8, "{meanwhile:?}: {calls} calls, it tests too little");
    }
}
