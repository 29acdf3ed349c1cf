//! A timeline that was begun beside a server that goes on: of the newer one only the history is
//! archived, and PostgreSQL would take what the older one wrote after the fork for its own.

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::lab::run;
use lifeboat_trials::refusal::until;
use lifeboat_trials::{Lab, Restored};

fn lab(test: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major).setting("autovacuum", "off").wal_segment_mib(1);
    match Lab::start(builder) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

/// Archives the history of timeline 2, as one that left timeline 1 here.
fn archive_history(lab: &Lab, left_at: &str) {
    let data = lab.server.data_directory();
    let path = data.join("pg_wal/00000002.history");
    std::fs::write(&path, format!("1\t{left_at}\tno recovery target specified\n"))
        .expect("written");
    lab.server.account().give(&path).expect("it can be given away");
    let words = ["--set", "wal.push=sync", "wal", "push", "pg_wal/00000002.history"];
    run(lab.command(&words).current_dir(data)).ok();
    std::fs::remove_file(path).expect("it can be removed");
}

fn a_fork_is_the_end(test: &str, major: u32, at_a_boundary: bool) {
    let Some(lab) = lab(test, major) else { return };
    let server = &lab.server;
    server.execute("CREATE TABLE t (i int)");
    lab.backup();
    server.execute("INSERT INTO t VALUES (1)");
    let left_at = match at_a_boundary {
        false => server.value("SELECT pg_current_wal_flush_lsn()"),
        true => {
            server.execute("SELECT pg_switch_wal()");
            let sql =
                "SELECT pg_lsn '0/0' + ceil((pg_current_wal_lsn() - '0/0') / 1048576) * 1048576";
            server.value(sql)
        }
    };
    archive_history(&lab, &left_at);
    server.execute("INSERT INTO t VALUES (2); SELECT pg_switch_wal()");
    server.execute("INSERT INTO t VALUES (3)");
    lab.archive_all();
    until("all is archived", || {
        server.value("SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1048576) FROM pg_stat_archiver") == "t"
    });
    let into = lab.place("dry").display().to_string();
    let plan = lab.run(&["restore", "--into", &into, "--latest", "--dry-run"]).ok().stdout;
    assert!(plan.contains("timeline 1 went on") && plan.contains("--timeline 1"), "{plan}");
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(restored.query("SELECT i FROM t ORDER BY i"), ["1"], "it went past the fork");
    restored.check_and_stop();
    let restored = Restored::start(&lab, "one", &["--latest", "--timeline", "1"]);
    assert_eq!(restored.query("SELECT i FROM t ORDER BY i"), ["1", "2", "3"]);
    restored.check_and_stop();
    let check = lab.run(&["check"]).fails(3, "");
    assert!(check.stdout.contains("another one archived timeline 2"), "{}", check.stdout);
}

#[test]
fn recovery_ends_at_a_fork_though_the_older_timeline_went_on_15() {
    a_fork_is_the_end("recovery_ends_at_a_fork_though_the_older_timeline_went_on_15", 15, false);
}

#[test]
fn recovery_ends_at_a_fork_though_the_older_timeline_went_on_18() {
    a_fork_is_the_end("recovery_ends_at_a_fork_though_the_older_timeline_went_on_18", 18, false);
}

#[test]
fn recovery_ends_at_a_fork_between_two_segments() {
    a_fork_is_the_end("recovery_ends_at_a_fork_between_two_segments", 18, true);
}
