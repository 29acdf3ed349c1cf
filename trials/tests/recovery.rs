//! What PostgreSQL makes of `wal get` while it recovers: it never promotes on less than there is,
//! and goes on where it was as soon as the repository is back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::{lab, until};
use lifeboat_trials::{Lab, Restored};

fn insert(lab: &Lab, what: &str) {
    lab.server.execute(&format!("INSERT INTO t VALUES ('{what}')"));
}

#[track_caller]
fn rows(restored: &Restored<'_>) -> String {
    restored.value("SELECT string_agg(what, ' ' ORDER BY what) FROM t")
}

/// The object of the segment that the server writes now, archived.
fn archived(lab: &Lab) -> PathBuf {
    let name = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    lab.archive_all();
    let object = lab.objects().into_iter().find(|object| object.ends_with(&name));
    lab.repository.join(object.expect("it is archived"))
}

/// Starts recovery, which must fail: nothing is promoted, and the server stops by itself.
#[track_caller]
fn stops(restored: &Restored<'_>, what: &str) {
    let _ = fs::remove_file(restored.log());
    // Once it is consistent it may answer for a moment before it needs what is not there.
    let _ = restored.pg_ctl_start();
    let promoted = |log: &str| {
        ["selected new timeline ID", "archive recovery complete"].iter().any(|it| log.contains(it))
    };
    until(what, || {
        let log = restored.log_text();
        promoted(&log) || log.contains("database system is shut down")
    });
    let log = restored.log_text();
    assert!(!promoted(&log), "{what}: the server was promoted:\n{log}");
    assert!(log.contains("[LB-"), "{what}: the server's log does not say why:\n{log}");
    assert!(restored.directory.join("recovery.signal").exists(), "{what}: recovery was ended");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the mode can be set");
}

/// Moves something away, does something, and puts it back.
fn without(path: &Path, act: impl FnOnce()) {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside).expect("it can be moved away");
    act();
    fs::rename(&aside, path).expect("it can be put back");
}

/// Alters something, does something, and puts it back.
fn altered(path: &Path, act: impl FnOnce()) {
    let whole = fs::read(path).expect("it can be read");
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    fs::write(path, bytes).expect("it can be written");
    act();
    fs::write(path, whole).expect("it can be written");
}

fn unreadable_repository(lab: &Lab, needed: &Path, target: &[&str], expected: &str) {
    let directory = lab.place("recovering");
    let into = directory.display().to_string();
    let mut arguments = vec!["restore", "--into", &into];
    arguments.extend_from_slice(target);
    lab.run(&arguments).ok();
    let restored = Restored::of(&lab.server, &directory);
    without(&lab.repository, || stops(&restored, "the repository is gone"));
    set_mode(&lab.repository, 0o000);
    stops(&restored, "the repository cannot be entered");
    set_mode(&lab.repository, 0o700);
    without(needed, || stops(&restored, "a needed segment is missing"));
    altered(needed, || stops(&restored, "a needed segment is damaged"));
    without(&lab.config, || stops(&restored, "the configuration is gone"));
    without(&lab.program, || {
        // Nobody of ours is there to say why.
        let _ = fs::remove_file(restored.log());
        let _ = restored.pg_ctl_start();
        until("the program is gone", || {
            restored.log_text().contains("database system is shut down")
        });
        assert!(!restored.log_text().contains("archive recovery complete"));
    });
    for name in ["lifeboat.recovery", "lifeboat.recovery.key"] {
        assert!(directory.join(name).exists(), "{name} is needed and was removed");
    }

    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    assert_eq!(rows(&restored), expected, "{target:?}");
    until("what only recovery needed is removed", || {
        ["lifeboat.recovery", "lifeboat.recovery.key"]
            .iter()
            .all(|name| !directory.join(name).exists())
    });
    restored.check_and_stop();
}

fn recovery(major: u32) {
    let Some(lab) = lab(&format!("recovery_{major}"), ScratchServer::of(major)) else { return };
    lab.server.execute("CREATE TABLE t (what text)");
    insert(&lab, "a");
    lab.backup();
    insert(&lab, "b");
    lab.archive_all();
    insert(&lab, "c");
    let time = lab.server.value("SELECT clock_timestamp() AT TIME ZONE 'UTC' || 'Z'");
    let needed = archived(&lab);
    insert(&lab, "d");
    lab.archive_all();
    unreadable_repository(&lab, &needed, &["--latest"], "a b c d");
    unreadable_repository(&lab, &needed, &["--to-time", &time], "a b c");
    landing(&lab);
    standby(&lab);
}

/// `restore --start` says where it landed.
fn landing(lab: &Lab) {
    let directory = lab.place("landed");
    let restored = Restored::of(&lab.server, &directory);
    let into = directory.display().to_string();
    let sockets = lab.server.directory("s-landed").display().to_string();
    let lsn = lab.server.value("SELECT pg_current_wal_insert_lsn()");
    insert(lab, "e");
    lab.archive_all();
    let arguments =
        ["restore", "--into", &into, "--to-lsn", &lsn, "--start", "--socket-directory", &sockets];
    let ran = lab.run(&arguments).ok();
    assert!(ran.stdout.contains("recovered and promoted: at "), "{}", ran.stdout);
    assert!(ran.stdout.contains(" on timeline 2"), "{}", ran.stdout);
    assert!(ran.stdout.contains(&sockets), "how to connect is not said:\n{}", ran.stdout);
    // The record that ends at the target or the first one after it.
    let at = ran.stdout.split("promoted: at ").nth(1).and_then(|rest| rest.split(' ').next());
    let at = at.expect("the position follows");
    let query =
        format!("SELECT '{at}'::pg_lsn >= '{lsn}' AND '{at}'::pg_lsn < '{lsn}'::pg_lsn + 8192");
    assert_eq!(restored.value(&query), "t", "{at} is not at {lsn}");
    assert_eq!(restored.value("SHOW archive_mode"), "off");
    restored.check_and_stop();
}

/// A standby stays in recovery, follows the archive, and survives a repository that is away.
fn standby(lab: &Lab) {
    let directory = lab.place("standby");
    let into = directory.display().to_string();
    lab.run(&["restore", "--into", &into, "--standby"]).ok();
    let standby = Restored::of(&lab.server, &directory);
    standby.pg_ctl_start().ok();
    let follows = |what: &str| {
        insert(lab, what);
        lab.archive_all();
        until("the standby follows", || {
            standby.value(&format!("SELECT count(*) FROM t WHERE what = '{what}'")) == "1"
        });
        assert_eq!(standby.value("SELECT pg_is_in_recovery()"), "t");
    };
    follows("s1");
    follows("s2");
    let asked = |log: String| log.matches("cannot reach the repository").count();
    without(&lab.repository, || {
        // Asked twice, so that it is known to have survived the first answer.
        until("the standby asks in vain", || asked(standby.log_text()) >= 2);
    });
    follows("s3");
    let log = standby.log_text();
    assert!(!log.contains("database system is shut down"), "the standby stopped:\n{log}");
    standby.stop();
}

#[test]
fn recovery_never_ends_too_early_15() {
    recovery(15);
}

#[test]
fn recovery_never_ends_too_early_18() {
    recovery(18);
}
