//! What can go wrong with a store.

use std::io;

use lifeboat_units::{Code, Explain, Retry};

use crate::key::Key;

/// A failure of a store, with the object and the operation it happened to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store looked, and the object is not there.
    #[error("object `{key}` is not in {location}")]
    NotFound {
        /// The object.
        key: Key,
        /// The store.
        location: String,
    },
    /// An object of this name is there already.
    #[error("object `{key}` exists already in {location}")]
    AlreadyExists {
        /// The object.
        key: Key,
        /// The store.
        location: String,
    },
    /// The object ends before the range that was asked for.
    #[error("object `{key}` is cut short: it has {size_bytes} bytes, {wanted_bytes} were expected")]
    Truncated {
        /// The object.
        key: Key,
        /// Its size.
        size_bytes: u64,
        /// Where it should at least have reached.
        wanted_bytes: u64,
    },
    /// The object is longer than it may be.
    #[error("object `{key}` has {size_bytes} bytes, more than the {limit_bytes} it may have")]
    TooLarge {
        /// The object.
        key: Key,
        /// Its size.
        size_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// No space is left.
    #[error("no space is left in {location} for `{key}`")]
    Full {
        /// The object.
        key: Key,
        /// The store.
        location: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store's root is not there, or is no directory.
    #[error("cannot reach the repository at {location}")]
    Unreachable {
        /// The store.
        location: String,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else that the system reported.
    #[error("cannot {operation} object `{key}` in {location}")]
    Io {
        /// What was tried, such as "read".
        operation: &'static str,
        /// The object, or the prefix of a listing.
        key: String,
        /// The store.
        location: String,
        /// What the system said.
        source: io::Error,
    },
    /// Not a possible name.
    #[error("`{text}` cannot be the name of an object")]
    BadKey {
        /// The text.
        text: String,
    },
    /// The address of a store cannot be understood.
    #[error("`{url}` is not an address of a repository: {problem}")]
    BadUrl {
        /// The address, without user names, passwords and queries.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl StoreError {
    /// Whether the store looked and the object is certainly not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether an object of that name is there already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }
}

impl Explain for StoreError {
    fn code(&self) -> Code {
        Code(match self {
            Self::NotFound { .. } => "LB-STORE-001",
            Self::AlreadyExists { .. } => "LB-STORE-002",
            Self::Truncated { .. } => "LB-STORE-003",
            Self::TooLarge { .. } => "LB-STORE-004",
            Self::Full { .. } => "LB-STORE-005",
            Self::Unreachable { .. } => "LB-STORE-006",
            Self::Io { .. } => "LB-STORE-007",
            Self::BadKey { .. } => "LB-STORE-008",
            Self::BadUrl { .. } => "LB-STORE-009",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Full { .. } | Self::Unreachable { .. } | Self::Io { .. } => Retry::Later,
            Self::NotFound { .. }
            | Self::AlreadyExists { .. }
            | Self::Truncated { .. }
            | Self::TooLarge { .. }
            | Self::BadKey { .. }
            | Self::BadUrl { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::NotFound { .. } => "`lifeboat verify` says what else is affected",
            Self::AlreadyExists { .. } => return None, // callers compare and say more
            Self::Truncated { .. } | Self::TooLarge { .. } => {
                "the object was altered outside of lifeboat; `lifeboat verify` says what is affected"
            }
            Self::Full { .. } => {
                "free space there, or run `lifeboat expire`; nothing half written counts"
            }
            Self::Unreachable { source, .. } | Self::Io { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "does the user who runs lifeboat own the repository?"
            }
            Self::Unreachable { .. } => "is it mounted, and is the path right?",
            Self::Io { .. } => return None, // the cause says it
            Self::BadKey { .. } => "parts of letters, digits, `.`, `_` and `-`, separated by `/`",
            Self::BadUrl { .. } => {
                "supported: file:///absolute/path, with %20 for a space, or plainly /absolute/path"
            }
        };
        Some(text.to_owned())
    }
}
