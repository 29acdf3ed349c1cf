//! Receiving the log of a toy server: what is acknowledged can be restored, whatever fails.
//!
//! Survives: any store call failing before or after its effect, or torn; the death of the receiver
//! between any two store calls; a line that is cut anywhere; promotions, also to a server that has
//! less than was received; a slot that is dropped and WAL that is removed meanwhile; two receivers.
//! `LIFEBOAT_SEED` replays one history.

mod history_support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use history_support::{SYSTEM, World};
use lifeboat_engine::{LogFile, Lsn, SegmentName, SegmentNo, SystemId, TimelineId};
use lifeboat_jobs::wal::{self, ReceiveError, ReceiveEvent, ReceiveSettings, Told, tail};
use lifeboat_repo::{Cluster, Compression, Fact, TailPlace};
use lifeboat_testkit::{Fault, FaultyStore, Schedule, ToyStreamer, toy};
use lifeboat_units::{Cancel, Explain};

fn settings(synchronous: bool) -> ReceiveSettings {
    ReceiveSettings {
        slot: "lifeboat".to_owned(),
        create_slot: true,
        synchronous,
        ship_every: Duration::from_secs(1),
        compression: Compression::Zstd(1),
    }
}

/// Receives all there is, and says what was told.
fn receive_into(
    world: &World,
    cluster: &Cluster,
    server: &ToyStreamer,
    settings: &ReceiveSettings,
) -> (Result<(), ReceiveError>, Vec<ReceiveEvent>) {
    let cancel = Cancel::default();
    server.stop_when_quiet(world.clock.clone(), cancel.clone());
    let ports = lifeboat_jobs::Ports { cancel: &cancel, ..world.ports_of(cluster) };
    let mut events = Vec::new();
    let mut source = server.clone();
    let mut left = 20;
    let mut tell = |told: Told| {
        // A store that died never comes back: the process would be restarted.
        if matches!(told.event, ReceiveEvent::Disconnected { .. } | ReceiveEvent::Waiting { .. }) {
            left -= 1;
            if left == 0 {
                cancel.cancel();
            }
        }
        events.push(told.event);
    };
    let result = wal::receive(&ports, settings, &mut source, &mut tell);
    (result, events)
}

fn receive(world: &World, server: &ToyStreamer, synchronous: bool) -> Vec<ReceiveEvent> {
    let (result, events) = receive_into(world, &world.cluster, server, &settings(synchronous));
    result.unwrap_or_else(|e| panic!("{e:?}: {events:#?}"));
    events
}

/// What the repository holds of a segment from its first byte on.
fn stored(cluster: &Cluster, name: SegmentName) -> Option<Vec<u8>> {
    let place = toy::place(SYSTEM, LogFile::Segment(name));
    match cluster.read_log(&place) {
        Ok((_, content)) => Some(content),
        Err(error) if error.is_not_found() => {
            tail::read(cluster, &place).unwrap().map(|(_, content)| content)
        }
        Err(error) => panic!("{error}"),
    }
}

/// The law: what is durable is there, byte for byte. The last `segments` are looked at.
fn check(
    cluster: &Cluster,
    server: &ToyStreamer,
    timeline: TimelineId,
    durable: Lsn,
    segments: u64,
) {
    let size = toy::segment_size();
    let last = durable.segment_before(size).0;
    let first = last.saturating_sub(segments).max(ToyStreamer::BASE.0);
    for number in (first..=last).map(SegmentNo) {
        let on = server.timeline_of(number, timeline);
        let expected = server.content(on, number, durable);
        if expected.is_empty() {
            continue;
        }
        let name = SegmentName::new(on, number, size);
        let found = stored(cluster, name);
        let found = found.unwrap_or_else(|| panic!("{name} is not there, {durable} was durable"));
        assert!(found.starts_with(&expected), "{name} up to {durable}: {} bytes", found.len());
    }
}

fn pieces(cluster: &Cluster) -> Vec<TailPlace> {
    cluster.logs().unwrap().iter().filter_map(|log| TailPlace::parse(&log.place)).collect()
}

#[test]
fn all_that_was_written_arrives_as_segments_and_a_tail() {
    for synchronous in [false, true] {
        let world = World::new();
        let server = ToyStreamer::new(SYSTEM, 5);
        server.write(3_500_000);
        let events = receive(&world, &server, synchronous);
        let (timeline, end) = server.end();
        check(&world.cluster, &server, timeline, end, 9);
        let segments = events.iter().filter(|e| matches!(e, ReceiveEvent::Segment { .. })).count();
        assert_eq!(segments, 3, "{events:?}");
        assert!(
            matches!(events.last(), Some(ReceiveEvent::Stopped { durable }) if *durable == Some(end))
        );
        // The finished segments have no pieces left.
        assert!(pieces(&world.cluster).iter().all(|p| p.of.name.ends_with("04")));
        // Again, with nothing new: nothing is stored.
        let before = world.objects();
        receive(&world, &server, synchronous);
        assert_eq!(world.objects(), before);
        // And on from there.
        server.write(700_000);
        receive(&world, &server, synchronous);
        check(&world.cluster, &server, timeline, server.end().1, 9);
        let list = wal::list(&world.ports()).unwrap();
        assert!(list.systems[0].timelines[0].gaps.is_empty());
    }
}

