//! Setting up for a server that is reached only through the network: `init` and `check` with
//! nothing but a connection string, and with each thing missing.

use std::fs;
use std::process::Command;

use lifeboat_testkit::scratch::{self, ScratchBuilder, ScratchServer};
use lifeboat_trials::lab::{Ran, run};
use lifeboat_trials::same::assert_same_files;
use lifeboat_trials::standby::{Standby, wait_for};
use lifeboat_trials::{Lab, Receiving};
use serde_json::Value;

/// A server with a role of the guide, `keeper`, and no repository yet.
fn lab(
    test: &str,
    major: u32,
    configure: impl Fn(ScratchBuilder) -> ScratchBuilder,
) -> Option<Lab> {
    // `check` looks at everything: fsync off, as tests have it, is a finding.
    let builder = ScratchServer::of(major).setting("autovacuum", "off").setting("fsync", "on");
    match configure(builder).start() {
        Ok(server) => {
            server.execute("CREATE ROLE keeper LOGIN REPLICATION");
            server.execute("CREATE TABLE kept AS SELECT generate_series(1, 10000) i");
            Some(Lab::without_repository(server))
        }
        Err(reason) => {
            scratch::skip(&format!("{test}_{major}"), &reason.to_string());
            None
        }
    }
}

/// A server that listens on the network.
fn far_lab(
    test: &str,
    major: u32,
    configure: impl Fn(ScratchBuilder) -> ScratchBuilder,
) -> Option<Lab> {
    lab(test, major, |builder| configure(builder.tcp()))
}

/// Runs `init` for `keeper`, and gives what it waits for less time.
fn init(lab: &Lab, more: &[&str]) -> Ran {
    let ran = lab.init_for(&keeper(lab), more);
    let config = fs::read_to_string(&lab.config).expect("there is a configuration");
    let config = config.replace("[backup]\n", "[backup]\narchive-timeout = \"3s\"\n");
    fs::write(&lab.config, config).expect("it can be written");
    ran
}

/// How `keeper` reaches the server.
fn keeper(lab: &Lab) -> String {
    format!("host=127.0.0.1 port={} user=keeper dbname=postgres", lab.server.port())
}

fn archiving(builder: ScratchBuilder) -> ScratchBuilder {
    builder.setting("archive_mode", "on").setting("archive_command", "/bin/false")
}

#[track_caller]
fn says(ran: &Ran, words: &[&str]) {
    for words in words {
        assert!(ran.stdout.contains(words), "`{words}` is not in:\n{}{}", ran.stdout, ran.stderr);
    }
}

/// A point of `check`: state, what was found, what to do.
#[track_caller]
fn point(checked: &Ran, name: &str) -> (String, String) {
    let points = checked.json()["points"].clone();
    let found = points.as_array().and_then(|all| all.iter().find(|point| point["name"] == name));
    let point = found.unwrap_or_else(|| panic!("no point `{name}` in {points:#}"));
    let text = |key: &str| point[key].as_str().unwrap_or("").to_owned();
    (text("state"), format!("{}\n{}", text("found"), text("help")))
}

#[track_caller]
fn stands(checked: &Ran, name: &str, state: &str, words: &str) {
    let (is, text) = point(checked, name);
    assert!(is == state && text.contains(words), "{name} is {is}: {text}");
}

fn check(lab: &Lab) -> Ran {
    lab.run(&["check", "--json"])
}

