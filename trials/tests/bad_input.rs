//! Wrong passphrases, places, servers and targets: each is refused with what, where and what to
//! do, and nothing is lost or half written.
//!
//! A manifest whose paths leave the target cannot be made from outside, since manifests are
//! sealed: the jobs crate tests it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::Lab;
use lifeboat_trials::lab::{Ran, run};
use lifeboat_trials::refusal::{Memory, copy_tree, lab, until};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs the program with one setting overridden.
#[track_caller]
fn with(lab: &Lab, key: &str, value: &str, arguments: &[&str]) -> Ran {
    let setting = format!("{key}={value}");
    let mut all = vec!["--set", &setting];
    all.extend_from_slice(arguments);
    run(lab.command(&all).current_dir(lab.server.data_directory()))
}

/// A segment that the lab's server has archived and still has.
fn archived_segment(lab: &Lab) -> String {
    let name = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    lab.archive_all();
    name
}

fn wrong_passphrase(lab: &Lab) {
    let wrong = lab.place("wrong");
    fs::write(&wrong, "correct horse battery stable\n").expect("it can be written");
    lab.server.account().give(&wrong).expect("it can be given away");
    let setting = format!("repository.passphrase-file={}", wrong.display());
    let into = text(&lab.place("never"));
    let restore: &[&str] = &["restore", "--into", &into];
    let with_key_file: &[&[&str]] = &[restore, &["verify"]];
    let without: &[&[&str]] = &[restore, &["verify"], &["list"], &["backup"]];
    let words = ["the passphrase opens none of the 1 key slots", &text(&lab.repository)];
    for arguments in with_key_file {
        let mut all = vec!["--set", &setting];
        all.extend_from_slice(arguments);
        lab.run(&all).refused(12, &words);
    }
    for arguments in without {
        let mut all = vec!["--set", &setting, "--set", "repository.key-file=/nowhere"];
        all.extend_from_slice(arguments);
        lab.run(&all).refused(12, &words);
    }
    assert!(!lab.place("never").exists(), "a refused restore made its directory");
}

fn no_repository(lab: &Lab, segment: &str) {
    let segment = format!("pg_wal/{segment}");
    let empty = lab.server.directory("lifeboat/empty");
    for (place, words) in [
        (lab.place("nowhere"), "cannot reach the repository at "),
        (empty.clone(), "there is no lifeboat repository in "),
    ] {
        let url = format!("file://{}", place.display());
        let into = text(&lab.place("never"));
        let commands: [&[&str]; 6] = [
            &["list"],
            &["backup"],
            &["verify"],
            &["expire"],
            &["wal", "push", &segment],
            &["restore", "--into", &into],
        ];
        for arguments in commands {
            with(lab, "repository.url", &url, arguments).refused(10, &[words, &text(&place)]);
        }
        // PostgreSQL would take anything below 126 for the end of the archive.
        let get = ["wal", "get", "000000010000000000000001", "pg_wal/RECOVERYXLOG"];
        with(lab, "repository.url", &url, &get).refused(126, &[words, &text(&place)]);
    }
    assert!(!lab.place("nowhere").exists(), "a missing repository was made by a command");
    let left = fs::read_dir(&empty).expect("it can be listed").count();
    assert_eq!(left, 0, "something was written where there is no repository");
}

fn newer_repository(lab: &Lab, segment: &str) {
    let newer = lab.place("newer");
    copy_tree(&lab.repository, &newer);
    let identity = newer.join("repository.json");
    let old = fs::read_to_string(&identity).expect("it can be read");
    let new = old.replacen("\"version\": 1", "\"version\": 9", 1);
    let new = new.replacen("\"version\":1", "\"version\":9", 1);
    assert_ne!(old, new, "the version was not found");
    fs::remove_file(&identity).expect("it can be replaced");
    fs::write(&identity, &new).expect("it can be written");
    let url = format!("file://{}", newer.display());
    let segment = format!("pg_wal/{segment}");
    let words = ["`repository.json` has format version 9; this lifeboat knows versions up to 1"];
    for arguments in
        [&["list"][..], &["backup"], &["verify"], &["expire"], &["wal", "push", &segment]]
    {
        with(lab, "repository.url", &url, arguments).refused(1, &words);
    }
    let get = ["wal", "get", "000000010000000000000001", "pg_wal/RECOVERYXLOG"];
    with(lab, "repository.url", &url, &get).refused(126, &words);
    // Whatever the upgrade brings: nothing was touched.
    fs::write(&identity, &old).expect("it can be written");
    let difference = Command::new("diff").arg("-r").args([&lab.repository, &newer]).output();
    let difference = difference.expect("diff runs").stdout;
    assert!(difference.is_empty(), "{}", String::from_utf8_lossy(&difference));
}

