//! Backups that a standby sends, and servers that restart or are promoted meanwhile.

use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::same::assert_same_files;
use lifeboat_trials::standby::{SENDING, SLOW_REMOTE_BACKUP, Standby, held};
use lifeboat_trials::writers::Writers;
use lifeboat_trials::{Lab, Restored};
use serde_json::Value;

fn lab(test: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major).setting("autovacuum", "off");
    match Lab::start(builder.setting("max_wal_senders", "6")) {
        Ok(lab) => {
            lab.server.execute(
                "CREATE TABLE kept (id int PRIMARY KEY, filler text); INSERT INTO kept \
                 SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i",
            );
            Some(lab)
        }
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

fn listed(lab: &Lab) -> usize {
    let backups = lab.run(&["list", "--json"]).ok().json();
    backups["backups"].as_array().expect("a list of backups").len()
}

#[track_caller]
fn remote(standby: &Standby<'_>) -> Value {
    standby.run(&["backup", "--json", "--jobs", "2", "--from", "remote"]).ok().json()
}

/// A restart point beyond the start of the backup before: without one a standby has nothing to
/// relate differences to.
#[track_caller]
fn checkpoint(lab: &Lab, standby: &Standby<'_>) {
    lab.server.execute("CHECKPOINT");
    standby.catch_up();
    standby.query("CHECKPOINT");
}

/// The backup alone, and with all WAL after it: sound, and the primary's rows.
#[track_caller]
fn comes_back(lab: &Lab, backup: &Value) {
    let id = backup["id"].as_str().expect("a report has an id");
    // A backup that ends exactly where a segment does needs the next one too.
    lab.archive_all();
    let alone = Restored::start(lab, "alone", &["--to-backup", id]);
    alone.check_and_stop();
    drop(alone);
    let latest = Restored::start(lab, "latest", &["--latest"]);
    let original = lifeboat_trials::restored::dump(&lab.server, &lab.server.socket_directory());
    assert!(latest.dump() == original, "the dump of {id} differs");
    latest.check_and_stop();
}

/// Under load and on a quiet primary, which is asked to finish its segments; whole, and on 17 and
/// later only what changed.
fn a_standby_sends_backups_as_its_primary_does(major: u32) {
    let Some(lab) = lab("a_standby_sends_backups_as_its_primary_does", major) else { return };
    let standby = Standby::start(&lab, "standby");
    let writers = Writers::start(&lab.server, 2);
    let first = remote(&standby);
    writers.stop();
    assert!(first["compared_with"].is_null(), "{first}");
    comes_back(&lab, &first);
    lab.server.execute("UPDATE kept SET filler = 'later' WHERE id % 100 = 0");
    checkpoint(&lab, &standby);
    // Nobody writes now: without a switch on the primary the last segment would not arrive.
    let began = Instant::now();
    let quiet = remote(&standby);
    assert!(began.elapsed() < Duration::from_secs(30), "a quiet primary switches");
    assert_eq!(quiet["compared_with"], first["id"]);
    let way = if major >= 17 { "hints" } else { "hashes" };
    assert_eq!(quiet["reading"]["way"], way, "{}", quiet["reading"]);
    let totals = &quiet["totals"];
    let (new, all) = (totals["pages_new"].as_u64().unwrap(), totals["pages"].as_u64().unwrap());
    assert!(0 < new && new < all, "{new} of {all} pages are new");
    comes_back(&lab, &quiet);
    // Those of the primary follow, sent or read. Hint bits differ between the two servers, and no
    // WAL tells of them: what counts is what the rows are.
    for from in ["remote", "local"] {
        let next = lab.run(&["backup", "--json", "--from", from]).ok().json();
        assert!(next["compared_with"].is_string(), "{next}");
        comes_back(&lab, &next);
    }
}

#[test]
fn a_standby_sends_backups_as_its_primary_does_15() {
    a_standby_sends_backups_as_its_primary_does(15);
}

#[test]
fn a_standby_sends_backups_as_its_primary_does_18() {
    a_standby_sends_backups_as_its_primary_does(18);
}

/// A little is written while the standby sends, and then nothing: the segment in which the backup
/// ends would not be finished for hours.
#[test]
fn the_primary_is_asked_to_finish_the_segment_in_which_a_backup_ends() {
    let test = "the_primary_is_asked_to_finish_the_segment_in_which_a_backup_ends";
    let Some(lab) = lab(test, 18) else { return };
    let standby = Standby::start(&lab, "standby");
    standby.catch_up();
    let sent = standby.interrupted_remote_backup(|| {
        lab.server.execute("CREATE TABLE little AS SELECT generate_series(1, 100) i");
        checkpoint(&lab, &standby);
    });
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let backups = lab.run(&["list", "--json"]).ok().json();
    comes_back(&lab, &backups["backups"][0]);
}

#[test]
fn a_standby_that_is_behind_sends_no_backup() {
    let Some(lab) = lab("a_standby_that_is_behind_sends_no_backup", 18) else { return };
    let standby = Standby::start(&lab, "standby");
    standby.query("SELECT pg_wal_replay_pause()");
    lab.server.execute("CREATE TABLE later AS SELECT generate_series(1, 1000) i");
    let impatient = ["--set", "backup.archive-timeout=2s", "backup", "--from", "remote"];
    standby.run(&impatient).fails(1, "[LB-PG-041]");
    assert_eq!(listed(&lab), 0);
    // Without its primary it says what it waits for.
    standby.query("SELECT pg_wal_replay_resume()");
    lab.archive_all();
    standby.catch_up();
    let nowhere = ["--set", "postgres.primary=host=/nowhere user=postgres"];
    let refused = standby.run(&[&nowhere[..], &impatient].concat()).fails(1, "[LB-BAK-002]");
    assert!(refused.stderr.contains("/nowhere"), "{}", refused.stderr);
    assert_eq!(listed(&lab), 0);
}

fn a_promotion_or_a_restart_in_the_middle_lists_nothing(major: u32) {
    let test = "a_promotion_or_a_restart_in_the_middle_lists_nothing";
    let Some(lab) = lab(test, major) else { return };
    remote(&Standby::start(&lab, "once"));
    let before = listed(&lab);
    let command = || lab.command(SLOW_REMOTE_BACKUP);
    let sending = || lab.server.value(SENDING) == "1";
    let restarted = held(command(), sending, || lab.server.restart());
    restarted.fails(1, "the server stopped sending the backup");
    let killed = held(command(), sending, || {
        lab.server.kill_9();
        lab.server.start();
    });
    killed.fails(1, "the server stopped sending the backup");
    assert_eq!(listed(&lab), before);
    let standby = Standby::start(&lab, "standby");
    standby.catch_up();
    let promoted = standby.interrupted_remote_backup(|| standby.promote());
    let promoted = promoted.fails(1, "the server stopped sending the backup");
    assert!(promoted.stderr.contains("promoted"), "{}", promoted.stderr);
    assert_eq!(listed(&lab), before);
    // Each of them can be backed up again at once.
    let next = lab.run(&["backup", "--json", "--from", "remote"]).ok().json();
    assert_same_files(&lab, "after the restarts", next["id"].as_str().unwrap_or_default());
}

#[test]
fn a_promotion_or_a_restart_in_the_middle_lists_nothing_15() {
    a_promotion_or_a_restart_in_the_middle_lists_nothing(15);
}

#[test]
fn a_promotion_or_a_restart_in_the_middle_lists_nothing_18() {
    a_promotion_or_a_restart_in_the_middle_lists_nothing(18);
}
