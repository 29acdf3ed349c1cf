//! What can stop a backup.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::{EngineError, SegmentName, SystemId, TimelineId};
use lifeboat_repo::RepoError;
use lifeboat_units::{Code, Explain, Retry};

/// A backup that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The repository holds another cluster under this name.
    #[error(
        "`{cluster}` in the repository is system {} of PostgreSQL {}, the server is system {} of \
         PostgreSQL {}", ours.0, ours.1, theirs.0, theirs.1
    )]
    ForeignCluster {
        /// Name in the repository.
        cluster: String,
        /// System identifier and major version of the newest backup.
        ours: (SystemId, u32),
        /// Of the server.
        theirs: (SystemId, u32),
    },
    /// A segment did not arrive in time.
    #[error(
        "WAL segment {segment} did not arrive in the repository within {} s{}",
        waited.as_secs(),
        failure.as_ref().map(|f| format!("; {f}")).unwrap_or_default()
    )]
    NotArchived {
        /// The segment.
        segment: SegmentName,
        /// How long it was waited for.
        waited: Duration,
        /// What the server says of its archiver.
        failure: Option<String>,
    },
    /// The server was promoted meanwhile.
    #[error("the server went from timeline {from} to {to} during the backup")]
    TimelineChanged {
        /// At the start.
        from: TimelineId,
        /// At the end.
        to: TimelineId,
    },
    /// A file of the data directory cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server sends a backup that does not fit together.
    #[error("the server's backup does not fit together: {what} came for `{path}`")]
    Stream {
        /// The file.
        path: String,
        /// What came.
        what: &'static str,
    },
    /// The operator stopped it.
    #[error("interrupted; nothing was listed")]
    Cancelled,
    /// The repository failed.
    #[error(transparent)]
    Repo(RepoError),
    /// The server failed.
    #[error(transparent)]
    Engine(EngineError),
}

// Transparent: what the repository or the server says is the whole story.
impl From<RepoError> for BackupError {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

impl From<EngineError> for BackupError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl Explain for BackupError {
    fn code(&self) -> Code {
        Code(match self {
            Self::ForeignCluster { .. } => "LB-BAK-001",
            Self::NotArchived { .. } => "LB-BAK-002",
            Self::TimelineChanged { .. } => "LB-BAK-003",
            Self::Read { .. } => "LB-BAK-004",
            Self::Cancelled => "LB-BAK-005",
            Self::Stream { .. } => "LB-BAK-006",
            Self::Repo(error) => return error.code(),
            Self::Engine(error) => return error.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::ForeignCluster { .. } | Self::Cancelled => Retry::Never,
            Self::NotArchived { .. }
            | Self::TimelineChanged { .. }
            | Self::Read { .. }
            | Self::Stream { .. } => Retry::Later,
            Self::Repo(error) => error.retry(),
            Self::Engine(error) => error.retry(),
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::ForeignCluster { .. } => {
                "did the server become this one, as by pg_upgrade? then run `lifeboat backup \
                 --continue` once. Otherwise: does the connection lead to the right server? A new \
                 cluster gets a name of its own: `cluster` in lifeboat.toml"
            }
            Self::NotArchived { .. } => {
                "`lifeboat check` tests archiving step by step; the server's log has what \
                 archive_command printed"
            }
            Self::TimelineChanged { .. } => "run the backup again on the new timeline",
            Self::Read { .. } => "lifeboat reads the data directory as the server's own user",
            Self::Stream { .. } => "run it again; if it stays, with --full-read",
            Self::Cancelled => {
                "nothing of it is listed; the next one begins anew, and `lifeboat expire` removes \
                 what it left"
            }
            Self::Repo(error) => return error.help(),
            Self::Engine(error) => return error.help(),
        };
        Some(text.to_owned())
    }
}
