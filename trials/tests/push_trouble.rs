//! Pushing in the background on real servers in trouble. The law of all: what PostgreSQL was told
//! is archived is in the repository and equal, and the backlog ends once the trouble does.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::Restored;
use lifeboat_trials::lab::run;
use lifeboat_trials::refusal::until;
use lifeboat_trials::standby::Standby;
use lifeboat_trials::watched::{Watched, builder, signal, watched};

/// Finishes so many segments of a MiB.
fn finish(server: &ScratchServer, segments: u32) {
    for _ in 0..segments {
        server
            .execute("SELECT pg_logical_emit_message(false, 'trial', 'x'); SELECT pg_switch_wal()");
    }
}

/// Everything goes, and the law holds.
#[track_caller]
fn all_goes(watched: &Watched, files_min: usize) {
    watched.lab.archive_all();
    until("the backlog is gone", || watched.waiting() == 0);
    let files = watched.all_is_there();
    assert!(files >= files_min, "{files} files: it tests nothing");
}

fn failed_calls(watched: &Watched) -> u64 {
    let count = watched.lab.server.value("SELECT failed_count FROM pg_stat_archiver");
    count.parse().expect("it is a number")
}

fn full_speed_and_a_crash(test: &str, major: u32) {
    let Some(watched) = watched(test, builder(major)) else { return };
    let server = &watched.lab.server;
    let host = server.socket_directory().display().to_string();
    let (port, database) = (server.port().to_string(), ["-U", "postgres", "postgres"]);
    let place = ["-h", &host, "-p", &port];
    server.run("pgbench", &[&["-i", "-q", "-s", "2"][..], &place, &database].concat());
    for crash in [true, false] {
        let mut load = server.command("pgbench");
        load.args(["-n", "-c", "4", "-j", "2", "-T", "2"]).args(place).args(database);
        load.stdout(Stdio::null()).stderr(Stdio::null());
        let mut load = load.spawn().expect("pgbench starts");
        if crash {
            std::thread::sleep(Duration::from_secs(1));
            server.kill_9();
        }
        let _ = load.wait();
        if crash {
            server.start();
        }
    }
    all_goes(&watched, 8);
}

#[test]
fn at_full_speed_and_after_a_crash_of_the_server_the_backlog_goes_15() {
    full_speed_and_a_crash("at_full_speed_and_after_a_crash_of_the_server_the_backlog_goes_15", 15);
}

#[test]
fn at_full_speed_and_after_a_crash_of_the_server_the_backlog_goes_18() {
    full_speed_and_a_crash("at_full_speed_and_after_a_crash_of_the_server_the_backlog_goes_18", 18);
}

/// How many pushers of the lab's program there are.
fn pushers(watched: &Watched) -> usize {
    let program = watched.lab.program.display().to_string();
    let processes = fs::read_dir("/proc").expect("it is there").flatten();
    let words = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let words = words.map(|words| String::from_utf8_lossy(&words).replace('\0', " "));
    words.filter(|words| words.starts_with(&program)).count()
}

#[test]
fn a_pusher_that_hangs_acknowledges_nothing_and_goes_on_afterwards() {
    let test = "a_pusher_that_hangs_acknowledges_nothing_and_goes_on_afterwards";
    let Some(watched) = watched(test, builder(18)) else { return };
    watched.archive("--set wal.push-timeout=1s");
    let server = &watched.lab.server;
    finish(server, 1);
    until("a pusher lives", || watched.pusher().is_some());
    watched.lab.archive_all();
    let pusher = watched.pusher().expect("it lives for half a minute");
    signal(pusher, "-STOP");
    let (kept, failed) = (watched.kept(), failed_calls(&watched));
    finish(server, 5);
    let name = server.value("SELECT last_failed_wal FROM pg_stat_archiver");
    let began = Instant::now();
    until("calls fail", || failed_calls(&watched) >= failed + 2);
    let took = began.elapsed();
    // A code above 125 or a signal would not be counted: the archiver would have died.
    assert!(took > Duration::from_secs(1), "{took:?}: they did not wait (last was {name})");
    assert_eq!(watched.kept(), kept, "something was acknowledged");
    assert!(pushers(&watched) <= 2, "one pusher and one call at most");
    signal(pusher, "-CONT");
    all_goes(&watched, 6);
    assert_eq!(watched.pusher(), Some(pusher), "the same one goes on");
}

#[test]
fn a_spool_on_a_full_disk_leaves_it_to_the_calls() {
    let test = "a_spool_on_a_full_disk_leaves_it_to_the_calls";
    let Some(watched) = watched(test, builder(18)) else { return };
    let server = &watched.lab.server;
    finish(server, 2);
    all_goes(&watched, 2);
    let account = server.account();
    let options = format!("size=64k,mode=0700,uid={},gid={}", account.uid, account.gid);
    let mut mount = Command::new("mount");
    let mounted =
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(watched.spool()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return lifeboat_testkit::scratch::skip(test, "no file system can be mounted here");
    }
    let filler = watched.spool().join("filler");
    // Fills it to the last byte, and fails by that.
    let _ = fs::write(&filler, vec![b'f'; 1 << 20]);
    finish(server, 4);
    watched.lab.archive_all();
    let log = fs::read_to_string(server.log()).expect("it can be read");
    assert!(log.contains("cannot be used"), "the calls did not say why they push:\n{log}");
    let answered = fs::read_dir(watched.spool()).expect("it is there").flatten();
    let answered = answered.filter(|entry| entry.path().extension().is_some_and(|e| e == "ack"));
    assert_eq!(answered.count(), 0);
    fs::remove_file(&filler).expect("it was written");
    finish(server, 2);
    until("a pusher works again", || watched.pusher().is_some());
    all_goes(&watched, 8);
    let unmounted = Command::new("umount").arg("-l").arg(watched.spool()).output();
    assert!(unmounted.is_ok_and(|output| output.status.success()), "it cannot be unmounted");
}

