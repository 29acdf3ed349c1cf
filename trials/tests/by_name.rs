//! What other tools got wrong, by name: each is done between two backups, and the second comes
//! back byte by byte, as a running server, and with the same dump. On 18 the second backup goes by
//! WAL summaries, on 15 by hashes; on 18 also sent by the server, as differences.

use std::time::Instant;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::Lab;
use lifeboat_trials::same::{assert_comes_back, assert_way, tablespace_map};

/// Where the backups are taken from.
type From = Option<&'static str>;
/// The server sends them; on 18, what changed.
const REMOTE: From = Some("remote");

fn lab(test: &str, major: u32, from: From) -> Option<Lab> {
    // Nothing but the trial itself may change a file.
    match Lab::start(ScratchServer::of(major).setting("autovacuum", "off")) {
        Ok(lab) => Some(Lab { from, ..lab }),
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

/// Does it, takes a backup that is compared with the one before, and restores it.
#[track_caller]
fn round(lab: &Lab, what: &str, act: impl FnOnce(&ScratchServer)) {
    let began = Instant::now();
    act(&lab.server);
    let backup = lab.backup();
    assert!(!backup["compared_with"].is_null(), "{what}: it was compared with nothing");
    let (new, all) = (pages(&backup, "pages_new"), pages(&backup, "pages"));
    assert!(0 < new && new < all / 2, "{what}: {new} of {all} pages are new");
    assert_way(lab, what, &backup, "hints");
    assert_comes_back(lab, what, &backup);
    eprintln!("PostgreSQL {}: {what}: {:.1?}", lab.server.major(), began.elapsed());
}

fn pages(backup: &serde_json::Value, which: &str) -> u64 {
    backup["totals"][which].as_u64().expect("a report counts pages")
}

fn fill(server: &ScratchServer, tables: &[&str]) {
    for table in tables {
        server.execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, filler text); \
             INSERT INTO {table} SELECT i, repeat(md5(i::text), 1 + i % 30) \
             FROM generate_series(1, 4000) i"
        ));
    }
}

fn relations_that_are_rewritten_and_shrink(major: u32, from: From) {
    let Some(lab) = lab("relations_that_are_rewritten_and_shrink", major, from) else { return };
    fill(&lab.server, &["rewritten", "emptied", "shrunk", "mapped"]);
    lab.backup();
    round(&lab, "VACUUM FULL", |server| {
        server.execute("DELETE FROM rewritten WHERE id % 3 = 0");
        server.execute("VACUUM FULL rewritten");
        server.execute("VACUUM FULL pg_class"); // changes pg_filenode.map
    });
    round(&lab, "TRUNCATE", |server| {
        server.execute("TRUNCATE emptied");
        server.execute("BEGIN; CREATE TABLE lost (i int); TRUNCATE lost; ROLLBACK");
    });
    round(&lab, "a relation that shrinks", |server| {
        server.execute("DELETE FROM shrunk WHERE id > 100");
        server.execute("VACUUM shrunk");
    });
    round(&lab, "free space and visibility maps", |server| {
        server.execute("DELETE FROM mapped WHERE id % 7 = 0");
        server.execute("VACUUM mapped");
        server.execute("INSERT INTO mapped SELECT i, 'again' FROM generate_series(7, 70, 7) i");
    });
}

#[test]
fn relations_that_are_rewritten_and_shrink_15() {
    relations_that_are_rewritten_and_shrink(15, None);
}

#[test]
fn relations_that_are_rewritten_and_shrink_18() {
    relations_that_are_rewritten_and_shrink(18, None);
}

#[test]
fn relations_that_are_rewritten_and_shrink_remote() {
    relations_that_are_rewritten_and_shrink(18, REMOTE);
}

