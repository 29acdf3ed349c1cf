//! What the program says without a server: help, and errors with their exit codes.

mod support;

use insta::assert_snapshot;
use lifeboat_repo::{Protection, Repository, SystemEntropy};
use lifeboat_units::{Secret, Timestamp};
use support::Lab;

/// A configuration with a repository that a passphrase protects, and the host's key.
fn with_repository() -> Lab {
    let lab = Lab::new();
    let url = format!("file://{}", lab.path("repo").display());
    lab.write("lifeboat.toml", &format!("[repository]\nurl = \"{url}\"\n"));
    let store = lifeboat_store::url::create(&url).unwrap();
    let passphrase = Secret::new("right".to_owned());
    let repository = Repository::create(
        store.into(),
        &Protection::Passphrase(&passphrase),
        Timestamp::UNIX_EPOCH,
        std::sync::Arc::new(SystemEntropy),
    )
    .unwrap();
    repository.keyring().write_file(&lab.path("lifeboat.key"), false).unwrap();
    lab
}

#[test]
fn each_command_explains_itself() {
    let commands: [&[&str]; 18] = [
        &[],
        &["init"],
        &["check"],
        &["backup"],
        &["list"],
        &["show"],
        &["wal"],
        &["wal", "push"],
        &["wal", "get"],
        &["wal", "list"],
        &["restore"],
        &["verify"],
        &["expire"],
        &["key"],
        &["key", "add"],
        &["key", "remove"],
        &["demo"],
        &["completions"],
    ];
    for words in commands {
        let said = Lab::new().run(&[words, &["--help"]].concat());
        let name = ["help"].iter().chain(words).copied().collect::<Vec<_>>().join("-");
        assert_snapshot!(name, said);
    }
}

#[test]
fn without_a_configuration_it_says_where_it_looked() {
    assert_snapshot!(Lab::new().run(&["list"]));
}

#[test]
fn a_named_configuration_must_be_there() {
    assert_snapshot!(Lab::new().run(&["--config", "other.toml", "list"]));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let lab = Lab::with_config("# mine\n[repository]\nurl = \"/srv\"\ncompresion = \"lz4\"\n");
    assert_snapshot!(lab.run(&["list"]));
}

#[test]
fn a_bad_value_names_key_and_line() {
    let lab = Lab::with_config("[repository]\nurl = \"/srv\"\n[backup]\njobs = \"many\"\n");
    assert_snapshot!(lab.run(&["list"]));
}

#[test]
fn what_is_not_toml_is_shown_with_its_line() {
    assert_snapshot!(Lab::with_config("cluster = \"main\"\n[repository\n").run(&["list"]));
}

#[test]
fn a_flag_that_overrides_is_checked_too() {
    let lab = Lab::with_config("[repository]\nurl = \"/srv\"\n");
    assert_snapshot!("set-unknown", lab.run(&["--set", "repo.url=/x", "list"]));
    assert_snapshot!("set-value", lab.run(&["--set", "repository.compression=zstd:30", "list"]));
    assert_snapshot!("set-no-value", lab.run(&["--set", "cluster", "list"]));
}

#[test]
fn without_a_repository_it_says_so() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("repo")).unwrap();
    let url = format!("repository.url=file://{}", lab.path("repo").display());
    assert_snapshot!("repository-missing", lab.run(&["--set", &url, "list"]));
    let gone = format!("repository.url={}", lab.path("gone").display());
    assert_snapshot!("repository-unreachable", lab.run(&["--set", &gone, "list"]));
    assert_snapshot!(
        "repository-address",
        lab.run(&["--set", "repository.url=ftp://u:p@h/x", "list"])
    );
}

#[test]
fn the_wrong_passphrase_opens_nothing() {
    let lab = with_repository();
    let mut command = lab.command(&["verify"]);
    assert_snapshot!("passphrase-wrong", lab.say(command.env("LIFEBOAT_PASSPHRASE", "wrong")));
    assert_snapshot!("passphrase-none", lab.run(&["verify"]));
    let file = "repository.passphrase-file=nowhere";
    assert_snapshot!("passphrase-file", lab.run(&["--set", file, "verify"]));
    let command = "repository.passphrase-command=exit 7";
    assert_snapshot!("passphrase-command", lab.run(&["--set", command, "verify"]));
}

