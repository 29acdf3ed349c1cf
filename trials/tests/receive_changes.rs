//! The server changes under a receiver: it is restarted, crashes, or is promoted. Nothing is lost,
//! and no gap is told of, because the slot keeps what the receiver lacks.

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::refusal::until;
use lifeboat_trials::standby::Standby;
use lifeboat_trials::{Lab, Receiving, Restored};

/// A server with a backup and an empty table.
fn lab(test: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major).setting("autovacuum", "off").wal_segment_mib(1);
    match Lab::start(builder) {
        Ok(lab) => {
            lab.backup();
            lab.server.execute("CREATE TABLE t (i int, filler text)");
            Some(lab)
        }
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

/// Writes about three segments.
const WRITE: &str = "INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 10000) i";

/// One receiver that has everything.
const SHIPPED: &str = "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_flush_lsn() \
     AND application_name = 'lifeboat'";

#[track_caller]
fn all_comes_back(lab: &Lab, mut receiver: Receiving, rows: u32) {
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    assert_eq!(receiver.count("gap"), 0, "{}", receiver.words());
    let list = lab.run(&["wal", "list"]).ok().stdout;
    assert!(!list.contains("given up") && !list.contains("missing"), "{list}");
    let restored = Restored::start(lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), rows.to_string());
    restored.check_and_stop();
    lab.run(&["verify"]).ok();
}

fn restarts(test: &str, major: u32) {
    let Some(lab) = lab(test, major) else { return };
    let server = &lab.server;
    lab.archive_nowhere();
    let receiver = Receiving::start(&lab, "receiver", &["--create-slot", "--ship-every", "1s"]);
    receiver.wait_for("streaming", 1);
    server.execute(WRITE);
    server.restart();
    receiver.wait_for("streaming", 2);
    server.execute(WRITE);
    server.kill_9();
    server.start();
    receiver.wait_for("streaming", 3);
    server.execute(WRITE);
    until("it is shipped", || server.value(SHIPPED) == "1");
    all_comes_back(&lab, receiver, 30_000);
}

#[test]
fn a_restart_and_a_crash_of_the_server_cost_a_receiver_nothing_15() {
    restarts("a_restart_and_a_crash_of_the_server_cost_a_receiver_nothing_15", 15);
}

#[test]
fn a_restart_and_a_crash_of_the_server_cost_a_receiver_nothing_18() {
    restarts("a_restart_and_a_crash_of_the_server_cost_a_receiver_nothing_18", 18);
}

/// The receiver knows the standby only, and stays with it.
fn promoted(test: &str, major: u32) {
    let Some(lab) = lab(test, major) else { return };
    let server = &lab.server;
    let standby = Standby::start(&lab, "standby");
    // What is not archived, the standby has.
    lab.archive_all();
    lab.archive_nowhere();
    standby.catch_up();
    let set = format!("postgres.conninfo={}", standby.conninfo());
    let arguments = ["--create-slot", "--ship-every", "1s", "--set", &set];
    let receiver = Receiving::start(&lab, "receiver", &arguments);
    receiver.wait_for("streaming", 1);
    server.execute(WRITE);
    standby.catch_up();
    server.kill_9();
    standby.promote();
    // The history is stored by whoever is first: the new primary archives as well.
    receiver.wait_for("streaming", 2);
    standby.query(WRITE);
    until("it is shipped", || standby.query(SHIPPED) == ["1"]);
    all_comes_back(&lab, receiver, 20_000);
}

#[test]
fn a_standby_that_is_promoted_under_a_receiver_goes_on_with_it_15() {
    promoted("a_standby_that_is_promoted_under_a_receiver_goes_on_with_it_15", 15);
}

#[test]
fn a_standby_that_is_promoted_under_a_receiver_goes_on_with_it_18() {
    promoted("a_standby_that_is_promoted_under_a_receiver_goes_on_with_it_18", 18);
}
