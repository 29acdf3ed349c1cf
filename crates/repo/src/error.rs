//! What can go wrong with a repository.

use lifeboat_store::StoreError;
use lifeboat_units::{Code, Explain, Retry};

/// A failure of the repository, with the object it happened to.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// There is no repository at this place.
    #[error("there is no lifeboat repository in {location}")]
    Missing {
        /// The store.
        location: String,
    },
    /// The repository that was opened is no longer at its place.
    #[error("{location} no longer holds the repository that was opened there")]
    Gone {
        /// The store.
        location: String,
    },
    /// There is a repository already.
    #[error("there is a repository in {location} already")]
    Exists {
        /// The store.
        location: String,
    },
    /// The object was written by a newer lifeboat.
    #[error("`{object}` has format version {found}; this lifeboat knows versions up to {known}")]
    TooNew {
        /// The object.
        object: String,
        /// Its version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// No key slot opens with this passphrase.
    #[error("the passphrase opens none of the {slots} key slots of {location}")]
    WrongPassphrase {
        /// The store.
        location: String,
        /// How many slots were tried.
        slots: usize,
    },
    /// The unlocked key file belongs to another repository.
    #[error("the key at hand is for repository {key_of}, but {location} is repository {is}")]
    ForeignKey {
        /// The repository the key was made for.
        key_of: String,
        /// The repository that was opened.
        is: String,
        /// The store.
        location: String,
    },
    /// Content is to be read, and only the writing key is at hand.
    #[error("this host holds only the key for writing, not the one for reading content")]
    WriteOnly,
    /// A name that cannot be used for a cluster, backup or slot.
    #[error("`{name}` cannot be the name of a {what}")]
    BadName {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The content of an object is not what it must be.
    #[error("`{object}` is damaged: {what}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong.
        what: String,
    },
    /// The backup is not in the repository.
    #[error("there is no backup `{id}` of cluster `{cluster}`")]
    NoSuchBackup {
        /// The identifier that was asked for.
        id: String,
        /// The cluster.
        cluster: String,
    },
    /// Another process works on this cluster.
    #[error("{holder} is {purpose} cluster `{cluster}` since {since}")]
    Busy {
        /// The cluster.
        cluster: String,
        /// Host and process of the holder.
        holder: String,
        /// What it does, such as "backing up".
        purpose: String,
        /// Since when.
        since: String,
    },
    /// The lease was lost while work went on.
    #[error("the lease on cluster `{cluster}` was lost to {to}")]
    LeaseLost {
        /// The cluster.
        cluster: String,
        /// Who has it now.
        to: String,
    },
    /// A key operation failed.
    #[error("cannot {operation}: {why}")]
    Key {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        why: String,
    },
    /// The machine does not give what unlocking a passphrase needs.
    #[error("cannot derive the key from the passphrase: {why}")]
    Derivation {
        /// What the system said.
        why: String,
        /// Memory that it takes, in KiB.
        memory_kib: u32,
        /// Threads that it uses, where there are as many processors.
        lanes: u32,
    },
    /// A directory of a database and the repository lie within each other: one would be backed up
    /// into itself, or cleared away by a restore.
    #[error("`{}` and the repository in {location} lie within each other", place.display())]
    Within {
        /// The directory.
        place: std::path::PathBuf,
        /// The store.
        location: String,
    },
    /// A local file of keys cannot be used.
    #[error("cannot use key file `{}`", path.display())]
    KeyFile {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

impl RepoError {
    /// A damaged object.
    pub fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), what: what.into() }
    }

    /// Whether the store looked and an object is certainly not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(e) if e.is_not_found())
    }

    /// Whether an object could not be put because one of its name is there.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Store(e) if e.is_already_exists())
    }
}

