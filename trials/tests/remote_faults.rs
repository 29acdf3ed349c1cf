//! Backups that the server sends, when the connection breaks or a page is damaged.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::Lab;
use lifeboat_trials::proxy::Proxy;
use lifeboat_trials::same::assert_same_files;
use serde_json::Value;

fn lab(test: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major).setting("autovacuum", "off");
    let builder = if major >= 17 { builder.setting("summarize_wal", "on") } else { builder };
    match Lab::start(builder) {
        Ok(lab) => {
            lab.server.execute(
                "CREATE TABLE steady (id int PRIMARY KEY, filler text); \
                 INSERT INTO steady SELECT i, repeat(md5(i::text), 10) \
                 FROM generate_series(1, 20000) i; CHECKPOINT",
            );
            Some(lab)
        }
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

fn listed(lab: &Lab) -> usize {
    let list = lab.run(&["list", "--json"]).ok().json();
    list["backups"].as_array().expect("a list of backups").len()
}

/// The connection breaks at points spread over all of a backup: nothing is listed, the error says
/// what happened, and the next backup is as if nothing had been.
fn a_cut_connection_leaves_nothing_behind(major: u32) {
    let Some(lab) = lab("a_cut_connection_leaves_nothing_behind", major) else { return };
    let proxy = Proxy::start(&lab.server);
    let conninfo = proxy.conninfo();
    let backup = ["--set", &conninfo, "backup", "--json", "--jobs", "2", "--from", "remote"];
    lab.run(&backup).ok();
    let all = proxy.passed.load(Ordering::SeqCst);
    assert!(all > 10 << 20, "only {all} bytes came through: nothing is tested");
    let before = listed(&lab);
    let full = [&backup[..], &["--full-read"]].concat();
    // From the first answer of the server, over login and questions, to the last bytes of files.
    let early = [100, 1500, 4000, 9000].into_iter();
    for cut in early.chain((1..8).map(|eighth| all / 8 * eighth)).chain([all - 200_000]) {
        proxy.left.store(cut, Ordering::SeqCst);
        let ran = lab.run(&full);
        assert!(ran.code != Some(0), "cut after {cut} of {all} bytes: {}", ran.stdout);
        assert!(ran.stderr.contains("help:"), "cut after {cut}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "cut after {cut}: {}", ran.stderr);
        assert_eq!(listed(&lab), before, "cut after {cut}: something was listed");
    }
    proxy.left.store(u64::MAX, Ordering::SeqCst);
    lab.server.execute("UPDATE steady SET filler = 'later' WHERE id % 100 = 0; CHECKPOINT");
    let next = lab.run(&backup).ok().json();
    assert_eq!(next["damaged_pages"], 0, "{next}");
    assert_same_files(&lab, "after the cuts", next["id"].as_str().expect("it has an id"));
}

#[test]
fn a_cut_connection_leaves_nothing_behind_15() {
    a_cut_connection_leaves_nothing_behind(15);
}

#[test]
fn a_cut_connection_leaves_nothing_behind_18() {
    a_cut_connection_leaves_nothing_behind(18);
}

/// A damaged page is found on arrival and named, and the next backup takes nothing over from this
/// one unseen.
fn damage_is_found_on_arrival(major: u32) {
    let Some(lab) = lab("damage_is_found_on_arrival", major) else { return };
    let path = lab.server.value("SELECT pg_relation_filepath('steady')").trim().to_owned();
    let file = std::fs::File::options()
        .write(true)
        .open(lab.server.data_directory().join(&path))
        .expect("the file of the table can be written");
    file.write_all_at(&[0x5a; 64], 3 * 8192 + 4000).expect("a page can be damaged");
    let backup = ["backup", "--json", "--jobs", "2", "--from", "remote"];
    let ran = lab.run(&backup);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    let report = ran.json();
    assert_eq!(report["damaged_pages"], 1, "{report}");
    assert_eq!(report["damage"][0]["path"], Value::from(path));
    assert_eq!(report["damage"][0]["page"], 3);
    let again = lab.run(&backup).json();
    assert_eq!(again["reading"]["way"], "hashes", "{again}");
    assert_eq!(again["damaged_pages"], 1, "{again}");
}

#[test]
fn damage_is_found_on_arrival_15() {
    damage_is_found_on_arrival(15);
}

#[test]
fn damage_is_found_on_arrival_18() {
    damage_is_found_on_arrival(18);
}
