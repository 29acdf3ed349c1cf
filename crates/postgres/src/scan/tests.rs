use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::{ClusterIdentity, Content, Listing, SegmentSize, SystemId};

use super::{ScanError, list};

fn identity(major: u32) -> ClusterIdentity {
    ClusterIdentity {
        system_id: SystemId(1),
        major,
        catalog_version: 9,
        page_bytes: 8192,
        pages_per_file: 131_072,
        log_segment: SegmentSize::DEFAULT,
        checksums: true,
    }
}

fn write(root: &Path, paths: &[&str]) {
    for path in paths {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
}

fn files(scan: &Listing) -> Vec<&str> {
    scan.files.iter().map(|f| f.path.as_str()).collect()
}

fn directories(scan: &Listing) -> Vec<&str> {
    scan.directories.iter().map(|d| d.path.as_str()).collect()
}

#[test]
fn relations_are_known_by_name_and_place() {
    // A path above that looks like a database directory must not matter.
    let above = tempfile::tempdir().unwrap();
    let root = above.path().join("base/1");
    write(
        &root,
        &[
            "PG_VERSION",
            "16384",
            "base/5/PG_VERSION",
            "base/5/16384",
            "base/5/16384.2",
            "base/5/16384_vm",
            "base/5/pg_filenode.map",
            "base/5/pg_internal.init.77",
            "base/5/t4_16999",
            "base/5/sub/16384",
            "base/x/16384",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "global/1260",
            "global/pg_control",
            "global/pg_filenode.map",
            "pg_xact/0000",
            "log/16384",
        ],
    );
    let scan = list(&root, &identity(18)).unwrap();
    let pages: Vec<_> = scan
        .files
        .iter()
        .filter_map(|f| match f.content {
            Content::Pages { first_page } => Some((f.path.as_str(), first_page)),
            Content::Bytes => None,
        })
        .collect();
    assert_eq!(
        pages,
        [
            ("base/5/16384", 0),
            ("base/5/16384.2", 262_144),
            ("base/5/16384_vm", 0),
            ("global/1260", 0),
        ]
    );
    let all = files(&scan);
    assert!(all.is_sorted());
    for path in ["global/pg_control", "base/5/t4_16999", "base/5/pg_internal.init.77"] {
        assert!(!all.contains(&path), "{path}");
    }
    assert!(all.contains(&"base/x/16384") && all.contains(&"log/16384"));
    assert!(!directories(&scan).contains(&"base/pgsql_tmp"));
    assert_eq!(directories(&scan)[0], "");
}

#[test]
fn of_unlogged_relations_only_the_init_fork_stays() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            "base/5/100",
            "base/5/100.1",
            "base/5/100_fsm",
            "base/5/100_init",
            "base/5/101",
            "base/6/100",
        ],
    );
    let scan = list(root.path(), &identity(15)).unwrap();
    assert_eq!(files(&scan), ["base/5/100_init", "base/5/101", "base/6/100"]);
}

#[test]
fn directories_whose_content_means_nothing_are_kept_empty() {
    let root = tempfile::tempdir().unwrap();
    let wal = tempfile::tempdir().unwrap();
    write(wal.path(), &["000000010000000000000001", "archive_status/x.done", "summaries/y"]);
    symlink(wal.path(), root.path().join("pg_wal")).unwrap();
    write(
        root.path(),
        &[
            "pg_replslot/s/state",
            "pg_notify/0000",
            "pg_stat_tmp/a",
            "pg_subtrans/0000",
            "pg_dynshmem/m",
            "pg_serial/0",
            "pg_snapshots/s",
            "pg_multixact/members/0000",
        ],
    );
    let scan = list(root.path(), &identity(17)).unwrap();
    assert_eq!(files(&scan), ["pg_multixact/members/0000"]);
    let expected = [
        "",
        "pg_dynshmem",
        "pg_multixact",
        "pg_multixact/members",
        "pg_notify",
        "pg_replslot",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
        "pg_wal",
        "pg_wal/archive_status",
        "pg_wal/summaries",
    ];
    assert_eq!(directories(&scan), expected);
    let older = list(root.path(), &identity(16)).unwrap();
    assert!(!directories(&older).contains(&"pg_wal/summaries"));
}

