//! No space left while backing up, pushing and restoring: it is said where, nothing counts that is
//! half written, and all goes on as soon as there is space.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::lab::run;
use lifeboat_trials::refusal::{Memory, until};
use lifeboat_trials::{Lab, Restored};

/// A small file system of its own; unmounted when it goes out of scope.
struct Small {
    directory: tempfile::TempDir,
}

impl Small {
    /// An error says why this machine cannot have one.
    fn mount(server: &ScratchServer, size: &str) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("lifeboat-small-").tempdir();
        let directory = directory.map_err(|error| format!("no temporary directory: {error}"))?;
        let account = server.account();
        let options = format!("size={size},mode=0700,uid={},gid={}", account.uid, account.gid);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path());
        Self::said(&mut mount).map(|()| Self { directory })
    }

    fn place(&self) -> &Path {
        self.directory.path()
    }

    fn said(command: &mut Command) -> Result<(), String> {
        let output = command.output().map_err(|error| format!("mount: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("cannot mount: {said}")) }
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let mount = Self::said(Command::new("mount").args(["-o", &options]).arg(self.place()));
        mount.expect("what was mounted can be mounted with another size");
    }

    fn filler(&self) -> PathBuf {
        self.place().join("filler")
    }

    /// Leaves so many KiB free.
    fn fill(&self, leave_kib: u64) {
        let _ = fs::remove_file(self.filler());
        let df = Command::new("df").args(["--output=avail", "-k"]).arg(self.place()).output();
        let df = String::from_utf8(df.expect("df runs").stdout).expect("df prints text");
        let free: u64 = df.lines().last().and_then(|n| n.trim().parse().ok()).expect("a number");
        let bytes = free.saturating_sub(leave_kib) << 10;
        fs::write(self.filler(), vec![b'f'; bytes as usize]).expect("there is so much space");
    }

    fn make_space(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.place()).output();
    }
}

/// A lab whose repository lies on the small file system.
fn small_lab(server: ScratchServer, small: &Path) -> Lab {
    let mut lab = Lab::without_repository(server);
    lab.repository = small.join("repository");
    lab.init().ok();
    lab.archive();
    lab
}

/// Rows that no compression makes smaller.
fn insert_random(lab: &Lab, rows: u32) {
    lab.server.execute(&format!(
        "INSERT INTO t SELECT string_agg(decode(md5(random()::text), 'hex'), '') \
         FROM generate_series(1, {rows}) i, generate_series(1, 60) j GROUP BY i",
    ));
}

fn full_while_backing_up(lab: &Lab, small: &Small) {
    let memory = Memory::of(lab);
    small.fill(4 << 10);
    let words = ["no space is left in ", &lab.repository.display().to_string(), "[LB-STORE-005]"];
    lab.run(&["backup"]).refused(1, &words);
    memory.nothing_lost(lab, "a backup without space");
    small.make_space();
    lab.run(&["verify"]).ok();
    lab.backup();
}

fn full_while_pushing(lab: &Lab, small: &Small) {
    let name = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let failed = || lab.server.value("SELECT failed_count FROM pg_stat_archiver");
    let before = failed();
    insert_random(lab, 2000);
    small.fill(0);
    let memory = Memory::of(lab);
    lab.server.execute("SELECT pg_switch_wal()");
    until("the archiver fails", || failed() != before);
    let path = format!("pg_wal/{name}");
    let mut push = lab.command(&["wal", "push", &path]);
    run(push.current_dir(lab.server.data_directory()))
        .refused(1, &["cannot archive", &name, "no space is left in ", "[LB-STORE-005]"]);
    memory.nothing_changed(lab, "a push without space");
    small.make_space();
    lab.archive_all();
    lab.run(&["verify"]).ok();
}

fn full_while_restoring(lab: &Lab, target: &Small) {
    let digest = "SELECT count(*) || ' ' || sum(hashtext(t::text)) FROM t";
    let memory = Memory::of(lab);
    let directory = target.place().join("data");
    let into = directory.display().to_string();
    let arguments = ["restore", "--into", &into, "--jobs", "2"];
    lab.run(&arguments).refused(1, &[&into, "No space left", "run the same command again"]);
    memory.nothing_changed(lab, "a restore without space");
    let restored = Restored::of(&lab.server, &directory);
    assert!(!directory.join("global/pg_control").exists(), "what is half written can be started");
    assert_ne!(restored.pg_ctl_start().code, Some(0), "{}", restored.log_text());
    target.resize("400m");
    lab.run(&arguments).ok();
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    assert_eq!(restored.value(digest), lab.server.value(digest));
    restored.check_and_stop();
}

fn full(major: u32) {
    let test = format!("full_{major}");
    let server = ScratchServer::of(major)
        .setting("archive_mode", "on")
        .setting("archive_command", "/bin/false")
        .start();
    let server = match server {
        Ok(server) => server,
        Err(reason) => return scratch::skip(&test, &reason.to_string()),
    };
    let small = match Small::mount(&server, "160m") {
        Ok(small) => small,
        Err(reason) => return scratch::skip(&test, &reason),
    };
    let target = Small::mount(&server, "24m").expect("a second one can be mounted");
    let lab = small_lab(server, small.place());
    lab.server.execute("CREATE TABLE t (b bytea); ALTER TABLE t ALTER b SET STORAGE EXTERNAL");
    lab.backup();
    insert_random(&lab, 20_000);
    lab.archive_all();
    full_while_backing_up(&lab, &small);
    full_while_pushing(&lab, &small);
    full_while_restoring(&lab, &target);
}

#[test]
fn a_full_disk_loses_nothing_15() {
    full(15);
}

#[test]
fn a_full_disk_loses_nothing_18() {
    full(18);
}
