//! Throw-away PostgreSQL servers for tests.
//!
//! A server lives in a temporary directory, listens on a socket there and nowhere else, and is
//! killed and removed when it goes out of scope. As root, it runs as user `postgres`.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat_postgres::live::cluster::{
    Account, Binaries, Cluster, InitOptions, Places, StartOptions, StopMode, running_postmaster,
};
use lifeboat_postgres::live::conninfo::{Conninfo, quote};
use postgres::{Client, NoTls, SimpleQueryMessage};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where the machine's tools for tests are, unless `LIFEBOAT_TOOLS` says otherwise.
const TOOLS: &str = "/var/cache/lifeboat-tools";

/// Why a test has no server; to be counted as skipped.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoServer(pub String);

/// Places where test servers' binaries are looked for.
pub fn places() -> Places {
    let tools = env::var_os("LIFEBOAT_TOOLS").map_or_else(|| PathBuf::from(TOOLS), PathBuf::from);
    Places { given: None, by_major: vec![tools.join("pg")], path: env::var("PATH").ok() }
}

/// Notes a skipped test in the file that `LIFEBOAT_SKIPS` names, so that it gets counted.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let Some(path) = env::var_os("LIFEBOAT_SKIPS") else { return };
    let file = File::options().append(true).create(true).open(path);
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{test}: {reason}");
    }
}

/// The user that servers run as: ourselves, or `postgres` when we are root.
pub fn account() -> Result<Account, NoServer> {
    let own = Account::own();
    if own.uid != 0 {
        return Ok(own);
    }
    Account::named("postgres")
        .ok_or_else(|| NoServer("tests run as root and there is no user `postgres`".into()))
}

/// A user who may not read what servers own: only as root can a test act as one.
pub fn stranger() -> Option<Account> {
    if Account::own().uid == 0 { Account::named("nobody") } else { None }
}

/// How to make a server.
#[derive(Debug, Clone)]
pub struct ScratchBuilder {
    major: u32,
    checksums: bool,
    wal_segment_mib: Option<u32>,
    port: u16,
    settings: Vec<(String, String)>,
}

impl ScratchBuilder {
    /// Major version of the server to be.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Listens on 127.0.0.1 too, at a port that is free now.
    #[must_use]
    pub fn tcp(mut self) -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        self.port = free.expect("a port is free").port();
        let port = self.port.to_string();
        self.setting("listen_addresses", "127.0.0.1").setting("port", &port)
    }

    /// Whether pages carry checksums (yes, unless said).
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Size of a WAL segment in MiB.
    #[must_use]
    pub fn wal_segment_mib(mut self, size: u32) -> Self {
        self.wal_segment_mib = Some(size);
        self
    }

    /// One setting for postgresql.conf.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Archives by this command.
    #[must_use]
    pub fn archive_command(self, command: &str) -> Self {
        self.setting("archive_mode", "on").setting("archive_command", command)
    }

    /// Makes and starts the server. An error means that this machine cannot; that a server
    /// which is there does not start is a panic.
    pub fn start(self) -> Result<ScratchServer, NoServer> {
        let binaries =
            Binaries::find(self.major, &places()).map_err(|error| NoServer(error.to_string()))?;
        let account = account()?;
        let home = tempfile::Builder::new()
            .prefix("lifeboat-scratch-")
            .tempdir()
            .map_err(|error| NoServer(format!("no temporary directory: {error}")))?;
        // Others may look in: the server's user must reach what lies below.
        set_mode(home.path(), 0o755);
        account.give(home.path()).expect("the temporary directory can be given away");
        let sockets = home.path().join("s");
        account.create_directory(&sockets).expect("the socket directory can be made");
        let mut settings = vec![
            ("listen_addresses".to_owned(), String::new()),
            ("unix_socket_directories".into(), sockets.display().to_string()),
            ("fsync".into(), "off".into()),
            ("shared_buffers".into(), "16MB".into()),
            ("max_connections".into(), "20".into()),
            ("log_timezone".into(), "UTC".into()),
        ];
        settings.extend(self.settings);
        let options = InitOptions {
            directory: home.path().join("data"),
            account,
            checksums: self.checksums,
            wal_segment_mib: self.wal_segment_mib,
            superuser: "postgres".into(),
            settings,
        };
        let cluster = Cluster::init(binaries, &options).expect("initdb works");
        let server = ScratchServer { home, cluster, account, major: self.major, port: self.port };
        server.start();
        Ok(server)
    }
}

/// A running throw-away server.
pub struct ScratchServer {
    home: tempfile::TempDir,
    cluster: Cluster,
    account: Account,
    major: u32,
    port: u16,
}

