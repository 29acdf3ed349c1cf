//! Why a verification could not be done at all. Damage is a finding, not an error.

use lifeboat_repo::RepoError;
use lifeboat_units::{Code, Explain, Retry};

use crate::inventory::InventoryError;

/// A verification that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Somebody asked to stop.
    #[error("verification was interrupted")]
    Cancelled,
    /// The repository cannot be read.
    #[error(transparent)]
    Repo(RepoError),
    /// What is there could not be listed.
    #[error(transparent)]
    Inventory(InventoryError),
}

// Transparent: nothing is added on the way.
impl From<RepoError> for VerifyError {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

impl From<InventoryError> for VerifyError {
    fn from(error: InventoryError) -> Self {
        Self::Inventory(error)
    }
}

impl Explain for VerifyError {
    fn code(&self) -> Code {
        match self {
            Self::Cancelled => Code("LB-VFY-001"),
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
            Self::Cancelled => None, // it was asked for
            Self::Repo(RepoError::WriteOnly) => Some(
                "verification reads content: give the passphrase, or run it on a host that has it"
                    .to_owned(),
            ),
            Self::Repo(error) => error.help(),
            Self::Inventory(error) => error.help(),
        }
    }
}
