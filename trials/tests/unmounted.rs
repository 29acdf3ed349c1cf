//! A repository whose file system is not there: its mount point is an empty directory, or holds
//! another repository. Nothing that is written there may be called stored.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::until;
use lifeboat_trials::watched::{Watched, builder, watched};
use lifeboat_trials::{Lab, Receiving, Restored};

/// A repository that is taken away, as if its file system were unmounted.
struct Unmounted {
    place: PathBuf,
    aside: PathBuf,
}

impl Unmounted {
    /// Leaves an empty directory.
    fn leaving_nothing(lab: &Lab) -> Self {
        let place = lab.repository.clone();
        let aside = place.with_file_name("aside");
        fs::rename(&place, &aside).expect("it can be moved");
        fs::create_dir(&place).expect("it can be made");
        lab.server.account().give(&place).expect("it can be given away");
        Self { place, aside }
    }

    /// Makes another repository in its place.
    fn leaving_another(lab: &Lab) -> Self {
        let unmounted = Self::leaving_nothing(lab);
        let config = lab.server.directory("other").join("lifeboat.toml").display().to_string();
        let url = format!("file://{}", lab.repository.display());
        let passphrase = lab.place("passphrase").display().to_string();
        let pg = lab.server.conninfo();
        let words = ["--name", "main", "--pg", &pg, "--repo", &url, "--passphrase-file"];
        let mut init = lab.server.account().command(&lab.program);
        init.args(["--config", &config, "init"]).args(words).arg(passphrase);
        lifeboat_trials::lab::run(&mut init).ok();
        unmounted
    }

    /// Objects of clusters that lie in its place.
    fn strays(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.place.join("clusters"), &mut found);
        found
    }

    fn mount(self) {
        // Not removed: somebody may be writing to it at this moment.
        fs::rename(&self.place, self.place.with_file_name("litter")).expect("it can be moved");
        fs::rename(&self.aside, &self.place).expect("it can be moved back");
    }
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), found),
            _ => found.push(entry.path()),
        }
    }
}

fn finish(server: &ScratchServer, segments: u32) {
    for _ in 0..segments {
        server
            .execute("SELECT pg_logical_emit_message(false, 'trial', 'x'); SELECT pg_switch_wal()");
    }
}

fn failed_calls(watched: &Watched) -> u64 {
    let count = watched.lab.server.value("SELECT failed_count FROM pg_stat_archiver");
    count.parse().expect("it is a number")
}

fn nothing_is_acknowledged(test: &str, words: &str, unmount: fn(&Lab) -> Unmounted) {
    let Some(watched) = watched(test, builder(18)) else { return };
    let lab = &watched.lab;
    watched.archive("--set wal.push-timeout=2s");
    lab.archive_all();
    until("a pusher lives", || watched.pusher().is_some());
    until("all is acknowledged", || watched.waiting() == 0);
    let (kept, failed) = (watched.kept(), failed_calls(&watched));
    let unmounted = unmount(lab);
    finish(&lab.server, 6);
    until("calls fail", || failed_calls(&watched) >= failed + 2);
    assert_eq!(watched.kept(), kept, "something was acknowledged");
    assert_eq!(unmounted.strays(), Vec::<PathBuf>::new());
    let log = fs::read_to_string(watched.spool().join("log")).expect("there is a log");
    assert!(log.contains(words), "{log}");
    unmounted.mount();
    lab.archive_all();
    until("the backlog is gone", || watched.waiting() == 0);
    assert!(watched.all_is_there() >= 7, "it tests nothing");
    lab.backup();
}

#[test]
fn while_the_repository_is_not_mounted_a_living_pusher_acknowledges_nothing() {
    let test = "while_the_repository_is_not_mounted_a_living_pusher_acknowledges_nothing";
    nothing_is_acknowledged(test, "no longer holds the repository", Unmounted::leaving_nothing);
}

#[test]
fn while_another_repository_lies_there_a_living_pusher_acknowledges_nothing() {
    let test = "while_another_repository_lies_there_a_living_pusher_acknowledges_nothing";
    nothing_is_acknowledged(test, "the key at hand is for repository", Unmounted::leaving_another);
}

#[test]
fn while_the_repository_is_not_mounted_a_receiver_acknowledges_no_commit() {
    let test = "while_the_repository_is_not_mounted_a_receiver_acknowledges_no_commit";
    let Some(watched) = watched(test, builder(18)) else { return };
    let lab = &watched.lab;
    lab.backup();
    lab.archive_nowhere();
    let mut receiver = Receiving::start(lab, "receiver", &["--create-slot", "--synchronous"]);
    receiver.wait_for("streaming", 1);
    lab.server.execute("CREATE TABLE t (i int)");
    lab.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'lifeboat'");
    lab.server.execute("SELECT pg_reload_conf()");
    lab.server.execute("INSERT INTO t VALUES (1)");
    let unmounted = Unmounted::leaving_nothing(lab);
    let conninfo = lab.server.conninfo();
    let commit = std::thread::spawn(move || {
        let client = postgres::Client::connect(&conninfo, postgres::NoTls);
        client.expect("it connects").batch_execute("INSERT INTO t VALUES (2)").expect("it commits");
    });
    receiver.wait_for("waiting", 1);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(!commit.is_finished(), "it was acknowledged while nothing could be stored");
    unmounted.mount();
    commit.join().expect("it is acknowledged once it is stored");
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    lab.server.kill_9();
    let restored = Restored::start(lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT sum(i) FROM t"), "3");
    restored.check_and_stop();
}
