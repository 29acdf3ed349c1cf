//! A restore over a directory that is nearly right: whatever lies there, the files are those of a
//! plain restore, and the server that starts on them has the rows.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::refusal::{lab, until};
use lifeboat_trials::same::tablespace_map;
use lifeboat_trials::{Lab, Moments, Restored};
use serde_json::Value;

const SUM: &str = "SELECT count(*) || ' ' || coalesce(sum(hashtext(t::text)::bigint), 0) FROM t t";
const SPACED: &str =
    "SELECT count(*) || ' ' || coalesce(sum(hashtext(s::text)::bigint), 0) FROM s s";

/// So many deltas are killed.
const CUTS: u32 = 6;

/// Files of a data directory by name, tablespaces included, with where they are. What differs
/// from place to place is left out.
fn files(data: &Path) -> BTreeMap<PathBuf, PathBuf> {
    fn walk(data: &Path, below: &Path, found: &mut BTreeMap<PathBuf, PathBuf>) {
        for entry in std::fs::read_dir(data.join(below)).expect("it can be listed") {
            let entry = entry.expect("it can be listed");
            let name = below.join(entry.file_name());
            if entry.path().is_dir() {
                walk(data, &name, found);
            } else {
                found.insert(name, entry.path());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(data, Path::new(""), &mut found);
    // Each restore has a note of its own in the repository, and its name is kept here.
    let own = ["lifeboat.set-aside", "lifeboat.reading"];
    found.retain(|name, _| {
        !own.iter().any(|own| name.starts_with(own)) && !name.ends_with("tablespace_map")
    });
    found
}

#[track_caller]
fn assert_same(data: &Path, plain: &Path, what: &str) {
    let (ours, theirs) = (files(data), files(plain));
    let names = |files: &BTreeMap<PathBuf, PathBuf>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs), "{what}: other files");
    for (name, path) in &theirs {
        let (one, other) = (std::fs::read(path), std::fs::read(&ours[name]));
        let same = one.expect("it can be read") == other.expect("it can be read");
        assert!(same, "{what}: {} has other bytes", name.display());
    }
}

/// A plain restore of a backup, its tablespaces beside it.
fn plain(lab: &Lab, name: &str, id: &str) -> PathBuf {
    let place = lab.place(name);
    let into = place.display().to_string();
    let map = tablespace_map(lab, name);
    let mut arguments = vec!["restore", "--into", &into, "--to-backup", id, "--jobs", "2"];
    map.iter().for_each(|entry| arguments.extend(["--tablespace-map", entry]));
    lab.run(&arguments).ok();
    place
}

fn delta(lab: &Lab, target: &[&str]) -> Value {
    let into = lab.server.data_directory().display().to_string();
    let mut arguments = vec!["restore", "--delta", "--into", &into, "--jobs", "2", "--json"];
    arguments.extend_from_slice(target);
    lab.run(&arguments).ok().json()
}

/// Starts the server on its own directory and waits until recovery is over.
#[track_caller]
fn recover(lab: &Lab) {
    lab.server.start();
    until("it is promoted", || lab.server.value("SELECT pg_is_in_recovery()") == "f");
}

fn check(lab: &Lab) {
    let host = lab.server.socket_directory().display().to_string();
    let server = &lab.server;
    server.run("pg_amcheck", &["-h", &host, "-U", "postgres", "--install-missing", "-a"]);
    server.stop();
    let data = server.data_directory().display().to_string();
    server.run("pg_checksums", &["--check", "-D", &data]);
}

/// Files and directories that their owner may not write to, one of them of several stretches.
fn close_some(data: &Path) -> Vec<(PathBuf, u32)> {
    let directory = data.join("closed");
    std::fs::create_dir(&directory).expect("it can be made");
    let large: Vec<u8> = (0..100_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(data.join("large"), large).expect("it can be written");
    std::fs::write(directory.join("small"), "a private key").expect("it can be written");
    let closed =
        [(data.join("large"), 0o400), (directory.join("small"), 0o400), (directory, 0o500)];
    for (path, mode) in &closed {
        let own = std::os::unix::fs::chown(path, Some(owner(data).0), Some(owner(data).1));
        own.expect("it can be given to the server");
        let mode = std::fs::Permissions::from_mode(*mode);
        std::fs::set_permissions(path, mode).expect("it can be closed");
    }
    closed.into()
}

fn owner(path: &Path) -> (u32, u32) {
    let data = std::fs::metadata(path).expect("it is there");
    (data.uid(), data.gid())
}

fn files_that_cannot_be_written_to_are_restored(major: u32) {
    let test = "files_that_cannot_be_written_to_are_restored";
    let Some(lab) = lab(test, ScratchServer::of(major)) else { return };
    let data = lab.server.data_directory().to_owned();
    let closed = close_some(&data);
    let backup = lab.backup();
    let id = backup["id"].as_str().expect("a report has an id");
    let before: Vec<_> = closed.iter().map(|(path, _)| std::fs::read(path).ok()).collect();
    let assert_there = |into: &Path, what: &str| {
        for ((path, mode), bytes) in closed.iter().zip(&before) {
            let path = into.join(path.strip_prefix(&data).expect("it lies there"));
            let there = std::fs::metadata(&path).expect("it is there").permissions().mode();
            assert_eq!(there & 0o7777, *mode, "{what}: {}", path.display());
            assert!(std::fs::read(&path).ok() == *bytes, "{what}: {}", path.display());
        }
    };
    assert_there(&plain(&lab, "closed", id), "plain");
    lab.server.stop();
    delta(&lab, &["--to-backup", id]);
    assert_there(&data, "delta over all");
    std::fs::remove_file(data.join("large")).expect("it can be removed");
    delta(&lab, &["--to-backup", id]);
    assert_there(&data, "delta over one that is missing");
    let file = std::fs::File::options().write(true).open(data.join("large"));
    file.expect("root opens it").write_all_at(b"other", 80 << 20).expect("it can be changed");
    delta(&lab, &["--to-backup", id]);
    assert_there(&data, "delta over one that differs");
}

#[test]
fn files_that_cannot_be_written_to_are_restored_18() {
    files_that_cannot_be_written_to_are_restored(18);
}

/// Flips bytes of some relation files, cuts one short, and removes one.
fn damage(data: &Path) -> u64 {
    let large = |path: &Path| path.metadata().is_ok_and(|m| m.len() >= 65536);
    let relations: Vec<PathBuf> = files(data)
        .into_iter()
        .filter(|(name, path)| name.starts_with("base") && large(path))
        .map(|(_, path)| path)
        .collect();
    for (number, path) in relations.iter().enumerate() {
        match number % 11 {
            0 => std::fs::remove_file(path).expect("it can be removed"),
            1 => {
                let file = std::fs::File::options().write(true).open(path).expect("it opens");
                file.set_len(20_000).expect("it can be cut");
            }
            _ => {
                let file = std::fs::File::options().write(true).open(path).expect("it opens");
                file.write_all_at(b"damage", 8192 * 3 + 100).expect("it can be written");
            }
        }
    }
    relations.len() as u64
}

fn over_everything(major: u32) {
    let name = format!("delta_{major}");
    let builder = ScratchServer::of(major).setting("autovacuum", "off");
    let Some(lab) = lab(&name, builder) else { return };
    let server = &lab.server;
    let (one, two) = (server.directory("ts-one"), server.directory("ts-two"));
    server.execute(&format!("CREATE TABLESPACE one LOCATION '{}'", one.display()));
    server.execute(
        "CREATE TABLE t AS SELECT i, md5(i::text) m FROM generate_series(1, 60000) i; \
         CREATE INDEX ON t (m); CREATE TABLE gone AS SELECT * FROM t LIMIT 9999; \
         CREATE UNLOGGED TABLE u AS SELECT 1 AS x; \
         CREATE TABLE s TABLESPACE one AS SELECT i, md5(i::text) m FROM generate_series(1, 20000) i",
    );
    server.execute("CREATE DATABASE left_later");
    let first = lab.backup()["id"].as_str().expect("an id").to_owned();
    let sums = |server: &ScratchServer| (server.value(SUM), server.value(SPACED));
    let at_first = sums(server);
    let plain_first = plain(&lab, "plain-first", &first);

    server.execute(
        "UPDATE t SET m = md5(m) WHERE i % 100 = 0; DROP TABLE gone; DELETE FROM s WHERE i > 9000; \
         CREATE TABLE came AS SELECT * FROM t LIMIT 8888",
    );
    server.execute("VACUUM s");
    server.execute("DROP DATABASE left_later");
    server.execute("CREATE DATABASE came_later");
    server.execute(&format!("CREATE TABLESPACE two LOCATION '{}'", two.display()));
    server.execute("CREATE TABLE in_two TABLESPACE two AS SELECT generate_series(1, 5000) n");
    let second = lab.backup()["id"].as_str().expect("an id").to_owned();
    server.execute("UPDATE t SET m = 'after' WHERE i % 1000 = 1");
    lab.archive_all();
    let at_last = sums(server);
    server.execute("UPDATE t SET m = 'lost' WHERE i % 10 = 1; CHECKPOINT");

    let data = server.data_directory().to_owned();
    let into = data.display().to_string();
    let refused = lab.run(&["restore", "--delta", "--into", &into, "--latest"]);
    refused.refused(1, &["running server"]);
    lab.run(&["restore", "--delta", "--into", &lab.repository.display().to_string()])
        .refused(1, &["lie within each other"]);
    let plain_second = plain(&lab, "plain-second", &second);

    // After a crash, back to the older state; what only this directory has of the WAL is kept.
    server.kill_9();
    lab.run(&["restore", "--into", &into]).refused(1, &["a data directory", "--delta"]);
    let dry = lab.run(&["restore", "--delta", "--into", &into, "--to-backup", &first, "--dry-run"]);
    let said = dry.ok().stdout;
    for word in ["delta over a data directory", "removed: ", "lifeboat.set-aside", "ts-two"] {
        assert!(said.contains(word), "`{word}` is not in:\n{said}");
    }
    let done = delta(&lab, &["--to-backup", &first]);
    let (report, planned) = (&done["report"]["delta"], &done["plan"]["delta"]);
    assert_same(&data, &plain_first, "the older state");
    assert_eq!(planned["left_alone"][0].as_str(), Some(two.to_str().expect("a path")), "{done:#}");
    assert!(two.read_dir().expect("it is there").next().is_some(), "an unused tablespace stays");
    let (written, compared) = (report["pages_written"].as_u64(), report["pages_compared"].as_u64());
    assert!(written > Some(0) && written < compared.map(|all| all * 2 / 3), "{done:#}");
    assert!(data.join("lifeboat.set-aside").read_dir().expect("it is there").next().is_some());
    recover(&lab);
    assert_eq!(sums(server), at_first);
    assert_eq!(server.value("SELECT count(*) FROM pg_database WHERE datname = 'left_later'"), "1");
    check(&lab);

    // Over the other timeline that this made, to the end of the first. Its second tablespace is
    // none of the directory's own now: it must go elsewhere.
    lab.run(&["restore", "--delta", "--into", &into, "--latest"])
        .refused(1, &["ts-two", "not empty"]);
    std::fs::remove_dir_all(&two).expect("it can be removed");
    delta(&lab, &["--latest"]);
    recover(&lab);
    assert_eq!(sums(server), at_last);
    assert_eq!(server.value("SELECT count(*) FROM in_two"), "5000");
    check(&lab);

    // Damaged pages come back; what is right is not written.
    delta(&lab, &["--to-backup", &second]);
    assert_same(&data, &plain_second, "the newer state");
    let again = delta(&lab, &["--to-backup", &second]);
    assert_eq!(again["report"]["delta"]["pages_written"], 0, "{again:#}");
    let damaged = damage(&data);
    assert!(damaged > 20, "{damaged} files");
    delta(&lab, &["--to-backup", &second]);
    assert_same(&data, &plain_second, "repaired");

    cuts(&lab, &second, &plain_second);

    // A tablespace that goes elsewhere.
    let map = format!("{}={}", one.display(), lab.place("one-moved").display());
    delta(&lab, &["--to-backup", &second, "--tablespace-map", &map]);
    assert_same(&data, &plain_second, "with a tablespace elsewhere");
    assert!(lab.place("one-moved").read_dir().expect("it is there").next().is_some());
    recover(&lab);
    assert_eq!(server.value("SELECT count(*) FROM s"), "9000");
    check(&lab);
}

/// Deltas over damage are killed at moments all over them.
fn cuts(lab: &Lab, id: &str, plain: &Path) {
    let data = lab.server.data_directory().to_owned();
    let into = data.display().to_string();
    let restored = Restored::of(&lab.server, &data);
    // The directory must not be removed with the handle.
    let restored = std::mem::ManuallyDrop::new(restored);
    damage(&data);
    let seconds = delta(lab, &["--to-backup", id])["report"]["seconds"].as_f64();
    let whole = Duration::from_secs_f64(seconds.expect("a report has seconds"));
    let mut moments = Moments::over(whole, CUTS);
    let mut cut = 0;
    while moments.go_on(cut >= 2) {
        damage(&data);
        let arguments = ["restore", "--delta", "--into", &into, "--to-backup", id];
        let mut child = lab
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        until("it begins, or is over", || {
            data.join("lifeboat.restoring").exists() || child.try_wait().is_ok_and(|c| c.is_some())
        });
        let finished = !moments.kill(child);
        let control = data.join("global/pg_control").exists();
        eprintln!("{moments:?}: finished {finished}, control file {control}");
        if !finished && !control {
            cut += 1;
            let ran = restored.pg_ctl_start();
            assert_ne!(ran.code, Some(0), "a cut delta was started: {}", restored.log_text());
        }
        lab.run(&arguments).ok();
        assert_same(&data, plain, "after a cut");
    }
    assert!(cut >= 2, "only {cut} deltas were cut: it tests little");
}

#[test]
fn a_delta_gives_what_a_plain_restore_gives_over_whatever_lies_there_15() {
    over_everything(15);
}

#[test]
fn a_delta_gives_what_a_plain_restore_gives_over_whatever_lies_there_18() {
    over_everything(18);
}