impl ScratchServer {
    /// Begins a server of this major version.
    pub fn of(major: u32) -> ScratchBuilder {
        ScratchBuilder {
            major,
            checksums: true,
            wal_segment_mib: None,
            port: 5432,
            settings: Vec::new(),
        }
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Its port, which also names its socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its data directory.
    pub fn data_directory(&self) -> &Path {
        &self.cluster.directory
    }

    /// A directory of its own for whatever the test needs; it vanishes with the server.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Directory of its socket.
    pub fn socket_directory(&self) -> PathBuf {
        self.home.path().join("s")
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// Its binaries.
    pub fn binaries(&self) -> &Binaries {
        &self.cluster.binaries
    }

    /// Whom it runs as.
    pub fn account(&self) -> Account {
        self.account
    }

    /// Makes a directory below `home` that belongs to the server.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        self.account.create_directory(&path).expect("a directory below home can be made");
        path
    }

    /// Connection string of its superuser.
    pub fn conninfo(&self) -> String {
        self.conninfo_as("postgres")
    }

    /// Connection string for a role.
    pub fn conninfo_as(&self, role: &str) -> String {
        let host = quote(&self.socket_directory().display().to_string());
        format!("host={host} port={} user={} dbname=postgres", self.port, quote(role))
    }

    /// The same, read.
    pub fn connection(&self) -> Conninfo {
        Conninfo::read(&self.conninfo(), &|_| None).expect("our own connection string is right")
    }

    /// A session of the superuser.
    pub fn client(&self) -> Client {
        Client::connect(&self.conninfo(), NoTls).expect("the scratch server answers")
    }

    /// Runs statements.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Runs a statement and gives its rows as psql -At would: `|` between columns.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<String> {
        let answers = self.client().simple_query(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let rows = answers.iter().filter_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => {
                let columns = (0..row.len()).map(|at| row.get(at).unwrap_or(""));
                Some(columns.collect::<Vec<_>>().join("|"))
            }
            _ => None,
        });
        rows.collect()
    }

    /// Runs a statement and gives its only value.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        self.query(sql).pop().unwrap_or_else(|| panic!("{sql}: no row"))
    }

    /// Starts it, after `stop` or `kill_9`.
    pub fn start(&self) {
        let options = StartOptions { settings: Vec::new(), log: self.log(), patience: PATIENCE };
        self.cluster.start(&options).expect("the scratch server starts");
    }

    /// Stops it in an orderly way.
    pub fn stop(&self) {
        self.cluster.stop(StopMode::Fast, PATIENCE).expect("the scratch server stops");
    }

    /// Stops and starts it.
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// Kills it and all its processes at once, as a power cut would.
    pub fn kill_9(&self) {
        let Ok(Some(server)) = running_postmaster(self.data_directory()) else { return };
        let mut pids = children_of(server.pid);
        pids.insert(0, server.pid);
        kill(&pids, PATIENCE);
        // In a container without a proper init the dead process keeps its number for ever, and
        // the next start would take it for a running server.
        let sockets = self.socket_directory();
        let locks = [
            self.data_directory().join("postmaster.pid"),
            sockets.join(format!(".s.PGSQL.{}.lock", self.port)),
        ];
        locks.iter().for_each(|lock| drop(fs::remove_file(lock)));
    }

    /// Runs one of its programs as its user, and gives what it prints.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command(program);
        let output = command.args(arguments).output().expect("the program can be run");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// One of its programs, to be run as its user.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.account.command(&self.cluster.binaries.program(program));
        command.current_dir(self.home.path());
        command
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// Kills processes by number and waits until they are gone.
fn kill(pids: &[u32], patience: Duration) {
    let numbers: Vec<String> = pids.iter().map(u32::to_string).collect();
    let _ = Command::new("kill").arg("-9").args(&numbers).output();
    let until = Instant::now() + patience;
    let gone = |pid: &u32| match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    };
    while !pids.iter().all(gone) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The processes that this one started.
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_child = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name in brackets: state, then the parent.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        (fields.get(1)?.parse() == Ok(parent)).then_some(pid)
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(is_child)
        .collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the mode can be set");
}

/// Versions that tests with a server run on.
pub const MAJORS: [u32; 3] = [15, 17, 18];

/// Runs a test on a server of each version that this machine has; notes the others as skipped.
pub fn on_each(
    test: &str,
    configure: impl Fn(ScratchBuilder) -> ScratchBuilder,
    body: impl Fn(&ScratchServer),
) {
    for major in MAJORS {
        match configure(ScratchServer::of(major)).start() {
            Ok(server) => {
                eprintln!("{test}: PostgreSQL {major}");
                body(&server);
            }
            Err(reason) => skip(&format!("{test}[{major}]"), &reason.to_string()),
        }
    }
}
