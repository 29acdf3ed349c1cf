//! What only a local store promises.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lifeboat_units::Explain;
use tempfile::TempDir;

use super::LocalStore;
use super::publish::Publish;
use crate::conformance::run_all;
use crate::{Batch, Key, Store, StoreError};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn scratch() -> (TempDir, LocalStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    (directory, store)
}

/// Every file and directory below, relative, sorted.
fn tree(root: &Path) -> Vec<String> {
    let (mut found, mut pending) = (Vec::new(), vec![PathBuf::from(root)]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
        }
    }
    found.sort();
    found
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn every_promise_is_kept_on_a_disk() {
    let (directory, store) = scratch();
    let report = run_all(&store, "probe/one");
    assert!(report.is_clean(), "{report}");
    assert_eq!(tree(directory.path()), Vec::<String>::new());
}

#[test]
fn every_promise_is_kept_on_tmpfs() {
    let directory = TempDir::new_in("/dev/shm").unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    let report = run_all(&store, "probe");
    assert!(report.is_clean(), "{report}");
    assert_eq!(tree(directory.path()), Vec::<String>::new());
}

#[test]
fn every_promise_is_kept_without_hard_links() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::publishing(directory.path(), Publish::Rename);
    let report = run_all(&store, "probe");
    assert!(report.is_clean(), "{report}");
    assert_eq!(tree(directory.path()), Vec::<String>::new());
}

#[test]
fn a_file_system_that_cannot_refuse_to_replace_is_named_and_left_clean() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::publishing(directory.path(), Publish::Nothing);
    let batch = store.batch().unwrap();
    batch.put(&key("a/c"), b"body").unwrap();
    batch.put(&key("a/d"), b"body").unwrap();
    for error in [store.put(&key("a/b"), b"body").unwrap_err(), batch.commit().unwrap_err()] {
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("hard links"), "{cause}");
    }
    assert_eq!(tree(directory.path()), ["a"]);
}

#[test]
fn keys_are_paths_that_only_the_owner_may_enter() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("new/root");
    let store = LocalStore::create(&root).unwrap();
    store.put(&key("a/b/c"), b"one").unwrap();
    let batch = store.batch().unwrap();
    batch.put(&key("a/d/e"), b"two").unwrap();
    batch.commit().unwrap();
    assert_eq!(tree(&root), ["a", "a/b", "a/b/c", "a/d", "a/d/e"]);
    for made in ["../../new", "", "a", "a/b", "a/d"] {
        assert_eq!(mode(root.join(made)), 0o700, "{made}");
    }
    for object in ["a/b/c", "a/d/e"] {
        assert_eq!(mode(root.join(object)), 0o600, "{object}");
    }
}

#[test]
fn create_takes_what_is_there_and_open_does_not_make_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    assert!(matches!(LocalStore::open(&root), Err(StoreError::Unreachable { .. })));
    LocalStore::create(&root).unwrap().put(&key("a"), b"body").unwrap();
    assert_eq!(LocalStore::create(&root).unwrap().size(&key("a")).unwrap(), 4);
    let file = root.join("a");
    assert!(matches!(LocalStore::open(&file), Err(StoreError::Unreachable { .. })));
    assert!(matches!(LocalStore::create(&file), Err(StoreError::Unreachable { .. })));
}

#[test]
fn a_missing_root_is_unreachable_and_never_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let store = LocalStore::create(&root).unwrap();
    let batch = store.batch().unwrap();
    fs::remove_dir(&root).unwrap();
    for result in [
        store.get(&key("a/b"), 9).map(drop),
        store.get_range(&key("a"), 0, 1, &mut Vec::new()),
        store.size(&key("a/b")).map(drop),
        store.list("", &mut |_| ()),
        store.list("a/", &mut |_| ()),
        store.put(&key("a/b"), b"body"),
        store.delete(&key("a/b")),
        store.batch().map(drop),
        batch.put(&key("a/b"), b"body"),
        store.sweep_temporaries("", Duration::ZERO).map(drop),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
        assert!(error.help().is_some() && error.to_string().contains("root"));
    }
    assert!(!root.exists(), "a root that is not mounted must not be made");
}

#[test]
fn what_is_not_a_regular_file_is_refused_and_not_followed() {
    let (directory, store) = scratch();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    symlink(outside.path().join("secret"), directory.path().join("link")).unwrap();
    symlink(outside.path(), directory.path().join("linked")).unwrap();
    symlink("nowhere", directory.path().join("dangling")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    let kind = fs::symlink_metadata(directory.path().join("socket")).unwrap().file_type();
    assert!(kind.is_socket());
    for name in ["directory", "link", "linked/secret", "linked/new", "dangling", "socket"] {
        for result in [
            store.get(&key(name), 99).map(drop),
            store.get_range(&key(name), 0, 1, &mut Vec::new()),
            store.size(&key(name)).map(drop),
            store.put(&key(name), b"body"),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Io { .. }), "{name}: {error:?}");
        }
    }
    let error = store.list("", &mut |_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Io { operation: "list", .. }), "{error:?}");
    assert!(store.delete(&key("linked/secret")).is_err());
    assert_eq!(tree(outside.path()), ["secret"]);
    drop(socket);
}

