//! A copied directory recovers as it was told to, on real servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::{
    BackupStop, Engine, Origin, RecoveryMode, RecoverySettings, RecoveryTarget, StartRequest,
    TargetState,
};
use lifeboat_postgres::engine::PostgresEngine;
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin};
use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::session::Session;
use lifeboat_testkit::scratch::{ScratchBuilder, ScratchServer, on_each, places};
use lifeboat_units::{Explain, Silent, Timestamp};

fn archiving(builder: ScratchBuilder) -> ScratchBuilder {
    builder.wal_segment_mib(1).archive_command("test ! -f ../archive/%f && cp %p ../archive/%f")
}

/// A backup made of the origin's own calls, copied file by file.
struct Copied {
    directory: PathBuf,
    stop: BackupStop,
}

fn back_up(server: &ScratchServer, name: &str) -> Copied {
    let mut origin =
        PostgresOrigin::connect(server.connection(), OriginOptions::default()).unwrap();
    origin.start(name).unwrap();
    let listing = origin.listing().unwrap();
    let directory = server.directory(name);
    for made in &listing.directories {
        let path = directory.join(&made.path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(made.mode)).unwrap();
    }
    for file in &listing.files {
        fs::copy(listing.root.join(&file.path), directory.join(&file.path)).unwrap();
    }
    let control = origin.control_file().unwrap();
    let stop = origin.stop().unwrap();
    for file in stop.files.iter().chain([&control]) {
        fs::write(directory.join(&file.path), &file.bytes).unwrap();
    }
    give(server, &directory);
    Copied { directory, stop }
}

fn give(server: &ScratchServer, path: &Path) {
    server.account().give(path).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(server, &entry.unwrap().path());
        }
    }
}

fn settings(server: &ScratchServer, target: RecoveryTarget) -> RecoverySettings {
    RecoverySettings {
        major: server.major(),
        target,
        timeline: None,
        mode: RecoveryMode::Copy,
        restore_command: format!("cp {}/archive/%f %p", server.home().display()),
        recovery_end_command: None,
        archive_command: None,
    }
}

fn request(server: &ScratchServer, directory: &Path) -> StartRequest {
    StartRequest {
        directory: directory.to_owned(),
        major: server.major(),
        socket_directory: server.home().join("restored"),
        port: 5433,
        isolated: true,
        wait_for_promotion: true,
        binaries: None,
        patience: Duration::from_secs(30),
    }
}

/// Makes a history: a backup, rows before and after a named moment, all of it archived.
fn history(server: &ScratchServer) -> (Copied, Timestamp) {
    server.directory("archive");
    server.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    let copied = back_up(server, "copy");
    server.execute("INSERT INTO t VALUES (2)");
    server.execute("SELECT pg_create_restore_point('here''s one')");
    let micros = server.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8");
    let moment = Timestamp::from_microsecond(micros.parse().unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    server.execute("INSERT INTO t VALUES (3)");
    let mut origin =
        PostgresOrigin::connect(server.connection(), OriginOptions::default()).unwrap();
    let segment = origin.switch_segment().unwrap().segment.to_string();
    let archived = server.home().join("archive").join(segment);
    wait_for(&archived);
    (copied, moment)
}

fn rows(conninfo: &str) -> i64 {
    let conninfo = Conninfo::read(conninfo, &|_| None).unwrap();
    let mut session = Session::open(&conninfo).unwrap();
    session.ask("counting", "SELECT count(*) FROM public.t", &[]).unwrap().get(0)
}

#[test]
fn recovery_ends_where_it_was_told_to() {
    on_each("recovery_ends_where_it_was_told_to", archiving, |server| {
        let (copied, moment) = history(server);
        let engine = PostgresEngine::new(places());
        let cases = [
            (RecoveryTarget::Immediate, 1),
            (RecoveryTarget::Name("here's one".into()), 2),
            (RecoveryTarget::Time(moment), 2),
            (RecoveryTarget::Lsn(copied.stop.lsn), 1),
            (RecoveryTarget::Latest, 3),
        ];
        for (number, (target, expected)) in cases.into_iter().enumerate() {
            let directory = server.home().join(format!("restore{number}"));
            copy_directory(&copied.directory, &directory);
            // A target of an earlier life must not be in the way.
            let conf = directory.join("postgresql.conf");
            let mut text = fs::read_to_string(&conf).unwrap();
            text.push_str("recovery_target_xid = '3'\nshared_preload_libraries = 'no_such'\n");
            fs::write(&conf, text).unwrap();
            if number == 1 {
                fs::remove_file(&conf).unwrap(); // as on Debian, where it lies in /etc
            }
            engine.configure_recovery(&directory, &settings(server, target.clone())).unwrap();
            let landing = engine.start_and_recover(&request(server, &directory), &Silent).unwrap();
            assert!(landing.promoted && landing.timeline.0 == 2, "{target:?} {landing:?}");
            assert!(landing.lsn >= copied.stop.lsn, "{target:?} {landing:?}");
            assert_eq!(rows(&landing.conninfo), expected, "{target:?} {landing:?}");
            match target {
                RecoveryTarget::Time(at) => assert!(landing.last_commit.unwrap() <= at),
                RecoveryTarget::Latest => assert!(landing.last_commit.unwrap() > moment),
                _ => {}
            }
            let running = engine.inspect_target(&directory).unwrap();
            assert!(matches!(running, TargetState::Running { .. }), "{running:?}");
            engine.stop(&directory, server.major()).unwrap();
            engine.stop(&directory, server.major()).unwrap();
            assert_eq!(engine.inspect_target(&directory).unwrap(), TargetState::DataDirectory);
        }
        // Nothing that was restored archived anything of its own.
        let archived = fs::read_dir(server.home().join("archive")).unwrap();
        for entry in archived {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.starts_with("00000001"), "{name}");
        }
    });
}

