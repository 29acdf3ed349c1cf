//! WAL segments of real servers, against `pg_waldump`; and of no server at all.

#[path = "pure_support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use lifeboat_engine::{
    LogFacts, LogFollower, LogPart, Lsn, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId,
};
use lifeboat_postgres::control::ControlFile;
use lifeboat_postgres::facts::{Follower, log_facts, record_before};
use lifeboat_postgres::wal::{Reader, Tail, WalError, segment_origin};
use lifeboat_units::Timestamp;
use proptest::prelude::*;
use support::{Scratch, binaries};

/// Commits, aborts, subtransactions, prepared transactions with and without the optional
/// parts of their records, restore points, records larger than a page and than a segment.
const WORK: &str = "
    create table t (id int primary key, body text);
    alter table t alter body set storage external;
    select pg_create_restore_point('first');
    insert into t select i, md5(i::text) from generate_series(1, 20000) i;
    do $$ begin for i in 1..500 loop
      update t set body = 'x' || i where id = i; commit; end loop; end $$;
    begin; delete from t where id < 50; rollback;
    begin; insert into t values (-1, 'a'); savepoint s; insert into t values (-2, 'b');
    savepoint u; insert into t values (-3, 'c'); prepare transaction 'kept';
    commit prepared 'kept';
    begin; create table gone (a int); prepare transaction 'dropped';
    rollback prepared 'dropped';
    begin; create table made (a int); drop table t; prepare transaction 'drops';
    rollback prepared 'drops';
    begin; create table made (a int); prepare transaction 'made'; commit prepared 'made';
    select pg_create_restore_point('a longer name, with \u{e4}\u{f6}\u{fc}');
    checkpoint;
    update t set body = repeat(md5(id::text), 100) where id < 3000;
    select pg_logical_emit_message(true, 'big', repeat('0123456789', 300000));
    select pg_switch_wal();
    insert into t select i, 'after the switch' from generate_series(30001, 31000) i;
    select pg_create_restore_point('last');
    begin; drop table t; commit;
";

/// One line of `pg_waldump`.
struct Line {
    previous: Lsn,
    total_bytes: u32,
    xid: u32,
    text: String,
}

fn waldump(scratch: &Scratch, wal: &Path, first: &str, last: &str) -> BTreeMap<Lsn, Line> {
    let output =
        scratch.command("pg_waldump").arg("-p").arg(wal).args([first, last]).output().unwrap();
    let field = |line: &str, name: &str| {
        let after = line.split_once(name).unwrap_or_else(|| panic!("{line}")).1.trim_start();
        after.split([',', ' ', '/']).next().unwrap().to_owned()
    };
    let position = |line: &str, name: &str| {
        let after = line.split_once(name).unwrap().1.trim_start();
        after.split(',').next().unwrap().trim().parse().unwrap()
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with("rmgr:"))
        .map(|line| {
            let lengths = line.split_once("(rec/tot):").unwrap().1.split(',').next().unwrap();
            let total_bytes = lengths.split('/').nth(1).unwrap().trim().parse().unwrap();
            let xid = field(line, "tx:").parse().unwrap();
            let previous = position(line, "prev ");
            (position(line, "lsn:"), Line { previous, total_bytes, xid, text: line.to_owned() })
        })
        .collect()
}

/// The transaction ends that `pg_waldump` shows: their transaction, and when.
fn transaction_end(line: &Line) -> Option<(u32, Timestamp)> {
    let description = line.text.split_once("desc: ")?.1;
    if !line.text.starts_with("rmgr: Transaction") {
        return None;
    }
    let (what, rest) = description.split_once(' ')?;
    let (xid, rest) = match what {
        "COMMIT" | "ABORT" => (line.xid, rest),
        "COMMIT_PREPARED" | "ABORT_PREPARED" => {
            let (xid, rest) = rest.split_once(": ")?;
            (xid.parse().ok()?, rest)
        }
        _ => return None,
    };
    let time = rest.split(" UTC").next()?.replacen(' ', "T", 1);
    Some((xid, format!("{time}Z").parse().ok()?))
}

