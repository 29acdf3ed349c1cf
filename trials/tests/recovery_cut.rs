//! A restore that is killed leaves nothing that can be started, and the same restore again makes
//! it whole.

use std::process::{Command, Stdio};
use std::time::Instant;

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::{lab, until};
use lifeboat_trials::{Moments, Restored};

const DIGEST: &str = "SELECT count(*) || ' ' || sum(hashtext(t::text)) FROM t";

/// So many restores are killed.
const CUTS: u32 = 8;

fn cut(major: u32) {
    let Some(lab) = lab(&format!("cut_{major}"), ScratchServer::of(major)) else { return };
    lab.server.execute(
        "CREATE TABLE t AS SELECT i, md5(i::text) || md5((-i)::text) m FROM generate_series(1, 300000) i",
    );
    lab.backup();
    lab.server.execute("DELETE FROM t WHERE i % 3 = 0");
    lab.archive_all();
    let digest = lab.server.value(DIGEST);

    let directory = lab.place("cut");
    let into = directory.display().to_string();
    let arguments = ["restore", "--into", &into, "--jobs", "2"];
    let begun = Instant::now();
    lab.run(&arguments).ok();
    let mut moments = Moments::over(begun.elapsed(), CUTS);
    lifeboat_trials::refusal::remove_tree(&directory);

    let mut cuts = 0;
    let mut begun_cuts = 0;
    while moments.go_on(cuts >= CUTS / 2 && begun_cuts > 0) {
        let child = lab
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let finished = !moments.kill(child);
        let restored = Restored::of(&lab.server, &directory);
        let control = directory.join("global/pg_control").exists();
        eprintln!("{moments:?}: finished {finished}, control file {control}");
        if !finished && !control {
            cuts += 1;
            begun_cuts += u32::from(directory.join("PG_VERSION").exists());
            let ran = restored.pg_ctl_start();
            assert_ne!(ran.code, Some(0), "a cut restore was started: {}", restored.log_text());
            lab.run(&arguments).ok();
        }
        // Killed after its last step, the control file's rename, it is as good as finished.
        let _ = std::fs::remove_file(restored.log());
        restored.pg_ctl_start().ok();
        restored.wait_for_promotion();
        assert_eq!(restored.value(DIGEST), digest, "{moments:?}");
        restored.check_and_stop();
    }
    assert!(cuts >= CUTS / 2, "only {cuts} restores were cut: it tests little");
    assert!(begun_cuts > 0, "no restore was cut while it wrote: it tests little");
}

#[test]
fn a_cut_restore_cannot_be_started_and_can_be_repeated_15() {
    cut(15);
}

#[test]
fn a_cut_restore_cannot_be_started_and_can_be_repeated_18() {
    cut(18);
}

/// One that was started again while the first still runs, as after a lost session.
#[test]
fn a_second_restore_into_the_same_place_is_refused_while_the_first_runs() {
    let test = "a_second_restore_into_the_same_place_is_refused_while_the_first_runs";
    let Some(lab) = lab(test, ScratchServer::of(18)) else { return };
    lab.server.execute(
        "CREATE TABLE t AS SELECT i, md5(i::text) || md5((-i)::text) m FROM generate_series(1, 300000) i",
    );
    lab.backup();
    let digest = lab.server.value(DIGEST);
    let directory = lab.place("twice");
    let into = directory.display().to_string();
    for delta in [false, true] {
        let delta: &[&str] = if delta { &["--delta"] } else { &[] };
        let arguments = [&["restore", "--into", &into, "--jobs", "1"][..], delta].concat();
        let mut command = lab.command(&arguments);
        let first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut first = first.expect("the program starts");
        let mark = directory.join("lifeboat.restoring");
        let control = directory.join("global/pg_control");
        until("it begins", || mark.exists() && !control.exists());
        let signal = |name: &str| {
            let kill = Command::new("kill").args([name, &first.id().to_string()]).status();
            assert!(kill.expect("kill runs").success());
        };
        signal("-STOP");
        assert!(!control.exists(), "it tests nothing");
        for second in [&[][..], &["--delta"]] {
            let again = [&["restore", "--into", &into][..], second].concat();
            lab.run(&again).refused(1, &["another restore is writing into", "[LB-RST-016]"]);
        }
        signal("-CONT");
        assert!(first.wait().expect("it ends").success(), "the first one goes on");
    }
    let restored = Restored::of(&lab.server, &directory);
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    assert_eq!(restored.value(DIGEST), digest);
    restored.check_and_stop();
}