/// What `init` prints for the server's machine works there, and then a backup finds its way.
fn a_connection_string_is_enough(major: u32) {
    let Some(lab) = far_lab("a_connection_string_is_enough", major, archiving) else { return };
    let said = init(&lab, &[]).ok();
    let archive = format!("archive_command = '{}'", lab.archive_command());
    says(&said, &["backups come through the network", &archive, "wal receive --create-slot"]);
    says(&said, &["1. from the server's machine", "2. from this machine", "slot `lifeboat`"]);
    assert!(!said.stdout.contains("restore_command"), "{}", said.stdout);
    let config = fs::read_to_string(&lab.config).expect("there is a configuration");
    assert!(config.contains("the server sends its files"), "{config}");

    let checked = check(&lab);
    assert_eq!(checked.code, Some(3), "{}", checked.stdout);
    stands(&checked, "archive_command", "failed", &lab.archive_command());
    stands(&checked, "archive_command", "failed", "wal receive --create-slot");
    stands(&checked, "WAL arrives", "failed", "did not arrive");

    lab.archive();
    lab.server.execute("SELECT pg_switch_wal()");
    let checked = check(&lab).ok();
    stands(&checked, "data directory", "good", "the role may not see where");
    stands(&checked, "version", "good", "PostgreSQL");
    stands(&checked, "replication", "good", "a connection can be opened");
    stands(&checked, "WAL senders", "good", "of 10 at work");
    stands(&checked, "privileges", "note", "pg_switch_wal() TO \"keeper\"");
    stands(&checked, "WAL arrives", "note", "the newest finished one, is there");
    let ran = lab.run(&["backup"]).ok();
    says(&ran, &["the server sends its files"]);
    let id = lab.run(&["list", "--json"]).ok().json()["backups"][0]["id"].clone();
    assert_same_files(&lab, "set up by a connection string", id.as_str().unwrap_or_default());

    // With the optional GRANTs the whole loop is tried.
    lab.server.execute(
        "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO keeper; GRANT EXECUTE ON FUNCTION \
         pg_read_binary_file(text, bigint, bigint, boolean) TO keeper",
    );
    let checked = check(&lab).ok();
    stands(&checked, "privileges", "good", "may all that a remote backup needs");
    stands(&checked, "WAL arrives", "good", "segment");
}

#[test]
fn a_connection_string_is_enough_15() {
    a_connection_string_is_enough(15);
}

#[test]
fn a_connection_string_is_enough_18() {
    a_connection_string_is_enough(18);
}

/// Nothing runs on the server's machine: what `init` prints for this one is enough.
#[test]
fn what_init_prints_to_receive_wal_is_enough() {
    let Some(lab) = far_lab("what_init_prints_to_receive_wal_is_enough", 18, |b| b) else { return };
    let made = init(&lab, &["--json"]).ok().json();
    assert_eq!(made["remote"]["slot"], "lifeboat", "{made}");
    let command = made["remote"]["receive_command"].as_str().unwrap_or_default();
    assert!(command.ends_with("wal receive --create-slot"), "{made}");
    let checked = check(&lab);
    stands(&checked, "archive_mode", "failed", "off");
    stands(&checked, "WAL arrives", "failed", "nobody receives");
    lab.run(&["backup"]).fails(1, "[LB-BAK-002]");
    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot"]);
    receiver.wait_for("streaming", 1);
    lab.server.execute("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO keeper");
    let checked = check(&lab).ok();
    stands(&checked, "receiving", "good", "slot `lifeboat` is in use");
    stands(&checked, "WAL arrives", "good", "segment");
    let backup = lab.backup();
    assert_same_files(&lab, "received", backup["id"].as_str().unwrap_or_default());
    assert_eq!(receiver.terminate(), Some(0));
    let slot = "SELECT active FROM pg_replication_slots WHERE slot_name = 'lifeboat'";
    wait_for("the slot is free", || lab.server.value(slot) == "f");
    stands(&check(&lab), "receiving", "failed", "nobody uses slot `lifeboat`");
}