fn compare_with_waldump(test: &str, major: u32, segment_mib: u64) {
    let Some(bin) = binaries(test, major) else { return };
    let scratch = Scratch::start(
        bin,
        &[&format!("--wal-segsize={segment_mib}")],
        "wal_level = logical\nwal_keep_size = 1GB\nmax_wal_size = 1GB",
    );
    scratch.sql(WORK);
    scratch.stop();
    let wal = scratch.data().join("pg_wal");
    let control =
        ControlFile::parse(&fs::read(scratch.data().join("global/pg_control")).unwrap()).unwrap();
    let size = SegmentSize::new(segment_mib << 20).unwrap();
    let last = control.checkpoint.segment(size);
    let names: Vec<SegmentName> = (0..=last.0)
        .map(|number| SegmentName::new(TimelineId(1), SegmentNo(number), size))
        .filter(|name| wal.join(name.to_string()).exists())
        .collect();
    assert!(names.len() > 1);
    let mut expected =
        waldump(&scratch, &wal, &names[0].to_string(), &names[names.len() - 1].to_string());

    let lines: BTreeSet<Lsn> = expected.keys().copied().collect();
    let (mut cut_off, mut scratch_bytes) = (0, Vec::new());
    for name in &names {
        let segment = fs::read(wal.join(name.to_string())).unwrap();
        assert_eq!(segment_origin(*name, &segment), Ok((control.system_id, size)));
        let facts = log_facts(*name, &segment);
        let (mut ends, mut points) = (Vec::new(), Vec::new());
        let mut reader = Reader::new(*name, &segment).unwrap();
        for record in reader.by_ref() {
            let line = expected.remove(&record.start).unwrap_or_else(|| panic!("{record:?}"));
            assert_eq!(record.previous, line.previous, "{}", line.text);
            assert_eq!(record.total_bytes, line.total_bytes, "{}", line.text);
            assert_eq!(record.xid, line.xid, "{}", line.text);
            assert!(record.is_intact(&mut scratch_bytes), "{}", line.text);
            assert!(record.main_data(&mut scratch_bytes).is_some(), "{}", line.text);
            ends.extend(transaction_end(&line));
            if let Some((_, point)) = line.text.split_once("desc: RESTORE_POINT ") {
                points.push(point.to_owned());
            }
        }
        compare_facts(&facts, &ends, &points);
        for step in [8192, 100_000, 1 << 20] {
            assert_eq!(facts_in_parts(*name, &segment, step), facts, "{name} by {step}");
        }
        compare_records_before(*name, &segment, &lines);
        compare_passing_over(*name, &segment);
        assert_eq!(facts.end, reader.end());
        if let Tail::CutOff(record) = reader.tail() {
            cut_off += 1;
            assert!(expected.remove(&record.start).is_some(), "{record:?}");
        } else if reader.tail() == Tail::HeaderCutOff {
            cut_off += 1;
            let (_, end) = (name, name.number(size).unwrap().end(size));
            let at = *expected.range(..end).next_back().unwrap().0;
            expected.remove(&at);
        }
    }
    // Before the first segment there was none: what is left was never met.
    assert!(expected.is_empty(), "{:?}", expected.values().map(|l| &l.text).collect::<Vec<_>>());
    assert!(cut_off > 0, "no record lay across two segments: the test tested too little");
}

/// The record before a position is the last that `pg_waldump` shows before it; cheap positions
/// only, and the last ones, where a record may go on in the next segment.
fn compare_records_before(name: SegmentName, segment: &[u8], lines: &BTreeSet<Lsn>) {
    let number = name.number(SegmentSize::new(segment.len() as u64).unwrap()).unwrap();
    let (start, end) = (number.0 * segment.len() as u64, (number.0 + 1) * segment.len() as u64);
    let inside = || lines.range(Lsn(start)..Lsn(end)).copied();
    assert_eq!(record_before(name, segment, inside().next().unwrap_or(Lsn(start))), None);
    let picked = inside().take(3).chain(inside().rev().take(3));
    // Behind the last record that was written nothing is known.
    let finished = lines.range(Lsn(end)..).next().map(|_| Lsn(end));
    for at in picked.map(|begins| Lsn(begins.0 + 8)).chain(finished) {
        let shown = lines.range(Lsn(start)..at).next_back().copied();
        assert_eq!(record_before(name, segment, at), shown, "before {at} in {name}");
    }
}

