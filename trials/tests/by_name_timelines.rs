//! By name: timelines, `pg_resetwal`, checksums switched, unusual WAL, a name that is used again.

use std::time::Instant;

use lifeboat_testkit::scratch::{self, ScratchBuilder, ScratchServer};
use lifeboat_trials::same::{assert_comes_back, assert_way, first_difference};
use lifeboat_trials::{Lab, Restored};

fn lab(
    test: &str,
    major: u32,
    configure: impl Fn(ScratchBuilder) -> ScratchBuilder,
) -> Option<Lab> {
    match Lab::start(configure(ScratchServer::of(major).setting("autovacuum", "off"))) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

/// Takes a backup, which must have been compared with the one before, and restores it.
#[track_caller]
fn round(lab: &Lab, what: &str, act: impl FnOnce(&ScratchServer)) -> serde_json::Value {
    let began = Instant::now();
    act(&lab.server);
    let backup = lab.backup();
    assert!(!backup["compared_with"].is_null(), "{what}: it was compared with nothing");
    // What a server says of its changes counts only while nothing else explains them.
    let void = ["pg_checksums", "pg_resetwal"].iter().any(|name| what.starts_with(name));
    assert_way(lab, what, &backup, if void { "hashes" } else { "hints" });
    assert_comes_back(lab, what, &backup);
    eprintln!("PostgreSQL {}: {what}: {:.1?}", lab.server.major(), began.elapsed());
    backup
}

fn fill(server: &ScratchServer, table: &str) {
    server.execute(&format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, filler text); INSERT INTO {table} \
         SELECT i, repeat(md5(i::text), 1 + i % 30) FROM generate_series(1, 3000) i"
    ));
}

fn pages_new(backup: &serde_json::Value) -> u64 {
    backup["totals"]["pages_new"].as_u64().expect("a report counts pages")
}

fn data(server: &ScratchServer) -> String {
    server.data_directory().display().to_string()
}

fn checksums_are_switched_between_backups(major: u32, from: Option<&'static str>) {
    let test = "checksums_are_switched_between_backups";
    let Some(lab) = lab(test, major, |b| b) else { return };
    let lab = Lab { from, ..lab };
    fill(&lab.server, "kept");
    let switch = |server: &ScratchServer, how: &str| {
        server.stop();
        server.run("pg_checksums", &[how, "-D", &data(server)]);
        server.start();
    };
    lab.backup();
    round(&lab, "pg_checksums --disable", |server| {
        switch(server, "--disable");
        server.execute("UPDATE kept SET filler = 'without' WHERE id < 100; CHECKPOINT");
    });
    let on = round(&lab, "pg_checksums --enable", |server| switch(server, "--enable"));
    assert_eq!(on["damaged_pages"], 0, "checksums of the time before are no damage");
    let id = on["id"].as_str().expect("a report has an id");
    let shown = lab.run(&["show", id, "--json"]).ok().json();
    assert_eq!(shown["identity"]["checksums"], true);
}

#[test]
fn checksums_are_switched_between_backups_15() {
    checksums_are_switched_between_backups(15, None);
}

#[test]
fn checksums_are_switched_between_backups_18() {
    checksums_are_switched_between_backups(18, None);
}

#[test]
fn checksums_are_switched_between_backups_remote() {
    checksums_are_switched_between_backups(18, Some("remote"));
}

