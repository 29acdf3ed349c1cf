//! The listing of a data directory beside what PostgreSQL's own tool copies.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lifeboat_engine::{Content, Origin};
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin};
use lifeboat_testkit::scratch::{ScratchServer, on_each};

/// Everything below a directory, as paths relative to it: files, then directories.
fn tree(root: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut files, mut directories) = (BTreeSet::new(), BTreeSet::new());
    let mut todo = vec![String::new()];
    while let Some(path) = todo.pop() {
        directories.insert(path.clone());
        for entry in fs::read_dir(root.join(&path)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if root.join(&path).is_dir() {
                todo.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    (files, directories)
}

fn fill(server: &ScratchServer) {
    let space = server.directory("space");
    server.execute(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    server.execute(
        "CREATE TABLE plain AS SELECT g, repeat('x', 100) FROM generate_series(1, 10000) g; \
         CREATE INDEX ON plain (g); \
         CREATE UNLOGGED TABLE quick AS SELECT g FROM generate_series(1, 10000) g; \
         CREATE INDEX ON quick (g); \
         CREATE TABLE far TABLESPACE fast AS SELECT g FROM generate_series(1, 10000) g; \
         CREATE UNLOGGED TABLE far_quick (a int PRIMARY KEY) TABLESPACE fast",
    );
    server.execute("VACUUM plain");
    server.execute("CREATE DATABASE other");
    server.execute("CREATE PUBLICATION p FOR TABLE plain");
    server.execute("SELECT pg_create_physical_replication_slot('s', true)");
    if server.major() >= 17 {
        server.execute("ALTER SYSTEM SET summarize_wal = on");
        server.execute("SELECT pg_reload_conf()");
    }
    server.execute("CHECKPOINT");
}

#[test]
fn the_listing_is_what_pg_basebackup_copies() {
    on_each(
        "the_listing_is_what_pg_basebackup_copies",
        |b| b,
        |server| {
            fill(server);
            // Temporary relations live as long as their session.
            let mut session = server.client();
            session
                .batch_execute(
                    "CREATE TEMP TABLE mine AS SELECT g FROM generate_series(1, 10000) g; \
                 CREATE TEMP TABLE mine_far TABLESPACE fast AS SELECT 1",
                )
                .unwrap();
            let theirs = server.home().join("theirs");
            let mapping = format!("{0}/space={0}/their-space", server.home().display());
            let conninfo = server.conninfo();
            let target = theirs.to_str().unwrap();
            let arguments =
                ["-D", target, "-d", &conninfo, "-c", "fast", "-X", "none", "-T", &mapping];
            server.run("pg_basebackup", &arguments);

            let mut origin =
                PostgresOrigin::connect(server.connection(), OriginOptions::default()).unwrap();
            origin.start("ours").unwrap();
            let listing = origin.listing().unwrap();
            origin.stop().unwrap();
            assert_eq!(listing.left_out, []);
            drop(session);

            let (mut their_files, their_directories) = tree(&theirs);
            // Theirs writes these into the copy; ours come from the server or in their own way.
            for path in ["backup_label", "tablespace_map", "backup_manifest", "global/pg_control"] {
                their_files.remove(path);
            }
            let our_files: BTreeSet<String> =
                listing.files.iter().map(|f| f.path.clone()).collect();
            assert_eq!(our_files, their_files);
            let our_directories: BTreeSet<String> =
                listing.directories.iter().map(|d| d.path.clone()).collect();
            assert_eq!(our_directories, their_directories);
            for (path, size) in listing.files.iter().map(|f| (&f.path, f.size_bytes)) {
                if path.starts_with("base/") || path.starts_with("pg_tblspc/") {
                    assert_eq!(fs::metadata(theirs.join(path)).unwrap().len(), size, "{path}");
                }
            }
            let (pages, bytes): (Vec<_>, Vec<_>) =
                listing.files.iter().partition(|f| matches!(f.content, Content::Pages { .. }));
            assert!(pages.iter().all(|f| f.size_bytes % 8192 == 0));
            assert!(bytes.iter().all(|f| !f.path.ends_with("_vm")));
            assert!(pages.iter().any(|f| f.path.starts_with("pg_tblspc/")));
        },
    );
}

#[test]
fn tablespaces_in_place_are_part_of_the_data_directory() {
    on_each(
        "tablespaces_in_place_are_part_of_the_data_directory",
        |b| b,
        |server| {
            let mut session = server.client();
            session.batch_execute("SET allow_in_place_tablespaces = on").unwrap();
            session.batch_execute("CREATE TABLESPACE here LOCATION ''").unwrap();
            session.batch_execute("CREATE TABLE t (a int) TABLESPACE here").unwrap();
            let mut origin =
                PostgresOrigin::connect(server.connection(), OriginOptions::default()).unwrap();
            origin.start("in place").unwrap();
            let listing = origin.listing().unwrap();
            assert_eq!(listing.tablespaces, []);
            let inside = |f: &&lifeboat_engine::SourceFile| f.path.starts_with("pg_tblspc/");
            assert_eq!(listing.files.iter().filter(inside).count(), 1);
        },
    );
}
