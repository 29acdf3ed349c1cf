//! Exit codes of `wal get` and `wal push`, by hand: PostgreSQL takes 1 to 125 of the first for the
//! end of the archive, and above 125 of the second for the death of its archiver.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::Lab;
use lifeboat_trials::lab::{Ran, run};
use lifeboat_trials::refusal::{Memory, lab, until};

/// Runs the program in a data directory, as servers do.
#[track_caller]
fn within(lab: &Lab, directory: &Path, arguments: &[&str]) -> Ran {
    run(lab.command(arguments).current_dir(directory))
}

fn object(lab: &Lab, name: &str) -> PathBuf {
    let found = lab.objects().into_iter().find(|object| object.ends_with(name));
    lab.repository.join(found.unwrap_or_else(|| panic!("{name} is not archived")))
}

fn without(path: &Path, act: impl FnOnce()) {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside).expect("it can be moved away");
    act();
    fs::rename(&aside, path).expect("it can be put back");
}

/// A file of the server's user.
fn write(lab: &Lab, path: &Path, content: &[u8]) {
    fs::write(path, content).expect("it can be written");
    lab.server.account().give(path).expect("it can be given away");
}

fn get(lab: &Lab) {
    lab.server.execute("CREATE TABLE t AS SELECT i FROM generate_series(1, 100) i");
    lab.backup();
    lab.server.execute("DELETE FROM t");
    let needed = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    lab.archive_all();
    lab.server.execute("SELECT pg_logical_emit_message(true, 'trial', 'later')");
    lab.archive_all();
    let directory = lab.place("by-hand");
    lab.run(&["restore", "--into", &directory.display().to_string()]).ok();
    let to = "pg_wal/RECOVERYXLOG";
    let destination = directory.join(to);
    let get = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.push(to);
        within(lab, &directory, &all)
    };

    get(&["wal", "get", &needed]).ok();
    let size = fs::metadata(&destination).expect("it was fetched").len();
    assert_eq!(size, 16 << 20, "a segment is whole");
    fs::remove_file(&destination).expect("it can be removed");
    for absent in ["0000000100000000000000F0", "00000002.history", "00000001.history"] {
        let ran = get(&["wal", "get", absent]);
        assert_eq!(ran.code, Some(1), "{absent}: {}", ran.stderr);
        assert!(!ran.stderr.contains("error"), "a probe is not quiet: {}", ran.stderr);
    }

    let unsure = |what: &str, ran: Ran| {
        assert!(ran.code.is_some_and(|code| (126..=255).contains(&code)), "{what}: {ran:?}");
        assert!(ran.stderr.contains("error:"), "{what}: nothing is said: {ran:?}");
        assert!(!destination.exists(), "{what}: something was served");
    };
    let path = object(lab, &needed);
    without(&path, || unsure("missing", get(&["wal", "get", &needed])));
    let whole = fs::read(&path).expect("it can be read");
    for damaged in [&whole[..whole.len() / 2], &[], &[&whole[..], b"x"].concat()] {
        write(lab, &path, damaged);
        unsure("damaged", get(&["wal", "get", &needed]));
    }
    write(lab, &path, &whole);
    without(&lab.repository, || {
        unsure("no repository", get(&["wal", "get", &needed]));
        unsure("no repository, future segment", get(&["wal", "get", "0000000100000000000000F0"]));
        unsure("no repository, history", get(&["wal", "get", "00000002.history"]));
    });
    let timeline = path.parent().expect("a segment lies in its timeline").to_owned();
    fs::set_permissions(&timeline, fs::Permissions::from_mode(0o000)).expect("the mode can be set");
    unsure("unreadable", get(&["wal", "get", &needed]));
    unsure("unreadable, future segment", get(&["wal", "get", "0000000100000000000000F0"]));
    fs::set_permissions(&timeline, fs::Permissions::from_mode(0o700)).expect("it can be set");
    without(&lab.config, || unsure("no configuration", get(&["wal", "get", &needed])));
    for wrong in ["repository.url=nonsense", "no.such.key=1", "nonsense", "cluster=../x"] {
        unsure(wrong, get(&["--set", wrong, "wal", "get", &needed]));
    }
    for nonsense in [&["wal", "get"][..], &["wal", "get", "--bogus", &needed]] {
        unsure("arguments", get(nonsense));
    }
    for name in ["nonsense", "../../../etc/passwd", "00000001000000000000000G", "pg_control"] {
        unsure(name, get(&["wal", "get", name]));
    }
    let ran = within(lab, &directory, &["wal", "get", &needed, "no/such/directory/file"]);
    unsure("destination", ran);

    let key = directory.join("lifeboat.recovery.key");
    let right = fs::read(&key).expect("the restore left a key");
    let nowhere = "repository.passphrase-file=/nowhere";
    write(lab, &key, b"not a key");
    unsure("garbage for a key", get(&["--set", nowhere, "wal", "get", &needed]));
    let other = other_key(lab);
    write(lab, &key, &other);
    unsure("another repository's key", get(&["wal", "get", &needed]));
    fs::remove_file(&key).expect("it can be removed");
    unsure("no key, no passphrase", get(&["--set", nowhere, "wal", "get", &needed]));
    write(lab, &key, &right);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the mode can be set");
    let state = directory.join("lifeboat.recovery");
    let noted = fs::read(&state).expect("the restore left its notes");
    write(lab, &state, &noted[..noted.len() / 2]);
    unsure("damaged notes", get(&["wal", "get", &needed]));
    write(lab, &state, &noted);
    get(&["wal", "get", &needed]).ok();
    lifeboat_trials::refusal::remove_tree(&directory);
}

