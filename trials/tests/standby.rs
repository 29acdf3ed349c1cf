//! Backups from a standby.

use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::standby::Standby;
use lifeboat_trials::writers::Writers;
use lifeboat_trials::{Lab, Restored};
use serde_json::Value;

fn lab(test: &str, major: u32) -> Option<Lab> {
    match Lab::start(ScratchServer::of(major).setting("max_wal_senders", "4")) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

/// Enough that a backup takes a moment.
fn fill(lab: &Lab) {
    lab.server.execute(
        "CREATE TABLE kept (id int PRIMARY KEY, filler text); \
         INSERT INTO kept SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i",
    );
}

fn listed(lab: &Lab) -> usize {
    let backups = lab.run(&["list", "--json"]).ok().json();
    backups["backups"].as_array().expect("a list of backups").len()
}

fn standby_backup(standby: &Standby<'_>, words: &[&str]) -> Value {
    let mut arguments = vec!["backup", "--json", "--jobs", "2"];
    arguments.extend_from_slice(words);
    standby.run(&arguments).ok().json()
}

/// The backup alone, and with all WAL after it: sound, and the primary's rows.
#[track_caller]
fn comes_back(lab: &Lab, backup: &Value) {
    let id = backup["id"].as_str().expect("a report has an id");
    let alone = Restored::start(lab, "alone", &["--to-backup", id]);
    alone.check_and_stop();
    drop(alone);
    lab.archive_all();
    let latest = Restored::start(lab, "latest", &["--latest"]);
    let original = lifeboat_trials::restored::dump(&lab.server, &lab.server.socket_directory());
    assert!(latest.dump() == original, "the dump of {id} differs");
    latest.check_and_stop();
}

fn backups_of_both_follow_each_other(major: u32) {
    let Some(lab) = lab("backups_of_both_follow_each_other", major) else { return };
    fill(&lab);
    let first = lab.backup();
    let standby = Standby::start(&lab, "standby");
    let writers = Writers::start(&lab.server, 2);
    let loaded = standby_backup(&standby, &["--from", "standby"]);
    assert_eq!(loaded["compared_with"], first["id"]);
    writers.stop();
    comes_back(&lab, &loaded);
    // Nobody writes now: without a switch on the primary the last segment would not arrive.
    standby.catch_up();
    let began = Instant::now();
    let quiet = standby_backup(&standby, &[]);
    assert!(began.elapsed() < Duration::from_secs(30), "a quiet primary switches");
    assert_eq!(quiet["compared_with"], loaded["id"]);
    let after = lab.backup();
    assert_eq!(after["compared_with"], quiet["id"]);
    for (name, report) in [("under load", &loaded), ("quiet", &quiet), ("primary", &after)] {
        let totals = &report["totals"];
        let (new, all) = (totals["pages_new"].as_u64().unwrap(), totals["pages"].as_u64().unwrap());
        eprintln!("PostgreSQL {major}: {name}: {new} of {all} pages new");
        assert!(new * 2 < all, "{name}: {new} of {all} pages are new");
    }
    comes_back(&lab, &after);
}

#[test]
fn backups_of_both_follow_each_other_15() {
    backups_of_both_follow_each_other(15);
}

#[test]
fn backups_of_both_follow_each_other_18() {
    backups_of_both_follow_each_other(18);
}

/// The segment after a backup that ends where a segment does; `None` for one that ends elsewhere.
fn segment_after(lab: &Lab, backup: &Value) -> Option<String> {
    let id = backup["id"].as_str().expect("a report has an id");
    let shown = lab.run(&["show", id, "--json"]).ok().json();
    let stop = shown["stop_lsn"].as_str().expect("where it ends");
    let remainder = format!("SELECT ('{stop}'::pg_lsn - '0/0'::pg_lsn) % (16 << 20)");
    let next = || lab.server.value(&format!("SELECT pg_walfile_name('{stop}'::pg_lsn + 1)"));
    (lab.server.value(&remainder) == "0").then(next)
}

/// What the standby replayed last is the end of a segment, and nothing that follows it is archived
/// yet. A server that is told to recover to consistency wants to see the record after that.
fn a_backup_that_ends_where_a_segment_does_restores_by_itself(major: u32) {
    let test = "a_backup_that_ends_where_a_segment_does_restores_by_itself";
    let Some(lab) = lab(test, major) else { return };
    fill(&lab);
    let standby = Standby::start(&lab, "standby");
    standby.catch_up();
    // The server writes a little by itself now and then, in between too.
    let mut backups = (0..10).map(|_| {
        lab.server.execute("CHECKPOINT");
        lab.archive_all();
        standby.catch_up();
        standby_backup(&standby, &[])
    });
    let found = backups.find_map(|backup| Some((segment_after(&lab, &backup)?, backup)));
    let (next, backup) = found.expect("a backup of a quiet standby ends where a segment does");
    // All is archived, and then it is as if what follows were not: nothing arrives meanwhile.
    lab.archive_all();
    for object in lab.objects() {
        let name = object.rsplit('/').next().unwrap_or_default();
        if object.contains("/wal/") && name.len() == 24 && name >= next.as_str() {
            std::fs::remove_file(lab.repository.join(&object)).expect("it can be removed");
        }
    }
    let id = backup["id"].as_str().expect("a report has an id");
    let alone = Restored::start(&lab, "alone", &["--to-backup", id]);
    assert_eq!(alone.value("SELECT count(*) FROM kept"), "20000");
    alone.check_and_stop();
}

#[test]
fn a_backup_that_ends_where_a_segment_does_restores_by_itself_15() {
    a_backup_that_ends_where_a_segment_does_restores_by_itself(15);
}

#[test]
fn a_backup_that_ends_where_a_segment_does_restores_by_itself_18() {
    a_backup_that_ends_where_a_segment_does_restores_by_itself(18);
}

#[test]
fn a_promotion_or_a_crash_in_the_middle_lists_nothing() {
    let Some(lab) = lab("a_promotion_or_a_crash_in_the_middle_lists_nothing", 18) else { return };
    fill(&lab);
    let standby = Standby::start(&lab, "standby");
    standby.catch_up();
    standby.interrupted_backup(|| standby.crash()).fails(20, "was lost");
    assert_eq!(listed(&lab), 0);
    standby.start_again();
    standby_backup(&standby, &[]);
    assert_eq!(listed(&lab), 1);
    lab.server.execute("UPDATE kept SET filler = repeat(md5(filler), 20)");
    standby.catch_up();
    standby.interrupted_backup(|| standby.promote()).fails(1, "[LB-PG-040]");
    assert_eq!(listed(&lab), 1);
}

#[test]
fn a_standby_that_is_behind_is_waited_for() {
    let Some(lab) = lab("a_standby_that_is_behind_is_waited_for", 18) else { return };
    let standby = Standby::start(&lab, "standby");
    standby.query("SELECT pg_wal_replay_pause()");
    lab.server.execute("CREATE TABLE later AS SELECT generate_series(1, 1000) i");
    let impatient = ["--set", "backup.archive-timeout=2s", "backup"];
    let refused = standby.run(&impatient).fails(1, "[LB-PG-041]");
    assert!(refused.stderr.contains("its replay is paused"), "{}", refused.stderr);
    assert_eq!(listed(&lab), 0);
    let waiting = standby.command(&["backup", "--quiet"]).spawn().expect("the program starts");
    standby.query("SELECT pg_wal_replay_resume()");
    let ended = waiting.wait_with_output().expect("the program ends");
    assert!(ended.status.success());
    assert_eq!(listed(&lab), 1);
}

#[test]
fn without_the_primary_a_backup_waits_for_what_it_does_by_itself() {
    let test = "without_the_primary_a_backup_waits_for_what_it_does_by_itself";
    let Some(lab) = lab(test, 18) else { return };
    let standby = Standby::start(&lab, "standby");
    lab.archive_all();
    standby.catch_up();
    let nowhere = "postgres.primary=host=/nowhere user=postgres";
    let impatient = ["--set", nowhere, "--set", "backup.archive-timeout=2s", "backup"];
    let refused = standby.run(&impatient).fails(1, "[LB-BAK-002]");
    assert!(refused.stderr.contains("SELECT pg_switch_wal()"), "{}", refused.stderr);
    assert!(refused.stderr.contains("/nowhere"), "{}", refused.stderr);
    assert_eq!(listed(&lab), 0);
    let mut waiting =
        standby.command(&["--set", nowhere, "backup", "--quiet"]).spawn().expect("it starts");
    let began = Instant::now();
    while waiting.try_wait().expect("its state can be asked").is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "it waits for ever");
        lab.archive_all();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(listed(&lab), 1);
}

