//! Backups over a real network connection: TLS, the guide's role, compression, memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::lab::{Lab, Ran};
use lifeboat_trials::measure::measured;
use lifeboat_trials::proxy::Proxy;
use lifeboat_trials::same::{assert_comes_back, assert_same_files};
use lifeboat_trials::tls::Authority;
use serde_json::Value;

/// Whatever the size, the program has less than this at once.
const MEMORY_BYTES_MAX: u64 = 300 << 20;

fn lab(test: &str, major: u32) -> Option<Lab> {
    match Lab::start(ScratchServer::of(major).tcp().setting("autovacuum", "off")) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason);
            None
        }
    }
}

fn fill(lab: &Lab, rows: u32) {
    lab.server.execute(&format!(
        "CREATE TABLE kept (id int PRIMARY KEY, filler text); INSERT INTO kept \
         SELECT i, repeat(md5(i::text), 1 + i % 30) FROM generate_series(1, {rows}) i; CHECKPOINT"
    ));
}

fn change(lab: &Lab) {
    lab.server.execute("UPDATE kept SET filler = 'later' WHERE id % 100 = 0; CHECKPOINT");
}

/// Lets in, over the network, only the role `keeper` with TLS and a password as SCRAM.
fn only_with_tls_and_password(lab: &Lab) {
    lab.server.execute("SET password_encryption = 'scram-sha-256'; CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'tops3cret'");
    let hba = "local all,replication postgres trust\n\
               hostssl all,replication keeper 127.0.0.1/32 scram-sha-256\n";
    fs::write(lab.server.data_directory().join("pg_hba.conf"), hba).expect("it can be written");
    lab.server.execute("SELECT pg_reload_conf()");
    let passwords = lab.place("passwords");
    fs::write(&passwords, "*:*:*:keeper:tops3cret\n").expect("it can be written");
    fs::set_permissions(&passwords, Permissions::from_mode(0o600)).expect("its mode can be set");
    lab.server.account().give(&passwords).expect("it can be given away");
}

/// Certificates checked, the password bound to the channel: a first backup, then one of what
/// changed, and both come back whole; a server that proves nothing gets nothing.
#[test]
fn over_tls_a_backup_and_what_changed_since_come_back() {
    let test = "over_tls_a_backup_and_what_changed_since_come_back";
    let Some(lab) = lab(test, 18) else { return };
    let authority = Authority::new(&lab.server, "right");
    let (Some(right), Some(wrong)) = (authority, Authority::new(&lab.server, "wrong")) else {
        return scratch::skip(test, "there is no openssl(1)");
    };
    right.serve(&lab.server, "db.example");
    only_with_tls_and_password(&lab);
    let through = |name: &str, mode: &str, root: &Authority| {
        let (port, passwords) = (lab.server.port(), lab.place("passwords"));
        format!(
            "host={name} hostaddr=127.0.0.1 port={port} user=keeper dbname=postgres \
             passfile={} sslmode={mode} sslrootcert={} channel_binding=require",
            passwords.display(),
            root.certificate()
        )
    };
    let conninfo = through("db.example", "verify-full", &right);
    let until = Instant::now() + Duration::from_secs(30);
    while let failed @ Ran { code: Some(1..), .. } = lab.init_for(&conninfo, &["--force"]) {
        assert!(Instant::now() < until, "{}", failed.stderr);
        std::thread::sleep(Duration::from_millis(200));
    }
    fill(&lab, 8000);
    let backup = |way: &str| {
        let backup = lab.run(&["backup", "--json", "--jobs", "2"]).ok().json();
        assert_eq!(backup["reading"]["way"], way, "{}", backup["reading"]);
        assert_eq!(backup["damaged_pages"], 0, "{backup}");
        backup
    };
    let first = backup("first");
    assert_comes_back(&lab, "over TLS", &first);
    change(&lab);
    let second = backup("hints");
    assert_eq!(second["compared_with"], first["id"]);
    let (new, all) = (&second["totals"]["pages_new"], &second["totals"]["pages"]);
    assert!(new.as_u64() < all.as_u64().map(|all| all / 2), "{new} of {all} pages are new");
    assert_comes_back(&lab, "what changed, over TLS", &second);
    let refused = |conninfo: String| {
        let setting = format!("postgres.conninfo={conninfo}");
        for command in [&["backup"][..], &["backup", "--from", "remote"]] {
            lab.run(&[&["--set", &setting][..], command].concat()).fails(20, "[LB-PG-039]");
        }
    };
    refused(through("db.example", "verify-full", &wrong));
    refused(through("db.example", "verify-ca", &wrong));
    refused(through("other.example", "verify-full", &right));
    let plain = through("db.example", "disable", &right).replace("=require", "=prefer");
    let setting = format!("postgres.conninfo={plain}");
    lab.run(&["--set", &setting, "backup"]).fails(20, "[LB-PG-021]");
    let listed = lab.run(&["list", "--json"]).ok().json();
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(2), "{listed}");
}

