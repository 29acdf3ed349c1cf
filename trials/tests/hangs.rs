//! A repository that hangs: nothing is acknowledged falsely, the server lives, `pg_wal` grows no
//! more than it must, and once the trouble ends everything is stored.
//!
//! `LIFEBOAT_HANG_SECONDS` says how long it hangs; 20 unless set.

use std::fs;
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchBuilder, ScratchServer};
use lifeboat_trials::refusal::until;
use lifeboat_trials::watched::Watched;
use lifeboat_trials::{Hanging, Lab, Receiving, Restored};

fn builder() -> ScratchBuilder {
    ScratchServer::of(18)
        .setting("autovacuum", "off")
        .setting("max_wal_size", "4MB")
        .setting("min_wal_size", "2MB")
        // The server counts a receiver as lost after this long without a word from it.
        .setting("wal_sender_timeout", "12s")
        .wal_segment_mib(1)
}

fn lab(test: &str, builder: ScratchBuilder) -> Option<(Lab, Hanging)> {
    match Hanging::lab(builder) {
        Ok((mut lab, hanging)) => {
            lab.init().ok();
            Some((lab, hanging))
        }
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

fn hang() -> Duration {
    let seconds = std::env::var("LIFEBOAT_HANG_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(20))
}

/// Segments in `pg_wal`, by number.
fn segments(lab: &Lab) -> Vec<u64> {
    let entries = fs::read_dir(lab.server.data_directory().join("pg_wal")).expect("it is there");
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut all: Vec<u64> = names
        .filter(|name| name.len() == 24 && name.bytes().all(|c| c.is_ascii_hexdigit()))
        .map(|name| {
            // With segments of 1 MiB there are 4096 in each of the upper parts.
            let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).expect("hex");
            part(8) * 4096 + part(16)
        })
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_repository_that_hangs_acknowledges_no_commit_and_keeps_no_more_wal_than_it_must() {
    let test = "a_repository_that_hangs_acknowledges_no_commit_and_keeps_no_more_wal_than_it_must";
    let Some((lab, hanging)) = lab(test, builder()) else { return };
    let server = &lab.server;
    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot", "--synchronous"]);
    receiver.wait_for("streaming", 1);
    lab.backup();
    server.execute("CREATE TABLE t (i int, filler text)");
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'lifeboat'");
    server.execute("SELECT pg_reload_conf()");
    server.execute("INSERT INTO t VALUES (1)");
    let sender = server.value("SELECT pid FROM pg_stat_replication");
    let hangs = hanging.freeze().expect("it could be frozen before");
    let frozen = Instant::now();
    let commits: Vec<_> = (0..3)
        .map(|_| {
            let conninfo = server.conninfo();
            std::thread::spawn(move || {
                let client = postgres::Client::connect(&conninfo, postgres::NoTls);
                client.expect("it connects").batch_execute("INSERT INTO t VALUES (2)")
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    // Whoever does not wait goes on, with more than the receiver may hold in memory.
    let written = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn";
    let before: u64 = server.value(written).parse().expect("a number");
    for _ in 0..6 {
        server.execute(
            "SET synchronous_commit = off; \
             INSERT INTO t SELECT 0, repeat('x', 1000) FROM generate_series(1, 5000)",
        );
    }
    let acknowledged = server.value("SELECT flush_lsn FROM pg_stat_replication");
    while frozen.elapsed() < hang() {
        std::thread::sleep(Duration::from_millis(250));
        assert!(commits.iter().all(|commit| !commit.is_finished()), "a commit was acknowledged");
    }
    // The same stream, and not a byte more that is said to be durable.
    let replication = "SELECT pid || ' ' || flush_lsn FROM pg_stat_replication";
    assert_eq!(
        server.value(replication),
        format!("{sender} {acknowledged}"),
        "{}",
        receiver.words()
    );
    server.execute("CHECKPOINT");
    let size = 1 << 20;
    let slot: u64 = server
        .value("SELECT restart_lsn - '0/0'::pg_lsn FROM pg_replication_slots")
        .parse()
        .expect("a number");
    let (now, kept): (u64, _) = (server.value(written).parse().expect("a number"), segments(&lab));
    assert!(now - before > 24 << 20, "only {} bytes were written", now - before);
    assert!(kept[0] >= slot / size, "{kept:?} reach back beyond {}", slot / size);
    // What the slot keeps, and what the server makes in advance.
    assert!(kept.len() as u64 <= now / size - slot / size + 8, "{kept:?}");
    drop(hangs);
    for commit in commits {
        commit.join().expect("no panic").expect("it is acknowledged once it is stored");
    }
    let lsn = server.value("SELECT pg_current_wal_lsn()");
    let shipped = format!("SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication");
    until("everything is stored", || server.value(&shipped) == "t");
    assert_eq!(server.value("SELECT pid FROM pg_stat_replication"), sender);
    server.execute("CHECKPOINT");
    let left = segments(&lab);
    assert!(left.len() < kept.len() / 2, "{left:?} are left of {kept:?}");
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    server.kill_9();
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT sum(i) || ' ' || count(*) FROM t"), "7 30004");
    restored.check_and_stop();
    lab.run(&["verify"]).ok();
}

#[test]
fn a_repository_that_hangs_makes_calls_of_the_archiver_fail_in_time_and_the_server_lives() {
    let test = "a_repository_that_hangs_makes_calls_of_the_archiver_fail_in_time";
    let archiving = builder().setting("archive_mode", "on").setting("archive_command", "false");
    let Some((lab, hanging)) = lab(test, archiving) else { return };
    let watched = Watched::of(lab);
    watched.archive("--set wal.push-timeout=2s");
    let (lab, server) = (&watched.lab, &watched.lab.server);
    lab.backup();
    server.execute("CREATE TABLE t (i int)");
    lab.archive_all();
    let hangs = hanging.freeze().expect("it could be frozen before");
    let frozen = Instant::now();
    let failed = || -> u64 {
        let count = server.value("SELECT failed_count FROM pg_stat_archiver");
        count.parse().expect("a number")
    };
    let (kept, failed_before) = (watched.kept(), failed());
    let archiver = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'";
    let process = server.value(archiver);
    let mut rows = 0;
    while frozen.elapsed() < hang() {
        // The server takes commits as ever.
        server.execute("INSERT INTO t VALUES (1); SELECT pg_switch_wal()");
        rows += 1;
        assert_eq!(watched.kept(), kept, "something was acknowledged");
        std::thread::sleep(Duration::from_secs(1));
    }
    let calls = failed() - failed_before;
    let seconds = frozen.elapsed().as_secs();
    // PostgreSQL tries three times, a second apart, and then waits for a minute or a new segment.
    assert!(calls >= 2, "{calls} calls failed in {seconds} s: they wait for longer than told");
    assert!(calls <= seconds / 2 + 1, "{calls} calls failed in {seconds} s: they did not wait");
    assert_eq!(server.value(archiver), process, "the archiver died");
    let log = fs::read_to_string(server.log()).expect("it can be read");
    assert!(log.contains("[LB-WAL-"), "the calls do not say why they fail:\n{log}");
    drop(hangs);
    lab.archive_all();
    until("the backlog is gone", || watched.waiting() == 0);
    assert!(watched.all_is_there() >= rows, "it tests too little");
    let restored = Restored::start(lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), rows.to_string());
    restored.check_and_stop();
    lab.run(&["verify"]).ok();
}
