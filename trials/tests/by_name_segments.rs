//! By name: a relation that grows and shrinks over the end of a segment file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::same::{assert_same_files, assert_way};
use lifeboat_trials::{Lab, Restored};

/// Takes a backup, which must have been compared with the one before, and restores it.
#[track_caller]
fn round(lab: &Lab, what: &str, act: impl FnOnce(&ScratchServer)) {
    let began = Instant::now();
    act(&lab.server);
    let rows = "SELECT count(*), sum(id), md5(string_agg(filler, ',' ORDER BY id)) FROM long";
    let backup = lab.backup();
    assert!(!backup["compared_with"].is_null(), "{what}: it was compared with nothing");
    // Holes are never read.
    if lab.server.major() >= 17 {
        assert_way(lab, what, &backup, "hints");
    }
    let id = backup["id"].as_str().expect("a report has an id");
    assert_same_files(lab, what, id);
    let restored = Restored::start(lab, "one", &["--to-backup", id]);
    assert_eq!(restored.query(rows), lab.server.query(rows), "{what}");
    restored.check_and_stop();
    eprintln!("PostgreSQL {}: {what}: {:.1?}", lab.server.major(), began.elapsed());
}

/// A relation of more than a segment file. Its pages are zero, as after a crash while it grew:
/// PostgreSQL uses them as free ones, and they cost nothing on the disk.
fn a_relation_crosses_the_end_of_a_segment_file(major: u32, from: Option<&'static str>) {
    let test = "a_relation_crosses_the_end_of_a_segment_file";
    let lab = match Lab::start(ScratchServer::of(major).setting("autovacuum", "off")) {
        Ok(lab) => Lab { from, ..lab },
        Err(reason) => return scratch::skip(&format!("{test}_{major}"), &reason),
    };
    let server = &lab.server;
    server.execute("CREATE TABLE long (id int, filler text) WITH (autovacuum_enabled = off)");
    server.execute("INSERT INTO long SELECT i, repeat('x', 900) FROM generate_series(1, 999) i");
    lab.backup();
    let path = server.data_directory().join(server.value("SELECT pg_relation_filepath('long')"));
    let second = path.with_extension("1");
    round(&lab, "a relation that grows over the end of a segment file", |server| {
        server.stop();
        let grow = |path: &std::path::Path, bytes: u64| {
            let file = File::options().write(true).create(true).truncate(false).open(path);
            file.and_then(|file| file.set_len(bytes)).expect("the file can grow");
            server.account().give(path).expect("the file can be given away");
        };
        grow(&path, 1 << 30);
        grow(&second, 64 << 13);
        server.start();
        server.execute("INSERT INTO long SELECT i, 'far' FROM generate_series(1000, 1100) i");
        server.execute("CHECKPOINT");
        let mut page = [0; 64];
        let last = File::open(&second).expect("the second file is there");
        last.read_exact_at(&mut page, 63 << 13).expect("it has its pages");
        assert!(page.iter().any(|byte| *byte != 0), "rows lie in the second file");
    });
    round(&lab, "a relation that shrinks over the end of a segment file", |server| {
        server.execute("DELETE FROM long WHERE id > 500");
        server.execute("VACUUM long");
        server.execute("CHECKPOINT");
        assert_eq!(server.value("SELECT pg_relation_size('long') < 1000000"), "t");
    });
}

#[test]
fn a_relation_crosses_the_end_of_a_segment_file_15() {
    a_relation_crosses_the_end_of_a_segment_file(15, None);
}

#[test]
fn a_relation_crosses_the_end_of_a_segment_file_18() {
    a_relation_crosses_the_end_of_a_segment_file(18, None);
}

#[test]
fn a_relation_crosses_the_end_of_a_segment_file_remote() {
    a_relation_crosses_the_end_of_a_segment_file(18, Some("remote"));
}
