//! `wal get` fetches ahead of a recovering server: what it serves, what it must not serve, and
//! that nothing of it stays when recovery is over.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::fetcher::{fetched, fetcher_of};
use lifeboat_trials::lab::{Ran, run};
use lifeboat_trials::refusal::{copy_tree, lab, until};
use lifeboat_trials::{Lab, Restored};

/// A server with small segments, so that long WAL is little work.
fn server(major: u32) -> lifeboat_testkit::scratch::ScratchBuilder {
    ScratchServer::of(major).wal_segment_mib(1)
}

/// Rows in so many segments of their own; gives the names of the segments.
fn segments(lab: &Lab, count: u32) -> Vec<String> {
    (0..count)
        .map(|_| {
            lab.server.execute("INSERT INTO t SELECT coalesce(max(i), 0) + 1 FROM t");
            let name = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
            lab.archive_all();
            name
        })
        .collect()
}

/// Runs `wal get` in a data directory, as servers do.
#[track_caller]
fn get(lab: &Lab, directory: &Path, name: &str, more: &[&str]) -> Ran {
    let mut arguments = more.to_vec();
    arguments.extend(["wal", "get", name, "pg_wal/RECOVERYXLOG"]);
    run(lab.command(&arguments).current_dir(directory))
}

fn without(path: &Path, act: impl FnOnce()) {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside).expect("it can be moved away");
    act();
    fs::rename(&aside, path).expect("it can be put back");
}

#[track_caller]
fn restore(lab: &Lab, name: &str, more: &[&str]) -> std::path::PathBuf {
    let directory = lab.place(name);
    let into = directory.display().to_string();
    lab.run(&[&["restore", "--into", &into][..], more].concat()).ok();
    directory
}

/// What lies ahead is served without a repository, in order, and nothing else is.
fn by_hand(lab: &Lab, names: &[String]) {
    let directory = restore(lab, "by-hand", &["--set", "wal.prefetch=4"]);
    let four = ["--set", "wal.prefetch=4"];
    let get = |name: &str| get(lab, &directory, name, &four);
    get(&names[0]).ok();
    let whole = || fetched(&directory).iter().filter(|(_, length)| *length == 1 << 20).count();
    until("the next segments are fetched", || whole() == 4);
    without(&lab.repository, || {
        let served = directory.join("pg_wal/RECOVERYXLOG");
        for name in &names[1..5] {
            let _ = fs::remove_file(&served);
            get(name).ok();
            assert_eq!(fs::metadata(&served).expect("it was delivered").len(), 1 << 20, "{name}");
        }
        fs::remove_file(&served).expect("it can be removed");
        // Neither what was taken nor what lies too far ahead, and least of all "not there".
        for name in [&names[1], &names[7], "0000000100000000000000F0", "00000002.history"] {
            let ran = get(name);
            assert!(ran.code.is_some_and(|code| code >= 126), "{name}: {ran:?}");
            assert!(!served.exists(), "{name} was served");
        }
    });
    // Another one who asks meanwhile, and one with other settings: neither is harmed.
    get(&names[2]).ok();
    until("it goes on from there", || {
        fetched(&directory).first().is_some_and(|(first, _)| first.starts_with(&names[3]))
    });
    assert!(fetched(&directory).len() <= 4, "{:?}", fetched(&directory));
    let fetcher = fetcher_of(&directory).expect("it runs");
    let ran = self::get(lab, &directory, &names[3], &["--set", "cluster=other"]);
    assert_ne!(ran.code, Some(0), "another cluster's segment was served");
    until("it ends when it is asked for another cluster", || {
        fetcher_of(&directory) != Some(fetcher)
    });
    // A new restore into the same place voids what is there; so does the end of recovery.
    get(&names[0]).ok();
    until("segments are fetched", || !fetched(&directory).is_empty());
    run(lab.command(&["wal", "recovered"]).current_dir(&directory)).ok();
    until("nothing is left", || {
        fetcher_of(&directory).is_none() && !directory.join("lifeboat.prefetch").exists()
    });
    lifeboat_trials::refusal::remove_tree(&directory);
}