// Transparent: the store's error is the whole story, nothing is added on the way.
impl From<StoreError> for RepoError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Explain for RepoError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Missing { .. } => "LB-REPO-001",
            Self::Exists { .. } => "LB-REPO-002",
            Self::TooNew { .. } => "LB-REPO-003",
            Self::WrongPassphrase { .. } => "LB-REPO-004",
            Self::ForeignKey { .. } => "LB-REPO-005",
            Self::WriteOnly => "LB-REPO-006",
            Self::BadName { .. } => "LB-REPO-007",
            Self::Damaged { .. } => "LB-REPO-008",
            Self::NoSuchBackup { .. } => "LB-REPO-009",
            Self::Busy { .. } => "LB-REPO-010",
            Self::LeaseLost { .. } => "LB-REPO-011",
            Self::Key { .. } => "LB-REPO-012",
            Self::KeyFile { .. } => "LB-REPO-013",
            Self::Gone { .. } => "LB-REPO-014",
            Self::Derivation { .. } => "LB-REPO-015",
            Self::Within { .. } => "LB-REPO-016",
            Self::Store(error) => return error.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Busy { .. }
            | Self::LeaseLost { .. }
            | Self::Gone { .. }
            | Self::Derivation { .. } => Retry::Later,
            Self::Store(error) => error.retry(),
            Self::Missing { .. }
            | Self::Exists { .. }
            | Self::TooNew { .. }
            | Self::WrongPassphrase { .. }
            | Self::ForeignKey { .. }
            | Self::WriteOnly
            | Self::BadName { .. }
            | Self::Damaged { .. }
            | Self::NoSuchBackup { .. }
            | Self::Key { .. }
            | Self::Within { .. }
            | Self::KeyFile { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Missing { .. } => {
                "is the address right, and its file system mounted? `lifeboat init` makes a \
                 repository"
            }
            Self::Gone { .. } => {
                "is its file system still mounted? Nothing that was sent meanwhile counts as stored"
            }
            Self::Exists { .. } => "use it as it is, or choose another address",
            Self::TooNew { .. } => "upgrade lifeboat on this host; nothing was changed",
            Self::WrongPassphrase { .. } => {
                "check the file or variable it comes from, a trailing space included"
            }
            Self::ForeignKey { .. } => {
                "the repository was made anew or the address changed; `lifeboat key unlock` makes \
                 a new key file"
            }
            Self::WriteOnly => "give the passphrase: passphrase-file, or LIFEBOAT_PASSPHRASE",
            Self::BadName { what: "backup", .. } => "`lifeboat list` shows the backups",
            Self::BadName { what: "key slot", .. } => {
                "its name has 1 to 64 of a-z, A-Z, 0-9, `-` and `_`; `lifeboat key list` shows them"
            }
            Self::BadName { .. } => "its name has 1 to 64 of a-z, 0-9, `-` and `_`",
            Self::Damaged { object, .. } if object.starts_with("keys/slots/") => {
                "another slot may open: `lifeboat key list` shows which are damaged. Then remove this \
                 one (`lifeboat key remove`), or put a copy of the object back"
            }
            Self::Damaged { .. } => "`lifeboat verify` names every backup that this touches",
            Self::NoSuchBackup { .. } => "`lifeboat list` shows what is there",
            Self::Busy { .. } => "wait until it is done; a process that died is noticed by itself",
            Self::LeaseLost { .. } => {
                "this process was paused for too long, or two hosts work on one cluster; nothing \
                 was listed, run it again"
            }
            Self::Within { .. } => {
                "choose another directory; a repository that lies in a data directory must be moved \
                 out of it first, and `repository.url` with it"
            }
            Self::KeyFile { .. } => {
                "`lifeboat key unlock` makes a new key file, with the passphrase"
            }
            Self::Key { operation, .. } if operation.contains("slot") => {
                "`lifeboat key list` shows the slots; `lifeboat key add` adds one"
            }
            Self::Key { .. } => return None, // the cause says it
            Self::Derivation { memory_kib, lanes, .. } => {
                return Some(format!(
                    "for a moment it takes {} MiB of memory and up to {lanes} threads: raise the limit \
                     (ulimit -v and -u; MemoryMax and TasksMax of a service)",
                    memory_kib / 1024
                ));
            }
            Self::Store(error) => return error.help(),
        };
        Some(text.to_owned())
    }
}
