//! What can stop a restore.

use std::io;
use std::path::PathBuf;

use lifeboat_engine::{EngineError, SegmentName, SystemId, TimelineId};
use lifeboat_repo::RepoError;
use lifeboat_units::{Code, Explain, Retry};
use rustix::io::Errno;

use crate::inventory::InventoryError;
use crate::wal::StateError;

/// What is said of a place that holds a data directory.
pub const DATA_DIRECTORY: &str = "a data directory";
/// Begins what [`RestoreError::Occupied`] says of a directory with a server.
pub const RUNNING_SERVER: &str = "the data directory of a running server";

/// A restore that was refused or cut short.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No backup at all.
    #[error("cluster `{cluster}` has no backup")]
    NoBackup {
        /// The cluster.
        cluster: String,
    },
    /// The target lies before every backup's end.
    #[error("{target} lies before the end of the first usable backup ({first})")]
    TooEarly {
        /// The target in words.
        target: String,
        /// The first backup and its end, in words.
        first: String,
    },
    /// The target lies after the end of the WAL.
    #[error("{target} lies after the last WAL in the repository ({last})")]
    TooLate {
        /// The target in words.
        target: String,
        /// The end of the WAL in words.
        last: String,
    },
    /// The target lies where neither system of an upgrade can be restored to.
    #[error(
        "{target} lies after the last WAL of the system that was continued ({last}), and before the \
         end of the first usable backup of the one that continues it ({first})"
    )]
    BetweenSystems {
        /// What was asked for.
        target: String,
        /// Up to where the older system can be restored.
        last: String,
        /// From where on the newer one can.
        first: String,
    },
    /// A named or numbered target that no archived WAL has.
    #[error("{target} is not in the archived WAL after any backup")]
    NotFound {
        /// The target in words.
        target: String,
    },
    /// Several restore points have this name.
    #[error("restore point `{name}` was made more than once: {}", places.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Where, and when.
        places: Vec<String>,
    },
    /// The moment lies where a newer timeline had already left an older one.
    #[error(
        "{target} lies after timeline {new} left timeline {old} and before anything was committed on {new}"
    )]
    Forked {
        /// The target in words.
        target: String,
        /// The newer timeline.
        new: TimelineId,
        /// The one that it left.
        old: TimelineId,
    },
    /// WAL is missing on the way.
    #[error(
        "WAL is missing between the backup and the target: {first} to {last} ({count} segments)"
    )]
    Gap {
        /// First missing segment.
        first: SegmentName,
        /// Last missing segment.
        last: SegmentName,
        /// How many.
        count: u64,
    },
    /// The timeline is not there, or does not descend from a backup's.
    #[error("timeline {timeline} {why}")]
    Timeline {
        /// The timeline.
        timeline: TimelineId,
        /// What is wrong with it.
        why: String,
    },
    /// The place is taken.
    #[error("`{}` is {what}", path.display())]
    Occupied {
        /// The place.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// The directory holds the data of another system.
    #[error("`{}` holds the data of system {found}, the backup is of system {expected}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose data lie there.
        found: SystemId,
        /// Whose data the backup holds.
        expected: SystemId,
    },
    /// The directory does not tell whose data it holds.
    #[error("`{}` does not tell whose data it holds: its control file cannot be read", path.display())]
    Nobodys {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else is at it.
    #[error("another restore is writing into `{}`", path.display())]
    Busy {
        /// The directory, or that of a tablespace.
        path: PathBuf,
    },
    /// A tablespace mapping that fits nothing, or a place that cannot be.
    #[error("tablespace `{}` {why}", path.display())]
    Tablespace {
        /// The place.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Writing failed.
    #[error("cannot {operation} `{}`", path.display())]
    Write {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the backup is damaged in the repository.
    #[error("`{file}` of backup {backup} cannot be restored")]
    Damaged {
        /// The file.
        file: String,
        /// The backup.
        backup: String,
        /// What was found.
        source: RepoError,
    },
    /// The operator stopped it.
    #[error(
        "interrupted; the directory cannot be started, and the same command again makes it whole. \
         If you remove it: WAL that lies in its lifeboat.set-aside may be nowhere else"
    )]
    Cancelled,
    /// The recovery state cannot be written.
    #[error(transparent)]
    State(StateError),
    /// The inventory cannot be made.
    #[error(transparent)]
    Inventory(InventoryError),
    /// The repository failed.
    #[error(transparent)]
    Repo(RepoError),
    /// The engine failed.
    #[error(transparent)]
    Engine(EngineError),
}