#[test]
fn files_of_the_running_server_and_of_restores_stay_behind() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        &[
            "backup_label",
            "backup_label.old",
            "tablespace_map",
            "backup_manifest",
            "postmaster.pid",
            "postmaster.opts",
            "standby.signal",
            "recovery.signal",
            "postgresql.auto.conf",
            "postgresql.auto.conf.tmp",
            "lifeboat.prefetch/000000010000000000000001.1",
            "lifeboat.reading",
            "lifeboat.recovery",
            "lifeboat.recovery.key",
            "lifeboat.restoring",
            "lifeboat.spool/000000010000000000000001.ack",
            ".s.PGSQL.5432.lock",
            "pg_hba.conf",
        ],
    );
    let scan = list(root.path(), &identity(18)).unwrap();
    assert_eq!(files(&scan), ["pg_hba.conf", "postgresql.auto.conf"]);
    assert_eq!(scan.directories.len(), 1, "only the root itself");
}

#[test]
fn links_are_read_through_or_said() {
    let root = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    write(other.path(), &["postgresql.conf", "logs/a.log"]);
    write(root.path(), &["real/a"]);
    symlink(other.path().join("postgresql.conf"), root.path().join("postgresql.conf")).unwrap();
    symlink(other.path().join("logs"), root.path().join("log")).unwrap();
    symlink("real", root.path().join("inside")).unwrap();
    symlink("/", root.path().join("everything")).unwrap();
    symlink("/nowhere/at/all", root.path().join("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("sock")).unwrap();
    let fifo = root.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
    std::fs::write(root.path().join(OsStr::from_bytes(b"bad\xff")), "").unwrap();
    let scan = list(root.path(), &identity(18)).unwrap();
    assert_eq!(files(&scan), ["log/a.log", "postgresql.conf", "real/a"]);
    let left_out: Vec<_> = scan.left_out.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(left_out, ["bad\u{fffd}", "dangling", "everything", "fifo", "inside"]);
}

#[test]
fn a_tablespace_gives_its_own_versions_files_only() {
    let root = tempfile::tempdir().unwrap();
    let space = tempfile::tempdir().unwrap();
    write(space.path(), &["PG_18_9/5/200", "PG_18_9/5/t1_201", "PG_17_8/5/200", "notes"]);
    write(root.path(), &["pg_tblspc/777/PG_18_9/5/300"]);
    symlink(space.path(), root.path().join("pg_tblspc/16390")).unwrap();
    let scan = list(root.path(), &identity(18)).unwrap();
    assert_eq!(files(&scan), ["pg_tblspc/16390/PG_18_9/5/200", "pg_tblspc/777/PG_18_9/5/300"]);
    assert!(matches!(scan.files[0].content, Content::Pages { first_page: 0 }));
    assert_eq!(scan.tablespaces.len(), 1);
    assert_eq!(scan.tablespaces[0].location, space.path());
}

#[test]
fn tablespaces_at_wrong_places_are_refused() {
    let space = tempfile::tempdir().unwrap();
    fs::create_dir(space.path().join("inner")).unwrap();
    symlink(space.path(), space.path().join("link")).unwrap();
    let refused = |links: &[(&str, &Path)]| {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["base/here", "pg_tblspc/.keep"]);
        for (oid, target) in links {
            let target = if target.starts_with("@") {
                root.path().join(target.strip_prefix("@").unwrap())
            } else {
                target.to_path_buf()
            };
            symlink(target, root.path().join("pg_tblspc").join(oid)).unwrap();
        }
        list(root.path(), &identity(18)).unwrap_err()
    };
    assert!(matches!(refused(&[("1", Path::new("x/y"))]), ScanError::Relative { .. }));
    assert!(matches!(refused(&[("1", &space.path().join("link"))]), ScanError::LinkToLink { .. }));
    assert!(matches!(refused(&[("1", Path::new("@/base"))]), ScanError::InsideData { .. }));
    assert!(matches!(refused(&[("1", Path::new("/not/there"))]), ScanError::NoDirectory { .. }));
    let nested = refused(&[("1", space.path()), ("2", &space.path().join("inner"))]);
    assert!(matches!(nested, ScanError::Nested { inner: 2, outer: 1, .. }), "{nested}");
}

#[test]
fn a_hundred_thousand_files_are_listed_quickly() {
    let root = tempfile::tempdir().unwrap();
    for database in 0..20 {
        let directory = root.path().join(format!("base/{}", 16384 + database));
        fs::create_dir_all(&directory).unwrap();
        for relation in 0..5000 {
            fs::write(directory.join(format!("{}", 20_000 + relation)), b"").unwrap();
        }
    }
    let begun = Instant::now();
    let scan = list(root.path(), &identity(18)).unwrap();
    let took = begun.elapsed();
    assert_eq!(scan.files.len(), 100_000);
    println!("100000 files listed in {took:?}");
    // An unoptimised build on a busy machine gets room; an optimised one takes a fraction.
    assert!(took < Duration::from_secs(4), "{took:?}");
}