#[test]
fn an_empty_repository_is_listed_and_verified() {
    let lab = with_repository();
    assert_snapshot!("list-empty", lab.run(&["list"]));
    assert_snapshot!("list-empty-json", lab.run(&["list", "--json"]));
    assert_snapshot!("wal-list-empty", lab.run(&["wal", "list"]));
    assert_snapshot!("key-list", lab.run(&["key", "list"]));
    assert_snapshot!("expire-empty", lab.run(&["expire", "--dry-run"]));
    let id = "20261122T231501Z-1a2b3c4d";
    assert_snapshot!("show-unknown", lab.run(&["show", id]));
    assert_snapshot!("show-no-id", lab.run(&["show", "newest"]));
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let lab = with_repository();
    lab.mode("lifeboat.key", 0o644);
    assert_snapshot!(lab.run(&["list"]));
}

#[test]
fn key_slots_are_added_and_removed_but_never_the_last() {
    let lab = with_repository();
    lab.write("office", "second\n");
    let mut add = lab.command(&["key", "add", "office", "--new-passphrase-file", "office"]);
    assert_snapshot!("key-add", lab.say(add.env("LIFEBOAT_PASSPHRASE", "right")));
    assert_snapshot!("key-remove", lab.run(&["key", "remove", "first"]));
    assert_snapshot!("key-remove-last", lab.run(&["key", "remove", "office"]));
    std::fs::remove_file(lab.path("lifeboat.key")).unwrap();
    let mut unlock = lab.command(&["key", "unlock"]);
    assert_snapshot!("key-unlock", lab.say(unlock.env("LIFEBOAT_PASSPHRASE", "second")));
    assert!(lab.path("lifeboat.key").exists());
}