/// What the guide grants, and nothing else, takes a backup and then what changed.
fn a_role_with_only_the_guides_grants_takes_remote_backups(major: u32) {
    let test = "a_role_with_only_the_guides_grants_takes_remote_backups";
    let Some(lab) = lab(test, major) else { return };
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide/remote.md");
    let guide = fs::read_to_string(guide).expect("the guide is there");
    let sql = guide.split("```sql").nth(1).and_then(|rest| rest.split("```").next());
    lab.server.execute(sql.expect("the guide has statements"));
    fill(&lab, 4000);
    let port = lab.server.port();
    let conninfo = format!("host=127.0.0.1 port={port} user=lifeboat dbname=postgres");
    lab.init_for(&conninfo, &["--force"]).ok();
    let first = lab.run(&["backup", "--json"]).ok();
    assert!(!first.stderr.contains("warning"), "{}", first.stderr);
    assert_same_files(&lab, "the guide's role", first.json()["id"].as_str().unwrap_or_default());
    change(&lab);
    let second = lab.run(&["backup", "--json"]).ok().json();
    let way = if major >= 17 { "hints" } else { "hashes" };
    assert_eq!(second["reading"]["way"], way, "{}", second["reading"]);
    assert_same_files(&lab, "and once more", second["id"].as_str().unwrap_or_default());
    let checked = lab.run(&["check", "--json"]).json();
    let points = checked["points"].as_array().cloned().unwrap_or_default();
    for name in ["privileges", "replication", "WAL senders", "WAL arrives"] {
        let point = points.iter().find(|point| point["name"] == name);
        assert_eq!(point.map(|p| &p["state"]), Some(&Value::from("good")), "{name}: {points:#?}");
    }
}

#[test]
fn a_role_with_only_the_guides_grants_takes_remote_backups_15() {
    a_role_with_only_the_guides_grants_takes_remote_backups(15);
}

#[test]
fn a_role_with_only_the_guides_grants_takes_remote_backups_18() {
    a_role_with_only_the_guides_grants_takes_remote_backups(18);
}

/// However the server compresses on the way, the backup is the same; and it does compress.
#[test]
fn compression_on_the_way_changes_nothing_but_the_way() {
    let test = "compression_on_the_way_changes_nothing_but_the_way";
    let Some(lab) = lab(test, 18) else { return };
    fill(&lab, 20_000);
    let proxy = Proxy::start(&lab.server);
    let conninfo = proxy.conninfo();
    let mut sent = Vec::new();
    for kind in ["none", "lz4", "zstd:3", "none"] {
        let before = proxy.passed.load(Ordering::SeqCst);
        let setting = format!("backup.wire-compression={kind}");
        let set = ["--set", &conninfo, "--set", &setting];
        let backup = ["backup", "--json", "--jobs", "2", "--from", "remote", "--full-read"];
        let report = lab.run(&[&set[..], &backup].concat()).ok().json();
        sent.push(proxy.passed.load(Ordering::SeqCst) - before);
        assert_eq!(report["damaged_pages"], 0, "{kind}: {report}");
        // The server itself writes a page or two.
        let new = report["totals"]["pages_new"].as_u64().expect("a report counts pages");
        assert!(sent.len() == 1 || new < 10, "{kind}: {}", report["totals"]);
        assert_same_files(&lab, kind, report["id"].as_str().unwrap_or_default());
    }
    eprintln!("sent: {sent:?} bytes for none, lz4, zstd:3, none");
    assert!(sent[1] * 2 < sent[0] && sent[2] < sent[1], "{sent:?}");
}

/// A first remote backup, and one of what changed, of more than fits: what the program has at once
/// does not grow with it.
#[test]
fn a_remote_backup_has_little_in_memory_at_once() {
    let Some(lab) = lab("a_remote_backup_has_little_in_memory_at_once", 18) else { return };
    lab.server.execute(
        "CREATE TABLE wide (id int, filler text) WITH (fillfactor = 20); \
         INSERT INTO wide SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, 90000) i; \
         CHECKPOINT",
    );
    let size: u64 = lab.server.value("SELECT pg_relation_size('wide')").parse().expect("a size");
    assert!(size > 2 * MEMORY_BYTES_MAX, "{size} bytes are too few to show anything");
    for what in ["first", "hints"] {
        let backup = ["backup", "--json", "--from", "remote"];
        let (text, cost) = measured(&lab, &backup);
        let report: Value = serde_json::from_str(&text).expect("a report");
        assert_eq!(report["reading"]["way"], what, "{}", report["reading"]);
        eprintln!("{what}: {size} bytes, peak {} bytes, {:.1?}", cost.peak_bytes, cost.wall);
        assert!(cost.peak_bytes < MEMORY_BYTES_MAX, "{what}: {} bytes", cost.peak_bytes);
        lab.server.execute("UPDATE wide SET filler = 'x' WHERE id % 50 = 0; CHECKPOINT");
    }
}
