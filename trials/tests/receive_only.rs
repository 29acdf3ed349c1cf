//! A server that does not archive: `wal receive` alone stores its WAL.

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::refusal::until;
use lifeboat_trials::{Lab, Receiving, Restored};
use serde_json::Value;

fn lab(test: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major).setting("archive_mode", "off").wal_segment_mib(1);
    match builder.start() {
        Ok(server) => {
            let mut lab = Lab::without_repository(server);
            lab.init().ok();
            Some(lab)
        }
        Err(reason) => {
            scratch::skip(test, &reason.to_string());
            None
        }
    }
}

/// The points of `check`: state, what was found, help.
struct Points(Value);

impl Points {
    fn of(lab: &Lab, words: &[&str]) -> Self {
        let ran = lab.run(&[words, &["check", "--json"]].concat());
        Self(ran.json()["points"].clone())
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.0.as_array().expect("a list").iter().find(|point| point["name"] == name)
    }

    #[track_caller]
    fn is(&self, name: &str, state: &str, words: &[&str]) {
        let point = self.find(name).unwrap_or_else(|| panic!("no {name}: {:#}", self.0));
        assert_eq!(point["state"], state, "{point:#}");
        let all = format!("{} {}", point["found"], point["help"]);
        assert!(words.iter().all(|word| all.contains(word)), "{words:?} are not in {all}");
    }
}

const IMPATIENT: [&str; 2] = ["--set", "backup.archive-timeout=2s"];

fn receive_only(major: u32) {
    let test = format!("where_wal_is_only_received_check_and_backup_know_it on {major}");
    let Some(lab) = lab(&test, major) else { return };
    let server = &lab.server;
    // Nobody archives and nobody receives.
    let points = Points::of(&lab, &[]);
    points.is("archive_mode", "failed", &["nobody receives", "wal receive"]);
    points.is("WAL arrives", "failed", &["not tried"]);
    assert!(points.find("receiving").is_none(), "{:#}", points.0);
    let refused = lab.run(&[&IMPATIENT[..], &["backup"]].concat());
    refused.refused(1, &["[LB-BAK-002]", "archive_mode is off", "nobody receives"]);

    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot", "--ship-every", "1s"]);
    receiver.wait_for("streaming", 1);
    let points = Points::of(&lab, &[]);
    points.is("archive_mode", "good", &["received instead"]);
    points.is("receiving", "good", &["slot `lifeboat` is in use", "behind"]);
    points.is("WAL arrives", "good", &["segment"]);
    assert!(points.find("archive_command").is_none(), "{:#}", points.0);
    server.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    lab.backup();
    let points = Points::of(&lab, &[]);
    points.is("receiving", "good", &["stored up to 0/"]);
    server.execute("INSERT INTO t VALUES (0)");
    let lsn = server.value("SELECT pg_current_wal_flush_lsn()");
    let shipped = format!("SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication");
    until("it is shipped", || server.value(&shipped) == "t");
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), "1001");
    restored.check_and_stop();

    // Another name for the slot is one that nobody has.
    let points = Points::of(&lab, &["--set", "wal.slot=other"]);
    points.is("archive_mode", "failed", &["nobody receives"]);

    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    let points = Points::of(&lab, &IMPATIENT);
    points.is("receiving", "failed", &["nobody uses slot `lifeboat`", "pg_drop_replication_slot"]);
    points.is("archive_mode", "failed", &["nobody receives"]);
    let refused = lab.run(&[&IMPATIENT[..], &["backup"]].concat());
    refused.refused(1, &["[LB-BAK-002]", "nobody receives"]);

    server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    server.execute("ALTER SYSTEM SET max_wal_size = '2MB'");
    server.execute("SELECT pg_reload_conf()");
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
    until("the slot is lost", || {
        server.execute("SELECT txid_current(); SELECT pg_switch_wal()");
        server.execute("CHECKPOINT");
        server.value(lost) == "1"
    });
    let points = Points::of(&lab, &IMPATIENT);
    points.is("receiving", "failed", &["given up", "--create-slot", "lifeboat backup"]);
    // Doing what it says heals it.
    server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size");
    server.execute("SELECT pg_reload_conf()");
    let mut receiver = Receiving::start(&lab, "again", &["--create-slot", "--ship-every", "1s"]);
    receiver.wait_for("streaming", 1);
    lab.backup();
    Points::of(&lab, &[]).is("receiving", "good", &["in use"]);
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    let restored = Restored::start(&lab, "after", &["--latest"]);
    assert_eq!(restored.value("SELECT count(*) FROM t"), "1001");
    restored.check_and_stop();
}

#[test]
fn where_wal_is_only_received_check_and_backup_know_it_15() {
    receive_only(15);
}

#[test]
fn where_wal_is_only_received_check_and_backup_know_it_18() {
    receive_only(18);
}
