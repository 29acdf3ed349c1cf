//! Targets that cannot be reached are refused before anything is written; those that can be, are.

use std::fs;
use std::path::PathBuf;

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::{Memory, lab};
use lifeboat_trials::{Lab, Restored};

/// What the server says of one moment.
struct Moment {
    time: String,
    lsn: String,
    xid: String,
}

impl Moment {
    fn now(lab: &Lab) -> Self {
        let xid = "SELECT (pg_current_xact_id()::text::numeric % 4294967296)::bigint";
        let xid = lab.server.value(xid);
        let time = "SELECT clock_timestamp() AT TIME ZONE 'UTC' || 'Z'";
        let lsn = "SELECT pg_current_wal_insert_lsn()";
        Self { time: lab.server.value(time), lsn: lab.server.value(lsn), xid }
    }
}

/// One refusal: nothing is written where the restore would have gone.
#[track_caller]
fn refused(lab: &Lab, target: &[&str], words: &[&str]) {
    let never = lab.place("never");
    let into = never.display().to_string();
    let mut arguments = vec!["restore", "--into", &into];
    arguments.extend_from_slice(target);
    lab.run(&arguments).refused(1, words);
    assert!(!never.exists(), "{target:?}: a refused restore made its directory");
}

/// Where another server listens, none can be started: said before anything is written.
fn where_a_server_is(lab: &Lab) {
    let never = lab.place("never");
    let (into, port) = (never.display().to_string(), lab.server.port().to_string());
    let socket = lab.server.socket_directory().display().to_string();
    let there = ["--port", &port, "--socket-directory", &socket];
    let restore = [&["restore", "--into", &into, "--start"][..], &there].concat();
    let name = format!(".s.PGSQL.{port}");
    lab.run(&restore).refused(2, &["a server already listens on", &name, "--port PORT"]);
    let long = lab.place(&"x".repeat(100)).display().to_string();
    let far = ["restore", "--into", &into, "--start", "--socket-directory", &long];
    lab.run(&far).refused(2, &["the system takes 107", "--socket-directory DIR"]);
    let none = ["restore", "--into", &into, "--start", "--port", "0"];
    lab.run(&none).fails(2, "0 is not in 1..=65535");
    assert!(!never.exists(), "a refused restore made its directory");
}

fn insert(lab: &Lab, what: &str) {
    lab.server.execute(&format!("INSERT INTO t VALUES ('{what}')"));
}

#[track_caller]
fn rows(restored: &Restored<'_>) -> String {
    restored.value("SELECT string_agg(what, ' ' ORDER BY what) FROM t")
}

/// The archived object of a segment.
fn object(lab: &Lab, segment: &str) -> PathBuf {
    let found = lab.objects().into_iter().find(|name| name.ends_with(segment));
    lab.repository.join(found.unwrap_or_else(|| panic!("{segment} is not archived")))
}

fn out_of_range(lab: &Lab, before: &Moment) {
    let first = "lies before the end of the first usable backup (";
    refused(lab, &["--to-time", &before.time], &[first, "[LB-RST-002]", " UTC"]);
    refused(lab, &["--to-lsn", &before.lsn], &[first, &before.lsn]);
    let nowhere = "is not in the archived WAL after any backup";
    refused(lab, &["--to-xid", &before.xid], &[nowhere, &before.xid]);
    refused(lab, &["--to-name", "too early"], &[nowhere, "`too early`"]);

    let last = "lies after the last WAL in the repository (";
    let into = lab.place("never").display().to_string();
    let future = ["restore", "--into", &into, "--to-time", "2099-01-01 00:00:00Z"];
    lab.run(&future).refused(2, &["`2099-01-01 00:00:00Z` is in the future"]);
    refused(lab, &["--to-lsn", "FF/0"], &[last, "FF/0"]);
    // Archiving stands still: what happens now is in no archive.
    lab.archive_nowhere();
    insert(lab, "d");
    let late = Moment::now(lab);
    lab.server.execute("SELECT pg_create_restore_point('too late')");
    refused(lab, &["--to-time", &late.time], &[last, "[LB-RST-003]"]);
    refused(lab, &["--to-lsn", &late.lsn], &[last]);
    refused(lab, &["--to-xid", &late.xid], &[nowhere]);
    refused(lab, &["--to-name", "too late"], &[nowhere]);
    refused(lab, &["--timeline", "7"], &["timeline 7", "[LB-RST-007]"]);
    where_a_server_is(lab);
    lab.archive();
    lab.archive_all();
    // The same target is fine as soon as its WAL is there.
    lab.run(&["restore", "--into", &into, "--to-lsn", &late.lsn, "--dry-run"]).ok();
    lab.run(&["restore", "--into", &into, "--to-name", "too late", "--dry-run"]).ok();
}

