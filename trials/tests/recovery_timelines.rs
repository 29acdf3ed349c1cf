//! A successor archives on along a new timeline, backups go on, and every timeline can be restored;
//! a plain copy leaves the repository alone.

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::{Memory, lab, until};
use lifeboat_trials::{Lab, Restored};

fn insert(lab: &Lab, what: &str) {
    lab.server.execute(&format!("INSERT INTO t VALUES ('{what}')"));
}

#[track_caller]
fn insert_into(restored: &Restored<'_>, what: &str) {
    restored.value(&format!("INSERT INTO t VALUES ('{what}') RETURNING 1"));
}

#[track_caller]
fn rows(restored: &Restored<'_>) -> String {
    restored.value("SELECT string_agg(what, ' ' ORDER BY what) FROM t")
}

/// Switches a segment of a successor and waits until it is in the repository.
fn archive_all(lab: &Lab, successor: &Restored<'_>) {
    successor.value("SELECT pg_logical_emit_message(false, 'trial', 'switch')");
    let name = successor.value("SELECT pg_walfile_name(pg_switch_wal())");
    until("the successor archives", || lab.objects().iter().any(|object| object.ends_with(&name)));
}

/// Restores and compares the rows, and that it took this timeline and began one of its own.
#[track_caller]
fn restores(lab: &Lab, target: &[&str], expected: &str, timeline: u32) {
    let into = lab.place("look").display().to_string();
    let mut arguments = vec!["restore", "--json", "--dry-run", "--into", &into];
    arguments.extend_from_slice(target);
    let plan = lab.run(&arguments).ok().json();
    let last = plan["plan"]["timelines"].as_array().and_then(|all| all.last().cloned());
    let last = last.map(|last| last.to_string().trim_matches('"').to_owned());
    assert_eq!(last, Some(timeline.to_string()), "{target:?}: {plan}");
    let restored = Restored::start(lab, "look", target);
    assert_eq!(rows(&restored), expected, "{target:?}");
    restored.check_and_stop();
}

fn timelines(major: u32) {
    let name = format!("timelines_{major}");
    let Some(lab) = lab(&name, ScratchServer::of(major)) else { return };
    lab.server.execute("CREATE TABLE t (what text)");
    insert(&lab, "a");
    lab.backup();
    insert(&lab, "b");
    let fork = lab.server.value("SELECT pg_current_wal_insert_lsn()");
    insert(&lab, "old");
    lab.archive_all();
    lab.archive_nowhere(); // from now on the successor is the cluster

    let memory = Memory::of(&lab);
    let copy = Restored::start(&lab, "copy", &["--latest"]);
    insert_into(&copy, "copy");
    assert_eq!(copy.value("SHOW archive_mode"), "off");
    copy.value("SELECT pg_walfile_name(pg_switch_wal())");
    copy.query("CHECKPOINT");
    copy.stop();
    memory.nothing_changed(&lab, "a plain copy wrote on");
    drop(copy);

    let second = Restored::start(&lab, "second", &["--take-over", "--to-lsn", &fork]);
    assert_eq!(rows(&second), "a b");
    insert_into(&second, "two");
    archive_all(&lab, &second);
    memory.nothing_lost(&lab, "the successor archived");
    restores(&lab, &["--latest"], "a b two", 2);
    restores(&lab, &["--timeline", "current"], "a b old", 1);
    restores(&lab, &["--timeline", "1"], "a b old", 1);
    let conninfo = format!("postgres.conninfo={}", second.conninfo());
    lab.run(&["--set", &conninfo, "backup"]).ok();
    insert_into(&second, "two-later");
    archive_all(&lab, &second);
    second.stop();
    restores(&lab, &["--latest"], "a b two two-later", 2);
    restores(&lab, &["--timeline", "current"], "a b two two-later", 2);

    // Again from the first fork, although a second timeline is there: a sibling of it.
    let third =
        Restored::start(&lab, "third", &["--take-over", "--timeline", "1", "--to-lsn", &fork]);
    assert_eq!(rows(&third), "a b");
    insert_into(&third, "three");
    archive_all(&lab, &third);
    third.stop();
    memory.objects_hold(&lab, "two successors archived");
    let objects = lab.objects();
    for history in ["00000002.history", "00000003.history"] {
        assert!(objects.iter().any(|name| name.ends_with(history)), "{history} is not archived");
    }
    restores(&lab, &["--latest"], "a b three", 3);
    restores(&lab, &["--timeline", "2"], "a b two two-later", 2);
    restores(&lab, &["--timeline", "1"], "a b old", 1);
    lab.run(&["verify"]).ok();
}

#[test]
fn every_timeline_can_be_restored_15() {
    timelines(15);
}

#[test]
fn every_timeline_can_be_restored_18() {
    timelines(18);
}