/// Facts of a segment that comes in steps of so many bytes, of which what is not wanted any more is
/// forgotten.
fn facts_in_parts(name: SegmentName, segment: &[u8], step: usize) -> LogFacts {
    let (mut follower, mut to) = (Follower::new(name), 0);
    loop {
        to = segment.len().min(to + step);
        let from = follower.wants_from();
        let part = LogPart { size: segment.len(), from, bytes: &segment[from..to] };
        let facts = follower.facts(part).clone();
        if to == segment.len() {
            return facts;
        }
    }
}

fn compare_facts(facts: &LogFacts, ends: &[(u32, Timestamp)], points: &[String]) {
    assert_eq!(facts.commits, ends.len() as u64);
    assert_eq!(facts.first_commit, ends.first().map(|e| e.1));
    assert_eq!(facts.last_commit, ends.iter().map(|e| e.1).max());
    let low = ends.iter().map(|e| e.0).min();
    assert_eq!(facts.xids, low.map(|low| (low, ends.iter().map(|e| e.0).max().unwrap())));
    assert_eq!(facts.restore_points.iter().map(|p| p.name.clone()).collect::<Vec<_>>(), points);
}

#[test]
fn segments_of_a_real_cluster_walk_as_pg_waldump_walks_them() {
    for major in [15, 17, 18] {
        for segment_mib in [1, 16] {
            let test = "segments_of_a_real_cluster_walk_as_pg_waldump_walks_them";
            compare_with_waldump(test, major, segment_mib);
        }
    }
}

#[test]
fn a_restore_point_is_where_the_server_says_it_is() {
    let test = "a_restore_point_is_where_the_server_says_it_is";
    for major in [15, 18] {
        let Some(bin) = binaries(test, major) else { return };
        let scratch = Scratch::start(bin, &[], "");
        scratch.sql("create table t (a int); select pg_switch_wal();");
        let lsn: Lsn =
            scratch.sql("select pg_create_restore_point('here');").trim().parse().unwrap();
        let name: SegmentName =
            scratch.sql(&format!("select pg_walfile_name('{lsn}');")).trim().parse().unwrap();
        scratch.sql("select pg_switch_wal();");
        let segment = fs::read(scratch.data().join("pg_wal").join(name.to_string())).unwrap();
        let facts = log_facts(name, &segment);
        assert_eq!(facts.restore_points.len(), 1);
        assert_eq!(facts.restore_points[0].lsn, lsn);
        let size = SegmentSize::DEFAULT;
        assert_eq!(facts.end, Some(lsn.segment(size).end(size)), "a switch ends the segment");
        assert!(!facts.cut_off);
    }
}

const SIZE: usize = 1 << 20;

