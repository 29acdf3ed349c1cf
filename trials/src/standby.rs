//! A standby of a lab's server, with a configuration of lifeboat of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::ScratchServer;
use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::lab::{Lab, Ran, run};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A streaming standby on the lab's machine.
pub struct Standby<'a> {
    lab: &'a Lab,
    /// Its data directory.
    pub directory: PathBuf,
    sockets: PathBuf,
    /// Names the standby as the server, and the lab's repository.
    pub config: PathBuf,
}

impl<'a> Standby<'a> {
    /// Copies the lab's server and starts the copy as its standby.
    #[track_caller]
    pub fn start(lab: &'a Lab, name: &str) -> Self {
        let directory = lab.place(name);
        let sockets = lab.server.directory(&format!("s-{name}"));
        let target = directory.display().to_string();
        let conninfo = lab.server.conninfo();
        lab.server.run("pg_basebackup", &["-D", &target, "-d", &conninfo, "-c", "fast", "-R"]);
        let text = std::fs::read_to_string(&lab.config).expect("the lab has a configuration");
        let (ours, theirs) = (lab.server.socket_directory(), sockets.display().to_string());
        let text = text.replace(&format!("host={}", ours.display()), &format!("host={theirs}"));
        let config = lab.place(&format!("{name}.toml"));
        std::fs::write(&config, text).expect("a configuration can be written");
        lab.server.account().give(&config).expect("a configuration can be given away");
        let standby = Self { lab, directory, sockets, config };
        standby.start_again();
        standby
    }

    fn server(&self) -> &ScratchServer {
        &self.lab.server
    }

    fn pg_ctl(&self, words: &[&str]) -> Ran {
        let log = self.directory.with_extension("log");
        let mut command = self.server().command("pg_ctl");
        command.arg("-D").arg(&self.directory).arg("-l").arg(log).args(words);
        run(&mut command)
    }

    /// Starts it, after a `crash`.
    #[track_caller]
    pub fn start_again(&self) {
        let options = format!("-c unix_socket_directories='{}'", self.sockets.display());
        self.pg_ctl(&["-w", "-o", &options, "start"]).ok();
    }

    /// Ends it at once, as a crash of its processes would.
    #[track_caller]
    pub fn crash(&self) {
        self.pg_ctl(&["-w", "-m", "immediate", "stop"]).ok();
    }

    /// Makes it a primary.
    #[track_caller]
    pub fn promote(&self) {
        self.pg_ctl(&["-w", "promote"]).ok();
    }

    /// A statement's values, one a row.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<String> {
        let mut client = Client::connect(&self.conninfo(), NoTls).expect("the standby answers");
        let answers = client.simple_query(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let row = |answer: &SimpleQueryMessage| match answer {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
            _ => None,
        };
        answers.iter().filter_map(row).collect()
    }

    /// How it is reached.
    pub fn conninfo(&self) -> String {
        format!("host='{}' user=postgres dbname=postgres", self.sockets.display())
    }

    /// Waits until it has replayed all that the primary has written.
    #[track_caller]
    pub fn catch_up(&self) {
        let end = self.server().value("SELECT pg_current_wal_insert_lsn()");
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        wait_for("replay", || self.query(&sql) == ["t"]);
    }

    /// The program with the standby's configuration, to be run as the server's user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.server().account().command(&self.lab.program);
        command.arg("--config").arg(&self.config).args(arguments);
        command.current_dir(self.server().home()).stdin(std::process::Stdio::null());
        command
    }

    /// Runs the program.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    /// Starts a backup that takes its time over what is new, and holds it once it is in backup mode,
    /// before it has read everything. There must be megabytes that are new. What `meanwhile` does
    /// happens then; gives how the backup ended.
    #[track_caller]
    pub fn interrupted_backup(&self, meanwhile: impl FnOnce()) -> Ran {
        // What it asks for last before it copies; before backup mode it never rests there.
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lifeboat' \
                   AND state = 'idle' AND query = 'SELECT pg_is_in_recovery()' \
                   AND state_change < clock_timestamp() - interval '20 ms'";
        let begun = || self.query(sql) == ["1"];
        let slow = ["--set", "repository.compression=zstd:19", "backup", "--jobs", "1"];
        held(self.command(&slow), begun, meanwhile)
    }

    /// The same for a backup that the server sends, once it sends files.
    #[track_caller]
    pub fn interrupted_remote_backup(&self, meanwhile: impl FnOnce()) -> Ran {
        held(self.command(SLOW_REMOTE_BACKUP), || self.query(SENDING) == ["1"], meanwhile)
    }
}

/// A remote backup for whose data the server takes its time.
pub const SLOW_REMOTE_BACKUP: &[&str] =
    &["--set", "backup.wire-compression=zstd:19", "backup", "--from", "remote", "--full-read"];

/// Asks a server whether it is in the middle of sending a backup: `1` when it is.
pub const SENDING: &str =
    "SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 4000000";

/// Starts the program and holds it once it has `begun`. What `meanwhile` does happens then; gives
/// how it ended.
#[track_caller]
pub fn held(mut command: Command, begun: impl FnMut() -> bool, meanwhile: impl FnOnce()) -> Ran {
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let signal = |name: &str| {
        let id = child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().expect("kill runs").success());
    };
    wait_for("the program has begun", begun);
    signal("-STOP");
    meanwhile();
    signal("-CONT");
    let output = child.wait_with_output().expect("the program ends");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        let _ = self.pg_ctl(&["-m", "immediate", "-w", "stop"]);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Waits until something holds.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
