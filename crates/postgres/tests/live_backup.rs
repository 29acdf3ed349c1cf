//! Backup mode on real servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_engine::{Origin, SegmentName, SegmentSize};
use lifeboat_postgres::control::ControlFile;
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin, read_control};
use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::error::LiveError;
use lifeboat_postgres::live::privileges::grants;
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;
use lifeboat_testkit::scratch::{ScratchServer, on_each};
use lifeboat_units::Explain;

fn origin(server: &ScratchServer) -> PostgresOrigin {
    PostgresOrigin::connect(server.connection(), OriginOptions::default()).unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_backup_starts_and_stops_and_gives_its_label() {
    on_each(
        "a_backup_starts_and_stops_and_gives_its_label",
        |b| b,
        |server| {
            let mut origin = origin(server);
            let identity = origin.identity().unwrap();
            assert_eq!(identity.major, server.major());
            assert!(identity.checksums);
            assert_eq!(origin.data_directory(), server.data_directory());
            assert!(origin.version().unwrap().starts_with(&server.major().to_string()));
            let start = origin.start("it's a label").unwrap();
            assert_eq!(start.timeline.0, 1);
            origin.keep_alive().unwrap();
            let control = origin.control_file().unwrap();
            assert_eq!(control.path, "global/pg_control");
            assert!(ControlFile::parse(&control.bytes).unwrap().checkpoint >= start.lsn);
            let stop = origin.stop().unwrap();
            assert!(stop.lsn > start.lsn && stop.at >= start.at);
            let paths: Vec<_> = stop.files.iter().map(|f| f.path.as_str()).collect();
            assert_eq!(paths, ["backup_label"]);
            let label = String::from_utf8(stop.files[0].bytes.clone()).unwrap();
            assert!(label.contains(&format!("START WAL LOCATION: {} ", start.lsn)), "{label}");
            assert!(label.contains("LABEL: it's a label\n"), "{label}");
            assert!(!server.data_directory().join("backup_label").exists());
            // The same session takes another, and out of turn it says so.
            assert_eq!(origin.stop().unwrap_err().code().0, "LB-PG-033");
            origin.start("second").unwrap();
            assert_eq!(origin.start("third").unwrap_err().code().0, "LB-PG-033");
            origin.abort();
            origin.abort();
            origin.start("fourth").unwrap();
            origin.stop().unwrap();
        },
    );
}

#[test]
fn tablespaces_come_with_a_map() {
    on_each(
        "tablespaces_come_with_a_map",
        |b| b,
        |server| {
            let space = server.directory("space");
            server.execute(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
            let mut origin = origin(server);
            origin.start("with a map").unwrap();
            let listing = origin.listing().unwrap();
            assert_eq!(listing.tablespaces[0].location, space);
            let stop = origin.stop().unwrap();
            let map = stop.files.iter().find(|f| f.path == "tablespace_map").unwrap();
            let expected = format!("{} {}\n", listing.tablespaces[0].oid, space.display());
            assert_eq!(String::from_utf8(map.bytes.clone()).unwrap(), expected);
        },
    );
}

#[test]
fn another_servers_directory_is_refused() {
    on_each(
        "another_servers_directory_is_refused",
        |b| b,
        |server| {
            let copy = server.home().join("copy");
            copy_directory(server.data_directory(), &copy);
            let with = |directory: &Path| {
                let options = OriginOptions {
                    data_directory: Some(directory.to_owned()),
                    ..OriginOptions::default()
                };
                PostgresOrigin::connect(server.connection(), options).unwrap()
            };
            // A copy has the same system identifier, but does not follow the server.
            let mut stale = with(&copy);
            stale.identity().unwrap();
            assert_eq!(stale.start("x").unwrap_err().code().0, "LB-PG-030");
            let other = ScratchServer::of(server.major()).start().unwrap();
            assert_eq!(with(other.data_directory()).identity().unwrap_err().code().0, "LB-PG-029");
            let missing = with(Path::new("/not/there")).identity().unwrap_err();
            assert_eq!(missing.code().0, "LB-PG-027");
            assert!(missing.to_string().contains("/not/there/global/pg_control"));
        },
    );
}

fn copy_directory(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_role_with_only_the_printed_grants_takes_a_backup() {
    on_each(
        "a_role_with_only_the_printed_grants_takes_a_backup",
        |b| b,
        |server| {
            server.execute("CREATE ROLE \"the keeper\" LOGIN");
            let conninfo = || Conninfo::read(&server.conninfo_as("the keeper"), &|_| None).unwrap();
            let refused = PostgresOrigin::connect(conninfo(), OriginOptions::default());
            let refused = refused.err().expect("it may not see the data directory");
            assert_eq!(refused.code().0, "LB-PG-024");
            assert!(refused.help().unwrap().contains("TO \"the keeper\";"));

            let statements = grants(server.major(), "the keeper");
            server.execute(&statements);
            let facts = ServerFacts::read(&mut Session::open(&conninfo()).unwrap()).unwrap();
            assert!(facts.privileges.suffice_for_backup() && !facts.privileges.superuser);
            assert_eq!(facts.data_directory().unwrap(), server.data_directory());
            let mut origin = PostgresOrigin::connect(conninfo(), OriginOptions::default()).unwrap();
            origin.identity().unwrap();
            let segment = origin.switch_segment().unwrap().segment;
            origin.archiver_failure(segment).unwrap();
            origin.start("least").unwrap();
            origin.keep_alive().unwrap();
            assert!(!origin.listing().unwrap().files.is_empty());
            origin.control_file().unwrap();
            assert_eq!(origin.stop().unwrap().files.len(), 1);

            // Each of them is needed, but for the restore point, which no backup uses.
            for statement in statements.lines().filter(|s| !s.contains("restore_point")) {
                let revoke = statement.replacen("GRANT", "REVOKE", 1).replace(" TO ", " FROM ");
                server.execute(&revoke);
                let outcome = PostgresOrigin::connect(conninfo(), OriginOptions::default())
                    .and_then(|mut origin| {
                        let failed = [
                            origin.switch_segment().err(),
                            origin.start("x").err(),
                            origin.stop().err(),
                        ];
                        match failed.into_iter().flatten().next() {
                            Some(error) => {
                                assert_eq!(error.code().0, "LB-PG-024", "{statement}");
                                Err(LiveError::Standby)
                            }
                            None => Ok(()),
                        }
                    });
                assert!(outcome.is_err(), "not needed: {statement}");
                server.execute(statement);
            }
        },
    );
}

#[test]
fn a_switched_segment_arrives_in_the_archive() {
    let test = "a_switched_segment_arrives_in_the_archive";
    on_each(
        test,
        |b| b.wal_segment_mib(1).archive_command("cp %p ../archive/%f"),
        |server| {
            let archive = server.directory("archive");
            let mut origin = origin(server);
            let mut before = None;
            for _ in 0..4 {
                let segment = origin.switch_segment().unwrap().segment;
                assert!(before < Some(segment), "{before:?} {segment}");
                before = Some(segment);
                wait_for("the segment", || archive.join(segment.to_string()).exists());
            }
            let last = before.unwrap();
            let said = |origin: &mut PostgresOrigin, awaited| {
                origin.archiver_failure(awaited).unwrap().unwrap_or_default()
            };
            // The statistics come a little later than the file.
            wait_for("the server's word", || {
                said(&mut origin, last).contains("counts it as archived")
            });
            let size = SegmentSize::new(1 << 20).unwrap();
            let next = last.number(size).unwrap().next();
            let next = SegmentName::new(last.timeline, next, size);
            assert!(said(&mut origin, next).contains("has not archived it and counts no failure"));
        },
    );
}

#[test]
fn a_failing_archiver_is_told_in_the_servers_words() {
    let test = "a_failing_archiver_is_told_in_the_servers_words";
    on_each(
        test,
        |b| b.archive_command("false"),
        |server| {
            let mut origin = origin(server);
            let segment = origin.switch_segment().unwrap().segment;
            wait_for("a failure", || {
                let said = origin.archiver_failure(segment).unwrap();
                said.is_some_and(|said| said.contains("failed at"))
            });
            server.execute("ALTER SYSTEM SET archive_command = ''");
            server.execute("SELECT pg_reload_conf()");
            wait_for("the setting", || {
                origin.archiver_failure(segment).unwrap().is_some_and(|said| said.contains("empty"))
            });
        },
    );
}

#[test]
fn a_lost_session_or_server_ends_the_backup() {
    on_each(
        "a_lost_session_or_server_ends_the_backup",
        |b| b,
        |server| {
            let mut lost = origin(server);
            lost.start("will be terminated").unwrap();
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name = 'lifeboat'",
            );
            assert_eq!(lost.keep_alive().unwrap_err().code().0, "LB-PG-022");
            assert_eq!(lost.stop().unwrap_err().code().0, "LB-PG-022");
            // It was given up; a new backup gets a new session.
            lost.start("again").unwrap();
            server.kill_9();
            server.start();
            assert_eq!(lost.stop().unwrap_err().code().0, "LB-PG-022");
            lost.start("and again").unwrap();
            lost.stop().unwrap();
        },
    );
}

#[test]
fn a_standby_is_refused_for_now() {
    on_each(
        "a_standby_is_refused_for_now",
        |b| b,
        |server| {
            let directory = server.home().join("standby");
            let target = directory.to_str().unwrap();
            let conninfo = server.conninfo();
            server.run("pg_basebackup", &["-D", target, "-d", &conninfo, "-c", "fast", "-R"]);
            server.stop();
            // The same socket: only one of the two runs at a time.
            let log = server.log().display().to_string();
            server.run("pg_ctl", &["start", "-w", "-D", target, "-l", &log]);
            let refused = PostgresOrigin::connect(server.connection(), OriginOptions::default());
            let facts = ServerFacts::read(&mut Session::open(&server.connection()).unwrap());
            let wanted = format!("{} target_session_attrs=primary", server.conninfo());
            let primary = Session::open(&Conninfo::read(&wanted, &|_| None).unwrap());
            server.run("pg_ctl", &["stop", "-w", "-m", "immediate", "-D", target]);
            assert_eq!(refused.err().unwrap().code().0, "LB-PG-026");
            assert_eq!(primary.err().unwrap().code().0, "LB-PG-036");
            let facts = facts.unwrap();
            assert!(facts.in_recovery && facts.timeline.0 == 1);
        },
    );
}

#[test]
fn facts_are_what_the_server_says() {
    on_each(
        "facts_are_what_the_server_says",
        |b| b.wal_segment_mib(4).checksums(false),
        |server| {
            let facts =
                ServerFacts::read(&mut Session::open(&server.connection()).unwrap()).unwrap();
            assert_eq!(facts.major(), server.major());
            assert_eq!(facts.segment_size().unwrap().bytes(), 4 << 20);
            assert_eq!(facts.setting("data_checksums"), Some("off"));
            assert_eq!(facts.setting("wal_level"), Some("replica"));
            assert!(!facts.archives() && !facts.in_recovery && facts.privileges.superuser);
            assert!(facts.size.0 > 1 << 20);
            let (_, control) = read_control(server.data_directory()).unwrap();
            assert_eq!(facts.system_id, control.system_id);
            assert!(!control.checksums());
        },
    );
}

#[test]
fn passwords_come_from_a_private_file_and_are_not_shown() {
    let test = "passwords_come_from_a_private_file_and_are_not_shown";
    on_each(
        test,
        |b| b,
        |server| {
            server.execute("CREATE ROLE keeper LOGIN PASSWORD 'hunter2'");
            let hba = server.data_directory().join("pg_hba.conf");
            let rules = fs::read_to_string(&hba).unwrap();
            fs::write(&hba, format!("local all keeper scram-sha-256\n{rules}")).unwrap();
            server.execute("SELECT pg_reload_conf()");
            let passwords = server.home().join("passwords");
            let read = |password: &str| {
                fs::write(&passwords, format!("*:5432:postgres:keeper:{password}\n")).unwrap();
                fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
                let file = passwords.display().to_string();
                let environment = move |name: &str| (name == "PGPASSFILE").then(|| file.clone());
                Conninfo::read(&server.conninfo_as("keeper"), &environment).unwrap()
            };
            wait_for("the new rules", || Session::open(&read("wrong")).is_err());
            let error = Session::open(&read("wrong")).err().unwrap();
            assert_eq!(error.code().0, "LB-PG-021", "{error:?}");
            assert!(!format!("{error} {error:?}").contains("wrong"));
            assert_eq!(Session::open(&read("hunter2")).unwrap().role(), "keeper");
            let none = Conninfo::read(&server.conninfo_as("keeper"), &|_| None).unwrap();
            assert_eq!(Session::open(&none).err().unwrap().code().0, "LB-PG-021");
        },
    );
}
