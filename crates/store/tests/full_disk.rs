//! What happens when no space is left: needs a file system of its own, mounted in a namespace.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use lifeboat_store::{Key, LocalStore, Store, StoreError};

const ROOT: &str = "LIFEBOAT_TEST_FULL_DISK_ROOT";
const TEST: &str = "a_full_disk_is_named_and_nothing_half_written_stays";

fn key(n: usize) -> Key {
    Key::new(format!("objects/{n}")).unwrap()
}

/// Runs in the child, on a file system of 1 MiB.
fn fill(root: &Path) {
    let store = LocalStore::open(root).unwrap();
    let body = vec![7; 300_000];
    let error = (0..9).find_map(|n| store.put(&key(n), &body).err()).unwrap();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    let batch = store.batch().unwrap();
    let error = (10..19).find_map(|n| batch.put(&key(n), &body).err()).unwrap();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    drop(batch);

    let mut objects = 0;
    store.list("", &mut |entry| objects += usize::from(entry.size_bytes == 300_000)).unwrap();
    let files = std::fs::read_dir(root.join("objects")).unwrap().count();
    assert_eq!((objects, files), (3, 3), "only whole objects, and no temporaries");
    store.delete(&key(0)).unwrap();
    store.put(&key(0), &body).unwrap();
}

#[test]
fn a_full_disk_is_named_and_nothing_half_written_stays() {
    if let Some(root) = std::env::var_os(ROOT) {
        return fill(Path::new(&root));
    }
    let directory = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$1\"";
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(directory.path()).env(ROOT, directory.path());
        command
    };
    if !unshare(mount).output().is_ok_and(|output| output.status.success()) {
        return skip("a user may not mount a tmpfs in a namespace of its own here");
    }
    let child = unshare(&format!("{mount} && exec \"$2\" --exact {TEST} --nocapture"))
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

/// Notes the skipped test in the file that `LIFEBOAT_SKIPS` names, so that it gets counted.
fn skip(reason: &str) {
    eprintln!("skipped: {TEST}: {reason}");
    let Some(path) = std::env::var_os("LIFEBOAT_SKIPS") else { return };
    if let Ok(mut file) = std::fs::File::options().append(true).create(true).open(path) {
        let _ = writeln!(file, "{TEST}: {reason}");
    }
}
