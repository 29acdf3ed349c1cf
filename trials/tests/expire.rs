//! Retention on a real server: what remains restores to every moment that it should, and what is
//! not needed is gone.

use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::same::disk_bytes;
use lifeboat_trials::watched::signal;
use lifeboat_trials::{Lab, Restored};
use serde_json::Value;

/// A point between two backups, and how many rows were there.
struct Point {
    lsn: String,
    rows: usize,
}

fn id(backup: &Value) -> String {
    backup["id"].as_str().expect("a report has an id").to_owned()
}

fn listed(lab: &Lab) -> Vec<String> {
    let list = lab.run(&["list", "--json"]).ok().json();
    list["backups"].as_array().expect("a list has backups").iter().map(id).collect()
}

fn segments(lab: &Lab) -> Vec<String> {
    let name = |object: &String| object.rsplit('/').next().unwrap_or_default().to_owned();
    let all = lab.objects();
    all.iter().filter(|object| object.contains("/wal/")).map(name).collect()
}

/// Five backups with rows before and after each.
fn five(lab: &Lab) -> (Vec<Value>, Vec<Point>) {
    let server = &lab.server;
    server.execute("CREATE TABLE load (id serial PRIMARY KEY, t text)");
    let (mut backups, mut points) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        server.execute(
            "INSERT INTO load (t) SELECT md5(random()::text) FROM generate_series(1, 20000); \
             UPDATE load SET t = md5(random()::text) WHERE id % 3 = 0",
        );
        backups.push(lab.backup());
        server.execute("INSERT INTO load (t) VALUES ('after a backup')");
        let lsn = server.value("SELECT pg_current_wal_insert_lsn()");
        let rows = server.value("SELECT count(*) FROM load").parse().expect("a number");
        points.push(Point { lsn, rows });
        server.execute("INSERT INTO load (t) VALUES ('after the point')");
        std::thread::sleep(Duration::from_millis(1100)); // times are told apart
    }
    lab.archive_all();
    (backups, points)
}

fn rows(restored: &Restored<'_>) -> usize {
    restored.value("SELECT count(*) FROM load").parse().expect("a number")
}

fn what_remains_restores_and_the_rest_is_gone(major: u32) {
    let test = "what_remains_restores_and_the_rest_is_gone";
    let lab = match Lab::start(ScratchServer::of(major).setting("autovacuum", "off")) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip(&format!("{test}_{major}"), &reason),
    };
    let began = Instant::now();
    let (backups, points) = five(&lab);
    let ids: Vec<String> = backups.iter().map(id).collect();

    // A plan changes nothing, and without a rule nothing goes.
    let (objects, bytes) = (lab.objects(), disk_bytes(&lab.repository));
    let planned = lab.run(&["expire", "--dry-run", "--json", "--keep-backups", "2"]).ok().json();
    let goes = planned["plan"]["remove"].as_array().expect("a plan removes");
    assert_eq!(
        goes.iter().map(|r| r["backup"].as_str()).collect::<Vec<_>>(),
        [Some(&*ids[0]), Some(&*ids[1]), Some(&*ids[2])]
    );
    assert_eq!(lab.objects(), objects, "a dry run changes nothing");
    lab.run(&["expire"]).ok();
    assert_eq!(listed(&lab), ids, "without a rule nothing goes");

    let done = lab.run(&["expire", "--json", "--keep-backups", "2"]).ok().json();
    assert_eq!(listed(&lab), ids[3..], "{done}");
    let first_needed = lab.run(&["show", &ids[3], "--json"]).ok().json();
    let first_needed = first_needed["wal_first"].as_str().expect("a segment").to_owned();
    let left = segments(&lab);
    assert_eq!(left.iter().min(), Some(&first_needed), "older WAL is gone, all else is there");
    let after = disk_bytes(&lab.repository);
    assert!(after < bytes * 4 / 5, "{bytes} bytes became {after}");
    lab.run(&["verify"]).ok();

    // What was removed is refused before anything is written; what remains comes back.
    let into = lab.place("gone").display().to_string();
    let gone = lab.run(&["restore", "--into", &into, "--to-backup", &ids[2]]);
    assert!(gone.code != Some(0) && !lab.place("gone").exists(), "{gone:?}");
    let early = lab.run(&["restore", "--into", &into, "--to-lsn", &points[2].lsn]);
    assert!(early.code != Some(0) && !lab.place("gone").exists(), "{early:?}");
    for (number, point) in points.iter().enumerate().skip(3) {
        let name = format!("b{number}");
        let restored = Restored::start(&lab, &name, &["--to-backup", &ids[number]]);
        assert_eq!(rows(&restored), point.rows - 1, "backup {number}");
        restored.check_and_stop();
        let restored = Restored::start(&lab, &format!("p{number}"), &["--to-lsn", &point.lsn]);
        assert_eq!(rows(&restored), point.rows, "after backup {number}");
        restored.check_and_stop();
    }
    let latest = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(rows(&latest), points[4].rows + 1);
    latest.check_and_stop();

    // The last good one stays, whatever is said.
    lab.run(&["expire", "--keep-window", "1s"]).ok();
    lab.run(&["expire", "--keep-backups", "1"]).ok();
    assert_eq!(listed(&lab), ids[4..]);
    lab.run(&["expire", "--keep-window", "1s"]).ok();
    assert_eq!(listed(&lab), ids[4..], "the last good one stays");
    lab.run(&["verify"]).ok();
    let last = Restored::start(&lab, "last", &["--latest"]);
    assert_eq!(rows(&last), points[4].rows + 1);
    last.check_and_stop();
    // And the next backup is compared with it and complete.
    let next = lab.backup();
    assert_eq!(next["compared_with"].as_str(), Some(&*ids[4]));
    lab.run(&["verify"]).ok();
    eprintln!("PostgreSQL {major}: {bytes} bytes became {after}; {:.1?}", began.elapsed());
}