macro_rules! transparent {
    ($($from:ty => $variant:ident),*) => {$(
        // Transparent: the other error is the whole story.
        impl From<$from> for RestoreError {
            fn from(error: $from) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
transparent!(
    StateError => State, InventoryError => Inventory, RepoError => Repo, EngineError => Engine
);

fn is_out_of_files(error: &io::Error) -> bool {
    let limits = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| limits.contains(&number))
}

impl Explain for RestoreError {
    fn code(&self) -> Code {
        Code(match self {
            Self::NoBackup { .. } => "LB-RST-001",
            Self::TooEarly { .. } => "LB-RST-002",
            Self::TooLate { .. } => "LB-RST-003",
            Self::NotFound { .. } => "LB-RST-004",
            Self::Occupied { .. } => "LB-RST-005",
            Self::Gap { .. } => "LB-RST-006",
            Self::Timeline { .. } => "LB-RST-007",
            Self::Tablespace { .. } => "LB-RST-008",
            Self::Write { .. } => "LB-RST-009",
            Self::Damaged { .. } => "LB-RST-010",
            Self::Cancelled => "LB-RST-011",
            Self::Ambiguous { .. } => "LB-RST-012",
            Self::Forked { .. } => "LB-RST-013",
            Self::Foreign { .. } => "LB-RST-014",
            Self::Nobodys { .. } => "LB-RST-015",
            Self::Busy { .. } => "LB-RST-016",
            Self::BetweenSystems { .. } => "LB-RST-017",
            Self::State(error) => return error.code(),
            Self::Inventory(error) => return error.code(),
            Self::Repo(error) => return error.code(),
            Self::Engine(error) => return error.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Write { .. } | Self::Busy { .. } => Retry::Later,
            Self::State(error) => error.retry(),
            Self::Inventory(error) => error.retry(),
            Self::Repo(error) => error.retry(),
            Self::Engine(error) => error.retry(),
            Self::NoBackup { .. }
            | Self::TooEarly { .. }
            | Self::TooLate { .. }
            | Self::BetweenSystems { .. }
            | Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::Forked { .. }
            | Self::Occupied { .. }
            | Self::Foreign { .. }
            | Self::Nobodys { .. }
            | Self::Gap { .. }
            | Self::Timeline { .. }
            | Self::Tablespace { .. }
            | Self::Damaged { .. }
            | Self::Cancelled => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::NoBackup { .. } => "`lifeboat backup` takes the first one",
            Self::Busy { .. } => {
                "wait until it is done, or end it, and then run this one again: it begins anew"
            }
            Self::TooEarly { .. } => "`lifeboat list` shows what can be reached",
            Self::TooLate { .. } => {
                "if the server still runs, its newest WAL may not be archived yet; --latest \
                 restores up to the end of what is there"
            }
            Self::BetweenSystems { .. } => {
                "what happened during an upgrade is in no backup: name the one moment or the other; \
                 `lifeboat list` shows both systems"
            }
            Self::NotFound { .. } => {
                "names are case-sensitive; it may lie on another timeline: `lifeboat wal list` \
                 shows them, --timeline N chooses one"
            }
            Self::Ambiguous { .. } => {
                "choose one by its position: --to-lsn, or by its time: --to-time"
            }
            Self::Forked { .. } => {
                "say which history is meant: --timeline with the older number for what happened \
                 there, with the newer one for the state in which it was left"
            }
            Self::Occupied { what, .. } if what == DATA_DIRECTORY => {
                "--delta brings it to the backup's state and keeps the pages that are right; or \
                 choose an empty or new directory"
            }
            Self::Foreign { .. } => {
                "is --into the right directory? if its content is not wanted any more, empty it \
                 and restore without --delta"
            }
            Self::Nobodys { .. } => {
                "if its content is not wanted any more, empty it and restore without --delta"
            }
            Self::Occupied { what, .. } if what.starts_with(RUNNING_SERVER) => {
                "choose an empty or new directory; to write over this one with --delta, stop its \
                 server first"
            }
            Self::Occupied { .. } => "choose an empty or new directory, or empty this one yourself",
            Self::Gap { .. } => {
                "choose a target before the gap (--to-time, --to-lsn), or one after a later backup"
            }
            Self::Timeline { .. } => {
                "`lifeboat wal list` shows the timelines; --timeline follows the one that is named"
            }
            Self::Tablespace { .. } => {
                "--tablespace-map OLD=NEW sends a tablespace to an empty place"
            }
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free space and run the same command again: the directory is marked as unfinished \
                 and will be written anew"
            }
            Self::Write { source, .. } if is_out_of_files(source) => {
                "the process may open no more files: raise the limit (ulimit -n; LimitNOFILE of a \
                 service), or take fewer --jobs; then run the same command again"
            }
            Self::Write { .. } => "does the user who runs lifeboat own the directory?",
            Self::Damaged { .. } => {
                "`lifeboat verify` says which backups are whole; restore one of those"
            }
            Self::Cancelled => return None,
            Self::State(error) => return error.help(),
            Self::Inventory(error) => return error.help(),
            Self::Repo(error) => return error.help(),
            Self::Engine(error) => return error.help(),
        };
        Some(text.to_owned())
    }
}