#[test]
fn a_second_server_by_mistake_is_refused_and_a_second_pusher_goes_at_once() {
    let test = "a_second_server_by_mistake_is_refused_and_a_second_pusher_goes_at_once";
    let Some(watched) = watched(test, builder(18)) else { return };
    watched.lab.backup();
    let other = ScratchServer::of(18).wal_segment_mib(1).setting("archive_mode", "on");
    let other = other.setting("archive_command", &watched.lab.archive_command());
    let other = other.start().expect("the first one started, too");
    finish(&other, 3);
    finish(&watched.lab.server, 3);
    until("the second server is refused", || {
        other.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t"
    });
    assert_eq!(other.value("SELECT archived_count FROM pg_stat_archiver"), "0");
    assert!(
        !fs::read_dir(other.data_directory().join("lifeboat.spool"))
            .expect("it is its own")
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|e| e == "ack"))
    );
    // Two pushers for one directory: the second goes at once, the first goes on.
    until("a pusher lives", || watched.pusher().is_some());
    let first = watched.pusher();
    let mut second = watched.lab.command(&["wal", "pusher"]);
    let began = Instant::now();
    run(second.current_dir(watched.lab.server.data_directory())).ok();
    assert!(began.elapsed() < Duration::from_secs(10), "it stayed");
    assert_eq!(watched.pusher(), first);
    all_goes(&watched, 3);
}

#[test]
fn a_switch_of_the_timeline_goes_through_the_pusher() {
    let test = "a_switch_of_the_timeline_goes_through_the_pusher";
    let Some(watched) = watched(test, builder(18)) else { return };
    let standby = Standby::start(&watched.lab, "standby");
    finish(&watched.lab.server, 2);
    watched.lab.server.execute("CREATE TABLE t AS SELECT generate_series(1, 100) i");
    standby.catch_up();
    watched.lab.archive_all();
    watched.lab.server.stop();
    standby.promote();
    standby.query("CREATE TABLE u AS SELECT * FROM t; SELECT pg_switch_wal()");
    until("the new timeline is archived", || {
        watched.kept().iter().any(|name| name.len() == 24 && name.starts_with("00000002"))
    });
    let kept = watched.kept();
    assert!(kept.iter().any(|name| name == "00000002.history"), "{kept:?}");
    assert!(standby.directory.join("lifeboat.spool/lock").exists(), "it has its own pusher");
    watched.all_is_there();
    standby.crash();
}

#[test]
fn check_and_backup_are_quick_right_after_the_start() {
    let test = "check_and_backup_are_quick_right_after_the_start";
    let Some(watched) = watched(test, builder(18)) else { return };
    watched.lab.server.restart();
    let began = Instant::now();
    let checked = watched.lab.run(&["check", "--json"]);
    let points = checked.json();
    let arrives = points["points"].as_array().expect("points are a list").iter();
    let arrives: Vec<_> = arrives.filter(|point| point["name"] == "WAL arrives").collect();
    assert_eq!(arrives.len(), 1, "{points}");
    assert_eq!(arrives[0]["state"], "good", "{points}");
    watched.lab.server.restart();
    watched.lab.backup();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    watched.all_is_there();
}

#[test]
fn wal_over_the_limit_is_a_recorded_gap_and_a_new_backup_follows_by_itself() {
    let test = "wal_over_the_limit_is_a_recorded_gap_and_a_new_backup_follows_by_itself";
    let Some(watched) = watched(test, builder(18)) else { return };
    let (lab, server) = (&watched.lab, &watched.lab.server);
    lab.backup();
    // A pusher that lives ends when the configuration changes, and the next one has the limit.
    let config = fs::read_to_string(&lab.config).expect("the lab has a configuration");
    let keys = "wal.backlog-max = \"4MiB\"\nwal.push-timeout = \"2s\"\n";
    fs::write(&lab.config, format!("{keys}{config}")).expect("it can be written");
    let away = lab.repository.with_extension("away");
    fs::rename(&lab.repository, &away).expect("it can be renamed");
    finish(server, 9);
    until("the server may go on", || watched.waiting() <= 4);
    assert!(watched.spool().join("backup.wanted").exists(), "nothing was given up");
    fs::rename(&away, &lab.repository).expect("it can be renamed back");
    finish(server, 1);
    until("a new backup is there", || !watched.spool().join("backup.wanted").exists());
    let listed = lab.run(&["wal", "list", "--json"]).ok().json();
    let gaps = listed["given_up"].as_array().expect("gaps are a list");
    assert!(!gaps.is_empty(), "{listed}");
    assert!(gaps.iter().all(|gap| gap["backup_needed"] == false), "{listed}");
    let said = lab.run(&["wal", "list"]).ok().stdout;
    assert!(said.contains("given up: "), "{said}");
    server.execute("CREATE TABLE last AS SELECT 42 AS answer");
    lab.archive_all();
    let restored = Restored::start(lab, "restored", &["--latest"]);
    assert_eq!(restored.value("SELECT answer FROM last"), "42");
    restored.stop();
}