#[test]
fn what_remains_restores_and_the_rest_is_gone_15() {
    what_remains_restores_and_the_rest_is_gone(15);
}

#[test]
fn what_remains_restores_and_the_rest_is_gone_18() {
    what_remains_restores_and_the_rest_is_gone(18);
}

/// Every moment of the window stays reachable, from its first one on.
#[test]
fn a_window_keeps_the_backup_that_its_first_moment_needs() {
    let lab = match Lab::start(ScratchServer::of(18).setting("autovacuum", "off")) {
        Ok(lab) => lab,
        Err(reason) => {
            return scratch::skip("a_window_keeps_the_backup_that_its_first_moment_needs", &reason);
        }
    };
    let (backups, points) = five(&lab);
    let ids: Vec<String> = backups.iter().map(id).collect();
    // The window begins between the third and the fourth backup's end.
    let stopped = |at: usize| {
        let shown = lab.run(&["show", &ids[at], "--json"]).ok().json();
        let sql = format!(
            "SELECT extract(epoch FROM timestamptz '{}')",
            shown["stopped_at"].as_str().expect("a time")
        );
        lab.server.value(&sql).parse::<f64>().expect("a number")
    };
    let begins = stopped(2) + 0.6 * (stopped(3) - stopped(2));
    let now: f64 = lab.server.value("SELECT extract(epoch FROM now())").parse().expect("a number");
    let window = format!("{}ms", ((now - begins) * 1000.0) as u64);
    let done = lab.run(&["expire", "--json", "--keep-window", &window]).ok().json();
    assert_eq!(listed(&lab), ids[2..], "window of {window}: {done}");
    lab.run(&["verify"]).ok();
    for (number, point) in points.iter().enumerate().skip(2) {
        let restored = Restored::start(&lab, &format!("p{number}"), &["--to-lsn", &point.lsn]);
        assert_eq!(rows(&restored), point.rows, "after backup {number}");
        restored.stop();
    }
}

/// What an expiry that keeps one backup says; the oldest is read.
#[track_caller]
fn expire_beside(lab: &Lab, reader: &str, oldest: &str) {
    let said = lab.run(&["expire", "--keep-backups", "1"]).ok().stdout;
    assert!(said.contains("it is being read") && said.contains(reader), "{reader}:\n{said}");
    assert!(listed(lab).contains(&oldest.to_owned()), "{reader}: {oldest} is gone");
}

fn notes(lab: &Lab) -> Vec<String> {
    lab.objects().into_iter().filter(|object| object.contains("/reading/2")).collect()
}

