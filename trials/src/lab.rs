//! A server, a repository, and the program between them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{ScratchBuilder, ScratchServer};
use serde_json::Value;

/// What every lab encrypts with.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// A server that archives into a repository.
pub struct Lab {
    /// The server.
    pub server: ScratchServer,
    /// The program, where the server's user can run it.
    pub program: PathBuf,
    /// The configuration that `init` wrote.
    pub config: PathBuf,
    /// The repository.
    pub repository: PathBuf,
    /// Where [`Self::backup`] takes backups from; `None` leaves it to the program.
    pub from: Option<&'static str>,
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Fails the trial unless the program succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the trial unless the program ended with this code and said this on standard error.
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(words), "`{words}` is not in:\n{}", self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }
}

fn binary() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/lifeboat");
    std::env::var_os("LIFEBOAT_BIN").map_or_else(|| default.into(), PathBuf::from)
}

impl Lab {
    /// Makes the server, the repository and the configuration; archiving is on, and so are WAL
    /// summaries where there are such.
    pub fn start(builder: ScratchBuilder) -> Result<Self, String> {
        let summaries = builder.major() >= 17;
        let builder = if summaries { builder.setting("summarize_wal", "on") } else { builder };
        let server = builder
            .setting("archive_mode", "on")
            .setting("archive_command", "/bin/false")
            .setting("track_commit_timestamp", "on")
            .start()
            .map_err(|e| e.to_string())?;
        let mut lab = Self::without_repository(server);
        lab.init().ok();
        lab.archive();
        Ok(lab)
    }

    /// A lab whose repository is not yet made.
    pub fn without_repository(server: ScratchServer) -> Self {
        let place = server.directory("lifeboat");
        let program = place.join("lifeboat");
        std::fs::copy(binary(), &program).unwrap_or_else(|e| {
            panic!("{}: {e}; build it: cargo build -p lifeboat-cli", binary().display())
        });
        let config = place.join("lifeboat.toml");
        let passphrase = place.join("passphrase");
        std::fs::write(&passphrase, PASSPHRASE).expect("the passphrase can be written");
        server.account().give(&passphrase).expect("the passphrase can be given away");
        let repository = server.home().join("lifeboat/repository");
        Self { server, program, config, repository, from: None }
    }

    /// Runs `init`.
    pub fn init(&mut self) -> Ran {
        self.init_for(&self.server.conninfo(), &[])
    }

    /// Runs `init` with this connection string.
    pub fn init_for(&self, conninfo: &str, more: &[&str]) -> Ran {
        let passphrase = self.server.home().join("lifeboat/passphrase").display().to_string();
        let url = format!("file://{}", self.repository.display());
        let mut arguments = vec!["init", "--name", "main", "--pg", conninfo, "--repo", &url];
        arguments.extend(["--passphrase-file", &passphrase]);
        arguments.extend_from_slice(more);
        self.run(&arguments)
    }

    /// The `archive_command` of this lab.
    pub fn archive_command(&self) -> String {
        format!("{} --config {} wal push %p", self.program.display(), self.config.display())
    }

    /// Turns archiving into the repository on.
    pub fn archive(&self) {
        self.server
            .execute(&format!("ALTER SYSTEM SET archive_command = '{}'", self.archive_command()));
        self.server.execute("SELECT pg_reload_conf()");
    }

    /// Turns archiving off: segments wait. The background pusher would go on with what waits; it
    /// ends when the configuration is written anew.
    #[track_caller]
    pub fn archive_nowhere(&self) {
        self.server.execute("ALTER SYSTEM SET archive_command = '/bin/false'");
        self.server.execute("SELECT pg_reload_conf()");
        let config = std::fs::File::options().append(true).open(&self.config).expect("it opens");
        config.set_modified(std::time::SystemTime::now()).expect("its time can be set");
        crate::refusal::until("the pusher ends", || self.pusher().is_none());
    }

    /// The background pusher that lives; `None` when none does.
    pub fn pusher(&self) -> Option<u32> {
        let lock = self.server.data_directory().join("lifeboat.spool/lock");
        let process: u32 =
            std::fs::read_to_string(lock).ok()?.split_whitespace().nth(1)?.parse().ok()?;
        let words = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
        String::from_utf8_lossy(&words).contains("pusher").then_some(process)
    }

    /// The program with the lab's configuration, to be run as the server's user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.server.account().command(&self.program);
        command.arg("--config").arg(&self.config).args(arguments);
        command.current_dir(self.server.home()).stdin(Stdio::null());
        command
    }

    /// Runs the program.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    /// Starts the program and lets it run.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts")
    }

    /// Takes a backup and gives its report.
    #[track_caller]
    pub fn backup(&self) -> Value {
        let mut arguments = vec!["backup", "--json", "--jobs", "2"];
        arguments.extend(self.from.iter().flat_map(|from| ["--from", from]));
        self.run(&arguments).ok().json()
    }

    /// Switches a segment and waits until it is archived.
    #[track_caller]
    pub fn archive_all(&self) {
        // A server that wrote nothing since the last switch does not switch.
        self.server.execute("SELECT pg_logical_emit_message(false, 'trial', 'switch')");
        let name = self.server.value("SELECT pg_walfile_name(pg_switch_wal())").trim().to_owned();
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let last =
                self.server.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver");
            // A partial or history name sorts after its segment; compare the segment's part.
            if last.len() >= 24 && last[..24] >= *name {
                return;
            }
            assert!(Instant::now() < until, "{name} is not archived, last was {last}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A fresh directory name below the lab.
    pub fn place(&self, name: &str) -> PathBuf {
        self.server.home().join("lifeboat").join(name)
    }

    /// Every object of the repository, relative to it, sorted.
    pub fn objects(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.repository, &mut |path| {
            let relative = path.strip_prefix(&self.repository).expect("it is below");
            found.push(relative.display().to_string());
        });
        found.sort();
        found
    }
}

fn walk(directory: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { walk(&path, each) } else { each(&path) }
    }
}

/// Runs a command and keeps all that it prints.
pub fn run(command: &mut Command) -> Ran {
    let output = command.output().expect("the program can be run");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
