//! Continuous inserts, a server that is killed at random, backups meanwhile; then restores to
//! many moments by time, LSN, transaction and name. Exactly the rows committed before each moment
//! are there.

use std::time::Duration;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::writers::{Mark, Writers, assert_rows_before};
use lifeboat_trials::{Lab, Restored};

/// A moment, and how it is asked for.
struct Moment {
    mark: Mark,
    arguments: [String; 2],
}

fn moment(flag: &str, (mark, value): (Mark, String)) -> Moment {
    Moment { mark, arguments: [flag.to_owned(), value] }
}

/// Marks a moment of each kind.
fn mark_all(server: &ScratchServer, writers: &Writers, name: &str, moments: &mut Vec<Moment>) {
    let time = "SELECT clock_timestamp() AT TIME ZONE 'UTC' || 'Z'";
    moments.push(moment("--to-time", writers.mark(|| server.value(time))));
    std::thread::sleep(Duration::from_millis(50));
    let lsn = "SELECT pg_current_wal_insert_lsn()";
    moments.push(moment("--to-lsn", writers.mark(|| server.value(lsn))));
    std::thread::sleep(Duration::from_millis(50));
    let xid = "SELECT (pg_current_xact_id()::text::numeric % 4294967296)::bigint";
    moments.push(moment("--to-xid", writers.mark(|| server.value(xid))));
    std::thread::sleep(Duration::from_millis(50));
    let point = format!("SELECT pg_create_restore_point('{name}')");
    let (mark, _) = writers.mark(|| server.value(&point));
    moments.push(moment("--to-name", (mark, name.to_owned())));
    std::thread::sleep(Duration::from_millis(50));
}

fn ids(restored: &Restored<'_>) -> Vec<u64> {
    let rows = restored.query("SELECT id FROM journal");
    rows.iter().map(|id| id.parse().expect("ids are numbers")).collect()
}

fn any_moment_comes_back(major: u32) {
    let builder = ScratchServer::of(major).setting("checkpoint_timeout", "30s");
    let lab = match Lab::start(builder) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip(&format!("any_moment_comes_back_{major}"), &reason),
    };
    let server = &lab.server;
    let writers = Writers::start(server, 3);
    let mut moments = Vec::new();
    std::thread::sleep(Duration::from_millis(300));
    for round in 0..4 {
        let mut backup = lab.spawn(&["backup"]);
        if round == 2 {
            // The server dies in the middle of a backup: that backup fails, nothing else does.
            std::thread::sleep(Duration::from_millis(400));
            server.kill_9();
            server.start();
            let _ = backup.wait();
            lab.backup();
        } else {
            assert!(backup.wait().expect("the backup ends").success(), "backup {round}");
        }
        mark_all(server, &writers, &format!("point {round}"), &mut moments);
        if round == 1 {
            server.kill_9();
            server.start();
            mark_all(server, &writers, "after the crash", &mut moments);
        }
        server.execute("DELETE FROM journal WHERE false; ANALYZE journal");
    }
    std::thread::sleep(Duration::from_millis(200));
    let log = writers.stop();
    let everything = server.query("SELECT id FROM journal").len();
    let original = lifeboat_trials::restored::dump(server, &server.socket_directory());
    lab.archive_all();
    assert!(log.len() > 500, "only {} rows were written", log.len());

    for (number, moment) in moments.iter().enumerate() {
        let [flag, value] = &moment.arguments;
        let restored = Restored::start(&lab, &format!("r{number}"), &[flag, value]);
        let what = format!("PostgreSQL {major} {flag} {value}");
        assert_rows_before(moment.mark, &log, &ids(&restored), &what);
        restored.check_and_stop();
    }

    let latest = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(ids(&latest).len(), everything, "latest has every row");
    assert!(latest.dump() == original, "the dumps of the origin and of its copy differ");
    latest.check_and_stop();
    lab.run(&["verify"]).ok();
}

/// The server tells transactions by 64 bits, its WAL by 32: after four thousand million of them both
/// numbers name the moment, and the same bits of another age name none.
#[test]
fn a_transaction_is_found_by_its_whole_number() {
    let lab = match Lab::start(ScratchServer::of(18)) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip("a_transaction_is_found_by_its_whole_number", &reason),
    };
    let server = &lab.server;
    server.stop();
    let data = server.data_directory().display().to_string();
    server.run("pg_resetwal", &["--epoch=3", "-D", &data]);
    server.start();
    lab.backup();
    server.execute("CREATE TABLE t (i int)");
    let number = server.value("INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()");
    server.execute("INSERT INTO t VALUES (2)");
    lab.archive_all();
    let number: u64 = number.parse().expect("a number");
    assert_eq!(number >> 32, 3, "the server counts on in its epoch");
    for (name, xid) in [("whole", number), ("half", number & 0xFFFF_FFFF)] {
        let restored = Restored::start(&lab, name, &["--to-xid", &xid.to_string()]);
        assert_eq!(restored.query("SELECT i FROM t"), ["1"], "{name}");
        restored.stop();
    }
    let into = lab.place("other").display().to_string();
    let other = (number - (1 << 32)).to_string();
    lab.run(&["restore", "--into", &into, "--to-xid", &other])
        .fails(1, "is not in the archived WAL");
}

