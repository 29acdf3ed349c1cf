//! Restoring while the old primary still archives to the same repository, in the background: a
//! copy, a successor and the old primary do not mix, and a server that wrote other WAL under the
//! same names is refused, with all that follows.

use std::collections::BTreeSet;
use std::fs;

use lifeboat_trials::refusal::{Memory, until};
use lifeboat_trials::standby::Standby;
use lifeboat_trials::watched::{builder, watched};
use lifeboat_trials::writers::Writers;
use lifeboat_trials::{Lab, Restored};

fn on_timeline(lab: &Lab, timeline: u32) -> BTreeSet<String> {
    let prefix = format!("{timeline:08X}");
    let names = lab.objects().into_iter().filter_map(|object| {
        let name = object.rsplit('/').next()?.to_owned();
        name.starts_with(&prefix).then_some(name)
    });
    names.collect()
}

fn rows(restored: &Restored<'_>) -> String {
    restored.value("SELECT string_agg(what, ' ' ORDER BY what) FROM t")
}

#[test]
fn a_copy_a_successor_and_an_old_primary_that_archives_on_do_not_mix() {
    let test = "a_copy_a_successor_and_an_old_primary_that_archives_on_do_not_mix";
    let Some(watched) = watched(test, builder(18)) else { return };
    let (lab, server) = (&watched.lab, &watched.lab.server);
    server.execute("CREATE TABLE t (what text); INSERT INTO t VALUES ('a')");
    lab.backup();
    // It will be promoted, and begin a timeline 2 of its own.
    let rival = Standby::start(lab, "rival");
    let writers = Writers::start(server, 2);
    lab.archive_all();

    // A copy, while the primary writes and archives.
    let copy = Restored::start(lab, "copy", &["--latest"]);
    copy.query("INSERT INTO t VALUES ('copy')");
    copy.query("SELECT pg_logical_emit_message(false, 'trial', 'x'); SELECT pg_switch_wal()");
    copy.query("CHECKPOINT");
    lab.archive_all();
    copy.check_and_stop();
    drop(copy);
    assert_eq!(on_timeline(lab, 2), BTreeSet::new(), "the copy archived");

    // A successor, while the old primary writes and archives on.
    let never = lab.place("never").display().to_string();
    let plan = lab.run(&["restore", "--into", &never, "--take-over", "--dry-run"]).ok().stdout;
    assert!(plan.contains("still runs: stop it before its successor starts"), "{plan}");
    let successor = Restored::start(lab, "successor", &["--take-over", "--latest"]);
    server.execute("INSERT INTO t VALUES ('old')");
    successor.query("INSERT INTO t VALUES ('new')");
    let finish = |successor: &Restored<'_>| {
        successor.query("SELECT pg_logical_emit_message(false, 'trial', 'x')");
        let name = successor.value("SELECT pg_walfile_name(pg_switch_wal())");
        until("the successor archives", || on_timeline(lab, 2).contains(&name));
    };
    finish(&successor);
    lab.archive_all();
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    assert_eq!(server.value(failed), "0", "the old primary was disturbed");
    assert_eq!(successor.value(failed), "0", "the successor was disturbed");

    // The rival begins another timeline 2, and has many segments that the successor has not yet.
    rival.catch_up();
    let memory = Memory::of(lab);
    let before = on_timeline(lab, 2);
    rival.promote();
    rival.query("INSERT INTO t VALUES ('rival')");
    for _ in 0..20 {
        rival.query("SELECT pg_logical_emit_message(false, 'trial', 'x'); SELECT pg_switch_wal()");
    }
    until("the rival is refused", || {
        rival.query("SELECT failed_count > 1 FROM pg_stat_archiver") == ["t"]
    });
    let refused = rival.query("SELECT last_failed_wal FROM pg_stat_archiver");
    assert_eq!(refused, ["00000002.history"]);
    let log = fs::read_to_string(rival.directory.with_extension("log")).expect("it has a log");
    assert!(log.contains("already archived with different content"), "{log}");
    memory.objects_hold(lab, "the rival archived");
    assert_eq!(on_timeline(lab, 2), before, "the rival's segments got into the archive");

    // The successor goes on where the rival would have been in its way.
    for _ in 0..25 {
        finish(&successor);
    }
    successor.query("INSERT INTO t VALUES ('newer')");
    finish(&successor);
    assert_eq!(successor.value(failed), "0", "the rival is in the successor's way");
    writers.stop();
    server.execute("INSERT INTO t VALUES ('older')");
    lab.archive_all();
    watched.all_is_there();
    successor.stop();
    let latest = Restored::start(lab, "latest", &["--latest"]);
    assert_eq!(rows(&latest), "a new newer");
    latest.check_and_stop();
    let old = Restored::start(lab, "old", &["--timeline", "1"]);
    assert_eq!(rows(&old), "a old older");
    old.check_and_stop();
    lab.run(&["verify"]).ok();
}