fn databases_and_tablespaces(major: u32, from: From) {
    let Some(lab) = lab("databases_and_tablespaces", major, from) else { return };
    let server = &lab.server;
    // Places whose names look like parts of a data directory.
    let (first, second) = (server.directory("base-1"), server.directory("global"));
    fill(server, &["here"]);
    lab.backup();
    round(&lab, "CREATE DATABASE with STRATEGY FILE_COPY", |server| {
        server.execute("CREATE DATABASE copied STRATEGY FILE_COPY");
    });
    round(&lab, "CREATE TABLESPACE and tables in it", |server| {
        server.execute(&format!("CREATE TABLESPACE one LOCATION '{}'", first.display()));
        server.execute(&format!("CREATE TABLESPACE two LOCATION '{}'", second.display()));
        server.execute("CREATE TABLE there TABLESPACE one AS SELECT * FROM here");
    });
    round(&lab, "ALTER DATABASE SET TABLESPACE", |server| {
        server.execute("ALTER DATABASE copied SET TABLESPACE two");
        server.execute("ALTER TABLE here SET TABLESPACE one");
    });
    // Without a mapping it would land where the origin's tablespace lies.
    let before = lab.server.value("SELECT count(*) FROM there");
    let into = lab.place("occupied").display().to_string();
    lab.run(&["restore", "--into", &into]).fails(1, &first.display().to_string());
    assert!(!lab.place("occupied").join("PG_VERSION").exists(), "nothing is written");
    let map = tablespace_map(&lab, "half");
    let half = ["restore", "--into", &into, "--tablespace-map", &map[0]];
    lab.run(&half).fails(1, "tablespace");
    assert_eq!(lab.server.value("SELECT count(*) FROM there"), before);
    round(&lab, "in-place tablespaces", |server| {
        // PostgreSQL finishes recovery with such a tablespace only where it is allowed.
        server.execute("ALTER SYSTEM SET allow_in_place_tablespaces = on");
        let mut session = server.client();
        for sql in ["SET allow_in_place_tablespaces = on", "CREATE TABLESPACE inside LOCATION ''"] {
            session.batch_execute(sql).expect("a tablespace can lie in the data directory");
        }
        server.execute("CREATE TABLE within TABLESPACE inside AS SELECT * FROM here");
    });
    round(&lab, "DROP TABLESPACE", |server| {
        server.execute("ALTER DATABASE copied SET TABLESPACE pg_default");
        server.execute("DROP TABLESPACE two");
    });
}

#[test]
fn databases_and_tablespaces_15() {
    databases_and_tablespaces(15, None);
}

#[test]
fn databases_and_tablespaces_18() {
    databases_and_tablespaces(18, None);
}

#[test]
fn databases_and_tablespaces_remote() {
    databases_and_tablespaces(18, REMOTE);
}

fn relations_that_no_backup_keeps(major: u32, from: From) {
    let Some(lab) = lab("relations_that_no_backup_keeps", major, from) else { return };
    let server = &lab.server;
    fill(server, &["kept"]);
    lab.backup();
    let mut session = server.client();
    session
        .batch_execute("CREATE TEMP TABLE passing AS SELECT generate_series(1, 9999) i")
        .expect("a temporary table can be made");
    server.execute(
        "CREATE UNLOGGED TABLE unlogged (id serial PRIMARY KEY, filler text); \
         INSERT INTO unlogged (filler) SELECT repeat('x', 500) FROM generate_series(1, 999)",
    );
    server.execute("CHECKPOINT"); // their files have pages now
    let temporary: String = session
        .query_one("SELECT pg_relation_filepath('passing')", &[])
        .expect("a temporary table has a path")
        .get(0);
    let path = server.value("SELECT pg_relation_filepath('unlogged')");
    let data = server.data_directory();
    let size = |path: &str| std::fs::metadata(data.join(path)).map_or(0, |data| data.len());
    session.batch_execute("CHECKPOINT").expect("a checkpoint can be made");
    assert!(size(&path) > 0, "the unlogged table has pages on disk");
    assert!(data.join(&temporary).exists(), "the temporary table has a file");
    let backup = lab.backup();
    let id = backup["id"].as_str().expect("a report has an id");
    lifeboat_trials::same::assert_same_files(&lab, "unlogged and temporary", id);
    let place = lab.place("raw");
    let into = place.display().to_string();
    lab.run(&["restore", "--into", &into, "--to-backup", id]).ok();
    assert!(!place.join(&temporary).exists(), "{temporary} is not in the backup");
    assert!(!place.join(&path).exists(), "{path} is not in the backup");
    assert!(place.join(format!("{path}_init")).exists(), "{path}_init is in the backup");
    let restored = lifeboat_trials::Restored::of(server, &place);
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    assert_eq!(restored.value("SELECT count(*) FROM unlogged"), "0");
    assert_eq!(restored.value("SELECT count(*) FROM kept"), "4000");
    assert_eq!(restored.query("INSERT INTO unlogged (id) VALUES (1) RETURNING id"), ["1"]);
    restored.check_and_stop();
    drop(session);
    round(&lab, "an unlogged table becomes a logged one", |server| {
        server.execute("ALTER TABLE unlogged SET LOGGED");
    });
}

#[test]
fn relations_that_no_backup_keeps_15() {
    relations_that_no_backup_keeps(15, None);
}

#[test]
fn relations_that_no_backup_keeps_18() {
    relations_that_no_backup_keeps(18, None);
}

#[test]
fn relations_that_no_backup_keeps_remote() {
    relations_that_no_backup_keeps(18, REMOTE);
}
