//! What can go wrong with WAL.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::{EngineError, LogNameError, SystemId};
use lifeboat_repo::RepoError;
use lifeboat_units::{Code, Explain, Retry, Timestamp};

use super::push::note::ErrorNote;

/// What another process said of its error's causes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);

/// A file of the log was not archived.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name is none of a file that a server archives.
    #[error("`{name}` is not archived")]
    Name {
        /// Last part of the path.
        name: String,
        /// Why it is none.
        source: LogNameError,
    },
    /// The file cannot be read.
    #[error("cannot read WAL file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than any file of the log can be.
    #[error("`{}` has {size_bytes} bytes, more than any WAL file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The file is no segment, or not the one that its name says.
    #[error("`{file}` is refused")]
    NoSegment {
        /// Its name.
        file: String,
        /// What is wrong with it.
        source: EngineError,
    },
    /// The file's own content does not say whose it is, and the data directory cannot be read.
    #[error("cannot tell to which database system `{file}` belongs")]
    Identity {
        /// Its name.
        file: String,
        /// Why the data directory cannot be read.
        source: EngineError,
    },
    /// The segment was written by another system than the data directory's.
    #[error("segment `{file}` is of system {found}, the data directory is of system {expected}")]
    Foreign {
        /// Its name.
        file: String,
        /// The system in the segment.
        found: SystemId,
        /// The system of the data directory.
        expected: SystemId,
    },
    /// The cluster of this name has backups of another system.
    #[error(
        "system {found} would archive to cluster `{cluster}`, which is system \
         {expected}"
    )]
    OtherSystem {
        /// The cluster's name in the repository.
        cluster: String,
        /// The system that archives.
        found: SystemId,
        /// The system that is the cluster.
        expected: SystemId,
        /// When that one continued the system that archives.
        since: Option<Timestamp>,
    },
    /// The name is taken by other content. Nothing was changed.
    #[error("`{file}` is already archived with different content")]
    Diverged {
        /// Its name.
        file: String,
        /// Keyed digest of what is archived.
        archived: String,
        /// Keyed digest of what was offered.
        offered: String,
    },
    /// The file was written to while it was read.
    #[error("`{}` is written to while it is archived", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The background pusher failed on this file; this is what it said.
    #[error("{}", note.message)]
    Background {
        /// What it said.
        note: ErrorNote,
        /// Its causes, in one line.
        source: Said,
    },
    /// The background pusher did not answer in time. Nothing is lost: the server asks again.
    #[error("`{file}` is not archived after {} s; the background pusher is still at work", waited.as_secs())]
    NoAnswer {
        /// The file's name.
        file: String,
        /// How long the call waited.
        waited: Duration,
    },
    /// The repository failed.
    #[error("cannot archive `{file}`")]
    Repo {
        /// The file's name.
        file: String,
        /// Why.
        source: RepoError,
    },
}

impl Explain for PushError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Name { .. } => "LB-WAL-001",
            Self::Diverged { .. } => "LB-WAL-002",
            Self::Read { .. } => "LB-WAL-003",
            Self::TooLarge { .. } => "LB-WAL-004",
            Self::NoSegment { .. } => "LB-WAL-005",
            Self::Identity { .. } => "LB-WAL-006",
            Self::Foreign { .. } => "LB-WAL-007",
            Self::OtherSystem { .. } => "LB-WAL-008",
            Self::Changing { .. } => "LB-WAL-016",
            Self::NoAnswer { .. } => "LB-WAL-017",
            Self::Background { note, .. } => return note.code(),
            Self::Repo { source, .. } => return source.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Read { .. }
            | Self::Changing { .. }
            | Self::NoAnswer { .. }
            | Self::Background { .. } => Retry::Later,
            Self::Identity { source, .. } => source.retry(),
            Self::Repo { source, .. } => source.retry(),
            Self::Name { .. }
            | Self::Diverged { .. }
            | Self::TooLarge { .. }
            | Self::NoSegment { .. }
            | Self::Foreign { .. }
            | Self::OtherSystem { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Name { .. } | Self::Read { .. } => {
                "does `archive_command` pass %p? It is relative to the data directory"
            }
            Self::Diverged { .. } => {
                "is a second primary, or a test restore, archiving to this cluster's name?"
            }
            Self::TooLarge { .. } => return None, // the message says it
            Self::Changing { .. } => "the server finished this file: who writes to it?",
            Self::NoAnswer { .. } => {
                "the repository is slow or hangs; `lifeboat.spool/log` in the data directory tells \
                 what the pusher did, and wal.push-timeout how long a call waits"
            }
            Self::Background { note, .. } => return note.help.clone(),
            Self::NoSegment { source, .. } => return source.help(),
            Self::Identity { .. } => "run it in the data directory, as the server does",
            Self::Foreign { .. } => "this segment was put there by hand; it cannot be replayed",
            Self::OtherSystem { since: Some(at), .. } => {
                return Some(format!(
                    "this system was continued by that one at {at}; stop the server that still \
                     archives, or, to go back to it, run `lifeboat backup --continue` on it"
                ));
            }
            Self::OtherSystem { .. } => {
                "is this server what became of that one, as after pg_upgrade? then run `lifeboat \
                 backup --continue` on it once; otherwise two servers must not share a name: give \
                 this one its own `cluster` in lifeboat.toml"
            }
            Self::Repo { source, .. } => return source.help(),
        };
        Some(text.to_owned())
    }
}