fn gap(lab: &Lab) {
    insert(lab, "e");
    let before = Moment::now(lab);
    lab.archive_all();
    insert(lab, "f");
    let lost = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    lab.archive_all();
    insert(lab, "g");
    let after = Moment::now(lab);
    lab.server.execute("SELECT pg_create_restore_point('after the gap')");
    lab.archive_all();
    let path = object(lab, &lost);
    let aside = lab.place("aside");
    fs::rename(&path, &aside).expect("the object can be taken away");
    let words = ["WAL is missing between the backup and the target", &*lost, "[LB-RST-006]"];
    refused(lab, &["--latest"], &words);
    refused(lab, &["--to-time", &after.time], &words);
    refused(lab, &["--to-lsn", &after.lsn], &words);
    refused(lab, &["--to-xid", &after.xid], &["is not in the archived WAL"]);
    refused(lab, &["--to-name", "after the gap"], &["is not in the archived WAL"]);
    lab.run(&["verify"]).found(&[&lost]);
    let listed = lab.run(&["wal", "list"]);
    assert!(listed.stdout.contains(&lost[16..]), "the gap is not shown:\n{}", listed.stdout);
    let missing = |checked: &str| checked.contains("missing after the newest backup");
    let checked = lab.run(&["check"]);
    assert!(checked.code == Some(3) && missing(&checked.stdout), "{}", checked.stdout);

    let restored = Restored::start(lab, "before-gap", &["--to-lsn", &before.lsn]);
    assert_eq!(rows(&restored), "a b c d e");
    drop(restored);
    fs::rename(&aside, &path).expect("the object can be put back");
    let restored = Restored::start(lab, "after-gap", &["--to-lsn", &after.lsn]);
    assert_eq!(rows(&restored), "a b c d e f g");
    drop(restored);
    lab.run(&["verify"]).ok();

    // A later backup makes what lies behind the gap reachable.
    fs::rename(&path, &aside).expect("the object can be taken away");
    lab.backup();
    let checked = lab.run(&["check"]).stdout;
    assert!(!missing(&checked), "{checked}");
    insert(lab, "h");
    lab.archive_all();
    let restored = Restored::start(lab, "behind", &["--latest"]);
    assert_eq!(rows(&restored), "a b c d e f g h");
    drop(restored);
    fs::rename(&aside, &path).expect("the object can be put back");
}

fn targets(major: u32) {
    let Some(lab) = lab(&format!("targets_{major}"), ScratchServer::of(major)) else { return };
    lab.server.execute("CREATE TABLE t (what text)");
    let into = lab.place("never").display().to_string();
    let none = lab.run(&["restore", "--into", &into]);
    none.refused(1, &["cluster `main` has no backup", "[LB-RST-001]"]);
    insert(&lab, "a");
    let before = Moment::now(&lab);
    lab.server.execute("SELECT pg_create_restore_point('too early')");
    lab.backup();
    insert(&lab, "b");
    insert(&lab, "c");
    lab.archive_all();
    let memory = Memory::of(&lab);
    out_of_range(&lab, &before);
    memory.nothing_lost(&lab, "targets out of range");
    gap(&lab);
    memory.objects_hold(&lab, "a gap and back");
}

#[test]
fn targets_out_of_reach_are_refused_15() {
    targets(15);
}

#[test]
fn targets_out_of_reach_are_refused_18() {
    targets(18);
}