/// Starts a restore and waits until it says in the repository that it reads.
fn reading(lab: &Lab, into: &str, target: &[&str]) -> std::process::Child {
    let place = lab.repository.join("clusters/main/reading");
    let restore = lab.spawn(&[&["restore", "--into", into, "--jobs", "1"], target].concat());
    let until = Instant::now() + Duration::from_secs(60);
    // Looked for at short intervals: it is to be met in the middle. A temporary is no note yet.
    let is_note = |entry: std::fs::DirEntry| entry.file_name().as_encoded_bytes()[0] != b'.';
    while !std::fs::read_dir(&place).is_ok_and(|names| names.flatten().any(is_note)) {
        assert!(Instant::now() < until, "it does not say that it reads");
        std::thread::sleep(Duration::from_millis(1));
    }
    restore
}

/// A restore stands still in the middle, an expiry runs, the restore goes on, another expiry runs, and
/// only then the server recovers: all that it needs is there.
fn a_restore_and_its_recovery_keep_what_they_read(major: u32) {
    let test = "a_restore_and_its_recovery_keep_what_they_read";
    let lab = match Lab::start(ScratchServer::of(major).setting("autovacuum", "off")) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip(&format!("{test}_{major}"), &reason),
    };
    let (backups, points) = five(&lab);
    let ids: Vec<String> = backups.iter().map(id).collect();
    let directory = lab.place("slow");
    let into = directory.display().to_string();
    let mut restore = reading(&lab, &into, &["--to-lsn", &points[0].lsn]);
    signal(restore.id(), "-STOP");
    expire_beside(&lab, "a restore", &ids[0]);
    assert!(!directory.join("global/pg_control").exists(), "it was to stand still unfinished");
    signal(restore.id(), "-CONT");
    assert!(restore.wait().expect("it ends").success());
    expire_beside(&lab, "the recovery of a restored server", &ids[0]);
    assert_eq!(notes(&lab).len(), 1, "that of the recovery");

    let restored = Restored::of(&lab.server, &directory);
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    assert_eq!(rows(&restored), points[0].rows);
    restored.check_and_stop();
    assert_eq!(notes(&lab), Vec::<String>::new(), "the end of recovery removes it");
    lab.run(&["expire", "--keep-backups", "1"]).ok();
    assert_eq!(listed(&lab), ids[4..]);

    // One that is killed keeps nothing; one of root's leaves a note that the others can read.
    let mut killed = reading(&lab, &lab.place("killed").display().to_string(), &["--latest"]);
    signal(killed.id(), "-KILL");
    killed.wait().expect("it ends");
    lab.run(&["expire"]).ok();
    assert_eq!(notes(&lab), Vec::<String>::new(), "a note of a process that is gone");
    let mut command = std::process::Command::new(&lab.program);
    command.arg("--config").arg(&lab.config).args(["restore", "--into"]);
    let said = lifeboat_trials::lab::run(command.arg(lab.place("root")).arg("--latest")).ok();
    assert!(!said.stderr.contains("cannot note"), "{}", said.stderr);
    expire_beside(&lab, "the recovery of a restored server", &ids[4]);
    lab.backup();
    let wal = lab.run(&["verify"]).ok();
    assert!(!wal.stdout.contains("no object of lifeboat's"), "{}", wal.stdout);
}

#[test]
fn a_restore_and_its_recovery_keep_what_they_read_15() {
    a_restore_and_its_recovery_keep_what_they_read(15);
}

#[test]
fn a_restore_and_its_recovery_keep_what_they_read_18() {
    a_restore_and_its_recovery_keep_what_they_read(18);
}

/// A repository that this host may only read: the restore says what that means, and works.
#[test]
fn a_restore_that_cannot_leave_a_note_says_so_and_goes_on() {
    let test = "a_restore_that_cannot_leave_a_note_says_so_and_goes_on";
    let lab = match Lab::start(ScratchServer::of(18)) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip(test, &reason),
    };
    lab.backup();
    let place = lab.repository.join("clusters/main/reading");
    std::fs::write(&place, "in the way").expect("it can be written");
    let into = lab.place("without").display().to_string();
    let said = lab.run(&["restore", "--into", &into, "--latest"]).ok();
    assert!(said.stderr.contains("cannot note in the repository"), "{}", said.stderr);
    std::fs::remove_file(&place).expect("it can be removed");
    let restored = Restored::of(&lab.server, &lab.place("without"));
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    restored.check_and_stop();
}
