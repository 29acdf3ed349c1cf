//! Whether what came back is what was there.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lab::Lab;
use crate::restored::{Restored, dump};

/// Restores a backup twice, as it is and with all WAL after it, and compares files and dumps with
/// the origin's; `pg_amcheck` and `pg_checksums` must find nothing. Nobody may write to the origin
/// meanwhile.
#[track_caller]
pub fn assert_comes_back(lab: &Lab, what: &str, backup: &Value) {
    let id = backup["id"].as_str().expect("a report has an id");
    assert_same_files(lab, what, id);
    let server = &lab.server;
    let original = dump(server, &server.socket_directory());
    lab.archive_all();
    let compare = |name: &str, target: &[&str]| {
        let map = tablespace_map(lab, name);
        let mut arguments = target.to_vec();
        for entry in &map {
            arguments.extend(["--tablespace-map", entry]);
        }
        let restored = Restored::start(lab, name, &arguments);
        let mut copy = restored.dump();
        for entry in &map {
            let (old, new) = entry.split_once('=').expect("a mapping has two sides");
            copy = copy.replace(&format!("'{new}'"), &format!("'{old}'"));
        }
        assert!(copy == original, "{what} {target:?}: {}", first_difference(&original, &copy));
        restored.check_and_stop();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| compare("one", &["--to-backup", id]));
        scope.spawn(|| compare("all", &["--latest"]));
    });
}

/// A backup found what had changed in this way: `hints` stands for by hashes before PostgreSQL 17.
/// With hints it must have left most of the database unread.
#[track_caller]
pub fn assert_way(lab: &Lab, what: &str, backup: &Value, way: &str) {
    let wanted = if lab.server.major() < 17 { "hashes" } else { way };
    let reading = &backup["reading"];
    assert_eq!(reading["way"], wanted, "{what}: {reading}");
    let bytes = |which: &str| backup["totals"][which].as_u64().expect("a report counts bytes");
    let (read, all) = (bytes("read_bytes"), bytes("size_bytes"));
    match wanted {
        "hints" => assert!(read < all / 2, "{what}: {read} of {all} bytes were read"),
        _ => assert!(read > all / 2, "{what}: {read} of {all} bytes were read"),
    }
}

/// Restores a backup without starting it, and compares each file of relations with the origin's.
/// Nobody may have written to the origin since.
#[track_caller]
pub fn assert_same_files(lab: &Lab, what: &str, id: &str) {
    let place = lab.place("files");
    let into = place.display().to_string();
    let map = tablespace_map(lab, "files");
    let mut arguments = vec!["restore", "--into", &into, "--to-backup", id, "--jobs", "2"];
    for entry in &map {
        arguments.extend(["--tablespace-map", entry]);
    }
    lab.run(&arguments).ok();
    let (origin, copy) = (relations(lab.server.data_directory()), relations(&place));
    let names = |files: &BTreeMap<PathBuf, PathBuf>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&copy), names(&origin), "{what}: other files");
    for (name, there) in &origin {
        let (theirs, ours) = (std::fs::read(there), std::fs::read(&copy[name]));
        let (theirs, ours) = (theirs.expect("it can be read"), ours.expect("it can be read"));
        assert!(theirs == ours, "{what}: {} came back with other bytes", name.display());
    }
    for entry in &map {
        let (_, new) = entry.split_once('=').expect("a mapping has two sides");
        let _ = std::fs::remove_dir_all(new);
    }
    crate::refusal::remove_tree(&place);
}

/// A place of its own for each tablespace of the origin that lies outside of its data directory.
pub fn tablespace_map(lab: &Lab, name: &str) -> Vec<String> {
    let links = std::fs::read_dir(lab.server.data_directory().join("pg_tblspc"));
    let old =
        links.into_iter().flatten().flatten().filter_map(|e| std::fs::read_link(e.path()).ok());
    old.map(|old| {
        let leaf = old.file_name().expect("a tablespace has a name").display().to_string();
        let new = lab.place(&format!("ts-{name}-{leaf}"));
        let _ = std::fs::remove_dir_all(&new);
        format!("{}={}", old.display(), new.display())
    })
    .collect()
}

/// Files of relations that a backup keeps, by their names below the data directory: no temporary
/// ones, of unlogged ones the `_init` fork, and no caches.
fn relations(data: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let mut found = BTreeMap::new();
    for top in ["base", "global", "pg_tblspc"] {
        walk(data, Path::new(top), &mut found);
    }
    found.retain(|name, _| {
        let leaf = name.file_name().map_or_else(String::new, |leaf| leaf.display().to_string());
        let temporary =
            leaf.strip_prefix('t').is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        !temporary && leaf != "pg_control" && !leaf.starts_with("pg_internal.init")
    });
    let inits: Vec<PathBuf> =
        found.keys().filter(|n| n.display().to_string().ends_with("_init")).cloned().collect();
    for init in inits {
        let text = init.display().to_string();
        let main = text.trim_end_matches("_init").to_owned();
        found.retain(|name, _| {
            let name = name.display().to_string();
            name == text || !(name == main || name.starts_with(&format!("{main}_")))
        });
    }
    found
}

fn walk(data: &Path, relative: &Path, found: &mut BTreeMap<PathBuf, PathBuf>) {
    for entry in std::fs::read_dir(data.join(relative)).into_iter().flatten().flatten() {
        let name = relative.join(entry.file_name());
        // Tablespaces are links: follow them.
        if entry.path().is_dir() {
            walk(data, &name, found);
        } else {
            found.insert(name, entry.path());
        }
    }
}

/// The first line in which two texts differ.
pub fn first_difference(one: &str, other: &str) -> String {
    let mut lines = one.lines().zip(other.lines());
    match lines.find(|(a, b)| a != b) {
        Some((a, b)) => format!("the origin has `{a}`, its copy `{b}`"),
        None => format!("the origin has {} bytes, its copy {}", one.len(), other.len()),
    }
}

/// Bytes that lie on the disk below a directory; holes do not count.
pub fn disk_bytes(directory: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(data) = std::fs::symlink_metadata(entry.path()) else { continue };
        sum += if data.is_dir() { disk_bytes(&entry.path()) } else { data.blocks() * 512 };
    }
    sum
}