fn taken_targets(lab: &Lab) {
    let full = lab.server.directory("lifeboat/full");
    fs::write(full.join("precious"), "do not lose me").expect("it can be written");
    let file = lab.place("file");
    fs::write(&file, "nor me").expect("it can be written");
    let running = lab.server.data_directory();
    let copy = lab.place("stopped");
    copy_tree(running, &copy);
    fs::remove_file(copy.join("postmaster.pid")).expect("a running server has one");
    for (place, words) in [
        (full.as_path(), "is a directory with other files"),
        (&file, "is a file"),
        (running, "is the data directory of a running server (process "),
        (&copy, "is a data directory"),
    ] {
        for more in [&["--take-over"][..], &["--start"], &["--dry-run"]] {
            let into = text(place);
            let mut arguments = vec!["restore", "--into", &into];
            arguments.extend_from_slice(more);
            lab.run(&arguments).refused(1, &[&text(place), words, "[LB-RST-005]"]);
        }
    }
    assert_eq!(fs::read_to_string(full.join("precious")).expect("it is there"), "do not lose me");
    assert_eq!(fs::read_dir(&full).expect("it can be listed").count(), 1);
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "nor me");
    assert!(copy.join("global/pg_control").exists(), "the stopped server lost its control file");
    assert_eq!(lab.server.value("SELECT count(*) FROM before_all"), "1000");
    fs::remove_dir_all(&copy).expect("the copy can be removed");
}

/// A system that gives no thread more is no mistake of the program, and no damage.
fn short_of_threads(lab: &Lab) {
    let into = text(&lab.place("never"));
    for (arguments, code) in [
        (&["restore", "--into", &into][..], "[LB-REPO-015]"),
        (&["backup", "--jobs", "4"], "[LB-CLI-012]"),
    ] {
        let whole = lab.command(arguments);
        let mut limited = lab.server.account().command(Path::new("/usr/bin/prlimit"));
        let words = std::iter::once(whole.get_program()).chain(whole.get_args());
        // Behind the change of the user, where there is one.
        let own: Vec<_> = words.collect();
        let behind = own.iter().position(|word| *word == "--").map_or(0, |at| at + 1);
        limited.arg("--nproc=1").args(&own[behind..]);
        limited.current_dir(lab.server.home());
        run(&mut limited).refused(1, &["Resource temporarily unavailable", code, "ulimit"]);
    }
}

/// A directory that holds the repository, or lies in it, would be cleared together with it.
fn within_the_repository(lab: &Lab) {
    let inside = lab.repository.join("restored");
    let holder = lab.repository.parent().expect("it lies somewhere");
    for place in [&inside, &lab.repository, holder] {
        for more in [&["--delta"][..], &["--dry-run"], &[]] {
            let into = text(place);
            let mut arguments = vec!["restore", "--into", &into];
            arguments.extend_from_slice(more);
            lab.run(&arguments).refused(1, &[&into, "lie within each other", "[LB-REPO-016]"]);
        }
    }
    let data = lab.server.data_directory();
    copy_tree(&lab.repository, &data.join("repository"));
    let url = format!("file://{}", data.join("repository").display());
    let words = [&text(data), "lie within each other", "[LB-REPO-016]"];
    with(lab, "repository.url", &url, &["backup"]).refused(1, &words);
    fs::remove_dir_all(data.join("repository")).expect("the copy can be removed");
}

fn no_data_directory(lab: &Lab) {
    let empty = text(&lab.place("empty"));
    let control = format!("{empty}/global/pg_control");
    with(lab, "postgres.data-directory", &empty, &["backup"]).refused(1, &[&control]);
    let nowhere = text(&lab.place("nowhere"));
    with(lab, "postgres.data-directory", &nowhere, &["backup"]).refused(1, &[&nowhere]);
    with(lab, "postgres.data-directory", "/etc/hostname", &["backup"])
        .refused(1, &["/etc/hostname"]);
}

