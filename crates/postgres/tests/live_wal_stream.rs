//! Streamed WAL on real servers, compared with the files that the servers wrote.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lifeboat_engine::{Lsn, SegmentName, SegmentSize, TimelineId};
use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::replication::{Connection, Status, WalEvent, WalStream};
use lifeboat_testkit::scratch::{ScratchServer, on_each};
use lifeboat_units::{Clock, Explain, SystemClock};

const SEGMENT: u64 = 1 << 20;
const WAIT: Duration = Duration::from_millis(100);

fn connect(server: &ScratchServer) -> Connection {
    Connection::open(&server.connection()).unwrap()
}

fn segment_start(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 / SEGMENT * SEGMENT)
}

/// Everything up to `end`, in one piece from where the stream began.
struct Received {
    start: Lsn,
    bytes: Vec<u8>,
}

impl Received {
    fn new(start: Lsn) -> Self {
        Self { start, bytes: Vec::new() }
    }

    fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    fn add(&mut self, start: Lsn, bytes: &[u8]) {
        assert_eq!(start, self.end(), "a gap");
        self.bytes.extend_from_slice(bytes);
    }

    fn status(&self) -> Status {
        let at = self.end();
        let sent_at = SystemClock::default().now();
        Status { written: at, flushed: at, applied: at, sent_at, reply_wanted: false }
    }

    /// Reads on until `end` is there.
    fn follow(&mut self, stream: &mut WalStream, end: Lsn) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.end() < end {
            assert!(Instant::now() < until, "{} is not there, only {}", end, self.end());
            if let WalEvent::Wal { start, bytes, server_end, .. } = stream.next(WAIT).unwrap() {
                assert!(server_end.0 >= start.0 + bytes.len() as u64);
                self.add(start, bytes);
                stream.status(&self.status()).unwrap();
            }
        }
    }

    /// Compares with the segments of a timeline in `pg_wal`.
    fn compare(&self, directory: &Path, timeline: TimelineId, end: Lsn) -> usize {
        let size = SegmentSize::new(SEGMENT).unwrap();
        let (mut at, mut compared) = (self.start, 0);
        while at < end {
            let name = SegmentName::new(timeline, at.segment(size), size).to_string();
            let file = fs::read(directory.join("pg_wal").join(&name)).unwrap();
            let count = SEGMENT.min(end.0 - at.0) as usize;
            let from = (at.0 - self.start.0) as usize;
            assert!(file[..count] == self.bytes[from..from + count], "{name} differs");
            at = Lsn(at.0 + SEGMENT);
            compared += 1;
        }
        compared
    }
}

fn flushed(server: &ScratchServer) -> Lsn {
    server.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
}

#[test]
fn streamed_wal_is_what_the_server_wrote() {
    let configure = |b: lifeboat_testkit::scratch::ScratchBuilder| {
        b.wal_segment_mib(1).setting("wal_keep_size", "200MB").setting("wal_sender_timeout", "4s")
    };
    on_each("streamed_wal_is_what_the_server_wrote", configure, |server| {
        let mut connection = connect(server);
        connection.create_physical_slot("boat", true).unwrap();
        let slot = connection.read_slot("boat").unwrap().unwrap();
        let start = segment_start(slot.restart_lsn.unwrap());
        let mut stream = connection.start_physical(Some("boat"), start, TimelineId(1)).unwrap();
        let mut received = Received::new(start);
        // Live, over several segments.
        for _ in 0..3 {
            server.execute("CREATE TABLE IF NOT EXISTS t (a text); INSERT INTO t SELECT repeat('x', 500) FROM generate_series(1, 3000)");
            received.follow(&mut stream, flushed(server));
        }
        server.execute("SELECT pg_switch_wal(); CHECKPOINT");
        let end = flushed(server);
        received.follow(&mut stream, end);
        assert!(received.compare(server.data_directory(), TimelineId(1), end) > 4);
        // What was acknowledged moves the slot on.
        let until = Instant::now() + Duration::from_secs(20);
        let acknowledged = "SELECT flush_lsn >= $1 FROM pg_stat_replication";
        while server.value(&acknowledged.replace("$1", &format!("'{end}'::pg_lsn"))) != "t" {
            assert!(Instant::now() < until);
        }
        // In use by us; and free again after an orderly end.
        let second =
            connect(server).start_physical(Some("boat"), start, TimelineId(1)).unwrap_err();
        assert_eq!(second.sqlstate(), Some("55006"));
        let mut connection = stream.finish().unwrap();
        assert!(
            connection.read_slot("boat").unwrap().unwrap().restart_lsn.unwrap()
                >= segment_start(end)
        );
        let none = connect(server).start_physical(Some("none"), start, TimelineId(1)).unwrap_err();
        assert_eq!(none.sqlstate(), Some("42704"));
        // The same once more from the start, as fast as it goes, and to the server's end.
        let mut stream = connection.start_physical(None, start, TimelineId(1)).unwrap();
        let mut again = Received::new(start);
        again.follow(&mut stream, end);
        assert!(again.bytes[..received.bytes.len()] == received.bytes);
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < until, "no keepalive");
            match stream.next(WAIT).unwrap() {
                WalEvent::Wal { start, bytes, .. } => again.add(start, bytes),
                WalEvent::KeepAlive { reply_wanted: true, server_end, .. } => {
                    assert!(server_end <= again.end());
                    break;
                }
                _ => {}
            }
        }
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| server.stop());
            loop {
                match stream.next(WAIT).unwrap() {
                    WalEvent::Wal { start, bytes, .. } => again.add(start, bytes),
                    WalEvent::ServerStopped => break,
                    _ => {}
                }
                let status = again.status();
                stream.status(&status).unwrap();
            }
            stopping.join().unwrap();
        });
        assert_eq!(stream.next(WAIT).unwrap(), WalEvent::ServerStopped);
        again.compare(server.data_directory(), TimelineId(1), again.end());
    });
}