#[test]
fn many_small_pieces_are_joined() {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, 6);
    for _ in 0..40 {
        server.write(1000);
        receive(&world, &server, true);
    }
    let few = pieces(&world.cluster).len();
    assert_eq!(few, 40, "each run had something new");
    for _ in 0..150 {
        server.write(100);
        receive(&world, &server, true);
    }
    let (timeline, end) = server.end();
    check(&world.cluster, &server, timeline, end, 1);
    let count = pieces(&world.cluster).len();
    assert!(count < 130, "{count} pieces");
}

#[test]
fn a_server_of_another_system_or_other_content_is_refused() {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, 7);
    server.write(300_000);
    receive(&world, &server, true);
    let before = world.objects();
    // The same system, other bytes: another server wrote.
    let other = ToyStreamer::new(SYSTEM, 99);
    other.write(400_000);
    let (result, _) = receive_into(&world, &world.cluster, &other, &settings(true));
    let error = result.unwrap_err();
    assert!(matches!(error, ReceiveError::Contradiction { .. }), "{error}");
    assert!(error.help().unwrap().contains("two servers"));
    assert_eq!(world.objects(), before, "nothing was stored");
    // A finished segment that is archived with other content.
    let archived = World::new();
    archived.archive(1, 1, 1..=1);
    server.write(1 << 20);
    archived.backup(1, 1, &[], None);
    let (result, _) = receive_into(&archived, &archived.cluster, &server, &settings(true));
    assert!(result.is_ok(), "it begins after what is archived");
    let foreign = ToyStreamer::new(SystemId(5), 7);
    foreign.write(2 << 20);
    let (result, _) = receive_into(&archived, &archived.cluster, &foreign, &settings(true));
    let error = result.unwrap_err();
    assert!(matches!(error, ReceiveError::OtherSystem { .. }), "{error}");
}

#[test]
fn without_a_slot_it_says_what_to_do() {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, 8);
    server.forget(true);
    let settings = ReceiveSettings { create_slot: false, ..settings(true) };
    let (result, _) = receive_into(&world, &world.cluster, &server, &settings);
    let error = result.unwrap_err();
    assert!(matches!(error, ReceiveError::SlotMissing { .. }), "{error}");
    assert!(error.help().unwrap().contains("--create-slot"));
}

#[test]
fn a_promotion_is_followed_and_what_was_left_behind_is_said() {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, 9);
    server.write(2_300_000);
    receive(&world, &server, true);
    let left = server.end().1;
    server.promote(100_000);
    server.write(1_500_000);
    let events = receive(&world, &server, true);
    let behind = events.iter().find_map(|event| match event {
        ReceiveEvent::LeftBehind { timeline, left_at, stored_to } => {
            Some((*timeline, left.0 - left_at.0, *stored_to))
        }
        _ => None,
    });
    assert_eq!(behind, Some((TimelineId(1), 100_000, left)), "{events:?}");
    let (timeline, end) = server.end();
    assert_eq!(timeline, TimelineId(2));
    check(&world.cluster, &server, timeline, end, 9);
    // Promoted while it is received: the stream itself says so.
    server.promote(0);
    server.write(10);
    let events = receive(&world, &server, true);
    assert!(events.iter().any(|e| matches!(e, ReceiveEvent::History { .. })), "{events:?}");
    check(&world.cluster, &server, TimelineId(3), server.end().1, 9);
}

#[test]
fn what_the_server_no_longer_has_is_a_recorded_gap_and_it_goes_on_after_it() {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, 10);
    server.write(1_200_000);
    world.backup(1, 1, &[], None);
    receive(&world, &server, true);
    server.write(5_000_000);
    server.forget(true);
    let events = receive(&world, &server, true);
    let gap = events.iter().find_map(|event| match event {
        ReceiveEvent::Gap { first, last, .. } => Some((first.to_string(), last.to_string())),
        _ => None,
    });
    let gap = gap.unwrap_or_else(|| panic!("{events:#?}"));
    assert_eq!(gap, (toy::segment_name(1, 2).to_string(), toy::segment_name(1, 5).to_string()));
    let facts: Vec<Fact> =
        world.cluster.journal().unwrap().into_iter().map(|r| r.event.fact).collect();
    assert!(facts.iter().any(|fact| matches!(fact, Fact::LogGap { .. })), "{facts:?}");
    let (timeline, end) = server.end();
    check(&world.cluster, &server, timeline, end, 0);
    // It is said once.
    server.write(10);
    let events = receive(&world, &server, true);
    assert!(!events.iter().any(|e| matches!(e, ReceiveEvent::Gap { .. })), "{events:?}");
    check(&world.cluster, &server, timeline, server.end().1, 0);
}