/// The key file of another repository.
fn other_key(lab: &Lab) -> Vec<u8> {
    let place = lab.server.directory("lifeboat/other");
    let config = place.join("lifeboat.toml").display().to_string();
    let url = format!("file://{}", place.join("repository").display());
    let pg = lab.server.conninfo();
    let init = ["--config", &config, "init", "--pg", &pg, "--repo", &url, "--no-encryption"];
    let mut command = lab.server.account().command(&lab.program);
    run(command.args(init).current_dir(lab.server.home())).ok();
    fs::read(place.join("lifeboat.key")).expect("init writes a key file")
}

fn push(lab: &Lab) {
    let data = lab.server.data_directory().to_owned();
    let name = lab.server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    lab.archive_all();
    let path = format!("pg_wal/{name}");
    let content = fs::read(data.join(&path)).expect("wal_keep_size keeps it");
    let aside = lab.server.directory("lifeboat/aside");
    let memory = Memory::of(lab);
    within(lab, &data, &["wal", "push", &path]).ok();
    within(lab, &data, &["wal", "push", &data.join(&path).display().to_string()]).ok();
    memory.nothing_changed(lab, "the same content again");

    let refused = |what: &str, file: &str, content: &[u8], words: &[&str]| {
        let offered = aside.join(file);
        write(lab, &offered, content);
        let ran = within(lab, &data, &["wal", "push", &offered.display().to_string()]);
        assert!(ran.code.is_some_and(|code| (1..=125).contains(&code)), "{what}: {ran:?}");
        ran.refused(1, words);
        memory.nothing_changed(lab, what);
    };
    let mut other = content.clone();
    *other.last_mut().expect("a segment is not empty") ^= 1;
    refused("other content", &name, &other, &["already archived with different content", &name]);
    let mut foreign = content.clone();
    foreign[24] ^= 1; // the system identifier in the long header of the first page
    let next = "0000000100000000000000F1";
    refused("a foreign segment", &name, &foreign, &[&name, "[LB-WAL-00"]);
    refused("a segment under another's name", next, &content, &[next, "[LB-WAL-005]"]);
    refused("half a segment", &name, &content[..8 << 20], &[&name]);
    refused("zeros", next, &vec![0; 16 << 20], &[next, "[LB-WAL-005]"]);
    refused("nothing", next, &[], &[next]);
    for file in ["postgresql.conf", "pg_control", "00000001000000000000000G", "archive_status"] {
        refused("no WAL file", file, &content, &[file, "[LB-WAL-001]"]);
    }
    let absent = within(lab, &data, &["wal", "push", "pg_wal/0000000100000000000000F2"]);
    absent.refused(1, &["cannot read WAL file `pg_wal/0000000100000000000000F2`"]);
    let ran = within(lab, &data, &["wal", "push", "--bogus", &path]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    memory.nothing_changed(lab, "refused pushes");

    let accepted = |file: &str, content: &[u8]| {
        let offered = aside.join(file);
        write(lab, &offered, content);
        within(lab, &data, &["wal", "push", &offered.display().to_string()]).ok();
        assert!(object(lab, file).exists(), "{file}");
        within(lab, &data, &["wal", "push", &offered.display().to_string()]).ok();
    };
    accepted(&format!("{name}.partial"), &content);
    accepted(&format!("{name}.000000A8.backup"), b"START WAL LOCATION: 0/2000028");
    let history = b"1\t0/3000000\tno recovery target specified\n";
    accepted("00000009.history", history);
    let memory = Memory::of(lab);
    write(lab, &aside.join("00000009.history"), b"1\t0/4000000\tno recovery target specified\n");
    let other = aside.join("00000009.history").display().to_string();
    within(lab, &data, &["wal", "push", &other])
        .refused(1, &["`00000009.history` is already archived with different content"]);
    memory.nothing_changed(lab, "another history");
}

/// The archiver counts failures, lives on, and archives all as soon as it can.
fn archiver(lab: &Lab) {
    let failed = || lab.server.value("SELECT failed_count FROM pg_stat_archiver");
    let before: u64 = failed().parse().expect("it is a number");
    without(&lab.repository, || {
        lab.server.execute("SELECT pg_logical_emit_message(false, 'trial', 'x'), pg_switch_wal()");
        until("a failure is counted", || failed().parse::<u64>().is_ok_and(|now| now > before));
    });
    lab.archive_all();
    let log = fs::read_to_string(lab.server.log()).expect("the server has a log");
    assert!(!log.contains("archiver process (PID"), "the archiver died:\n{log}");
    assert!(log.contains("cannot reach the repository at "), "its log does not say why:\n{log}");
}

fn codes(major: u32) {
    let builder = ScratchServer::of(major).setting("wal_keep_size", "512MB");
    let Some(lab) = lab(&format!("codes_{major}"), builder) else { return };
    get(&lab);
    archiver(&lab);
    lab.run(&["verify"]).ok();
    push(&lab);
}

#[test]
fn exit_codes_are_what_postgresql_needs_15() {
    codes(15);
}

#[test]
fn exit_codes_are_what_postgresql_needs_18() {
    codes(18);
}