/// An empty 1 MiB segment of PostgreSQL 18 on timeline 3 from position 0/500000.
fn blank() -> (SegmentName, Vec<u8>) {
    let size = SegmentSize::new(SIZE as u64).unwrap();
    let name = SegmentName::new(TimelineId(3), SegmentNo(5), size);
    let mut segment = vec![0; SIZE];
    for page in 0..SIZE / 8192 {
        let (info, at) = (if page == 0 { 2u16 } else { 0 }, page * 8192);
        segment[at..at + 2].copy_from_slice(&0xD118u16.to_le_bytes());
        segment[at + 2..at + 4].copy_from_slice(&info.to_le_bytes());
        segment[at + 4] = 3;
        segment[at + 8..at + 16].copy_from_slice(&(0x50_0000 + at as u64).to_le_bytes());
    }
    segment[24..32].copy_from_slice(&42u64.to_le_bytes());
    segment[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
    segment[36..40].copy_from_slice(&8192u32.to_le_bytes());
    (name, segment)
}

#[test]
fn a_segment_that_is_not_what_its_name_says_is_refused() {
    let (name, good) = blank();
    let size = SegmentSize::new(SIZE as u64).unwrap();
    assert_eq!(segment_origin(name, &good), Ok((SystemId(42), size)));
    let changed = |at: usize, value: u8| {
        let mut segment = good.clone();
        segment[at] = value;
        segment_origin(name, &segment).unwrap_err()
    };
    assert!(matches!(changed(0, 0x19), WalError::Magic { magic: 0xD119, .. }));
    assert!(matches!(changed(2, 0), WalError::NotAFirstPage { info: 0, .. }));
    assert!(matches!(changed(3, 1), WalError::NotAFirstPage { .. }));
    assert!(matches!(changed(4, 4), WalError::Timeline { found: TimelineId(4), .. }));
    assert!(matches!(changed(4, 0), WalError::Timeline { .. }));
    assert!(matches!(changed(10, 0x60), WalError::Position { found: Lsn(0x60_0000), .. }));
    assert!(matches!(changed(32, 1), WalError::ImpossibleSize { .. }));
    assert!(matches!(changed(36, 1), WalError::ImpossiblePageSize { .. }));
    for length in [0, 23, 39, 40, SIZE - 1] {
        assert!(segment_origin(name, &good[..length]).is_err(), "{length}");
    }
    let mut long = good.clone();
    long.push(0);
    assert!(matches!(segment_origin(name, &long), Err(WalError::Size { .. })));
    // A copy at a timeline switch begins with pages of the ancestor.
    let mut copied = good.clone();
    copied[4] = 2;
    assert!(segment_origin(name, &copied).is_ok());
    // A name that no segment of this size can have.
    let name: SegmentName = "000000030000000000001005".parse().unwrap();
    assert!(matches!(segment_origin(name, &good), Err(WalError::ImpossibleSize { .. })));
}

#[test]
fn an_empty_segment_has_no_facts() {
    let (name, segment) = blank();
    assert_eq!(log_facts(name, &segment), LogFacts::default());
    assert_eq!(log_facts(name, &segment[1..]), LogFacts::default());
}

/// A segment full of valid records, without a server.
fn filled(seed: u64) -> (SegmentName, Vec<u8>) {
    let (name, mut segment) = blank();
    let (mut state, mut at, mut previous) = (seed | 1, 40usize, 0x4F_FFF8u64);
    loop {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let data = 8 + (state >> 33) as usize % 600;
        let data = if state >> 60 == 0 { data * 40 } else { data };
        let mut record = vec![0u8; 24];
        record.extend([254]);
        record.extend((data as u32).to_le_bytes());
        record.extend((0..data).map(|i| if i < 8 { 1 } else { i as u8 }));
        let total = record.len();
        record[..4].copy_from_slice(&(total as u32).to_le_bytes());
        record[4..8].copy_from_slice(&((state >> 40) as u32).to_le_bytes());
        record[8..16].copy_from_slice(&previous.to_le_bytes());
        record[17] = 1; // a commit
        let sum = {
            let mut all = record[24..].to_vec();
            all.extend(&record[..20]);
            crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &all) as u32
        };
        record[20..24].copy_from_slice(&sum.to_le_bytes());
        previous = 0x50_0000 + at as u64;
        let mut left = &record[..];
        while !left.is_empty() {
            if at == SIZE {
                return (name, segment);
            }
            if at % 8192 == 0 {
                if left.len() < total {
                    segment[at + 2] |= 1;
                    segment[at + 16..at + 20].copy_from_slice(&(left.len() as u32).to_le_bytes());
                } else {
                    previous += 24;
                }
                at += 24;
            }
            let take = left.len().min(8192 - at % 8192);
            segment[at..at + take].copy_from_slice(&left[..take]);
            (at, left) = (at + take, &left[take..]);
        }
        at = at.next_multiple_of(8);
        if at == SIZE {
            return (name, segment);
        }
    }
}

/// The intact records that are wanted, by their beginnings, and where the walk ended; each looked
/// at, or passed over those that are not wanted.
fn wanted_records(
    (name, segment): (SegmentName, &[u8]),
    wanted: fn(u8, u8) -> bool,
    pass_over: bool,
) -> Option<(Vec<Lsn>, Option<Lsn>)> {
    let mut reader = Reader::new(name, segment).ok()?;
    let (mut found, mut end, mut scratch) = (Vec::new(), None, Vec::new());
    loop {
        let passed = if pass_over { reader.pass_over(wanted) } else { None };
        assert!(passed.is_none() || passed == reader.end());
        end = passed.or(end);
        let Some(record) = reader.next().filter(|record| record.is_intact(&mut scratch)) else {
            return Some((found, end));
        };
        assert!(passed < Some(record.end));
        end = Some(record.end);
        if wanted(record.rmid, record.info) {
            found.push(record.start);
        }
    }
}