fn wal_is_reset_and_names_are_used_again(major: u32, from: Option<&'static str>) {
    let Some(lab) = lab("wal_is_reset_and_names_are_used_again", major, |b| b) else { return };
    let lab = Lab { from, ..lab };
    fill(&lab.server, "kept");
    let path = |server: &ScratchServer, table: &str| {
        server.value(&format!("SELECT pg_relation_filepath('{table}')"))
    };
    lab.server.execute(
        "CREATE TABLE former AS SELECT i, repeat('a', 99) t FROM generate_series(1, 5000) i",
    );
    let former = path(&lab.server, "former");
    let node = lab.server.value("SELECT pg_relation_filenode('former')");
    lab.backup();
    round(&lab, "pg_resetwal and a file name that is used again", |server| {
        server.execute("DROP TABLE former");
        // Its number is taken as long as the dead row of the catalog is there.
        server.execute("VACUUM pg_class");
        server.execute("CHECKPOINT");
        server.stop();
        server.run("pg_resetwal", &["-o", &node, "-D", &data(server)]);
        server.start();
        server.execute("CREATE TABLE latter (i int, t text)");
        server
            .execute("INSERT INTO latter SELECT i, repeat('b', 99) FROM generate_series(1, 900) i");
        assert_eq!(path(server, "latter"), former, "the name is used again");
    });
    let early = lab.backup();
    lab.server.execute("INSERT INTO latter SELECT 0, 'late'");
    // A crash, then pg_resetwal by force: what was not yet in the files is lost, and the backup
    // holds what the server says.
    lab.server.kill_9();
    lab.server.run("pg_resetwal", &["-f", "-D", &data(&lab.server)]);
    round(&lab, "pg_resetwal -f", |server| {
        server.start();
        server.execute("REINDEX DATABASE postgres");
        server.execute("VACUUM FREEZE");
    });
    let id = early["id"].as_str().expect("a report has an id");
    let before = Restored::start(&lab, "before", &["--to-backup", id]);
    assert_eq!(before.value("SELECT count(*) FROM latter"), "900");
    before.check_and_stop();
}

#[test]
fn wal_is_reset_and_names_are_used_again_15() {
    wal_is_reset_and_names_are_used_again(15, None);
}

#[test]
fn wal_is_reset_and_names_are_used_again_18() {
    wal_is_reset_and_names_are_used_again(18, None);
}

#[test]
fn wal_is_reset_and_names_are_used_again_remote() {
    wal_is_reset_and_names_are_used_again(18, Some("remote"));
}

fn a_successor_writes_its_own_history(major: u32, from: Option<&'static str>) {
    let Some(lab) = lab("a_successor_writes_its_own_history", major, |b| b) else { return };
    let lab = Lab { from, ..lab };
    let server = &lab.server;
    fill(server, "kept");
    server.execute("CREATE TABLE line (id int, what text)");
    lab.backup();
    server.execute("INSERT INTO line VALUES (1, 'both')");
    let lsn = server.value("SELECT pg_current_wal_insert_lsn()");
    // The same rows of the same page are written differently on the two lines.
    server.execute("INSERT INTO line VALUES (2, 'old'); UPDATE kept SET filler = 'old'");
    let old = lab.backup();
    server.execute("INSERT INTO line VALUES (3, 'old')");
    lab.archive_all();
    let on_old = lsn_now(server);
    lab.archive_all();
    server.stop();

    let successor = Restored::start(&lab, "next", &["--to-lsn", &lsn, "--take-over"]);
    assert_eq!(successor.query("SELECT id FROM line ORDER BY 1"), ["1"]);
    successor.query("INSERT INTO line VALUES (2, 'new')");
    successor.query("UPDATE kept SET filler = 'new'");
    let set = format!("postgres.conninfo={}", successor.conninfo());
    let backup = || {
        let mut arguments = vec!["--set", &set, "backup", "--json", "--jobs", "2"];
        arguments.extend(lab.from.iter().flat_map(|from| ["--from", from]));
        lab.run(&arguments).ok().json()
    };
    let new = backup();
    assert_eq!((&new["timeline"], &new["compared_with"]), (&2.into(), &old["id"]));
    assert!(pages_new(&new) > 0, "other pages than on the other line");
    assert_way(&lab, "a new timeline", &new, "hashes");
    successor.query("INSERT INTO line VALUES (4, 'new')");
    successor.query("SELECT pg_switch_wal()");
    // Proves that the segment before it has arrived.
    let again = backup();
    assert_way(&lab, "the same timeline", &again, "hints");
    let original = successor.dump();
    successor.stop();

    let expect = |name: &str, target: &[&str], rows: &[&str], filler: &str| {
        let restored = Restored::start(&lab, name, target);
        assert_eq!(restored.query("SELECT id, what FROM line ORDER BY 1"), rows, "{target:?}");
        let fillers = restored.query("SELECT filler, count(*) FROM kept GROUP BY 1");
        assert_eq!(fillers, [format!("{filler}|3000")], "{target:?}");
        if name == "latest" {
            let copy = restored.dump();
            assert!(copy == original, "{target:?}: {}", first_difference(&original, &copy));
        }
        restored.check_and_stop();
    };
    let id = |backup: &serde_json::Value| backup["id"].as_str().unwrap_or_default().to_owned();
    expect("latest", &["--latest"], &["1|both", "2|new", "4|new"], "new");
    expect("new", &["--to-backup", &id(&new)], &["1|both", "2|new"], "new");
    expect("old", &["--to-backup", &id(&old)], &["1|both", "2|old"], "old");
    let old_line = ["--timeline", "1", "--to-lsn", &on_old];
    expect("oldline", &old_line, &["1|both", "2|old", "3|old"], "old");
    lab.run(&["verify"]).ok();
}