fn other_cluster(lab: &Lab, major: u32) {
    let other = ScratchServer::of(major)
        .setting("archive_mode", "on")
        .setting("archive_command", "/bin/true")
        .start()
        .expect("a second server starts where a first one does");
    let system =
        |server: &ScratchServer| server.value("SELECT system_identifier FROM pg_control_system()");
    let (ours, theirs) = (system(&lab.server), system(&other));
    let words =
        [&*format!("`main` in the repository is system {ours}"), &*format!("is system {theirs}")];
    with(lab, "postgres.conninfo", &other.conninfo(), &["backup"]).refused(1, &words);
    // One server's connection and another's directory.
    let directory = text(other.data_directory());
    let words = [&*directory, "is not the data directory of this server", &ours, &theirs];
    with(lab, "postgres.data-directory", &directory, &["backup"]).refused(1, &words);
    // Its archive_command leads here by mistake.
    let name = other.value("SELECT pg_walfile_name(pg_switch_wal())");
    let path = format!("pg_wal/{name}");
    let mut push = lab.command(&["wal", "push", &path]);
    // As the user that both servers run as, in the other's data directory.
    run(push.current_dir(other.data_directory())).refused(1, &[&theirs, &ours]);
    // The other's segment, put into this server's directory by hand.
    let foreign = other.data_directory().join(&path);
    let planted = lab.server.data_directory().join("pg_wal/00000001000000F000000001");
    fs::copy(&foreign, &planted).expect("it can be copied");
    lab.server.account().give(&planted).expect("it can be given away");
    let push = ["wal", "push", "pg_wal/00000001000000F000000001"];
    run(lab.command(&push).current_dir(lab.server.data_directory())).refused(1, &["F000000001"]);
    fs::remove_file(&planted).expect("it can be removed");
}

/// Sends a signal to a process that this trial started.
fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill {name} {pid}");
}

fn second_backup(lab: &Lab) {
    let leases = lab.repository.join("clusters/main/lease");
    let names = || {
        let all = fs::read_dir(&leases).expect("there were backups").flatten();
        all.map(|entry| entry.file_name()).collect::<Vec<_>>()
    };
    let before = names();
    // What a person would run: no shell in between, so that the number is the program's.
    let mut first = lab
        .command(&["backup", "--jobs", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    until("the first backup takes its lease", || {
        names().iter().any(|name| !before.contains(name))
            && !names().iter().any(|name| name.to_string_lossy().starts_with('.'))
    });
    signal("-STOP", first.id());
    let second = lab.run(&["backup"]);
    let expire = lab.run(&["expire", "--set", "retention.keep-backups=1"]);
    signal("-CONT", first.id());
    let words = ["process", "is backing up cluster `main` since"];
    second.refused(11, &words);
    expire.refused(11, &words);
    assert!(first.wait().expect("it ends").success(), "the first backup was disturbed");
}

fn unreadable_file(lab: &Lab) {
    let relation = lab.server.value("SELECT pg_relation_filepath('before_all')");
    let path = lab.server.data_directory().join(&relation);
    lab.server.execute("CHECKPOINT"); // the server itself has nothing to write there
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode));
    mode(0o000).expect("the mode can be set");
    let ran = lab.run(&["backup"]);
    mode(0o600).expect("the mode can be set");
    ran.refused(1, &["cannot read", &relation, "[LB-BAK-004]"]);
}

fn bad_input(major: u32) {
    let name = format!("bad_input_{major}");
    let Some(lab) = lab(&name, ScratchServer::of(major)) else { return };
    lab.server.execute("CREATE TABLE before_all AS SELECT i FROM generate_series(1, 1000) i");
    lab.backup();
    let segment = archived_segment(&lab);
    let memory = Memory::of(&lab);

    wrong_passphrase(&lab);
    no_repository(&lab, &segment);
    newer_repository(&lab, &segment);
    taken_targets(&lab);
    within_the_repository(&lab);
    memory.nothing_changed(&lab, "refusals before the server is asked");

    no_data_directory(&lab);
    short_of_threads(&lab);
    other_cluster(&lab, major);
    unreadable_file(&lab);
    memory.nothing_lost(&lab, "refused backups");

    second_backup(&lab);
    lab.run(&["verify"]).ok();
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_lost_15() {
    bad_input(15);
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_lost_18() {
    bad_input(18);
}