#[test]
fn errors_are_objects_for_programs() {
    assert_snapshot!(Lab::new().run(&["list", "--json"]));
    let lab = Lab::new();
    assert_snapshot!("json-unknown-word", lab.run(&["--json", "list", "--al"]));
    assert_snapshot!(
        "json-bad-value",
        lab.run(&["restore", "--into", "d", "--to-lsn", "x", "--json"])
    );
    assert_snapshot!("json-missing-value", lab.run(&["restore", "--json"]));
    assert_snapshot!("json-no-command", lab.run(&["--json"]));
    // Among lines that are an object each, the error is one too.
    let stream = lab.command(&["wal", "receive", "--json"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&stream.stdout).lines().count(), 1, "{stream:?}");
    let version = lab.command(&["--json", "--version"]).output().unwrap();
    let version: serde_json::Value = serde_json::from_slice(&version.stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let help = lab.run(&["list", "--json", "--help"]);
    assert!(help.starts_with("exit: 0\n") && !help.contains("\"error\""), "{help}");
}

#[test]
fn a_slot_name_that_no_server_takes_is_refused_wherever_it_stands() {
    let lab = with_repository();
    let long = "a".repeat(64);
    for name in ["Bad-Name", "", "a'; drop", &long] {
        let set = format!("wal.slot={name}");
        for words in [["wal", "receive", "--slot", name], ["--set", &set, "wal", "list"]] {
            let said = lab.run(&words);
            let refused = said.starts_with("exit: 2\n") && said.contains("1 to 63 of a-z");
            assert!(refused, "{words:?}: {said}");
        }
    }
}

#[test]
fn times_that_cannot_be_meant_are_refused() {
    let lab = with_repository();
    let restore = |time: &str| lab.run(&["restore", "--into", "d", "--to-time", time, "--dry-run"]);
    assert_snapshot!("time-unknown", restore("half past nine"));
    assert_snapshot!("time-no-time", restore("2026-11-22"));
    let mut command = lab.command(&["restore", "--into", "d", "--to-time", "2025-10-26 02:30"]);
    assert_snapshot!("time-twice", lab.say(command.env("TZ", "Europe/Berlin")));
    let said = restore("2199-01-01 12:00");
    assert!(said.starts_with("exit: 2\n") && said.contains("is in the future"), "{said}");
}

#[test]
fn arguments_that_exclude_each_other_are_refused() {
    let lab = Lab::new();
    let two = ["restore", "--into", "d", "--to-lsn", "0/1", "--latest"];
    assert_snapshot!("two-targets", lab.run(&two));
    assert_snapshot!("bad-lsn", lab.run(&["restore", "--into", "d", "--to-lsn", "here"]));
}

#[test]
fn init_never_asks_when_nobody_is_there() {
    let lab = Lab::with_config("");
    assert_snapshot!(
        "init-exists",
        lab.run(&["--config", "lifeboat.toml", "init", "--repo", "/srv/x"])
    );
    let lab = Lab::new();
    let pg = format!("host={} user=postgres", lab.path("").display());
    assert_snapshot!(
        "init-no-server",
        lab.run(&["--config", "l.toml", "init", "--pg", &pg, "--repo", "/srv/x"])
    );
    let secret = "host=/tmp user=x password=y";
    assert_snapshot!(
        "init-password",
        lab.run(&["--config", "l.toml", "init", "--pg", secret, "--repo", "/srv/x"])
    );
}

/// PostgreSQL takes 1 to 125 from `restore_command` for the end of the archive, and promotes.
#[test]
fn whatever_goes_wrong_in_wal_get_ends_above_125() {
    let lab = with_repository();
    let name = "000000010000000000000001";
    let cases: [&[&str]; 9] = [
        &["wal", "get"],
        &["wal", "get", name],
        &["wal", "get", name, "x", "y"],
        &["--nonsense", "wal", "get", name, "x"],
        &["--config", "nowhere.toml", "wal", "get", name, "x"],
        &["--set", "nonsense=1", "wal", "get", name, "x"],
        &["--set", "repository.url=/nowhere", "wal", "get", name, "x"],
        &["wal", "get", name, "x"], // no passphrase
        &["wal", "get", "nonsense", "x"],
    ];
    for words in cases {
        let said = lab.run(words);
        assert!(said.starts_with("exit: 126\n"), "{words:?}: {said}");
    }
    let mut command = lab.command(&["wal", "get", name, "x"]);
    let said = lab.say(command.env("LIFEBOAT_PASSPHRASE", "right"));
    assert!(said.starts_with("exit: 126\n"), "no data directory tells whose WAL: {said}");
    lab.write("lifeboat.recovery", "{");
    let mut command = lab.command(&["wal", "get", name, "x"]);
    let said = lab.say(command.env("LIFEBOAT_PASSPHRASE", "right"));
    assert!(said.starts_with("exit: 126\n"), "damaged notes of a restore: {said}");
    let state =
        r#"{"version":1,"cluster":"main","system":"7","needed":[],"histories":[],"standby":false}"#;
    lab.write("lifeboat.recovery", state);
    let mut command = lab.command(&["wal", "get", name, "x"]);
    let said = lab.say(command.env("LIFEBOAT_PASSPHRASE", "right"));
    assert_eq!(said, "exit: 1\n", "certainly not there, and quiet about it");
}

/// Above 125 PostgreSQL's archiver process dies, and does not count the failure.
#[test]
fn whatever_goes_wrong_in_wal_push_ends_between_1_and_125() {
    let lab = with_repository();
    lab.write("000000010000000000000001", "no segment");
    let cases: [&[&str]; 6] = [
        &["wal", "push"],
        &["wal", "push", "000000010000000000000001"],
        &["wal", "push", "pg_wal/000000010000000000000009"],
        &["wal", "push", "nonsense"],
        &["--config", "nowhere.toml", "wal", "push", "x"],
        &["--set", "repository.url=/nowhere", "wal", "push", "x"],
    ];
    for words in cases {
        let said = lab.run(words);
        let code: u32 = said.lines().next().unwrap()[6..].parse().unwrap();
        assert!((1..=125).contains(&code), "{words:?}: {said}");
    }
    assert_snapshot!("push-no-segment", lab.run(&["wal", "push", "000000010000000000000001"]));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let lab = Lab::new();
    let program = env!("CARGO_BIN_EXE_lifeboat");
    let script =
        format!("'{program}' completions bash | head -c 10; echo; echo ${{PIPESTATUS[0]}}");
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().count() == 2, "{said}");
    drop(lab);
}