/// Law: what is passed over is what would have been walked over.
fn compare_passing_over(name: SegmentName, segment: &[u8]) {
    let kinds: [fn(u8, u8) -> bool; 4] =
        [|_, _| false, |_, _| true, |rmid, _| rmid == 1, |rmid, info| (rmid ^ info) & 0x31 == 0];
    for wanted in kinds {
        let [walked, passed] =
            [false, true].map(|pass_over| wanted_records((name, segment), wanted, pass_over));
        assert_eq!(walked, passed, "{name}");
    }
}

#[test]
fn made_up_segments_are_read_to_their_end() {
    for seed in 0..50 {
        let (name, segment) = filled(seed);
        let facts = log_facts(name, &segment);
        let mut reader = Reader::new(name, &segment).unwrap();
        assert_eq!(reader.by_ref().count() as u64, facts.commits);
        assert!(facts.commits > 200, "{facts:?}");
        assert!(matches!(reader.tail(), Tail::CutOff(_) | Tail::HeaderCutOff | Tail::Full));
        assert_eq!(facts.cut_off, reader.tail() != Tail::Full);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Law: no damage makes the walk panic or report a record whose checksum fails.
    #[test]
    fn damaged_segments_are_read_as_far_as_they_go(
        seed in any::<u64>(),
        hits in prop::collection::vec((0..SIZE, any::<u8>()), 1..40),
        step in 1000..SIZE,
    ) {
        let (name, mut segment) = filled(seed);
        let whole = log_facts(name, &segment);
        for (at, value) in hits {
            segment[at] = value;
        }
        let facts = log_facts(name, &segment);
        prop_assert!(facts.commits <= whole.commits);
        prop_assert_eq!(facts_in_parts(name, &segment, step), facts);
        compare_passing_over(name, &segment);
        let mut scratch = Vec::new();
        if let Ok(reader) = Reader::new(name, &segment) {
            for record in reader {
                record.main_data(&mut scratch);
                prop_assert!(scratch.capacity() <= SIZE * 2);
            }
        }
    }

    /// Law: random bytes after a valid first header end the walk, and do not panic.
    #[test]
    fn random_records_end_the_walk(bytes in prop::collection::vec(any::<u8>(), 8192..20000)) {
        let (name, mut segment) = blank();
        segment[40..40 + bytes.len()].copy_from_slice(&bytes);
        prop_assert_eq!(log_facts(name, &segment).commits, 0);
    }
}

/// Not a test of speed, only its report: `cargo test --release -- --nocapture --ignored`.
#[test]
#[ignore = "prints a speed; needs LIFEBOAT_WAL_DIR, a directory of segments"]
fn speed_of_the_walk() {
    let directory = std::env::var_os("LIFEBOAT_WAL_DIR").expect("LIFEBOAT_WAL_DIR");
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().parse::<SegmentName>();
        if let Ok(name) = name {
            segments.push((name, fs::read(path).unwrap()));
        }
    }
    let bytes: usize = segments.iter().map(|s| s.1.len()).sum();
    let speed = |start: Instant| bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
    let start = Instant::now();
    let facts: Vec<LogFacts> = segments.iter().map(|(n, s)| log_facts(*n, s)).collect();
    let commits: u64 = facts.iter().map(|f| f.commits).sum();
    println!("log_facts: {:.2} GB/s, {commits} commits in {bytes} bytes", speed(start));
    let (start, mut records, mut scratch) = (Instant::now(), 0u64, Vec::new());
    for (name, segment) in &segments {
        for record in Reader::new(*name, segment).into_iter().flatten() {
            assert!(record.is_intact(&mut scratch));
            records += 1;
        }
    }
    println!("all {records} checksums: {:.2} GB/s", speed(start));
    let unique: BTreeSet<_> = facts.iter().filter_map(|f| f.end).collect();
    println!("{} segments with records", unique.len());
}
