//! What can go wrong while a server sends a backup.

use lifeboat_engine::{EngineError, Lsn, SystemId};
use lifeboat_units::{Code, Explain, Retry};

use crate::base::changed::ChangedError;
use crate::base::tar::TarError;
use crate::control::ControlError;
use crate::label::LabelError;
use crate::live::error::LiveError;

/// Trouble with a backup that a server sends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The connection was lost, or the server gave up.
    #[error("the server stopped sending the backup{}", at(path))]
    Cut {
        /// The file that was being sent, if one was.
        path: String,
        /// Why.
        source: LiveError,
    },
    /// An archive that cannot be read.
    #[error("what the server sends cannot be read{}", at(path))]
    Archive {
        /// The last file that could.
        path: String,
        /// Why.
        source: TarError,
    },
    /// Changed blocks that do not fit together.
    #[error("changes of `{path}` cannot be read")]
    Changed {
        /// The file.
        path: String,
        /// Why.
        source: ChangedError,
    },
    /// Something has no place where it came.
    #[error("the server sends no backup as lifeboat knows it: {what}")]
    Order {
        /// What is wrong.
        what: String,
    },
    /// A file that a backup cannot do without did not come.
    #[error("the server sent no `{path}`")]
    Missing {
        /// The file.
        path: &'static str,
    },
    /// The control file that came is damaged or unknown.
    #[error("the control file that the server sent cannot be used")]
    Control {
        /// Why.
        source: ControlError,
    },
    /// The control file belongs to another cluster, or to an older time.
    #[error(
        "the control file that the server sent is not its own: system {system}, checkpoint \
         {checkpoint}"
    )]
    Foreign {
        /// What it says.
        system: SystemId,
        /// Its last checkpoint.
        checkpoint: Lsn,
    },
    /// The backup label that came is none.
    #[error("the backup label that the server sent cannot be used")]
    Label {
        /// Why.
        source: LabelError,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" at `{path}`") }
}

impl From<RemoteError> for EngineError {
    fn from(error: RemoteError) -> Self {
        Self::new(error)
    }
}

impl Explain for RemoteError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Cut { .. } => "LB-RMT-001",
            Self::Archive { source, .. } => return source.code(),
            Self::Changed { source, .. } => return source.code(),
            Self::Order { .. } => "LB-RMT-002",
            Self::Missing { .. } => "LB-RMT-003",
            Self::Control { .. } => "LB-RMT-004",
            Self::Foreign { .. } => "LB-RMT-005",
            Self::Label { source } => return source.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Cut { .. } | Self::Control { .. } => Retry::Later,
            Self::Archive { source, .. } => source.retry(),
            Self::Changed { source, .. } => source.retry(),
            Self::Order { .. } | Self::Missing { .. } | Self::Foreign { .. } => Retry::Never,
            Self::Label { source } => source.retry(),
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Cut { .. } => {
                "nothing was listed and earlier backups are as they were; see the server's log, \
                 then run the backup again"
            }
            Self::Archive { source, .. } => return source.help(),
            Self::Changed { source, .. } => return source.help(),
            Self::Label { source } => return source.help(),
            Self::Order { .. } | Self::Missing { .. } => {
                "does the connection lead to PostgreSQL itself, and not to something between?"
            }
            Self::Control { .. } => "run the backup again",
            Self::Foreign { .. } => {
                "do all hosts of the connection string lead to one and the same server?"
            }
        };
        Some(text.to_owned())
    }
}