/// A file of the log was not fetched, for another reason than that it is certainly not there.
///
/// To a server in recovery every one of these must be told by an exit code of 126 or above: a
/// smaller one says "end of the archive", and the server promotes too early.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The name is none of a file that a server asks for.
    #[error("`{name}` is never archived")]
    Name {
        /// The name.
        name: String,
        /// Why it is none.
        source: LogNameError,
    },
    /// Whose WAL is wanted cannot be found out.
    #[error("cannot tell whose `{file}` is wanted")]
    Identity {
        /// Its name.
        file: String,
        /// Why the data directory cannot be read.
        source: EngineError,
    },
    /// Recovery needs the file, and it is not in the repository.
    #[error("`{file}` is not in the repository, but recovery cannot be complete without it")]
    NeededMissing {
        /// Its name.
        file: String,
    },
    /// The file is there, and its content is not what was archived.
    #[error("archived `{file}` is not served")]
    Damaged {
        /// Its name.
        file: String,
        /// What is wrong.
        source: RepoError,
    },
    /// Whether the file is there could not be found out.
    #[error("cannot fetch `{file}`")]
    Repo {
        /// The file's name.
        file: String,
        /// Why.
        source: RepoError,
    },
    /// The file cannot be written where the server wants it.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Where it was to go.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Explain for GetError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Name { .. } => "LB-WAL-011",
            Self::Identity { .. } => "LB-WAL-012",
            Self::NeededMissing { .. } => "LB-WAL-013",
            Self::Damaged { .. } => "LB-WAL-014",
            Self::Write { .. } => "LB-WAL-015",
            Self::Repo { source, .. } => return source.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Name { .. } | Self::Damaged { .. } => Retry::Never,
            Self::NeededMissing { .. } | Self::Write { .. } => Retry::Later,
            Self::Identity { source, .. } => source.retry(),
            Self::Repo { source, .. } => source.retry(),
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Name { .. } => "does `restore_command` pass %f first, then %p?",
            Self::Identity { .. } => "run it in the data directory, as the server does",
            Self::NeededMissing { .. } => {
                "was it removed, or not yet archived? `lifeboat wal list` shows gaps; restore again \
                 with a target before the gap"
            }
            Self::Damaged { .. } => {
                "restore again with a target before this segment; `lifeboat verify` names \
                 everything that is damaged"
            }
            Self::Write { .. } => {
                "is the data directory writable for the user who runs this, and is there space? \
                 The server asks again when it is started again"
            }
            Self::Repo { source, .. } => return source.help(),
        };
        Some(text.to_owned())
    }
}

/// The file that tells what recovery needs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be written or removed.
    #[error("cannot write or remove `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what a restore writes.
    #[error("`{}` is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A newer lifeboat wrote it.
    #[error("`{}` has format version {found}; this lifeboat knows versions up to {known}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version that this program knows.
        known: u32,
    },
}

impl Explain for StateError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Read { .. } => "LB-WAL-021",
            Self::Write { .. } => "LB-WAL-022",
            Self::Damaged { .. } => "LB-WAL-023",
            Self::TooNew { .. } => "LB-WAL-024",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } | Self::Write { .. } => Retry::Later,
            Self::Damaged { .. } | Self::TooNew { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Read { .. } | Self::Write { .. } => return None, // the cause says it
            Self::Damaged { .. } => {
                "restore the directory again; without it recovery could end early"
            }
            Self::TooNew { .. } => "upgrade lifeboat on this host",
        };
        Some(text.to_owned())
    }
}