/// The gaps that are recorded, as names of the first and the last segment.
fn gaps(world: &World) -> Vec<(String, String)> {
    let facts = world.cluster.journal().unwrap().into_iter().map(|r| r.event.fact);
    let gap = |fact| match fact {
        Fact::LogGap { first, last, .. } => Some((first, last)),
        _ => None,
    };
    facts.filter_map(gap).collect()
}

#[test]
fn a_slot_that_was_given_up_costs_one_gap_however_busy_the_server_is() {
    // Segments that are written, and a checkpoint, before each of the next connections. Up to 2
    // may be kept for a slot: beyond that the new slot is given up, too, before it is used.
    for (strict, tenths) in
        [(false, 5), (true, 5), (false, 13), (true, 13), (false, 27), (true, 27)]
    {
        let what = format!("strict: {strict}, {tenths} tenths of a segment");
        let world = World::new();
        let server = ToyStreamer::new(SYSTEM, 12);
        server.keep_at_most(2 << 20, strict);
        server.write(1_200_000);
        world.backup(1, 1, &[], None);
        receive(&world, &server, true);
        server.write(5_000_000);
        server.checkpoint();
        server.busy(4, (tenths << 20) / 10);
        let events = receive(&world, &server, true);
        let told = events.iter().filter(|e| matches!(e, ReceiveEvent::Gap { .. })).count();
        let gaps = gaps(&world);
        assert_eq!((told, gaps.len()), (1, 1), "{what}: {events:#?}");
        assert_eq!(gaps[0].0, toy::segment_name(1, 2).to_string(), "{what}");
        // What follows it is there without a hole.
        let last: SegmentName = gaps[0].1.parse().unwrap();
        let goes_on = last.number(toy::segment_size()).unwrap().next();
        let (timeline, end) = server.end();
        let behind = end.segment(toy::segment_size()).0 - goes_on.0;
        check(&world.cluster, &server, timeline, end, behind);
        // It is said once, and the slot holds.
        server.busy(0, 0);
        server.write(3_000_000);
        let events = receive(&world, &server, true);
        assert!(
            !events.iter().any(|e| matches!(e, ReceiveEvent::Gap { .. })),
            "{what}: {events:?}"
        );
        check(&world.cluster, &server, timeline, server.end().1, behind + 2);
    }
}

#[test]
fn two_receivers_at_once_are_one() {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, 11);
    server.write(5_500_000);
    let streams = [11, 12].map(|seed| server.twin(seed));
    std::thread::scope(|scope| {
        for twin in &streams {
            scope.spawn(|| receive(&world, twin, true));
        }
    });
    let (timeline, end) = server.end();
    check(&world.cluster, &server, timeline, end, 9);
}

/// One history drawn from a number.
fn history(seed: u64) {
    let world = World::new();
    let server = ToyStreamer::new(SYSTEM, seed);
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = |end: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % end
    };
    let truth = Arc::new(Mutex::new(Lsn(0)));
    let (healed, twin, seen) = (world.through(world.store.clone()), server.clone(), truth.clone());
    server.watch(move |timeline, durable| {
        check(&healed, &twin, timeline, durable, 1);
        *seen.lock().unwrap() = durable;
    });
    for _ in 0..10 {
        let most = [2_000, 300_000, 2_500_000][draw(3) as usize];
        server.write(draw(most) as usize);
        if draw(6) == 0 {
            server.promote(draw(50_000) as usize);
        }
        if draw(2) == 0 {
            server.cut_after(draw(40) as u32);
        }
        let fault = Fault::ALL[draw(5) as usize];
        let schedule = Schedule::At(draw(60), fault);
        let store = FaultyStore::new(world.store.clone(), schedule);
        let synchronous = draw(2) == 0;
        // A fault may strike while the repository is opened: then nothing was received.
        if let Ok(cluster) = toy::reopen(&world.cluster, Arc::new(store)) {
            let _ = receive_into(&world, &cluster, &server, &settings(synchronous));
        }
    }
    server.write(1);
    receive(&world, &server, true);
    let (timeline, end) = server.end();
    check(&world.cluster, &server, timeline, end, 99);
    assert_eq!(*truth.lock().unwrap(), end);
    let list = wal::list(&world.ports()).unwrap();
    assert!(list.unreadable.is_empty(), "{:?}", list.unreadable);
}

#[test]
fn what_was_acknowledged_is_there_through_histories_of_failure() {
    if let Ok(seed) = std::env::var("LIFEBOAT_SEED") {
        return history(seed.parse().expect("LIFEBOAT_SEED is a number"));
    }
    let seeds: Vec<u64> = (1..=24).collect();
    std::thread::scope(|scope| {
        for part in seeds.chunks(12) {
            scope.spawn(move || {
                for seed in part {
                    let outcome = std::panic::catch_unwind(|| history(*seed));
                    assert!(outcome.is_ok(), "seed {seed} failed: LIFEBOAT_SEED={seed} replays it");
                }
            });
        }
    });
}
