//! A cluster that changes its server and stays the same cluster: upgraded to another major
//! version, and promoted.

use std::path::Path;

use lifeboat_testkit::scratch::{ScratchServer, skip};
use lifeboat_trials::refusal::{lab, until};
use lifeboat_trials::{Lab, Restored};

const SUM: &str = "SELECT count(*) || ' ' || sum(hashtext(t::text)::bigint) FROM t t";

/// Makes the lab's configuration lead to another server.
fn point_to(lab: &Lab, server: &ScratchServer) {
    let text = std::fs::read_to_string(&lab.config).expect("there is a configuration");
    let (old, new) = (lab.server.socket_directory(), server.socket_directory());
    let text = text.replace(&old.display().to_string(), &new.display().to_string());
    std::fs::write(&lab.config, text).expect("it can be written");
}

/// Makes a server archive into the lab's repository.
fn archive(lab: &Lab, server: &ScratchServer) {
    server.execute(&format!("ALTER SYSTEM SET archive_command = '{}'", lab.archive_command()));
    server.execute("SELECT pg_reload_conf()");
}

fn upgrade(lab: &Lab, new: &ScratchServer, link: bool) {
    lab.server.stop();
    new.stop();
    let work = new.directory("upgrade");
    let shown = |path: &Path| path.display().to_string();
    let mut arguments = vec![
        "-b".to_owned(),
        shown(lab.server.binaries().directory()),
        "-B".to_owned(),
        shown(new.binaries().directory()),
        "-d".to_owned(),
        shown(lab.server.data_directory()),
        "-D".to_owned(),
        shown(new.data_directory()),
        "-U".to_owned(),
        "postgres".to_owned(),
        "-s".to_owned(),
        shown(&work),
    ];
    if link {
        arguments.push("--link".to_owned());
    }
    let ran = new.command("pg_upgrade").current_dir(&work).args(&arguments).output();
    let ran = ran.expect("pg_upgrade can be run");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    new.start();
}

fn upgraded(link: bool) {
    let name = format!("upgraded_{link}");
    let Some(mut lab) = lab(&name, ScratchServer::of(15)) else { return };
    let builder = ScratchServer::of(18).setting("archive_mode", "on");
    let new = match builder.setting("archive_command", "/bin/false").start() {
        Ok(new) => new,
        Err(reason) => return skip(&name, &reason.to_string()),
    };
    let server = &lab.server;
    server.execute(
        "CREATE TABLE t AS SELECT i, md5(i::text) m FROM generate_series(1, 60000) i; \
         CREATE INDEX ON t (m)",
    );
    let first = lab.backup();
    let id = first["id"].as_str().expect("an id").to_owned();
    let at_first = server.value(SUM);
    server.execute("DELETE FROM t WHERE i % 7 = 0");
    lab.archive_all();
    let (moment, before) = (server.value("SELECT now()"), server.value(SUM));
    server.execute("UPDATE t SET m = 'later' WHERE i < 500");
    lab.archive_all();
    let last = server.value(SUM);
    let old_system = server.value("SELECT system_identifier FROM pg_control_system()");
    upgrade(&lab, &new, link);
    assert_eq!(new.value(SUM), last);
    let new_system = new.value("SELECT system_identifier FROM pg_control_system()");
    assert_ne!(old_system, new_system);

    // Until somebody says so, it is a foreign server, and each refusal says what to do.
    point_to(&lab, &new);
    let between = new.value("SELECT now()");
    archive(&lab, &new);
    lab.run(&["backup"]).refused(1, &[&old_system, &new_system, "lifeboat backup --continue"]);
    new.execute("SELECT pg_switch_wal()");
    until("the archiver is refused", || {
        let log = std::fs::read_to_string(new.log()).unwrap_or_default();
        log.contains("LB-WAL-008") && log.contains("lifeboat backup --continue")
    });
    assert_eq!(lab.run(&["wal", "list", "--json"]).ok().stdout.matches(&new_system).count(), 0);

    let second = lab.run(&["backup", "--continue", "--json", "--jobs", "2"]).ok().json();
    let second = match second.get("id") {
        Some(_) => second,
        None => panic!("{second:#}"),
    };
    assert_eq!(second["compared_with"].as_str(), Some(id.as_str()), "{second:#}");
    let pages = |of: &serde_json::Value, name: &str| of["totals"][name].as_u64().expect("a number");
    let share = pages(&second, "pages_new") as f64 / pages(&second, "pages") as f64;
    eprintln!("{name}: {:.1} % of the pages are new after the upgrade", share * 100.0);
    lab.run(&["backup", "--continue"]).ok(); // harmless when it is done
    new.execute("INSERT INTO t VALUES (-1, 'on the new major')");
    let newest = new.value(SUM);
    switch(&lab, &new);

    // The old server still archives what it has, but backs up nothing under this name.
    if !link {
        server.start();
        let config = lab.place("old.toml");
        let text = std::fs::read_to_string(&lab.config).expect("there is a configuration");
        let (old, now) = (server.socket_directory(), new.socket_directory());
        let text = text.replace(&now.display().to_string(), &old.display().to_string());
        std::fs::write(&config, text).expect("it can be written");
        let saved = std::mem::replace(&mut lab.config, config);
        lab.run(&["backup"]).refused(1, &[&old_system, &new_system]);
        lab.config = saved;
        lab.server.stop();
    }

    // Every past comes back, each with its own major version.
    let back = |target: &[&str], major: &str| {
        let directory = lab.place("back");
        let into = directory.display().to_string();
        let mut arguments = vec!["restore", "--into", &into, "--jobs", "2"];
        arguments.extend_from_slice(target);
        let said = lab.run(&arguments).ok().stdout;
        assert_eq!(said.contains("this is the past of system"), major == "15", "{said}");
        let version = std::fs::read_to_string(directory.join("PG_VERSION")).expect("it is there");
        assert_eq!(version.trim(), major, "{target:?}");
        let of = if major == "15" { &lab.server } else { &new };
        let restored = Restored::of(of, &directory);
        restored.pg_ctl_start().ok();
        restored.wait_for_promotion();
        let sum = restored.value(SUM);
        restored.check_and_stop();
        sum
    };
    assert_eq!(back(&["--latest"], "18"), newest);
    assert_eq!(back(&["--to-time", &moment], "15"), before);
    if link {
        // The old server never ran again: nobody has that moment.
        let words = ["restore", "--into", "/tmp/nowhere", "--dry-run", "--to-time", &between];
        lab.run(&words).refused(1, &["LB-RST-017", "of the system that was continued"]);
    } else {
        assert_eq!(back(&["--to-backup", &id], "15"), at_first);
    }
    let listed = lab.run(&["wal", "list", "--json"]).ok().stdout;
    assert!(listed.contains(&old_system) && listed.contains(&new_system), "{listed}");
    lab.run(&["verify"]).ok();

    // The rules count both: a window keeps the old past, and its WAL.
    lab.run(&["expire", "--keep-window", "7d"]).ok();
    let kept = lab.run(&["list", "--json"]).ok().json();
    assert_eq!(kept["backups"].as_array().map(Vec::len), Some(3), "{kept:#}");
    lab.run(&["restore", "--into", "/tmp/nowhere", "--to-time", &moment, "--dry-run"]).ok();
    // When the last old backup goes, so does its WAL, and the new past stays whole.
    lab.run(&["expire", "--keep-backups", "1"]).ok();
    let listed = lab.run(&["wal", "list", "--json"]).ok().json().to_string();
    assert!(listed.contains(&new_system), "{listed}");
    assert_eq!(back(&["--latest"], "18"), newest);
    lab.run(&["verify"]).ok();
}

