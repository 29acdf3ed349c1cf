//! A cluster on this machine: its binaries, start, stop, status.

mod account;
mod binaries;
mod error;
mod initdb;
mod postmaster;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub use account::Account;
pub use binaries::{Binaries, Places};
pub use error::ClusterError;
pub use initdb::InitOptions;
pub use postmaster::{Postmaster, running_postmaster};

/// A data directory with the binaries that fit it.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where `postgres`, `pg_ctl` and the others are.
    pub binaries: Binaries,
    /// The data directory.
    pub directory: PathBuf,
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Settings that win over all files, as name and value.
    pub settings: Vec<(String, String)>,
    /// Where the server's messages go, until it opens a log of its own.
    pub log: PathBuf,
    /// How long it may take until the server accepts connections.
    pub patience: Duration,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// End all sessions, write a checkpoint, stop.
    Fast,
    /// Stop at once; the next start recovers.
    Immediate,
}

impl Cluster {
    /// Starts the server and waits until it accepts connections (a standby: until it is
    /// consistent). Errors carry the end of its log.
    pub fn start(&self, options: &StartOptions) -> Result<(), ClusterError> {
        let mut child = self.spawn(options)?;
        let status = child.wait().map_err(|source| self.cannot_run("pg_ctl", source))?;
        if status.success() {
            return Ok(());
        }
        Err(ClusterError::Start {
            directory: self.directory.clone(),
            log: options.log.clone(),
            tail: log_tail(&options.log),
        })
    }

    /// Starts `pg_ctl start`, which ends when the server accepts connections or has failed.
    pub(crate) fn spawn(&self, options: &StartOptions) -> Result<Child, ClusterError> {
        let account = Account::owner_of(&self.directory)?;
        account.create_file(&options.log)?;
        let mut command = account.command(&self.binaries.program("pg_ctl"));
        // The directory goes by the environment: pg_ctl would hand an argument to a shell.
        command.env("PGDATA", &self.directory).current_dir(&self.directory);
        command.args(["start", "--wait", "--silent", "--timeout"]);
        command.arg(options.patience.as_secs().max(1).to_string());
        command.arg("--log").arg(&options.log);
        command.arg("--options").arg(shell_options(&options.settings));
        clean_environment(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|source| self.cannot_run("pg_ctl", source))
    }

    /// Stops the server and waits until it is gone; does nothing when none runs.
    pub fn stop(&self, mode: StopMode, patience: Duration) -> Result<(), ClusterError> {
        if running_postmaster(&self.directory)?.is_none() {
            return Ok(());
        }
        let account = Account::owner_of(&self.directory)?;
        let mut command = account.command(&self.binaries.program("pg_ctl"));
        command.env("PGDATA", &self.directory).current_dir(&self.directory);
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        command.args(["stop", "--wait", "--silent", "--mode", mode, "--timeout"]);
        command.arg(patience.as_secs().max(1).to_string());
        clean_environment(&mut command);
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|source| self.cannot_run("pg_ctl", source))?;
        if output.status.success() || running_postmaster(&self.directory)?.is_none() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ClusterError::Stop { directory: self.directory.clone(), said })
    }

    /// The server that runs in the directory, if any.
    pub fn status(&self) -> Result<Option<Postmaster>, ClusterError> {
        running_postmaster(&self.directory)
    }

    fn cannot_run(&self, program: &str, source: std::io::Error) -> ClusterError {
        ClusterError::Run { program: self.binaries.program(program), source }
    }
}

/// Reads the major version that a data directory was made by, from `PG_VERSION`.
pub fn major_of(directory: &Path) -> Result<u32, ClusterError> {
    let path = directory.join("PG_VERSION");
    let text = fs::read_to_string(&path)
        .map_err(|source| ClusterError::Read { path: path.clone(), source })?;
    let major = text.trim().parse().ok().filter(|major| *major >= 10);
    major.ok_or(ClusterError::NotData { path })
}

/// Variables that would send a server or its tools elsewhere.
fn clean_environment(command: &mut Command) {
    for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE", "PGPASSWORD"]
    {
        command.env_remove(name);
    }
}

/// Writes settings as options for a shell, because `pg_ctl` gives them to one.
fn shell_options(settings: &[(String, String)]) -> String {
    settings
        .iter()
        .map(|(name, value)| format!("-c {}", shell_quote(&format!("{name}={value}"))))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Quotes a word for the shell.
pub fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The end of a server's log: its last errors, or its last lines when it has none.
pub fn log_tail(log: &Path) -> String {
    const BYTES_MAX: u64 = 64 << 10;
    const LINES_MAX: usize = 6;
    let Ok(text) = read_end(log, BYTES_MAX) else { return String::new() };
    let bad = |line: &&str| {
        ["FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:", "could not"]
            .iter()
            .any(|word| line.contains(word))
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|line| bad(line)).collect();
    let chosen = if errors.is_empty() { &lines } else { &errors };
    chosen[chosen.len().saturating_sub(LINES_MAX)..].join("\n")
}

/// Reads the last bytes of a file, as text.
pub(crate) fn read_end(path: &Path, bytes_max: u64) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_server_as_they_are() {
        let settings = [("a".to_owned(), "it's $HOME `x`".to_owned())];
        assert_eq!(shell_options(&settings), r"-c 'a=it'\''s $HOME `x`'");
    }

    #[test]
    fn the_tail_of_a_log_is_its_errors() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        assert_eq!(log_tail(&log), "");
        fs::write(&log, "LOG:  a\nFATAL:  b\nLOG:  c\n").unwrap();
        assert_eq!(log_tail(&log), "FATAL:  b");
        fs::write(&log, "LOG:  a\nLOG:  c\n").unwrap();
        assert_eq!(log_tail(&log), "LOG:  a\nLOG:  c");
    }
}
