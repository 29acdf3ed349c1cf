//! What can go wrong with a cluster on this machine.

use std::io;
use std::path::PathBuf;

use lifeboat_engine::EngineError;
use lifeboat_units::{Code, Explain, Retry};

/// Trouble with a cluster on this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No binaries of the right version.
    #[error("no binaries of PostgreSQL {major} found; looked in {}", looked.join(", "))]
    NoBinaries {
        /// The major version that is needed.
        major: u32,
        /// Where they were looked for.
        looked: Vec<String>,
    },
    /// A program that cannot be run.
    #[error("cannot run `{}`", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that failed.
    #[error("`{}` failed: {said}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it said.
        said: String,
    },
    /// The server did not start.
    #[error("PostgreSQL did not start in `{}`:\n{tail}", directory.display())]
    Start {
        /// The data directory.
        directory: PathBuf,
        /// Its log.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
    /// The server did not stop.
    #[error("PostgreSQL in `{}` did not stop: {said}", directory.display())]
    Stop {
        /// The data directory.
        directory: PathBuf,
        /// What pg_ctl said.
        said: String,
    },
    /// The server ended before recovery was over.
    #[error("recovery in `{}` failed; the server says:\n{tail}", directory.display())]
    Recovery {
        /// The data directory.
        directory: PathBuf,
        /// Its log.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
    /// Recovery stands still.
    #[error("recovery in `{}` made no progress for {seconds} seconds (at {at})", directory.display())]
    Stalled {
        /// The data directory.
        directory: PathBuf,
        /// How long.
        seconds: u64,
        /// Position or state that it stands at.
        at: String,
        /// The end of the log.
        tail: String,
    },
    /// The configuration lies elsewhere.
    #[error("`{}` has no postgresql.conf", directory.display())]
    NoConfiguration {
        /// The data directory.
        directory: PathBuf,
    },
    /// No data directory.
    #[error("`{}` is not the version file of a data directory", path.display())]
    NotData {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A setting that cannot be written into a configuration file.
    #[error("the value of `{name}` has a line break or a zero byte")]
    Setting {
        /// The setting.
        name: String,
    },
    /// The server went on, but says nothing that tells where it landed.
    #[error("cannot tell where recovery in `{}` ended", directory.display())]
    NoLanding {
        /// The data directory.
        directory: PathBuf,
    },
    /// A server would run as root.
    #[error("`{}` belongs to root, and PostgreSQL refuses to run as root", directory.display())]
    OwnedByRoot {
        /// The data directory.
        directory: PathBuf,
    },
}

impl From<ClusterError> for EngineError {
    fn from(error: ClusterError) -> Self {
        Self::new(error)
    }
}

impl Explain for ClusterError {
    fn code(&self) -> Code {
        match self {
            Self::NoBinaries { .. } => Code("LB-PG-070"),
            Self::Run { .. } => Code("LB-PG-071"),
            Self::Failed { .. } => Code("LB-PG-072"),
            Self::Start { .. } => Code("LB-PG-073"),
            Self::Stop { .. } => Code("LB-PG-074"),
            Self::Recovery { .. } => Code("LB-PG-075"),
            Self::Stalled { .. } => Code("LB-PG-076"),
            Self::NoConfiguration { .. } => Code("LB-PG-077"),
            Self::NotData { .. } => Code("LB-PG-078"),
            Self::Read { .. } => Code("LB-PG-079"),
            Self::Write { .. } => Code("LB-PG-080"),
            Self::Setting { .. } => Code("LB-PG-081"),
            Self::NoLanding { .. } => Code("LB-PG-082"),
            Self::OwnedByRoot { .. } => Code("LB-PG-083"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Stop { .. } | Self::Stalled { .. } => Retry::Later,
            Self::NoBinaries { .. }
            | Self::Run { .. }
            | Self::Failed { .. }
            | Self::Start { .. }
            | Self::Recovery { .. }
            | Self::NoConfiguration { .. }
            | Self::NotData { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Setting { .. }
            | Self::NoLanding { .. }
            | Self::OwnedByRoot { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::NoBinaries { major, .. } => {
                return Some(format!(
                    "install PostgreSQL {major} on this machine, or say where its programs are: \
                     `postgres.binaries` in the configuration, or --set postgres.binaries=DIR"
                ));
            }
            Self::Start { log, .. } | Self::Recovery { log, .. } => {
                return Some(format!("the whole log is `{}`", log.display()));
            }
            Self::Stalled { tail, .. } => {
                return (!tail.is_empty()).then(|| format!("the server's last words:\n{tail}"));
            }
            Self::Stop { .. } => "a session may be holding it up; look at its processes",
            Self::NoConfiguration { .. } => {
                "the origin keeps its configuration elsewhere (Debian: /etc/postgresql); copy postgresql.conf and pg_hba.conf into the directory"
            }
            Self::NotData { .. } => "is this a data directory of PostgreSQL?",
            Self::OwnedByRoot { .. } => "give it to the server's user (chown -R postgres)",
            Self::NoLanding { .. } => "ask the server: SELECT pg_last_wal_replay_lsn()",
            Self::Run { .. }
            | Self::Failed { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Setting { .. } => return None,
        };
        Some(text.to_owned())
    }
}