#[test]
fn another_servers_primary_is_refused() {
    let Some(lab) = lab("another_servers_primary_is_refused", 18) else { return };
    let standby = Standby::start(&lab, "standby");
    let Ok(other) = ScratchServer::of(18).start() else { return };
    let primary = format!("postgres.primary={}", other.conninfo());
    standby.run(&["--set", &primary, "backup"]).fails(1, "[LB-PG-042]");
    // Which of the two is asked for is told among several hosts.
    let both = format!(
        "postgres.conninfo=host={},{} port=5432,5432 user=postgres dbname=postgres",
        lab.server.socket_directory().display(),
        lab.place("").parent().unwrap().join("s-standby").display()
    );
    let chosen = standby.run(&["--set", &both, "backup", "--from", "standby"]).ok();
    assert!(chosen.stdout.contains("the server is a standby"), "{}", chosen.stdout);
    assert!(!chosen.stderr.contains("warning"), "{}", chosen.stderr);
    let chosen = standby.run(&["--set", &both, "backup", "--from", "local"]).ok();
    assert!(!chosen.stdout.contains("the server is a standby"), "{}", chosen.stdout);
    standby.run(&["backup", "--from", "local"]).fails(20, "[LB-PG-036]");
    lab.run(&["backup", "--from", "standby"]).fails(20, "[LB-PG-036]");
    let checked = standby.run(&["check", "--json"]).json();
    let points = checked["points"].as_array().expect("points");
    let state = |name: &str| {
        let point = points.iter().find(|p| p["name"] == name);
        point.map(|p| p["state"].as_str().unwrap_or("").to_owned())
    };
    assert_eq!(state("standby").as_deref(), Some("good"), "{points:?}");
    assert_eq!(state("WAL arrives").as_deref(), Some("good"), "{points:?}");
}
