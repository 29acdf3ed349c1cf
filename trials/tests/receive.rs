//! Receiving WAL from real servers: what was acknowledged is there, whatever dies.

use std::time::Duration;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::refusal::until;
use lifeboat_trials::writers::Writers;
use lifeboat_trials::{Lab, Receiving, Restored};

fn lab(test: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major)
        .setting("autovacuum", "off")
        .setting("wal_level", "replica")
        .setting("max_wal_senders", "5")
        .wal_segment_mib(1);
    match Lab::start(builder) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

/// Keys in the restored journal.
fn keys(restored: &Restored<'_>) -> Vec<u64> {
    let rows = restored.query("SELECT id FROM journal");
    rows.iter().map(|row| row.parse().expect("a number")).collect()
}

/// Restores the latest state and compares it with what clients saw acknowledged.
#[track_caller]
fn nothing_is_lost(lab: &Lab, name: &str, acknowledged: &[u64]) {
    let restored = Restored::start(lab, name, &["--latest"]);
    let there: std::collections::HashSet<u64> = keys(&restored).into_iter().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "{name}: {} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    restored.stop();
    lifeboat_trials::refusal::remove_tree(&lab.place(name));
}

fn acknowledged(writers: &Writers) -> Vec<u64> {
    writers.log().iter().filter(|w| w.acknowledged.is_some()).map(|w| w.id).collect()
}

/// Waits until clients were told of so many more commits.
#[track_caller]
fn more_commits(writers: &Writers, more: usize) {
    let before = acknowledged(writers).len();
    until("clients commit", || acknowledged(writers).len() >= before + more);
}

#[test]
fn push_and_receive_side_by_side_are_one_archive_and_the_last_seconds_are_reached() {
    let test = "push_and_receive_side_by_side";
    let Some(lab) = lab(test, 18) else { return };
    lab.backup();
    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot", "--ship-every", "1s"]);
    receiver.wait_for("streaming", 1);
    let writers = Writers::start(&lab.server, 3);
    more_commits(&writers, 300);
    // The line is cut, the server restarted.
    lab.server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    receiver.wait_for("streaming", 2);
    more_commits(&writers, 300);
    lab.server.restart();
    receiver.wait_for("streaming", 3);
    more_commits(&writers, 300);
    let mut second = Receiving::start(&lab, "second", &["--slot", "other", "--create-slot"]);
    second.wait_for("streaming", 1);
    more_commits(&writers, 300);
    let log = writers.stop();
    lab.server.execute("CREATE TABLE last (at timestamptz, lsn pg_lsn)");
    lab.server.execute("INSERT INTO last VALUES (clock_timestamp(), pg_current_wal_insert_lsn())");
    let lsn = lab.server.value("SELECT pg_current_wal_flush_lsn()");
    let is_shipped = "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn < $$LSN$$";
    let is_shipped = is_shipped.replace("LSN", &lsn);
    until("it is shipped", || lab.server.value(&is_shipped) == "0");
    assert_eq!(second.terminate(), Some(0), "{}", second.words());
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    assert_eq!(lab.server.value("SELECT failed_count FROM pg_stat_archiver"), "0");
    let list = lab.run(&["wal", "list", "--json"]).ok().json();
    let timeline = &list["systems"][0]["timelines"][0];
    assert_eq!(timeline["gaps"].as_array().map(Vec::len), Some(0), "{list:#}");
    assert_eq!(timeline["tails"].as_array().map(Vec::len), Some(1), "{list:#}");
    lab.run(&["verify"]).ok();
    // No segment was switched: what comes back is what was shipped.
    let seen: Vec<u64> = log.iter().filter(|w| w.acknowledged.is_some()).map(|w| w.id).collect();
    nothing_is_lost(&lab, "latest", &seen);
    let target = lab.server.value("SELECT lsn FROM last");
    let restored = Restored::start(&lab, "to-lsn", &["--to-lsn", &target]);
    assert!(keys(&restored).len() >= seen.len());
    restored.check_and_stop();
    let target = lab.server.value(
        "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM last",
    );
    let restored = Restored::start(&lab, "to-time", &["--to-time", &target]);
    assert_eq!(restored.value("SELECT count(*) FROM last"), "0", "it was written at {target}");
    restored.check_and_stop();
}