/// Each thing that a remote backup needs is taken away: `check` names it and what to do, and so
/// does `init`.
fn each_thing_that_is_missing_is_named(major: u32) {
    let test = "each_thing_that_is_missing_is_named";
    let configure = |b: ScratchBuilder| {
        let b = archiving(b).setting("max_wal_senders", "1");
        if major >= 17 { b.setting("summarize_wal", "on") } else { b }
    };
    let Some(lab) = far_lab(test, major, configure) else { return };
    let server = &lab.server;
    server.execute("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO keeper");
    init(&lab, &[]).ok();
    lab.archive();
    let summaries = if major >= 17 { "on: the server sends only" } else { "sends everything" };
    stands(&check(&lab).ok(), "summarize_wal", "good", summaries);

    server.execute("ALTER ROLE keeper NOREPLICATION");
    let checked = check(&lab);
    stands(&checked, "privileges", "failed", "ALTER ROLE \"keeper\" REPLICATION");
    stands(&checked, "replication", "failed", "ALTER ROLE \"keeper\" REPLICATION");
    lab.run(&["backup"]).fails(1, "[LB-PG-024]").fails(1, "ALTER ROLE \"keeper\" REPLICATION");
    let said = init(&lab, &["--force"]).ok();
    says(&said, &["✗ replication", "ALTER ROLE \"keeper\" REPLICATION"]);
    server.execute("ALTER ROLE keeper REPLICATION");

    let hba = server.data_directory().join("pg_hba.conf");
    let open = fs::read_to_string(&hba).expect("it can be read");
    fs::write(&hba, "local all all trust\nhost all all 127.0.0.1/32 trust\n").expect("and written");
    server.execute("SELECT pg_reload_conf()");
    let line = "host  replication  \"keeper\"  127.0.0.1/32  scram-sha-256";
    wait_for("no line fits", || point(&check(&lab), "replication").0 == "failed");
    stands(&check(&lab), "replication", "failed", line);
    says(&init(&lab, &["--force"]).ok(), &[line]);
    lab.run(&["backup"]).fails(20, "[LB-PG-021]");
    fs::write(&hba, open).expect("it can be written");
    server.execute("SELECT pg_reload_conf()");
    wait_for("a line fits", || point(&check(&lab), "replication").0 == "good");

    let mut receiver = Receiving::start(&lab, "receiver", &["--create-slot"]);
    receiver.wait_for("streaming", 1);
    let checked = check(&lab);
    stands(&checked, "WAL senders", "failed", "1 of 1 at work");
    stands(&checked, "WAL senders", "failed", "max_wal_senders = 10, and a restart");
    stands(&checked, "replication", "failed", "see WAL senders");
    lab.run(&["backup"]).fails(20, "[LB-PG-020]");
    assert_eq!(receiver.terminate(), Some(0));
    server.execute("SELECT pg_drop_replication_slot('lifeboat')");

    let zstd = "backup.wire-compression=zstd:1";
    let checked = lab.run(&["--set", zstd, "check", "--json"]);
    stands(&checked, "wire compression", "good", "the server can zstd");
    stands(&check(&lab), "wire compression", "good", "none is wanted");
    if major >= 17 {
        server.execute("ALTER SYSTEM SET summarize_wal = off");
        server.execute("SELECT pg_reload_conf()");
        let state = || point(&check(&lab), "summarize_wal").0;
        wait_for("summaries are off", || state() == "note");
    }
    lab.archive_nowhere();
    stands(&check(&lab), "WAL arrives", "failed", "did not arrive in");
}

#[test]
fn each_thing_that_is_missing_is_named_15() {
    each_thing_that_is_missing_is_named(15);
}

#[test]
fn each_thing_that_is_missing_is_named_18() {
    each_thing_that_is_missing_is_named(18);
}

/// `--apply` makes what goes through the connection, and says what it did not.
#[test]
fn apply_does_what_it_can_from_here_and_says_what_not() {
    let test = "apply_does_what_it_can_from_here_and_says_what_not";
    let configure = |b: ScratchBuilder| b.setting("full_page_writes", "off");
    let Some(lab) = far_lab(test, 18, configure) else { return };
    // The role may neither see the data directory nor set anything.
    let said = init(&lab, &["--apply"]);
    assert_eq!(said.code, Some(3), "{}{}", said.stdout, said.stderr);
    says(&said, &["✗ full_page_writes is not set: the role may not"]);
    says(&said, &["archive_command is not set: whether lifeboat is on the server's machine"]);
    // It may set one of them: that one is made.
    lab.server.execute("GRANT ALTER SYSTEM ON PARAMETER full_page_writes TO keeper");
    lab.server.execute("GRANT EXECUTE ON FUNCTION pg_reload_conf() TO keeper");
    let said = init(&lab, &["--apply", "--force"]).ok();
    says(&said, &["set by ALTER SYSTEM: full_page_writes", "archive_mode is not set"]);
    says(&said, &["archive_command = '"]);
    wait_for("it is on", || lab.server.value("SHOW full_page_writes") == "on");
    assert_eq!(lab.server.value("SHOW archive_command"), "(disabled)");
    assert_eq!(lab.server.value("SELECT count(*) FROM pg_replication_slots"), "0");
}