#[test]
fn a_target_that_is_never_reached_is_said_in_the_servers_words() {
    let test = "a_target_that_is_never_reached_is_said_in_the_servers_words";
    on_each(test, archiving, |server| {
        let (copied, _) = history(server);
        let engine = PostgresEngine::new(places());
        let target = RecoveryTarget::Name("never set".into());
        engine.configure_recovery(&copied.directory, &settings(server, target)).unwrap();
        let error =
            engine.start_and_recover(&request(server, &copied.directory), &Silent).unwrap_err();
        assert_eq!(error.code().0, "LB-PG-075", "{error}");
        let said = error.to_string();
        assert!(
            said.contains("recovery ended before configured recovery target was reached"),
            "{said}"
        );
        let state = engine.inspect_target(&copied.directory).unwrap();
        assert_eq!(state, TargetState::DataDirectory);
    });
}

#[test]
fn a_restore_command_that_hangs_ends_in_an_error() {
    on_each("a_restore_command_that_hangs_ends_in_an_error", archiving, |server| {
        let (copied, _) = history(server);
        let engine = PostgresEngine::new(places());
        let mut settings = settings(server, RecoveryTarget::Latest);
        settings.restore_command = "sleep 20".into();
        engine.configure_recovery(&copied.directory, &settings).unwrap();
        let mut request = request(server, &copied.directory);
        request.patience = Duration::from_secs(3);
        let error = engine.start_and_recover(&request, &Silent).unwrap_err();
        assert_eq!(error.code().0, "LB-PG-076", "{error}");
        let state = engine.inspect_target(&copied.directory).unwrap();
        assert_eq!(state, TargetState::DataDirectory);
    });
}

#[test]
fn a_standby_stays_in_recovery_and_a_successor_archives() {
    let test = "a_standby_stays_in_recovery_and_a_successor_archives";
    on_each(test, archiving, |server| {
        let (copied, _) = history(server);
        let engine = PostgresEngine::new(places());
        let mut settings = settings(server, RecoveryTarget::Latest);
        settings.mode = RecoveryMode::Standby;
        engine.configure_recovery(&copied.directory, &settings).unwrap();
        let mut request = request(server, &copied.directory);
        (request.wait_for_promotion, request.isolated) = (false, false);
        let landing = engine.start_and_recover(&request, &Silent).unwrap();
        assert!(!landing.promoted && landing.timeline.0 == 1, "{landing:?}");
        engine.stop(&copied.directory, server.major()).unwrap();

        let successors = server.directory("successors");
        settings.mode = RecoveryMode::Successor;
        settings.archive_command = Some(format!("cp %p {}/%f", successors.display()));
        engine.configure_recovery(&copied.directory, &settings).unwrap();
        request.wait_for_promotion = true;
        let landing = engine.start_and_recover(&request, &Silent).unwrap();
        assert!(landing.promoted && landing.timeline.0 == 2, "{landing:?}");
        wait_for(&successors.join("00000002.history"));
        engine.stop(&copied.directory, server.major()).unwrap();
    });
}

#[test]
fn files_say_the_same_as_the_server_about_where_it_landed() {
    let test = "files_say_the_same_as_the_server_about_where_it_landed";
    on_each(test, archiving, |server| {
        server.execute("CREATE ROLE boss SUPERUSER LOGIN");
        server.directory("archive");
        let copied = back_up(server, "copy");
        // From here on nobody knows a role to ask with, unless it is named.
        let boss = Conninfo::read(&server.conninfo_as("boss"), &|_| None).unwrap();
        let mut session = Session::open(&boss).unwrap();
        session.ask_all("renaming", "ALTER ROLE postgres RENAME TO nobody", &[]).unwrap();
        drop(session);
        let mut origin = PostgresOrigin::connect(boss, OriginOptions::default()).unwrap();
        let segment = origin.switch_segment().unwrap().segment.to_string();
        let archived = server.home().join("archive").join(segment);
        wait_for(&archived);

        let land = |engine: PostgresEngine, name: &str| {
            let directory = server.home().join(name);
            copy_directory(&copied.directory, &directory);
            let settings = settings(server, RecoveryTarget::Latest);
            engine.configure_recovery(&directory, &settings).unwrap();
            let landing = engine.start_and_recover(&request(server, &directory), &Silent).unwrap();
            engine.stop(&directory, server.major()).unwrap();
            landing
        };
        let asked = land(PostgresEngine::new(places()).with_role("boss"), "asked");
        let read = land(PostgresEngine::new(places()), "read");
        assert!(asked.conninfo.contains("user=boss"), "{asked:?}");
        assert!(asked.last_commit.is_some());
        assert_eq!((asked.timeline, asked.lsn), (read.timeline, read.lsn));
        assert_eq!((asked.last_commit, asked.promoted), (read.last_commit, read.promoted));
    });
}

fn wait_for(path: &Path) {
    for _ in 0..600 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited in vain for {}", path.display());
}

fn copy_directory(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}