#[test]
fn what_was_held_back_too_long_is_a_gap_that_is_recorded_and_answered() {
    for major in [15, 18] {
        let Some(lab) = lab(&format!("a gap on {major}"), major) else { return };
        lab.backup();
        lab.archive_nowhere();
        let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot"]);
        receiver.wait_for("streaming", 1);
        receiver.kill_9();
        let server = &lab.server;
        server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'");
        server.execute("ALTER SYSTEM SET max_wal_size = '2MB'");
        server.execute("ALTER SYSTEM SET min_wal_size = '2MB'");
        // Segments that were not archived would be kept whatever the slot says.
        server.execute("ALTER SYSTEM SET archive_command = '/bin/true'");
        server.execute("SELECT pg_reload_conf()");
        server
            .execute("CREATE TABLE big AS SELECT repeat('x', 500) FROM generate_series(1, 40000)");
        let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
        until("the slot is lost", || {
            server.execute("SELECT pg_switch_wal()");
            server.execute("CHECKPOINT");
            server.value(lost) == "1"
        });
        if major == 18 {
            let mut refused = Receiving::start(&lab, "refused", &[]);
            assert_eq!(refused.wait(), Some(1), "{}", refused.words());
            assert!(refused.words().contains("--create-slot"), "{}", refused.words());
        }
        let mut receiver = Receiving::start(&lab, "again", &["--create-slot"]);
        receiver.wait_for("gap", 1);
        let list = lab.run(&["wal", "list"]).ok().stdout;
        assert!(list.contains("given up") && list.contains("take a backup"), "{list}");
        assert_eq!(receiver.count("gap"), 1, "{}", receiver.words());
        // Receiving goes on, and a new backup is made of it.
        let backup = lab.spawn(&["backup"]);
        let ended = backup.wait_with_output().expect("it ends");
        assert!(ended.status.success(), "{}", receiver.words());
        server.execute("CREATE TABLE after AS SELECT 1 AS i");
        let lsn = server.value("SELECT pg_current_wal_flush_lsn()");
        let shipped =
            format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'");
        until("it is shipped", || server.value(&shipped) == "1");
        assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
        assert_eq!(receiver.count("gap"), 1, "{}", receiver.words());
        let restored = Restored::start(&lab, "after", &["--latest"]);
        assert_eq!(restored.value("SELECT i FROM after"), "1");
        restored.check_and_stop();
        let list = lab.run(&["wal", "list"]).ok().stdout;
        assert!(!list.contains("take a backup"), "{list}");
    }
}

/// Drops the slot under whoever uses it.
fn drop_slot(lab: &Lab) {
    until("the slot is dropped", || {
        let mut client = lab.server.client();
        let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots";
        client.batch_execute(sql).expect("it may be terminated");
        client.batch_execute("SELECT pg_drop_replication_slot('lifeboat')").is_ok()
    });
}

#[test]
fn a_slot_that_is_dropped_under_the_receiver_is_no_gap_while_the_wal_is_there() {
    let test = "a_slot_that_is_dropped_under_the_receiver_is_no_gap_while_the_wal_is_there";
    let Some(lab) = lab(test, 18) else { return };
    lab.backup();
    lab.archive_nowhere(); // so that WAL stays until it is archived
    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot", "--ship-every", "1s"]);
    receiver.wait_for("streaming", 1);
    let writers = Writers::start(&lab.server, 3);
    for times in 2..5 {
        more_commits(&writers, 200);
        drop_slot(&lab);
        receiver.wait_for("slot-created", times);
        receiver.wait_for("streaming", times);
        lab.server.execute("CHECKPOINT");
    }
    more_commits(&writers, 200);
    let seen: Vec<u64> =
        writers.stop().iter().filter_map(|w| w.acknowledged.map(|_| w.id)).collect();
    let lsn = lab.server.value("SELECT pg_current_wal_flush_lsn()");
    let shipped = format!("SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication");
    until("it is shipped", || lab.server.query(&shipped) == ["t"]);
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    assert_eq!(receiver.count("gap"), 0, "{}", receiver.words());
    nothing_is_lost(&lab, "latest", &seen);
    // Whoever may not make slots says what to do.
    let mut strict = Receiving::start(&lab, "strict", &[]);
    strict.wait_for("streaming", 1);
    drop_slot(&lab);
    assert_eq!(strict.wait(), Some(1), "{}", strict.words());
    assert!(strict.words().contains("[LB-RCV-003]"), "{}", strict.words());
}