/// Nothing happened between the last commit and the moment: the end of the WAL is that moment,
/// and what is committed and archived later is not replayed.
#[test]
fn a_quiet_moment_is_the_end_of_the_wal() {
    let lab = match Lab::start(ScratchServer::of(18)) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip("a_quiet_moment_is_the_end_of_the_wal", &reason),
    };
    let server = &lab.server;
    lab.backup();
    server.execute("CREATE TABLE t AS SELECT 1 AS i");
    std::thread::sleep(Duration::from_millis(1500));
    let quiet = server.value("SELECT clock_timestamp() AT TIME ZONE 'UTC' || 'Z'");
    // The program vouches for a moment when the server wrote to its WAL a second later.
    std::thread::sleep(Duration::from_millis(1500));
    lab.archive_all();
    let directory = lab.place("quiet");
    let into = directory.display().to_string();
    let far = ["restore", "--into", &into, "--to-time", "2099-01-01 00:00Z"];
    assert_ne!(lab.run(&far).code, Some(0), "a moment in the future is refused");
    lab.run(&["restore", "--into", &into, "--to-time", &quiet]).ok();
    server.execute("INSERT INTO t VALUES (2)");
    lab.archive_all();
    let restored = Restored::of(server, &directory);
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    assert_eq!(restored.query("SELECT i FROM t"), ["1"]);
    restored.check_and_stop();
}

/// The server would end at the first restore point of a name: a plan that means another is
/// refused. And after a take-over, listings show the new timeline, and a moment that both
/// timelines have must say which is meant.
#[test]
fn what_is_ambiguous_is_refused_and_not_guessed() {
    let lab = match Lab::start(ScratchServer::of(18)) {
        Ok(lab) => lab,
        Err(reason) => {
            return scratch::skip("what_is_ambiguous_is_refused_and_not_guessed", &reason);
        }
    };
    lab.backup();
    let server = &lab.server;
    for statement in ["CREATE TABLE t AS SELECT 1 AS i", "SELECT pg_create_restore_point('twice')"]
    {
        server.execute(statement);
    }
    server.execute("INSERT INTO t VALUES (2)");
    server.execute("SELECT pg_create_restore_point('twice'), pg_create_restore_point('once')");
    server.execute("INSERT INTO t VALUES (3)");
    std::thread::sleep(Duration::from_millis(100));
    let forked = server.value("SELECT clock_timestamp() AT TIME ZONE 'UTC' || 'Z'");
    std::thread::sleep(Duration::from_millis(100));
    server.execute("INSERT INTO t VALUES (4)");
    lab.archive_all();
    let nowhere = lab.place("nowhere").display().to_string();
    lab.run(&["restore", "--into", &nowhere, "--to-name", "twice"]).fails(1, "LB-RST-012");

    let successor = Restored::start(&lab, "successor", &["--to-name", "once", "--take-over"]);
    assert_eq!(successor.query("SELECT i FROM t"), ["1", "2"]);
    successor.query("INSERT INTO t VALUES (5)");
    successor.query("SELECT pg_switch_wal()");
    lab.server.stop();
    let on_two = |window: &serde_json::Value| window["timeline"] == 2;
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let report = lab.run(&["list", "--json"]).ok().json();
        if report["windows"].as_array().is_some_and(|all| all.iter().any(on_two)) {
            break;
        }
        assert!(std::time::Instant::now() < until, "timeline 2 is not listed: {report}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let moment = ["restore", "--dry-run", "--into", &nowhere, "--to-time", &forked];
    lab.run(&moment).fails(1, "LB-RST-013");
    lab.run(&[&moment[..], &["--timeline", "1"]].concat()).ok();
    successor.stop();
}

#[test]
fn any_moment_comes_back_15() {
    any_moment_comes_back(15);
}

#[test]
fn any_moment_comes_back_17() {
    any_moment_comes_back(17);
}

#[test]
fn any_moment_comes_back_18() {
    any_moment_comes_back(18);
}