#[track_caller]
fn rows(restored: &Restored<'_>) -> String {
    restored.value("SELECT count(*) || ' ' || max(i) FROM t")
}

#[track_caller]
fn nothing_left(restored: &Restored<'_>) {
    until("nothing that was fetched ahead is left", || {
        fetcher_of(&restored.directory).is_none()
            && !restored.directory.join("lifeboat.prefetch").exists()
    });
}

/// A recovery over all segments while its fetcher is killed again and again.
fn killed_fetchers(lab: &Lab, expected: &str) {
    let directory = restore(lab, "killed", &[]);
    let restored = Restored::of(&lab.server, &directory);
    let mut starting = std::thread::scope(|scope| {
        let starting = scope.spawn(|| restored.pg_ctl_start());
        let (mut killed, until) = (0, Instant::now() + Duration::from_secs(60));
        while !starting.is_finished() && Instant::now() < until {
            if let Some(pid) = fetcher_of(&directory) {
                std::thread::sleep(Duration::from_millis(5 + (killed * 7) % 40));
                let pid = pid.to_string();
                let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
                killed += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(killed > 0, "no fetcher was seen: it tests nothing");
        eprintln!("{killed} fetchers were killed");
        Some(starting.join().expect("it ends"))
    });
    starting.take().expect("it ended").ok();
    restored.wait_for_promotion();
    assert_eq!(rows(&restored), expected);
    nothing_left(&restored);
    restored.check_and_stop();
}

/// Two servers recover at once, one of them is killed in the middle and started again, and the
/// other has its log directory on another file system.
fn two_at_once(lab: &Lab, expected: &str) {
    let (one, two) = (restore(lab, "one", &[]), restore(lab, "two", &[]));
    let memory = tempfile::tempdir_in("/dev/shm").expect("there is memory");
    let elsewhere = memory.path().join("pg_wal");
    copy_tree(&two.join("pg_wal"), &elsewhere);
    lab.server.account().give(memory.path()).expect("it can be given away");
    fs::remove_dir_all(two.join("pg_wal")).expect("it can be removed");
    std::os::unix::fs::symlink(&elsewhere, two.join("pg_wal")).expect("a link can be made");

    let (one, two) = (Restored::of(&lab.server, &one), Restored::of(&lab.server, &two));
    std::thread::scope(|scope| {
        scope.spawn(|| two.pg_ctl_start().ok());
        scope.spawn(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| one.pg_ctl_start()); // may fail: it is stopped while it starts
                until("the first recovers", || {
                    one.log_text().matches("restored log file").count() > 5
                });
                let directory = one.directory.display().to_string();
                let mut stop = lab.server.command("pg_ctl");
                stop.args(["-D", &directory, "-m", "immediate", "-w", "stop"]);
                run(&mut stop).ok();
            });
            one.pg_ctl_start().ok();
        });
    });
    for restored in [&one, &two] {
        restored.wait_for_promotion();
        assert_eq!(rows(restored), expected);
        nothing_left(restored);
        restored.check_and_stop();
    }
}

fn prefetch(major: u32) {
    let Some(lab) = lab(&format!("prefetch_{major}"), server(major)) else { return };
    lab.server.execute("CREATE TABLE t (i int)");
    lab.backup();
    let names = segments(&lab, 30);
    by_hand(&lab, &names);
    killed_fetchers(&lab, "30 30");
    two_at_once(&lab, "30 30");
}

#[test]
fn recovery_with_prefetch_is_complete_and_leaves_nothing_15() {
    prefetch(15);
}

#[test]
fn recovery_with_prefetch_is_complete_and_leaves_nothing_18() {
    prefetch(18);
}