#[test]
fn a_repository_that_takes_nothing_acknowledges_nothing() {
    let Some(lab) = lab("a_repository_that_takes_nothing", 18) else { return };
    lab.backup();
    lab.archive_nowhere();
    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot", "--synchronous"]);
    receiver.wait_for("streaming", 1);
    lab.server.execute("CREATE TABLE t (i int)");
    lab.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'lifeboat'");
    lab.server.execute("SELECT pg_reload_conf()");
    lab.server.execute("INSERT INTO t VALUES (1)");
    let wal = lab.repository.join("clusters/main/wal");
    let modes = |mode: &str| {
        let mut chmod = std::process::Command::new("chmod");
        assert!(chmod.arg("-R").arg(mode).arg(&wal).status().expect("chmod").success());
    };
    modes("a-w");
    let conninfo = lab.server.conninfo();
    let commit = std::thread::spawn(move || {
        let mut client =
            postgres::Client::connect(&conninfo, postgres::NoTls).expect("it connects");
        client.batch_execute("INSERT INTO t VALUES (2)").expect("it commits");
    });
    receiver.wait_for("waiting", 1);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!commit.is_finished(), "it was acknowledged while nothing could be stored");
    modes("u+w");
    commit.join().expect("it is acknowledged once it is stored");
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    lab.server.kill_9();
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT sum(i) FROM t"), "3");
    restored.check_and_stop();
}

#[test]
fn a_failover_is_followed_to_the_new_primary() {
    let Some(lab) = lab("a_failover_is_followed", 18) else { return };
    lab.backup();
    lab.archive_nowhere();
    let server = &lab.server;
    server.execute("CREATE TABLE journal2 (i int)");
    // A standby beside it.
    let (place, sockets) = (server.home().join("standby"), server.directory("s2"));
    server.run(
        "pg_basebackup",
        &["-D", &place.display().to_string(), "-R", "-c", "fast", "-d", &server.conninfo()],
    );
    let options = format!(
        "-c unix_socket_directories='{}' -c archive_mode=off -c hot_standby=on",
        sockets.display()
    );
    let directory = place.display().to_string();
    let log = server.home().join("standby.log").display().to_string();
    server.run("pg_ctl", &["-D", &directory, "-w", "-o", &options, "-l", &log, "start"]);
    let both = format!(
        "host='{},{}' port=5432,5432 user=postgres dbname=postgres",
        server.socket_directory().display(),
        sockets.display()
    );
    let set = format!("postgres.conninfo={both}");
    let arguments = ["--create-slot", "--ship-every", "1s", "--set", &set];
    let mut receiver = Receiving::start(&lab, "receiver", &arguments);
    receiver.wait_for("streaming", 1);
    server.execute("INSERT INTO journal2 SELECT generate_series(1, 20000)");
    let lsn = server.value("SELECT pg_current_wal_flush_lsn()");
    let behind = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn < '{lsn}'");
    until("both have it", || server.value(&behind) == "0");
    server.kill_9();
    server.run("pg_ctl", &["-D", &directory, "-w", "promote"]);
    receiver.wait_for("history", 1);
    let conninfo = format!("host='{}' port=5432 user=postgres dbname=postgres", sockets.display());
    let mut client = postgres::Client::connect(&conninfo, postgres::NoTls).expect("it connects");
    client.batch_execute("INSERT INTO journal2 VALUES (0), (0)").expect("it is written");
    assert_eq!(receiver.count("segment"), receiver.count("segment"));
    let flushed =
        "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_flush_lsn()";
    until("it is shipped", || {
        client.query_one(flushed, &[]).is_ok_and(|row| row.get::<_, i64>(0) == 1)
    });
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    server.run("pg_ctl", &["-D", &directory, "-m", "immediate", "stop"]);
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM journal2"), "20002");
    restored.check_and_stop();
    lab.run(&["verify"]).ok();
}