/// Finishes a segment of a server and waits until it is archived.
fn switch(lab: &Lab, server: &ScratchServer) {
    server.execute("SELECT pg_logical_emit_message(false, 'trial', 'switch')");
    let name = server.value("SELECT pg_walfile_name(pg_switch_wal())");
    until("it is archived", || lab.objects().iter().any(|object| object.ends_with(&name)));
}

#[test]
fn a_cluster_that_was_upgraded_goes_on_under_its_name_and_keeps_its_past() {
    upgraded(false);
}

#[test]
fn a_cluster_that_was_upgraded_with_links_goes_on_under_its_name_and_keeps_its_past() {
    upgraded(true);
}

#[test]
fn after_a_failover_backups_go_on_incrementally_on_the_new_timeline() {
    let test = "after_a_failover_backups_go_on_incrementally_on_the_new_timeline";
    let Some(lab) = lab(test, ScratchServer::of(18)) else { return };
    let server = &lab.server;
    server.execute("CREATE TABLE t AS SELECT i, md5(i::text) m FROM generate_series(1, 60000) i");
    let first = lab.backup();
    let id = first["id"].as_str().expect("an id").to_owned();
    let at_first = server.value(SUM);
    server.execute("UPDATE t SET m = 'before the failover' WHERE i < 100");
    lab.archive_all();
    let at_failover = server.value(SUM);

    // The standby is a restore; the old primary dies, and it takes over.
    let directory = lab.place("next");
    let into = directory.display().to_string();
    lab.run(&["restore", "--into", &into, "--standby", "--jobs", "2"]).ok();
    let standby = Restored::of(server, &directory);
    standby.pg_ctl_start().ok();
    until("it has replayed all", || standby.value(SUM) == at_failover);
    server.kill_9();
    let program = server.binaries().program("pg_ctl");
    let promoted = server.account().command(&program).args(["-D", &into, "-w", "promote"]).output();
    assert!(promoted.expect("pg_ctl runs").status.success());
    standby.wait_for_promotion();
    let set = |name: &str, value: &str| {
        standby.client().batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
    };
    set("archive_command", &lab.archive_command());
    set("archive_mode", "on");
    standby.stop();
    standby.pg_ctl_start().ok();
    let text = std::fs::read_to_string(&lab.config).expect("there is a configuration");
    let sockets = standby.conninfo();
    let old = server.socket_directory().display().to_string();
    let new = sockets.split('\'').nth(1).expect("a socket directory").to_owned();
    std::fs::write(&lab.config, text.replace(&old, &new)).expect("it can be written");

    standby.client().batch_execute("UPDATE t SET m = 'after' WHERE i > 59000").unwrap();
    let after = standby.value(SUM);
    let second = lab.backup();
    assert_eq!(second["compared_with"].as_str(), Some(id.as_str()), "{second:#}");
    assert_eq!(second["timeline"].as_u64(), Some(2), "{second:#}");
    let new_pages = second["totals"]["pages_new"].as_u64().expect("a number");
    let pages = second["totals"]["pages"].as_u64().expect("a number");
    assert!(new_pages * 4 < pages, "{new_pages} of {pages} pages are new");
    standby.client().batch_execute("SELECT pg_switch_wal()").unwrap();

    let latest = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(latest.value(SUM), after);
    latest.check_and_stop();
    drop(latest);
    let older = Restored::start(&lab, "older", &["--to-backup", &id]);
    assert_eq!(older.value(SUM), at_first);
    older.check_and_stop();
    drop(older);
    // What the old primary had archived is the past of the new one too.
    let current = Restored::start(&lab, "current", &["--latest", "--timeline", "1"]);
    assert_eq!(current.value(SUM), at_failover);
    current.check_and_stop();
    standby.stop();
}
