//! Backups that the server sends: the same as those of a data directory that can be read, and
//! either kind may follow the other.

use std::time::Instant;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::Lab;
use lifeboat_trials::same::{assert_comes_back, assert_same_files};
use lifeboat_trials::writers::Writers;
use serde_json::Value;

fn lab(test: &str, major: u32, settings: &[(&str, &str)]) -> Option<Lab> {
    let builder = settings.iter().fold(
        // Nothing but the trial itself may change a file.
        ScratchServer::of(major).setting("autovacuum", "off"),
        |builder, (name, value)| builder.setting(name, value),
    );
    match Lab::start(builder) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

#[track_caller]
fn backup(lab: &Lab, from: &str) -> Value {
    let report = lab.run(&["backup", "--json", "--jobs", "2", "--from", from]).ok().json();
    assert_eq!(report["damaged_pages"], 0, "{report}");
    report
}

fn number(backup: &Value, which: &str) -> u64 {
    backup["totals"][which].as_u64().expect("a report counts")
}

fn fill(lab: &Lab) {
    let place = lab.server.directory("elsewhere").display().to_string();
    lab.server.execute(&format!("CREATE TABLESPACE elsewhere LOCATION '{place}'"));
    for (table, place) in [("near", "pg_default"), ("far", "elsewhere"), ("steady", "elsewhere")] {
        lab.server.execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, filler text) TABLESPACE {place}; \
             INSERT INTO {table} SELECT i, repeat(md5(i::text), 1 + i % 30) \
             FROM generate_series(1, 8000) i"
        ));
    }
    lab.server.execute("CREATE UNLOGGED TABLE passing (i int PRIMARY KEY)");
    lab.server.execute("VACUUM (FREEZE)");
}

/// Local, remote, remote again, local: each is complete, and costs what changed.
fn either_way_follows_the_other(major: u32, settings: &[(&str, &str)]) {
    let Some(lab) = lab("either_way_follows_the_other", major, settings) else { return };
    fill(&lab);
    let began = Instant::now();
    let first = backup(&lab, "local");
    let rounds = ["remote", "remote", "local", "remote"];
    let last = rounds.len() - 1;
    assert!(first["compared_with"].is_null());
    for (round, from) in rounds.into_iter().enumerate() {
        lab.server.execute(&format!("UPDATE near SET filler = 'round {round}' WHERE id % 80 = 0"));
        lab.server.execute(&format!("UPDATE far SET filler = 'round {round}' WHERE id % 90 = 0"));
        let next = backup(&lab, from);
        let what = format!("{from} {round}");
        assert!(!next["compared_with"].is_null(), "{what}: it was compared with nothing");
        let (new, all) = (number(&next, "pages_new"), number(&next, "pages"));
        assert!(0 < new && new < all / 2, "{what}: {new} of {all} pages are new");
        let way = if major >= 17 { "hints" } else { "hashes" };
        assert_eq!(next["reading"]["way"], way, "{what}: {}", next["reading"]);
        if round == last {
            assert_comes_back(&lab, &what, &next);
        } else {
            assert_same_files(&lab, &what, next["id"].as_str().expect("it has an id"));
        }
    }
    eprintln!("PostgreSQL {major}: {:.1?}", began.elapsed());
}

#[test]
fn either_way_follows_the_other_15() {
    either_way_follows_the_other(15, &[]);
}

#[test]
fn either_way_follows_the_other_18() {
    either_way_follows_the_other(18, &[("summarize_wal", "on")]);
}

/// A first backup, under load, with nothing but the connection.
fn under_load(major: u32) {
    let Some(lab) = lab("under_load", major, &[]) else { return };
    fill(&lab);
    let writers = Writers::start(&lab.server, 2);
    let first = backup(&lab, "remote");
    let second = backup(&lab, "remote");
    writers.stop();
    assert!(first["compared_with"].is_null());
    let restored = lifeboat_trials::Restored::start(
        &lab,
        "loaded",
        &["--to-backup", second["id"].as_str().expect("it has an id"), "--tablespace-map", &{
            let old = lab.server.home().join("elsewhere");
            format!("{}={}", old.display(), lab.place("moved").display())
        }],
    );
    assert_eq!(restored.value("SELECT count(*) FROM far"), "8000");
    restored.check_and_stop();
}

#[test]
fn under_load_15() {
    under_load(15);
}

#[test]
fn under_load_18() {
    under_load(18);
}