/// The superuser of a server on this machine, as a user who cannot read its data directory.
#[test]
fn a_data_directory_that_cannot_be_read_is_no_obstacle() {
    let test = "a_data_directory_that_cannot_be_read_is_no_obstacle";
    let Some(lab) = far_lab(test, 18, archiving) else { return };
    let stranger = lifeboat_testkit::scratch::stranger();
    let Some(stranger) = stranger else { return scratch::skip(test, "this is not root") };
    let place = tempfile::tempdir().expect("a directory can be made");
    let program = place.path().join("lifeboat");
    fs::copy(&lab.program, &program).expect("the program can be copied");
    stranger.give(place.path()).expect("it can be given away");
    let as_stranger = |arguments: &[&str]| -> Ran {
        let mut command: Command = stranger.command(&program);
        command.arg("--config").arg(place.path().join("lifeboat.toml")).args(arguments);
        run(command.current_dir(place.path()))
    };
    let url = format!("file://{}", place.path().join("repository").display());
    let pg = keeper(&lab).replace("keeper", "postgres");
    let init = ["init", "--pg", &pg, "--repo", &url, "--no-encryption"];
    let said = as_stranger(&init).ok();
    says(&said, &["cannot be read here", "run init as its owner"]);
    let checked = as_stranger(&["--set", "backup.archive-timeout=2s", "check", "--json"]);
    stands(&checked, "data directory", "good", "cannot be read here");
    let mut receiver = stranger.command(&program);
    receiver.arg("--config").arg(place.path().join("lifeboat.toml"));
    let mut receiver =
        receiver.args(["--json", "wal", "receive", "--create-slot"]).spawn().expect("it starts");
    wait_for("the slot is used", || {
        lab.server.value("SELECT count(*) FROM pg_replication_slots WHERE active") == "1"
    });
    let backup = as_stranger(&["backup", "--json"]);
    let _ = receiver.kill();
    let _ = receiver.wait();
    assert!(backup.ok().json()["id"].is_string());
}

/// A standby can be set up too, whether its data directory is here or not.
#[test]
fn a_standby_can_be_set_up() {
    let Some(lab) = lab("a_standby_can_be_set_up", 18, archiving) else { return };
    lab.init_for(&lab.server.conninfo(), &[]).ok();
    lab.archive();
    let standby = Standby::start(&lab, "standby");
    let text = fs::read_to_string(&standby.config).expect("the standby has a configuration");
    let conninfo = text.lines().find_map(|line| line.strip_prefix("conninfo = "));
    let conninfo = conninfo.expect("it names the standby").trim_matches('"');
    let here = lab.init_for(conninfo, &["--force", "--apply"]).ok();
    says(&here, &["it is a standby", "repository found", "set by ALTER SYSTEM: restore_command"]);
    assert!(!here.stdout.contains("archive_command"), "{}", here.stdout);
    lab.run(&["check"]).ok();
    let backup = lab.run(&["backup", "--json"]).ok().json();
    assert!(backup["compared_with"].is_null(), "{backup}");
    // A role that may not see where the data directory is, and a standby with other settings.
    standby.query("ALTER SYSTEM SET archive_command = '/bin/false'");
    standby.query("SELECT pg_reload_conf()");
    wait_for("it is set", || standby.query("SHOW archive_command") == ["/bin/false"]);
    let conninfo = conninfo.replace("user=postgres", "user=keeper");
    let far = lab.init_for(&conninfo, &["--force", "--json"]).ok().json();
    assert_eq!((&far["standby"], &far["remote"]["is_near"]), (&true.into(), &true.into()), "{far}");
    let settings = far["settings"].as_array().cloned().unwrap_or_default();
    let archive = settings.iter().find(|s| s["name"] == "archive_command");
    let not_here = archive.map_or(Value::Null, |s| s["not_here"].clone());
    assert!(not_here.as_str().is_some_and(|why| why.contains("primary")), "{far}");
    says(&lab.init_for(&conninfo, &["--force"]).ok(), &["1. from the primary's machine"]);
}
