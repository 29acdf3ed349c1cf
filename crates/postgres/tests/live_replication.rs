//! Replication connections on real servers: logins, commands, slots, base backups.

use std::fs;
use std::time::{Duration, Instant};

use lifeboat_engine::{Lsn, TimelineId};
use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::error::LiveError;
use lifeboat_postgres::live::replication::Connection;
use lifeboat_testkit::scratch::{ScratchServer, on_each};
use lifeboat_units::Explain;

fn connect(server: &ScratchServer) -> Connection {
    Connection::open(&server.connection()).unwrap()
}

fn read(text: &str) -> Conninfo {
    Conninfo::read(text, &|_| None).unwrap()
}

/// The whole chain of causes, as a user sees it.
fn chain(error: &LiveError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[test]
fn a_server_says_who_it_is() {
    on_each(
        "a_server_says_who_it_is",
        |b| b.wal_segment_mib(1),
        |server| {
            let mut connection = connect(server);
            let info = connection.identify_system().unwrap();
            let system = server.value("SELECT system_identifier FROM pg_control_system()");
            assert_eq!(info.system.to_string(), system);
            assert_eq!(info.timeline, TimelineId(1));
            assert!(info.flushed > Lsn(0));
            let version = server.value("SHOW server_version_num");
            assert_eq!(connection.server_version_num().to_string(), version);
            assert_eq!(connection.major(), server.major());
            assert!(!connection.in_recovery());
            assert_eq!(connection.segment_size().unwrap().bytes(), 1 << 20);
            assert_eq!(connection.show("application_name").unwrap(), "lifeboat");
            assert_eq!(connection.show("statement_timeout").unwrap(), "0");
            // A refused command leaves the connection as it was.
            let error = connection.query("asking", "SELECT 1").unwrap_err();
            assert_eq!(error.code().0, "LB-PG-023");
            assert!(error.sqlstate().is_some());
            assert!(matches!(
                connection.timeline_history(TimelineId(7)).unwrap_err(),
                LiveError::Query { .. }
            ));
            assert_eq!(connection.identify_system().unwrap().system, info.system);
        },
    );
}

#[test]
fn passwords_are_asked_for_and_proved() {
    on_each(
        "passwords_are_asked_for_and_proved",
        |b| b,
        |server| {
            server.execute(
            "CREATE ROLE scram REPLICATION LOGIN PASSWORD 's3cret';\
             SET password_encryption = 'md5'; CREATE ROLE md5 REPLICATION LOGIN PASSWORD 's3cret';\
             CREATE ROLE plain REPLICATION LOGIN PASSWORD 's3cret'; CREATE ROLE weak LOGIN PASSWORD 's3cret';\
             CREATE ROLE stranger REPLICATION LOGIN",
        );
            let hba = "local replication scram scram-sha-256\nlocal replication md5 md5\n\
                   local replication plain password\nlocal replication weak trust\nlocal all postgres trust\n";
            fs::write(server.data_directory().join("pg_hba.conf"), hba).unwrap();
            server.execute("SELECT pg_reload_conf()");
            let open = |role: &str, password: &str| {
                let text = format!("{} password={password}", server.conninfo_as(role));
                Connection::open(&read(&text))
            };
            let until = Instant::now() + Duration::from_secs(20);
            while open("stranger", "x").is_ok() {
                assert!(Instant::now() < until, "the configuration is not reloaded");
            }
            for role in ["scram", "md5", "plain"] {
                open(role, "s3cret").unwrap().identify_system().unwrap();
                let error = open(role, "wrong").unwrap_err();
                assert_eq!(
                    (error.code().0, error.sqlstate()),
                    ("LB-PG-021", Some("28P01")),
                    "{role}"
                );
                let none = Connection::open(&read(&server.conninfo_as(role))).unwrap_err();
                assert_eq!(none.code().0, "LB-PG-021");
                assert!(chain(&none).contains("none was given"), "{}", chain(&none));
            }
            let error = open("stranger", "s3cret").unwrap_err();
            assert_eq!((error.code().0, error.sqlstate()), ("LB-PG-021", Some("28000")));
            assert!(error.help().unwrap().contains("pg_hba.conf"));
            let error = open("weak", "s3cret").unwrap_err();
            assert_eq!(error.code().0, "LB-PG-024");
            assert!(error.help().unwrap().contains("ALTER ROLE \"weak\" REPLICATION;"));
        },
    );
}

#[test]
fn the_first_host_that_answers_is_taken() {
    on_each(
        "the_first_host_that_answers_is_taken",
        |b| b,
        |server| {
            let socket = server.socket_directory();
            let text = format!("host=/not/there,{} user=postgres dbname=x", socket.display());
            Connection::open(&read(&text)).unwrap().identify_system().unwrap();
            let standby = format!("{text} target_session_attrs=standby");
            assert_eq!(Connection::open(&read(&standby)).unwrap_err().code().0, "LB-PG-036");
            let primary = format!("{text} target_session_attrs=primary");
            Connection::open(&read(&primary)).unwrap();
            let nobody = Connection::open(&read("host=/not/there user=al")).unwrap_err();
            assert_eq!(nobody.code().0, "LB-PG-020");
            assert!(chain(&nobody).contains("No such file"), "{}", chain(&nobody));
        },
    );
}

#[test]
fn slots_are_made_read_and_dropped() {
    on_each(
        "slots_are_made_read_and_dropped",
        |b| b.setting("wal_level", "logical"),
        |server| {
            let mut connection = connect(server);
            assert_eq!(connection.read_slot("boat").unwrap(), None);
            connection.create_physical_slot("lazy", false).unwrap();
            assert_eq!(connection.read_slot("lazy").unwrap().unwrap().restart_lsn, None);
            connection.create_physical_slot("boat", true).unwrap();
            let slot = connection.read_slot("boat").unwrap().unwrap();
            assert!(slot.restart_lsn.unwrap() > Lsn(0));
            assert_eq!(slot.restart_timeline, Some(TimelineId(1)));
            let twice = connection.create_physical_slot("boat", true).unwrap_err();
            assert_eq!(twice.sqlstate(), Some("42710"));
            server.execute("SELECT pg_create_logical_replication_slot('other', 'test_decoding')");
            assert_eq!(connection.read_slot("other").unwrap_err().sqlstate(), Some("0A000"));
            connection.drop_slot("boat").unwrap();
            assert_eq!(connection.drop_slot("boat").unwrap_err().sqlstate(), Some("42704"));
            assert_eq!(connection.drop_slot("No").unwrap_err().code().0, "LB-PG-038");
            assert_eq!(connection.read_slot("boat").unwrap(), None);
        },
    );
}

#[test]
fn a_base_backup_is_read_to_its_end() {
    on_each(
        "a_base_backup_is_read_to_its_end",
        |b| b,
        |server| {
            server.execute(
                "CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 200000) g",
            );
            let mut connection = connect(server);
            let command = "BASE_BACKUP (LABEL 'x', CHECKPOINT 'fast', WAIT false, MANIFEST 'yes')";
            for _ in 0..2 {
                let mut copy = connection.copy_out("taking a base backup", command).unwrap();
                let [start, spaces] = copy.before() else { panic!("{:?}", copy.before()) };
                let begun: Lsn = start[0][0].as_deref().unwrap().parse().unwrap();
                assert_eq!(spaces.len(), 1);
                let (mut kinds, mut bytes) = (String::new(), 0);
                while let Some(message) = copy.next().unwrap() {
                    let kind = char::from(message[0]);
                    if !kinds.ends_with(kind) {
                        kinds.push(kind);
                    }
                    bytes += message.len();
                }
                assert_eq!(copy.next().unwrap(), None);
                assert!(kinds.starts_with("nd") && kinds.ends_with("md"), "{kinds}");
                assert!(bytes > 30 << 20);
                let after = copy.after().unwrap().unwrap();
                let stopped: Lsn = after[0][0][0].as_deref().unwrap().parse().unwrap();
                assert!(stopped >= begun);
                drop(copy);
                connection.identify_system().unwrap();
            }
            // Left in the middle, it is left for good.
            let mut copy = connection.copy_out("taking a base backup", command).unwrap();
            copy.next().unwrap().unwrap();
            drop(copy);
            assert_eq!(connection.identify_system().unwrap_err().code().0, "LB-PG-022");
        },
    );
}

#[test]
fn a_wait_is_ended_by_another_thread_and_by_a_limit() {
    on_each(
        "a_wait_is_ended_by_another_thread_and_by_a_limit",
        |b| b,
        |server| {
            // A checkpoint that is spread over minutes: the server is silent.
            let command = "BASE_BACKUP (LABEL 'x', CHECKPOINT 'spread', WAIT false)";
            server.execute(
                "CHECKPOINT; CREATE TABLE t AS SELECT g FROM generate_series(1, 100000) g",
            );
            let mut connection = connect(server);
            let stopper = connection.stopper().unwrap();
            std::thread::scope(|scope| {
                let waiting =
                    scope.spawn(move || connection.copy_out("waiting", command).map(drop));
                std::thread::sleep(Duration::from_millis(300));
                assert!(!waiting.is_finished());
                stopper.stop();
                assert_eq!(waiting.join().unwrap().unwrap_err().code().0, "LB-PG-022");
            });
            let mut connection = connect(server);
            connection.set_silence_max(Some(Duration::from_millis(300)));
            let error = connection.copy_out("waiting", command).map(drop).unwrap_err();
            assert!(chain(&error).contains("said nothing"), "{}", chain(&error));
            assert_eq!(connection.identify_system().unwrap_err().code().0, "LB-PG-022");
        },
    );
}

#[test]
fn a_server_that_goes_away_says_so() {
    on_each(
        "a_server_that_goes_away_says_so",
        |b| b,
        |server| {
            let mut connection = connect(server);
            connection.identify_system().unwrap();
            server.stop();
            let error = connection.identify_system().unwrap_err();
            assert_eq!(error.code().0, "LB-PG-022", "{}", chain(&error));
            assert_eq!(error.sqlstate(), Some("57P01"), "{}", chain(&error));
            let refused = Connection::open(&server.connection()).unwrap_err();
            assert_eq!(refused.code().0, "LB-PG-020");
        },
    );
}
