//! A restore that is killed leaves nothing that can be started, and the same restore again makes
//! it whole.

use std::process::Stdio;
use std::time::Instant;

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::lab;
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
    while moments.go_on(cuts >= CUTS / 2) {
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