fn lsn_now(server: &ScratchServer) -> String {
    server.value("SELECT pg_current_wal_lsn()")
}

#[test]
fn a_successor_writes_its_own_history_15() {
    a_successor_writes_its_own_history(15, None);
}

#[test]
fn a_successor_writes_its_own_history_17() {
    a_successor_writes_its_own_history(17, None);
}

#[test]
fn a_successor_writes_its_own_history_18() {
    a_successor_writes_its_own_history(18, None);
}

#[test]
fn a_successor_writes_its_own_history_remote() {
    a_successor_writes_its_own_history(18, Some("remote"));
}

fn wal_in_small_segments_and_elsewhere(major: u32) {
    let test = "wal_in_small_segments_and_elsewhere";
    let Some(lab) = lab(test, major, |b| b.wal_segment_mib(1)) else { return };
    fill(&lab.server, "kept");
    lab.backup();
    round(&lab, "1 MiB segments", |server| fill(server, "more"));
    let server = &lab.server;
    server.stop();
    let (inside, outside) = (server.data_directory().join("pg_wal"), lab.place("wal"));
    std::fs::rename(&inside, &outside).expect("the WAL can be moved");
    std::os::unix::fs::symlink(&outside, &inside).expect("a link can be made");
    server.start();
    let backup = round(&lab, "WAL behind a link", |server| fill(server, "linked"));
    server.execute("INSERT INTO kept VALUES (-1, 'by position')");
    let lsn = server.value("SELECT pg_current_wal_insert_lsn()");
    fill(server, "too_late"); // more than one segment
    lab.archive_all();
    let restored = Restored::start(&lab, "lsn", &["--to-lsn", &lsn]);
    assert_eq!(restored.value("SELECT filler FROM kept WHERE id = -1"), "by position");
    assert_eq!(restored.value("SELECT to_regclass('too_late') IS NULL"), "t");
    assert_eq!(restored.value("SHOW wal_segment_size"), "1MB");
    let wal = std::fs::symlink_metadata(restored.directory.join("pg_wal"));
    assert!(wal.expect("it is there").is_dir(), "the copy's WAL lies in its own directory");
    restored.check_and_stop();
    let id = backup["id"].as_str().expect("a report has an id");
    let shown = lab.run(&["show", id, "--json"]).ok().json();
    assert_eq!(shown["identity"]["log_segment"], 1 << 20, "{shown}");
    lab.run(&["verify"]).ok();
}

#[test]
fn wal_in_small_segments_and_elsewhere_15() {
    wal_in_small_segments_and_elsewhere(15);
}

#[test]
fn wal_in_small_segments_and_elsewhere_18() {
    wal_in_small_segments_and_elsewhere(18);
}
