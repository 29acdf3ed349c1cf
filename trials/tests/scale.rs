//! How cost grows: very many files, and a very long relation that is nearly empty. Figures are
//! printed; what must hold is asserted. `LIFEBOAT_SCALE_FILES` sets the number of files.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::measure::{Cost, measured};
use lifeboat_trials::same::disk_bytes;
use lifeboat_trials::{Lab, Restored};
use postgres::{Client, NoTls};
use serde_json::Value;

/// Whatever the size, the program has less than this at once.
const MEMORY_BYTES_MAX: u64 = 300 << 20;
/// Copies of the database with the tables: files without the time that CREATE TABLE takes.
const COPIES: u64 = 5;

fn lab(test: &str) -> Option<Lab> {
    let builder = ScratchServer::of(18)
        .setting("autovacuum", "off")
        .setting("max_wal_size", "4GB")
        .setting("shared_buffers", "256MB");
    match Lab::start(builder) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

#[track_caller]
fn told(what: &str, units: (u64, &str), cost: Cost, repository_bytes: u64) {
    let (count, unit) = units;
    let each = cost.wall.as_secs_f64() * 1e6 / count as f64;
    eprintln!(
        "{what}: {:.2?}, {each:.1} µs per {unit}, peak {:.0} MB, repository {:.1} MB, {:.1} bytes per {unit}",
        cost.wall,
        cost.peak_bytes as f64 / 1e6,
        repository_bytes as f64 / 1e6,
        repository_bytes as f64 / count as f64
    );
    assert!(cost.peak_bytes < MEMORY_BYTES_MAX, "{what}: {} bytes of memory", cost.peak_bytes);
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn session(lab: &Lab, database: &str) -> Client {
    let conninfo = lab.server.conninfo().replace("dbname=postgres", &format!("dbname={database}"));
    Client::connect(&conninfo, NoTls).expect("the server answers")
}

/// One database with tables of one row and an index each, and copies of it.
fn many_files(lab: &Lab, files: u64) {
    let tables = files / COPIES / 2;
    lab.server.execute("CREATE DATABASE many0");
    let mut many = session(lab, "many0");
    many.batch_execute(&format!(
        "DO $$ BEGIN FOR i IN 1..{tables} LOOP \
         EXECUTE format('CREATE TABLE t%s AS SELECT %s AS i', i, i); \
         EXECUTE format('CREATE INDEX ON t%s (i)', i); \
         IF i % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$"
    ))
    .expect("the tables can be made");
    // Otherwise whoever reads the catalogs changes them: rows are marked as committed.
    many.batch_execute("VACUUM FREEZE pg_class, pg_attribute, pg_index, pg_type, pg_depend")
        .expect("the catalogs can be vacuumed");
    drop(many);
    for copy in 1..COPIES {
        let sql = format!("CREATE DATABASE many{copy} TEMPLATE many0 STRATEGY FILE_COPY");
        lab.server.execute(&sql);
    }
    lab.server.execute("CHECKPOINT");
}

#[test]
fn a_hundred_thousand_files_stay_cheap() {
    let Some(lab) = lab("a_hundred_thousand_files_stay_cheap") else { return };
    let wanted = std::env::var("LIFEBOAT_SCALE_FILES").ok().and_then(|n| n.parse().ok());
    let wanted: u64 = wanted.unwrap_or(100_000);
    let began = std::time::Instant::now();
    many_files(&lab, wanted);
    eprintln!("the files were made in {:.1?}", began.elapsed());

    let (text, cost) = measured(&lab, &["backup", "--json", "--jobs", "2"]);
    let first = json(&text);
    let files = first["totals"]["files"].as_u64().expect("files are counted");
    assert!(files >= wanted, "only {files} files");
    let stored = |backup: &Value| backup["totals"]["new_bytes"].as_u64().expect("a size");
    told("first backup", (files, "file"), cost, stored(&first));
    let first_wall = cost.wall;

    // One file in a hundred: each hundredth table's row and index.
    for copy in 0..COPIES {
        let touch = format!(
            "DO $$ BEGIN FOR i IN 1..{} LOOP EXECUTE format('INSERT INTO t%s VALUES (0)', i * 100); \
             END LOOP; END $$",
            wanted / COPIES / 2 / 100
        );
        session(&lab, &format!("many{copy}")).batch_execute(&touch).expect("rows can be added");
    }
    let (text, cost) = measured(&lab, &["backup", "--json", "--jobs", "2"]);
    let second = json(&text);
    told("backup after 1 % of the files changed", (files, "file"), cost, stored(&second));
    let new = second["totals"]["pages_new"].as_u64().expect("pages are counted");
    let changed = wanted / 100;
    eprintln!("{new} pages are new, of {changed} files that were touched");
    assert!(new >= changed && new < 2 * changed + 500, "{new} new pages");
    // The changed files lie all over the file table, so that most of the table is written anew.
    assert!(stored(&second) < stored(&first) / 3, "a later backup costs what changed");
    assert!(cost.wall < first_wall * 2, "{:?} after {first_wall:?}", cost.wall);

    lab.archive_all();
    let id = second["id"].as_str().expect("a report has an id");
    let place = lab.place("many");
    let into = place.display().to_string();
    let restore = ["restore", "--into", &into, "--to-backup", id, "--jobs", "2"];
    let (_, cost) = measured(&lab, &restore);
    told("restore", (files, "file"), cost, stored(&second));
    let (_, cost) = measured(&lab, &["verify", "--json"]);
    told("verify", (files, "file"), cost, disk_bytes(&lab.repository));

    let restored = Restored::of(&lab.server, &place);
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    let conninfo = restored.conninfo().replace("dbname=postgres", "dbname=many3");
    let mut many = Client::connect(&conninfo, NoTls).expect("the copy answers");
    let rows = many.query_one("SELECT count(*) FROM t100", &[]).expect("the table is there");
    assert_eq!(rows.get::<_, i64>(0), 2);
    drop(many);
    restored.stop();
}

/// A relation of 100 GiB of which nearly nothing lies on the disk.
#[test]
fn a_hundred_sparse_gigabytes_cost_nothing() {
    let Some(lab) = lab("a_hundred_sparse_gigabytes_cost_nothing") else { return };
    const SEGMENTS: u64 = 100;
    let server = &lab.server;
    server.execute("CREATE TABLE long AS SELECT i FROM generate_series(1, 1000) i");
    let path = server.value("SELECT pg_relation_filepath('long')");
    let segment = |number: u64| match number {
        0 => path.clone(),
        number => format!("{path}.{number}"),
    };
    server.stop();
    for number in 0..SEGMENTS {
        let at = server.data_directory().join(segment(number));
        let file = File::options().write(true).create(true).truncate(false).open(&at);
        file.and_then(|file| file.set_len(1 << 30)).expect("a sparse file can be made");
        server.account().give(&at).expect("it can be given away");
    }
    server.start();
    assert_eq!(server.value("SELECT pg_relation_size('long')"), (SEGMENTS << 30).to_string());

    let on_disk = disk_bytes(&lab.repository);
    let (text, cost) = measured(&lab, &["backup", "--json", "--jobs", "2"]);
    let first = json(&text);
    assert!(first["totals"]["pages"].as_u64() > Some(SEGMENTS << 17), "{first}");
    let grown = disk_bytes(&lab.repository) - on_disk;
    told("first backup of 100 GiB of holes", (SEGMENTS, "GiB"), cost, grown);
    assert!(cost.wall < Duration::from_secs(60), "holes are not read: {:?}", cost.wall);
    assert!(grown < 64 << 20, "{grown} bytes for holes");

    server.execute("INSERT INTO long SELECT i FROM generate_series(1, 5000) i; CHECKPOINT");
    let on_disk = disk_bytes(&lab.repository);
    let (text, cost) = measured(&lab, &["backup", "--json", "--jobs", "2"]);
    let second = json(&text);
    let grown = disk_bytes(&lab.repository) - on_disk;
    told("second backup of 100 GiB of holes", (SEGMENTS, "GiB"), cost, grown);
    assert!(cost.wall < Duration::from_secs(60), "{:?}", cost.wall);
    assert!(grown < 32 << 20, "{grown} bytes for holes");
    assert!(second["totals"]["pages_new"].as_u64() < Some(1000), "{second}");

    lab.archive_all();
    let place = lab.place("sparse");
    let into = place.display().to_string();
    let id = second["id"].as_str().expect("a report has an id");
    let restore = ["restore", "--into", &into, "--to-backup", id, "--jobs", "2"];
    let (_, cost) = measured(&lab, &restore);
    told("restore of 100 GiB of holes", (SEGMENTS, "GiB"), cost, grown);
    assert!(cost.wall < Duration::from_secs(60), "{:?}", cost.wall);
    for number in 0..SEGMENTS {
        let data = std::fs::metadata(place.join(segment(number))).expect("the file came back");
        assert_eq!(data.len(), 1 << 30, "{}", segment(number));
        assert!(data.blocks() * 512 < 4 << 20, "{} is sparse again", segment(number));
    }
    let (_, cost) = measured(&lab, &["verify", "--json"]);
    told("verify of 100 GiB of holes", (SEGMENTS, "GiB"), cost, disk_bytes(&lab.repository));
    let restored = Restored::of(server, &place);
    restored.pg_ctl_start().ok();
    restored.wait_for_promotion();
    // The rows went behind the holes.
    let size = "SELECT pg_relation_size('long')";
    assert_eq!(restored.value(size), server.value(size));
    restored.stop();
}
