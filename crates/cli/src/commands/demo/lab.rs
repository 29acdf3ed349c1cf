//! The throw-away server of the demonstration, and running commands beside it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lifeboat_postgres::live::cluster::{
    Account, Binaries, Cluster, InitOptions, StartOptions, StopMode,
};
use lifeboat_postgres::live::conninfo::quote;
use lifeboat_postgres::versions::VERSIONS;
use lifeboat_units::{ByteCount, Cancel};
use postgres::{Client, NoTls};
use tempfile::TempDir;

use crate::app::{App, places};
use crate::error::{CliError, Trouble, usage};
use crate::files;
use crate::secrets;
use crate::server_commands::shell_word;
use crate::ui::{Ui, seconds};

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with a server, a repository, and later a restored server. Dropping it stops both
/// and removes everything.
pub(super) struct Lab {
    home: Option<TempDir>,
    path: PathBuf,
    keep: bool,
    program: PathBuf,
    account: Account,
    server: Cluster,
    cancel: Cancel,
    ui: Ui,
}

/// A failed step, in the demonstration's words.
pub(super) fn failed(what: &str, why: impl std::fmt::Display) -> Trouble {
    Trouble::Demo(format!("{what}: {why}"))
}

impl Lab {
    /// Makes and starts the newest server that there are binaries for.
    pub fn make(app: &App, keep: bool) -> Result<Self, CliError> {
        let all = places(app.settings().ok().and_then(|settings| settings.binaries.clone()));
        let found = VERSIONS.iter().rev().find_map(|v| Binaries::find(v.major, &all).ok());
        let binaries = found.ok_or_else(|| {
            usage(
                "no PostgreSQL server is installed on this machine",
                "install one (apt-get install postgresql), or name its programs' directory: \
                 --set postgres.binaries=DIR",
            )
        })?;
        let account = account()?;
        let temporary = std::env::temp_dir();
        let home = tempfile::Builder::new()
            .prefix("lifeboat-demo-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&temporary)
            .map_err(files::failed("make a directory in", &temporary))?;
        let path = home.path().to_owned();
        files::give(&path, account)?;
        let program = copy_program(&path)?;
        let secret = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        files::write(&path.join("passphrase"), &secret, 0o600)?;
        account.create_directory(&path.join("socket"))?;
        let server = Cluster::init(
            binaries,
            &InitOptions {
                directory: path.join("data"),
                account,
                checksums: true,
                wal_segment_mib: None,
                superuser: "postgres".to_owned(),
                settings: settings(&path.join("socket")),
            },
        )?;
        files::give(&path, account)?;
        let (cancel, ui) = (app.cancel.clone(), app.ui.clone());
        let lab = Self { home: Some(home), path, keep, program, account, server, cancel, ui };
        lab.start()?;
        Ok(lab)
    }

    /// Major version of the server.
    pub fn major(&self) -> u32 {
        self.server.binaries.major()
    }

    /// Where everything is.
    pub fn home(&self) -> &Path {
        &self.path
    }

    /// Where the restored data go.
    pub fn restored(&self) -> PathBuf {
        self.path.join("restored")
    }

    /// Directory of the restored server's socket.
    pub fn restored_socket(&self) -> PathBuf {
        self.path.join("restored-socket")
    }

    /// How to connect to the server.
    pub fn conninfo(&self) -> String {
        conninfo(&self.path.join("socket"))
    }

    /// How to connect to the restored server.
    pub fn restored_conninfo(&self) -> String {
        conninfo(&self.restored_socket())
    }

    fn start(&self) -> Result<(), CliError> {
        let log = self.path.join("server.log");
        Ok(self.server.start(&StartOptions { settings: Vec::new(), log, patience: PATIENCE })?)
    }

    /// Restarts the server, so that `archive_mode` takes effect.
    pub fn restart(&self) -> Result<(), CliError> {
        self.title("restart PostgreSQL, because archive_mode was off", "pg_ctl restart")?;
        self.ui.say("")?;
        self.server.stop(StopMode::Fast, PATIENCE)?;
        self.start()
    }

    /// Runs a command of lifeboat as the server's user, shows it and what it printed, and says
    /// how many seconds it took.
    pub fn lifeboat(&self, title: &str, words: &[&str]) -> Result<f64, CliError> {
        let shown: Vec<String> = words.iter().map(|text| shell_word(text)).collect();
        self.title(title, &format!("lifeboat {}", shown.join(" ")))?;
        let mut command = self.account.command(&self.program);
        command.arg("--config").arg(self.path.join("lifeboat.toml")).args(words);
        command.env_remove("LIFEBOAT_CONFIG").env_remove(secrets::VARIABLE);
        command.current_dir(&self.path).stdin(Stdio::null());
        let began = Instant::now();
        let output = command.output().map_err(files::failed("run", &self.program))?;
        let took = began.elapsed().as_secs_f64();
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            self.ui.say(format!("   {line}").trim_end())?;
        }
        self.interrupted()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(&format!("`lifeboat {}` failed", words[0]), said).into());
        }
        self.ui.say(&format!("   {:>72}\n", format!("[{}]", seconds(took))))?;
        Ok(took)
    }

    /// Runs a statement, and shows it.
    pub fn sql(&self, title: &str, statement: &str) -> Result<(), CliError> {
        self.title(title, &format!("psql -c '{statement}'"))?;
        self.ui.say("")?;
        let mut client = self.client()?;
        Ok(client.batch_execute(statement).map_err(|error| failed(statement, error))?)
    }

    /// Writes this many MiB of rows, and says how large the database is then.
    pub fn fill(&self, mib: u32) -> Result<ByteCount, CliError> {
        let mut client = self.client()?;
        let rows = i64::from(mib) * 4096;
        let sql = format!(
            "CREATE TABLE customers AS SELECT id, md5(id::text) AS name, \
             'Street ' || id % 1000 || ', ' || md5((id % 5000)::text) AS address, \
             (random() * 10000)::numeric(10,2) AS balance, \
             repeat(md5((id % 777)::text), 4) AS remark FROM generate_series(1, {rows}) AS id; \
             ALTER TABLE customers ADD PRIMARY KEY (id); \
             CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint, placed timestamptz \
             DEFAULT clock_timestamp())"
        );
        client.batch_execute(&sql).map_err(|error| failed("cannot write the first rows", error))?;
        let row = client.query_one("SELECT sum(pg_database_size(oid))::int8 FROM pg_database", &[]);
        let row = row.map_err(|error| failed("cannot read the database's size", error))?;
        Ok(ByteCount(row.get::<_, i64>(0).unsigned_abs()))
    }

    /// Has the current segment finished and archived; in production `archive_timeout` sees to it.
    pub fn finish_segment(&self) -> Result<(), CliError> {
        let mut client = self.client()?;
        let mut ask = |sql: &str| {
            let row = client.query_one(sql, &[]).map_err(|error| failed(sql, error))?;
            Ok::<_, Trouble>(row.get::<_, Option<String>>(0).unwrap_or_default())
        };
        let segment = ask("SELECT pg_walfile_name(pg_switch_wal())")?;
        let until = Instant::now() + PATIENCE;
        while ask("SELECT last_archived_wal FROM pg_stat_archiver")? < segment {
            if Instant::now() > until {
                return Err(failed("WAL", format!("{segment} was not archived in time")).into());
            }
            self.pause(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Bytes in the repository.
    pub fn repository_size(&self) -> ByteCount {
        let mut todo = vec![self.path.join("repo")];
        let mut total = 0;
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => todo.push(entry.path()),
                    Ok(metadata) => total += metadata.len(),
                    Err(_) => {}
                }
            }
        }
        ByteCount(total)
    }

    /// Waits a moment.
    pub fn pause(&self, duration: Duration) -> Result<(), CliError> {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.interrupted()?;
            std::thread::sleep(Duration::from_millis(20).min(duration));
        }
        Ok(())
    }

    fn client(&self) -> Result<Client, CliError> {
        let client = Client::connect(&self.conninfo(), NoTls);
        Ok(client.map_err(|error| failed("cannot connect to the server", error))?)
    }

    fn interrupted(&self) -> Result<(), CliError> {
        if self.cancel.is_cancelled() { Err(Trouble::Interrupted.into()) } else { Ok(()) }
    }

    fn title(&self, title: &str, command: &str) -> Result<(), CliError> {
        self.ui.say(&format!("── {title}\n$ {command}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let restored = Cluster { directory: self.restored(), ..self.server.clone() };
        for cluster in [&restored, &self.server] {
            let _ = cluster.stop(StopMode::Immediate, PATIENCE);
        }
        if let Some(home) = self.home.take()
            && self.keep
        {
            let _ = self.ui.say(&format!("kept: {}", home.keep().display()));
        }
    }
}

/// Whom the server runs as: ourselves, or `postgres` when we are root.
fn account() -> Result<Account, Trouble> {
    let own = Account::own();
    if own.uid != 0 {
        return Ok(own);
    }
    Account::named("postgres").ok_or_else(|| {
        usage(
            "PostgreSQL does not run as root, and there is no user `postgres`",
            "run it as another user",
        )
    })
}

/// Copies this program to where the server's user can run it.
fn copy_program(home: &Path) -> Result<PathBuf, Trouble> {
    let program = home.join("lifeboat");
    let copy = || -> std::io::Result<()> {
        fs::copy(std::env::current_exe()?, &program)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))
    };
    copy().map_err(files::failed("copy this program to", &program))?;
    Ok(program)
}

fn settings(socket: &Path) -> Vec<(String, String)> {
    let socket = socket.display().to_string();
    [
        ("listen_addresses", ""),
        ("unix_socket_directories", &socket),
        ("shared_buffers", "64MB"),
        ("max_wal_size", "2GB"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn conninfo(socket: &Path) -> String {
    format!("host={} port=5432 user=postgres dbname=postgres", quote(&socket.display().to_string()))
}
