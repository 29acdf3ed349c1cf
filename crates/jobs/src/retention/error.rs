//! Why retention stopped.

use lifeboat_repo::RepoError;
use lifeboat_units::{Code, Explain, Retry};

use crate::inventory::InventoryError;

/// Retention stopped. What was done so far stays done; the next run goes on.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// Somebody asked to stop.
    #[error("retention was interrupted")]
    Cancelled,
    /// The repository failed.
    #[error(transparent)]
    Repo(RepoError),
    /// What is there could not be listed.
    #[error(transparent)]
    Inventory(InventoryError),
}

// Transparent: nothing is added on the way.
impl From<RepoError> for RetentionError {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

impl From<InventoryError> for RetentionError {
    fn from(error: InventoryError) -> Self {
        Self::Inventory(error)
    }
}

impl Explain for RetentionError {
    fn code(&self) -> Code {
        match self {
            Self::Cancelled => Code("LB-RET-001"),
            Self::Repo(error) => error.code(),
            Self::Inventory(error) => error.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Cancelled => Retry::Later,
            Self::Repo(error) => error.retry(),
            Self::Inventory(error) => error.retry(),
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Cancelled => Some("run it again: it goes on where it stopped".to_owned()),
            Self::Repo(error) => error.help(),
            Self::Inventory(error) => error.help(),
        }
    }
}
