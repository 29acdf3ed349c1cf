//! Backups that go by the server's WAL summaries: when they may, what the sweep finds, and that
//! they come back as those do that read everything.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lifeboat_testkit::scratch::{self, ScratchBuilder, ScratchServer};
use lifeboat_trials::same::{assert_way, first_difference};
use lifeboat_trials::{Lab, Restored};
use serde_json::Value;

fn lab(test: &str, configure: impl Fn(ScratchBuilder) -> ScratchBuilder) -> Option<Lab> {
    match Lab::start(configure(ScratchServer::of(18).setting("autovacuum", "off"))) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

/// A backup whose sweep looks at nearly nothing.
#[track_caller]
fn backup(lab: &Lab, more: &[&str]) -> Value {
    let arguments =
        [&["backup", "--json", "--jobs", "2", "--sweep-share", "1/1000"], more].concat();
    lab.run(&arguments).ok().json()
}

fn because(backup: &Value) -> &str {
    backup["reading"]["because"].as_str().expect("a report says why")
}

fn fill(server: &ScratchServer, table: &str, rows: u32) {
    server.execute(&format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, filler text); INSERT INTO {table} \
         SELECT i, repeat(md5(i::text), 12) FROM generate_series(1, {rows}) i"
    ));
}

#[test]
fn summaries_count_only_while_they_are_whole() {
    let Some(lab) = lab("summaries_count_only_while_they_are_whole", |b| b) else { return };
    let server = &lab.server;
    fill(server, "kept", 20_000);
    assert_eq!(backup(&lab, &[])["reading"]["way"], "first");

    server.execute("UPDATE kept SET filler = 'once' WHERE id < 50; CHECKPOINT");
    let guided = backup(&lab, &[]);
    assert_way(&lab, "summaries", &guided, "hints");
    let read = |backup: &Value| backup["totals"]["read_bytes"].as_u64().unwrap_or_default();
    assert!(read(&guided) < 4 << 20, "{} bytes were read", read(&guided));
    assert_eq!(guided["reading"]["faulty_pages"], 0);
    let id = guided["id"].as_str().unwrap_or_default();
    let told = lab.run(&["show", id]).ok().stdout;
    assert!(told.contains("WAL summaries from"), "{told}");

    let full = backup(&lab, &["--full-read"]);
    assert_way(&lab, "--full-read", &full, "hashes");
    assert!(because(&full).contains("--full-read"), "{}", because(&full));
    // Everything that was not read is what it was.
    let new = full["totals"]["pages_new"].as_u64().unwrap_or(u64::MAX);
    assert!(new < 20, "{new} pages differ from those that were not read");

    // A gap: one of the files is gone.
    server.execute("UPDATE kept SET filler = 'twice' WHERE id = 60; CHECKPOINT");
    wait_for_summary(server);
    let mut files = summaries(server);
    files.sort();
    std::fs::remove_file(files.pop().expect("there are summaries")).expect("it can be removed");
    let gap = backup(&lab, &[]);
    assert_way(&lab, "a gap", &gap, "hashes");
    assert!(because(&gap).contains("missing from"), "{}", because(&gap));

    // A damaged one.
    server.execute("UPDATE kept SET filler = 'thrice' WHERE id = 70; CHECKPOINT");
    wait_for_summary(server);
    let mut files = summaries(server);
    files.sort();
    let last = File::options().write(true).open(files.pop().expect("there are summaries"));
    last.and_then(|file| file.write_all_at(&[0xff], 9)).expect("it can be damaged");
    let damaged = backup(&lab, &[]);
    assert_way(&lab, "a damaged summary", &damaged, "hashes");
    assert!(because(&damaged).contains("cannot be used"), "{}", because(&damaged));
    assert_way(&lab, "a whole one again", &backup(&lab, &[]), "hints");

    // Written with wal_level = minimal: the WAL does not tell.
    server.execute("ALTER SYSTEM SET summarize_wal = off");
    server.execute("ALTER SYSTEM SET wal_level = minimal");
    server.execute("ALTER SYSTEM SET archive_mode = off");
    server.execute("ALTER SYSTEM SET max_wal_senders = 0");
    server.restart();
    server.execute("BEGIN; TRUNCATE kept; INSERT INTO kept SELECT i, 'unlogged' FROM generate_series(1, 9000) i; COMMIT");
    for name in ["summarize_wal", "wal_level", "max_wal_senders"] {
        server.execute(&format!("ALTER SYSTEM RESET {name}"));
    }
    server.execute("ALTER SYSTEM SET archive_mode = on");
    server.restart();
    let minimal = backup(&lab, &[]);
    assert_way(&lab, "wal_level = minimal", &minimal, "hashes");
    let restored = Restored::start(&lab, "minimal", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM kept WHERE filler = 'unlogged'"), "9000");
    restored.check_and_stop();

    server.execute("ALTER SYSTEM SET summarize_wal = off");
    server.execute("SELECT pg_reload_conf()");
    let off = backup(&lab, &[]);
    assert_way(&lab, "off", &off, "hashes");
    assert!(because(&off).contains("off"), "{}", because(&off));
    let checked = lab.run(&["check"]).stdout;
    assert!(checked.contains("summarize_wal"), "{checked}");
}

fn summaries(server: &ScratchServer) -> Vec<PathBuf> {
    let place = server.data_directory().join("pg_wal/summaries");
    let entries = std::fs::read_dir(place).expect("there are summaries").flatten();
    entries.map(|entry| entry.path()).collect()
}

fn wait_for_summary(server: &ScratchServer) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let there = "SELECT summarized_lsn >= (SELECT redo_lsn FROM pg_control_checkpoint()) \
                 FROM pg_get_wal_summarizer_state()";
    while server.value(there) != "t" {
        assert!(std::time::Instant::now() < until, "the summarizer does not get there");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn the_sweep_names_a_page_that_was_lost_unseen() {
    let Some(lab) = lab("the_sweep_names_a_page_that_was_lost_unseen", |b| b) else { return };
    let server = &lab.server;
    fill(server, "kept", 9_000);
    backup(&lab, &[]);
    let path = server.value("SELECT pg_relation_filepath('kept')");
    server.stop();
    let file = File::options().write(true).open(server.data_directory().join(&path));
    let zeros = file.and_then(|file| file.write_all_at(&[0; 8192], 7 << 13));
    zeros.expect("a page can be lost");
    server.start();
    // Not due, and nobody says that it changed.
    let unread = backup(&lab, &[]);
    assert_way(&lab, "not due", &unread, "hints");
    let ran = lab.run(&["backup", "--json", "--sweep-share", "1"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let found = ran.json();
    assert_eq!(found["reading"]["way"], "hashes", "nothing else is trusted");
    assert_eq!(found["reading"]["faulty_pages"], 1, "{}", found["reading"]);
    assert_eq!(found["reading"]["faults"][0]["path"], *path);
    assert_eq!(found["reading"]["faults"][0]["page"], 7);
    let listed = lab.run(&["list"]).ok().stdout;
    assert!(listed.contains("1 page changed unseen"), "{listed}");
    let id = found["id"].as_str().unwrap_or_default();
    let shown = lab.run(&["show", id]).ok().stdout;
    assert!(shown.contains(&format!("{path} page 7")), "{shown}");
    // It is named until something else is in its place, whichever way the backup is taken.
    for from in ["local", "remote"] {
        let again = lab.run(&["backup", "--json", "--from", from]);
        assert_eq!(again.code, Some(3), "{from}: {again:?}");
        let again = again.json();
        assert_way(&lab, "after a fault", &again, "hashes");
        let faults = again["reading"]["faults"].as_array().expect("it lists them");
        assert_eq!((faults.len(), &faults[0]["page"]), (1, &7.into()), "{from}: {again}");
    }
    // The last backup that has the page is kept for it, and a plan says what the others lack.
    lab.run(&["expire", "--keep-backups", "1"]).ok();
    let listed = lab.run(&["list", "--json"]).ok().json();
    let mut ids = listed["backups"].as_array().expect("backups").iter().map(|b| &b["id"]);
    assert!(ids.any(|id| *id == unread["id"]), "{listed}");
    let into = lab.place("never").display().to_string();
    let plan = lab.run(&["restore", "--into", &into, "--dry-run"]).ok().stdout;
    assert!(plan.contains("although nothing in the WAL says so: 1;"), "{plan}");
    server.execute("VACUUM FULL kept");
    assert_way(&lab, "mended", &backup(&lab, &[]), "hashes");
    assert_way(&lab, "trusted again", &backup(&lab, &[]), "hints");
    lab.run(&["verify"]).ok();
}

#[test]
fn a_page_that_was_lost_in_a_table_that_was_cut_is_named() {
    let test = "a_page_that_was_lost_in_a_table_that_was_cut_is_named";
    let Some(lab) = lab(test, |b| b) else { return };
    let server = &lab.server;
    fill(server, "kept", 9_000);
    server.execute("DELETE FROM kept WHERE id > 6000");
    backup(&lab, &[]);
    let path = server.value("SELECT pg_relation_filepath('kept')");
    let size = || -> u64 {
        server.value("SELECT pg_relation_size('kept')").parse().expect("it is a number")
    };
    let before = size();
    server.execute("VACUUM (FREEZE) kept");
    server.execute("CHECKPOINT");
    assert!(size() < before, "nothing was cut: {before}");
    backup(&lab, &[]);
    // Cut once more, and one of its pages is lost.
    server.execute("DELETE FROM kept WHERE id > 3000");
    server.execute("VACUUM (FREEZE) kept");
    server.stop();
    let file = File::options().write(true).open(server.data_directory().join(&path));
    let zeros = file.and_then(|file| file.write_all_at(&[0; 8192], 7 << 13));
    zeros.expect("a page can be lost");
    server.start();
    let ran = lab.run(&["backup", "--json"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let found = ran.json();
    assert_eq!(found["reading"]["faulty_pages"], 1, "{}", found["reading"]);
    assert_eq!(found["reading"]["faults"][0]["path"], *path);
    assert_eq!(found["reading"]["faults"][0]["page"], 7);
}

#[test]
fn hint_bits_that_no_wal_tells_of_are_no_fault() {
    let test = "hint_bits_that_no_wal_tells_of_are_no_fault";
    let Some(lab) = lab(test, |b| b.checksums(false)) else { return };
    let server = &lab.server;
    fill(server, "kept", 9_000);
    server.execute("CHECKPOINT");
    backup(&lab, &[]);
    // Reading sets hint bits in every page, and nothing is logged.
    assert_eq!(server.value("SELECT count(*) FROM kept"), "9000");
    server.execute("CHECKPOINT");
    let swept = lab.run(&["backup", "--json", "--sweep-share", "1"]).ok().json();
    let reading = &swept["reading"];
    assert_eq!((&reading["way"], &reading["faulty_pages"]), (&"hints".into(), &0.into()));
    let hinted = reading["hint_only_pages"].as_u64().unwrap_or_default();
    assert!(hinted > 100, "{hinted} pages have other hint bits: {reading}");
    assert!(swept["totals"]["pages_new"].as_u64() >= Some(hinted));
    let restored = Restored::start(&lab, "hinted", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM kept"), "9000");
    restored.check_and_stop();
}

/// Numbers that look drawn, from a seed that is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// One thing that a busy server does.
fn act(server: &ScratchServer, random: &mut Random, number: u64) {
    let table = format!("t{}", random.below(4));
    match random.below(12) {
        0 => server.execute(&format!("TRUNCATE {table}")),
        1 => server.execute(&format!("VACUUM FULL {table}")),
        2 => server.execute(&format!("DELETE FROM {table} WHERE id % 3 = 1; ")),
        3 => server.execute(&format!("VACUUM {table}")),
        4 => server.execute(&format!("CREATE INDEX ON {table} (filler)")),
        5 => server.execute(&format!("REINDEX TABLE {table}")),
        6 => {
            server.execute(&format!("CREATE DATABASE d{number} STRATEGY FILE_COPY"));
            if random.below(2) == 0 {
                server.execute(&format!("DROP DATABASE d{number}"));
            }
        }
        7 => {
            server.execute(&format!(
                "UPDATE {table} SET filler = filler || 'x' WHERE id % 20 = {}",
                random.below(20)
            ));
        }
        8 => server.execute("CHECKPOINT"),
        9 => {
            server.kill_9();
            server.start();
        }
        10 => server.execute(&format!("CREATE TABLE n{number} AS SELECT * FROM {table}")),
        _ => server.execute(&format!(
            "INSERT INTO {table} SELECT coalesce(max(id), 0) + i, repeat(md5(i::text), 9) \
             FROM {table}, generate_series(1, 2000) i GROUP BY i"
        )),
    }
}

#[test]
fn after_whatever_a_server_did_a_guided_backup_is_as_good_as_one_that_read_everything() {
    let test = "after_whatever_a_server_did";
    let Some(lab) = lab(test, |b| b.setting("max_wal_size", "64MB")) else { return };
    let server = &lab.server;
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(1, |now| now.as_nanos() as u64);
    let seed = std::env::var("LIFEBOAT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    (0..4).for_each(|n| fill(server, &format!("t{n}"), 3_000));
    backup(&lab, &[]);
    let mut last = Value::Null;
    for round in 0..6 {
        for n in 0..1 + random.below(6) {
            act(server, &mut random, round * 10 + n);
        }
        last = backup(&lab, &[]);
        assert_eq!(last["reading"]["way"], "hints", "seed {seed}: {}", last["reading"]);
        assert_eq!(last["damaged_pages"], 0, "seed {seed}");
    }
    // Nobody wrote since: what reading everything finds, the summaries had told.
    let full = lab.run(&["backup", "--json", "--full-read"]).ok().json();
    let new = full["totals"]["pages_new"].as_u64().unwrap_or(u64::MAX);
    assert!(new < 40, "seed {seed}: {new} pages differ from those that were not read");
    lab.archive_all();
    let original = lifeboat_trials::restored::dump(server, &server.socket_directory());
    std::thread::scope(|scope| {
        for (name, backup) in [("guided", &last), ("full", &full)] {
            let (lab, original) = (&lab, &original);
            scope.spawn(move || {
                let id = backup["id"].as_str().expect("a report has an id");
                let restored = Restored::start(lab, name, &["--to-backup", id]);
                let copy = restored.dump();
                assert!(copy == *original, "seed {seed}: {}", first_difference(original, &copy));
                restored.check_and_stop();
            });
        }
    });
    lab.run(&["verify"]).ok();
}
