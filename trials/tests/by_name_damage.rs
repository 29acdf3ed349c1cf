//! By name: a damaged page is reported, the backup is made all the same, and no earlier good copy
//! goes because of it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::{Lab, Restored};
use serde_json::Value;

fn id(backup: &Value) -> &str {
    backup["id"].as_str().expect("a report has an id")
}

fn listed(lab: &Lab) -> Vec<String> {
    let list = lab.run(&["list", "--json"]).ok().json();
    let backups = list["backups"].as_array().expect("a list has backups");
    backups.iter().map(|backup| id(backup).to_owned()).collect()
}

fn a_damaged_page_is_reported_and_harms_no_earlier_backup(major: u32) {
    let test = "a_damaged_page_is_reported_and_harms_no_earlier_backup";
    let lab = match Lab::start(ScratchServer::of(major).setting("autovacuum", "off")) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip(&format!("{test}_{major}"), &reason),
    };
    let server = &lab.server;
    server.execute(
        "CREATE TABLE kept AS SELECT i AS id, repeat(md5(i::text), 9) t FROM generate_series(1, 999) i",
    );
    let first = lab.backup();
    let good = lab.backup();
    assert_eq!(good["damaged_pages"], 0);

    // Bytes in the middle of page 3 and the header of page 5.
    let path = server.value("SELECT pg_relation_filepath('kept')");
    server.stop();
    let on_disk = server.data_directory().join(&path);
    let file = File::options().write(true).open(on_disk).expect("the table can be opened");
    file.write_all_at(b"rotten bytes", (3 << 13) + 4000).expect("it can be damaged");
    file.write_all_at(&[0xab; 24], 5 << 13).expect("it can be damaged");
    server.start();

    // No WAL tells of it: it is seen when it is read.
    let told = lab.run(&["backup", "--full-read"]);
    assert!(matches!(told.code, Some(0 | 3)), "{told:?}");
    for words in ["2 damaged pages".to_owned(), format!("{path} page 3"), format!("{path} page 5")]
    {
        assert!(told.stdout.contains(&words), "`{words}` is not in:\n{}", told.stdout);
    }
    let third = listed(&lab).pop().expect("the damaged backup is listed");
    let ran = lab.run(&["backup", "--json"]);
    assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
    let fourth = ran.json();
    for report in [&fourth, &lab.run(&["show", &third, "--json"]).ok().json()] {
        assert_eq!(report["damaged_pages"], 2, "{report}");
        let damage = report["damage"].as_array().expect("the pages are named");
        let pages: Vec<_> =
            damage.iter().map(|d| (d["path"].as_str(), d["page"].as_u64())).collect();
        assert_eq!(pages, [(Some(&*path), Some(3)), (Some(&*path), Some(5))]);
    }
    let list = lab.run(&["list", "--json"]).ok().json();
    let counts: Vec<_> = list["backups"].as_array().into_iter().flatten().collect();
    let counts: Vec<_> = counts.iter().map(|b| b["damaged_pages"].as_u64()).collect();
    assert_eq!(counts, [Some(0), Some(0), Some(2), Some(2)]);
    let text = lab.run(&["list"]).ok().stdout;
    assert!(text.contains("2 damaged pages"), "{text}");

    // Two are to be kept, and the two good ones are: the damaged ones take nobody's place.
    let expired = lab.run(&["expire", "--keep-backups", "1"]).ok();
    assert!(expired.stdout.contains(id(&first)), "{}", expired.stdout);
    assert_eq!(listed(&lab), [id(&good), &third, id(&fourth)], "{}", expired.stdout);
    lab.run(&["verify"]).ok();
    let restored = Restored::start(&lab, "good", &["--to-backup", id(&good)]);
    assert_eq!(restored.value("SELECT count(*) FROM kept"), "999");
    restored.check_and_stop();
    // What was damaged comes back as it was read: neither better nor worse.
    let damaged = Restored::start(&lab, "damaged", &["--to-backup", id(&fourth)]);
    let read = damaged.client().simple_query("SELECT count(*) FROM kept");
    assert!(read.is_err(), "the damage is still there");
    damaged.stop();

    // A checksum that fits is no advice while the page is damaged.
    server.stop();
    server
        .run("pg_checksums", &["--disable", "-D", &server.data_directory().display().to_string()]);
    server.start();
    let checked = lab.run(&["check"]);
    assert_eq!(checked.code, Some(3), "{checked:?}");
    assert!(checked.stdout.contains("first mend"), "{}", checked.stdout);

    // Once the page is whole again, the next backup is a good one, and it may take their place.
    server.execute("TRUNCATE kept");
    let healed = lab.backup();
    assert_eq!(healed["damaged_pages"], 0);
    let checked = lab.run(&["check"]).stdout;
    assert!(
        checked.contains("pg_checksums --enable") && !checked.contains("first mend"),
        "{checked}"
    );
    lab.run(&["expire", "--keep-backups", "1"]).ok();
    assert_eq!(listed(&lab), [id(&healed)]);
}

#[test]
fn a_damaged_page_is_reported_and_harms_no_earlier_backup_15() {
    a_damaged_page_is_reported_and_harms_no_earlier_backup(15);
}

#[test]
fn a_damaged_page_is_reported_and_harms_no_earlier_backup_18() {
    a_damaged_page_is_reported_and_harms_no_earlier_backup(18);
}