#[test]
fn removed_wal_and_unknown_timelines_are_told_apart() {
    on_each(
        "removed_wal_and_unknown_timelines_are_told_apart",
        |b| b.wal_segment_mib(1),
        |server| {
            let start = segment_start(flushed(server));
            for _ in 0..4 {
                server.execute("CREATE TABLE IF NOT EXISTS t (a int); INSERT INTO t VALUES (1); SELECT pg_switch_wal(); CHECKPOINT");
            }
            let first = |timeline, from| -> lifeboat_postgres::live::error::LiveError {
                match connect(server).start_physical(None, from, TimelineId(timeline)) {
                    Err(error) => error,
                    Ok(mut stream) => loop {
                        match stream.next(WAIT) {
                            Ok(WalEvent::Quiet | WalEvent::KeepAlive { .. }) => {}
                            Ok(event) => panic!("{event:?}"),
                            Err(error) => break error,
                        }
                    },
                }
            };
            let error = first(1, start);
            assert_eq!((error.code().0, error.sqlstate()), ("LB-PG-023", Some("58P01")));
            for (timeline, from) in [(7, start), (1, Lsn(1 << 50))] {
                let error = first(timeline, from);
                assert_eq!(error.code().0, "LB-PG-023");
                assert_ne!(error.sqlstate(), Some("58P01"));
            }
        },
    );
}

/// A standby of `server` in a directory of its own, not yet started.
fn standby_of(server: &ScratchServer) -> PathBuf {
    let directory = server.home().join("standby");
    let path = directory.display().to_string();
    let host = server.socket_directory().display().to_string();
    server.run(
        "pg_basebackup",
        &["-h", &host, "-U", "postgres", "-D", &path, "-R", "-c", "fast", "-X", "stream"],
    );
    directory
}