#[test]
fn a_listing_shows_objects_only() {
    let (directory, store) = scratch();
    store.put(&key("a/b"), b"body").unwrap();
    for other in ["lost+found", ".snapshot", "a/.hidden"] {
        fs::create_dir(directory.path().join(other)).unwrap();
        fs::write(directory.path().join(other).join("x"), b"x").unwrap();
    }
    fs::write(directory.path().join("a/.b.1-2-3.tmp"), b"half").unwrap();
    fs::write(directory.path().join("a/b c"), b"x").unwrap();
    let mut found = Vec::new();
    store.list("", &mut |entry| found.push((entry.key.to_string(), entry.size_bytes))).unwrap();
    assert_eq!(found, [("a/b".to_owned(), 4)]);
    for prefix in ["a", "/", "../", "a//", "./"] {
        assert!(matches!(store.list(prefix, &mut |_| ()), Err(StoreError::BadKey { .. })));
    }
}

#[test]
fn nothing_temporary_stays_behind_whatever_the_outcome() {
    let (directory, store) = scratch();
    store.put(&key("a"), b"body").unwrap();
    store.put(&key("a"), b"body").unwrap_err();
    let batch = store.batch().unwrap();
    for name in ["b", "c/d", "z"] {
        batch.put(&key(name), b"batch").unwrap();
    }
    batch.put(&key("b"), b"twice").unwrap_err();
    assert_eq!(tree(directory.path()).iter().filter(|name| name.ends_with(".tmp")).count(), 3);
    store.put(&key("z"), b"first").unwrap();
    assert!(batch.commit().unwrap_err().is_already_exists());
    let names = tree(directory.path());
    assert!(names.iter().all(|name| !name.ends_with(".tmp")), "{names:?}");
    assert_eq!(store.get(&key("z"), 9).unwrap(), b"first");
    let batch = store.batch().unwrap();
    batch.put(&key("late"), b"dropped").unwrap();
    drop(batch);
    assert!(!tree(directory.path()).iter().any(|name| name.contains("late")));
}

#[test]
fn a_batch_larger_than_the_files_it_keeps_open_is_whole() {
    let (directory, store) = scratch();
    let count = 2000; // files and directories above the usual limit of 1024 open ones
    let batch = store.batch().unwrap();
    for n in 0..count {
        batch.put(&key(&format!("{}/{n}", n % 1100)), &[n as u8; 100]).unwrap();
    }
    batch.commit().unwrap();
    let mut found = 0;
    store.list("", &mut |entry| found += usize::from(entry.size_bytes == 100)).unwrap();
    assert_eq!(found, count);
    assert_eq!(tree(directory.path()).len(), count + 1100);
}

#[test]
fn sweeping_takes_old_temporaries_and_nothing_else() {
    let (directory, store) = scratch();
    store.put(&key("a/b/object"), b"body").unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in [".top.1-2-3.tmp", "a/.old.1-2-3.tmp", "a/b/.young.1-2-3.tmp", "a/.other"] {
        fs::write(path(name), b"half").unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    for name in [".top.1-2-3.tmp", "a/.old.1-2-3.tmp", "a/.other", "a/b/object"] {
        File::options().write(true).open(path(name)).unwrap().set_modified(long_ago).unwrap();
    }
    let hour = Duration::from_secs(3600);
    assert_eq!(store.sweep_temporaries("nothing/", hour).unwrap(), 0);
    assert_eq!(store.sweep_temporaries("a/", hour).unwrap(), 1);
    assert_eq!(
        tree(directory.path()),
        [".top.1-2-3.tmp", "a", "a/.other", "a/b", "a/b/.young.1-2-3.tmp", "a/b/object"]
    );
    assert_eq!(store.sweep_temporaries("", hour).unwrap(), 1);
    assert_eq!(store.sweep_temporaries("", Duration::ZERO).unwrap(), 1);
    assert_eq!(tree(directory.path()), ["a", "a/.other", "a/b", "a/b/object"]);
}

#[test]
fn writers_are_not_disturbed_by_others_who_empty_their_directory() {
    let (_directory, store) = scratch();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..100 {
                    let key = key(&format!("shared/deep/{thread}-{n}"));
                    store.put(&key, b"body").unwrap();
                    assert_eq!(store.get(&key, 9).unwrap(), b"body");
                    store.delete(&key).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_name_as_long_as_the_file_system_allows_is_stored() {
    let (_directory, store) = scratch();
    let longest = key(&"n".repeat(255));
    store.put(&longest, b"body").unwrap();
    assert_eq!(store.get(&longest, 9).unwrap(), b"body");
    let too_long = store.put(&key(&"n".repeat(256)), b"body").unwrap_err();
    assert!(matches!(too_long, StoreError::Io { .. }));
}

#[test]
fn a_batch_can_be_filled_while_its_owner_is_elsewhere() {
    fn assert_send<T: Send + Sync + 'static + ?Sized>() {}
    assert_send::<dyn Batch>();
    assert_send::<LocalStore>();
}