#[test]
fn a_promotion_ends_the_timeline_and_names_the_next() {
    let configure = |b: lifeboat_testkit::scratch::ScratchBuilder| {
        b.wal_segment_mib(1).setting("wal_keep_size", "200MB")
    };
    on_each("a_promotion_ends_the_timeline_and_names_the_next", configure, |server| {
        let directory = standby_of(server);
        let sockets = server.directory("s2");
        let options = format!("-c unix_socket_directories='{}'", sockets.display());
        let path = directory.display().to_string();
        let log = server.home().join("standby.log").display().to_string();
        server.run("pg_ctl", &["-D", &path, "-l", &log, "-o", &options, "-w", "start"]);
        let conninfo = format!("host={} user=postgres", sockets.display());
        let open = |text: &str| Connection::open(&Conninfo::read(text, &|_| None).unwrap());
        let mut connection = open(&format!("{conninfo} target_session_attrs=standby")).unwrap();
        assert!(connection.in_recovery());
        let start = segment_start(connection.identify_system().unwrap().flushed);
        let mut stream = connection.start_physical(None, start, TimelineId(1)).unwrap();
        server.execute("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
        let mut received = Received::new(start);
        received.follow(&mut stream, flushed(server));
        server.run("pg_ctl", &["-D", &path, "-w", "promote"]);
        let until = Instant::now() + Duration::from_secs(30);
        let (next, at) = loop {
            assert!(Instant::now() < until);
            match stream.next(WAIT).unwrap() {
                WalEvent::Wal { start, bytes, .. } => received.add(start, bytes),
                WalEvent::TimelineEnded { next, at } => break (next, at),
                _ => {}
            }
        };
        assert_eq!((next, at), (TimelineId(2), received.end()));
        let mut connection = stream.into_connection();
        let (name, history) = connection.timeline_history(next).unwrap();
        assert_eq!(name, "00000002.history");
        assert_eq!(history, fs::read(directory.join("pg_wal").join(name)).unwrap());
        assert!(!connection.in_recovery());
        // The new timeline from its segment's start, which holds the old one's bytes up to `at`.
        let begin = segment_start(at);
        let mut stream = connection.start_physical(None, begin, next).unwrap();
        let mut second = Received::new(begin);
        let client =
            postgres::Client::connect(&format!("{conninfo} dbname=postgres"), postgres::NoTls);
        client.unwrap().batch_execute("CREATE TABLE u (a int); CHECKPOINT").unwrap();
        let end = open(&conninfo).unwrap().identify_system().unwrap();
        assert_eq!(end.timeline, next);
        second.follow(&mut stream, end.flushed);
        second.compare(&directory, next, end.flushed);
        let shared = (at.0 - begin.0) as usize;
        let from = (begin.0 - start.0) as usize;
        assert!(second.bytes[..shared] == received.bytes[from..from + shared]);
        // Asked for the old timeline at its very end, there is nothing to stream.
        let mut over = open(&conninfo).unwrap().start_physical(None, at, TimelineId(1)).unwrap();
        assert_eq!(over.next(WAIT).unwrap(), WalEvent::TimelineEnded { next, at });
        over.finish().unwrap().identify_system().unwrap();
        server.run("pg_ctl", &["-D", &path, "-m", "immediate", "-w", "stop"]);
    });
}

/// Forwards one connection to the server and cuts it after so many bytes from the server.
fn cutting_proxy(server: &ScratchServer, bytes: u64) -> String {
    let directory = server.home().join(format!("proxy{bytes}"));
    fs::create_dir(&directory).unwrap();
    let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).unwrap();
    let target = server.socket_directory().join(".s.PGSQL.5432");
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let backend = UnixStream::connect(target).unwrap();
        let (mut up_from, mut up_to) = (client.try_clone().unwrap(), backend.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut up_from, &mut up_to));
        let (mut from, mut to) = ((&backend).take(bytes), &client);
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.flush();
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = backend.shutdown(std::net::Shutdown::Both);
    });
    format!("host={} user=postgres", directory.display())
}

#[test]
fn a_connection_cut_anywhere_is_an_error_that_says_so() {
    on_each(
        "a_connection_cut_anywhere_is_an_error_that_says_so",
        |b| b,
        |server| {
            let mut seen = BTreeMap::<&str, u32>::new();
            // The login alone is some hundred bytes long; the backup is longer than any of these.
            for bytes in [0, 1, 9, 10, 100, 400, 600, 900, 1000, 5_000, 100_000, 3_000_000] {
                let conninfo = Conninfo::read(&cutting_proxy(server, bytes), &|_| None).unwrap();
                let count = Arc::new(AtomicU64::new(0));
                let error = match Connection::open(&conninfo) {
                    Err(error) => error,
                    Ok(mut connection) => {
                        let command = "BASE_BACKUP (LABEL 'x', CHECKPOINT 'fast', WAIT false)";
                        let run = |connection: &mut Connection| {
                            let mut copy = connection.copy_out("taking a base backup", command)?;
                            while let Some(message) = copy.next()? {
                                count.fetch_add(message.len() as u64, Ordering::Relaxed);
                            }
                            copy.after().map(drop)
                        };
                        run(&mut connection).unwrap_err()
                    }
                };
                assert!(count.load(Ordering::Relaxed) <= bytes);
                assert_eq!(error.retry(), lifeboat_units::Retry::Later, "{error:?}");
                *seen.entry(error.code().0).or_default() += 1;
            }
            assert!(seen["LB-PG-020"] > 1 && seen["LB-PG-022"] > 1, "{seen:?}");
        },
    );
}
