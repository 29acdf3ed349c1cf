//! What ends receiving, or interrupts it.

use lifeboat_engine::{EngineError, Lsn, SegmentName, SystemId, TimelineId};
use lifeboat_repo::RepoError;
use lifeboat_units::{Code, Explain, Retry};

use crate::inventory::InventoryError;

/// Receiving cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The server failed, or cannot be reached.
    #[error("the server does not stream WAL")]
    Source(#[source] EngineError),
    /// Nothing came from the server for longer than it is ever silent.
    #[error("the server was silent for {seconds} seconds")]
    Silent {
        /// So long.
        seconds: u64,
    },
    /// What came does not follow what came before.
    #[error("the server sent WAL from {found} on where {expected} was next")]
    OutOfOrder {
        /// Position of what came.
        found: Lsn,
        /// Position that was next.
        expected: Lsn,
    },
    /// There is no slot of this name.
    #[error("{server} has no replication slot `{slot}`")]
    SlotMissing {
        /// The slot.
        slot: String,
        /// The server.
        server: String,
    },
    /// The server gave the slot up, because more WAL was held back for it than is allowed.
    #[error("{server} gave replication slot `{slot}` up")]
    SlotLost {
        /// The slot.
        slot: String,
        /// The server.
        server: String,
        /// What the server says.
        source: EngineError,
    },
    /// The server is of another system than the one whose WAL was received before.
    #[error("WAL of system {found} came where that of system {expected} was received")]
    Foreign {
        /// The system that answered.
        found: SystemId,
        /// The system that was expected.
        expected: SystemId,
    },
    /// The cluster of this name has backups of another system.
    #[error(
        "system {found} would be received into cluster `{cluster}`, whose newest backup is of \
         system {expected}"
    )]
    OtherSystem {
        /// The cluster's name in the repository.
        cluster: String,
        /// The system that answered.
        found: SystemId,
        /// The system of the newest backup.
        expected: SystemId,
    },
    /// The server writes a timeline that another one has followed already.
    #[error(
        "{server} writes timeline {found}, and another server archived timeline {newest}: it is no \
         longer the primary"
    )]
    Behind {
        /// The server.
        server: String,
        /// Its timeline.
        found: TimelineId,
        /// The newest timeline that is known.
        newest: TimelineId,
    },
    /// A timeline's history file cannot be understood.
    #[error("the history of timeline {timeline} cannot be used")]
    History {
        /// The timeline.
        timeline: TimelineId,
        /// What is wrong with it.
        source: EngineError,
    },
    /// A timeline's history file is archived with other content.
    #[error("another history of timeline {timeline} is archived already")]
    HistoryDiverged {
        /// The timeline.
        timeline: TimelineId,
    },
    /// What came is no WAL of this segment.
    #[error("what came for segment {segment} is none")]
    NoSegment {
        /// The segment.
        segment: SegmentName,
        /// What is wrong with it.
        source: EngineError,
    },
    /// The finished segment is archived with other content.
    #[error("segment {segment} is already archived with different content")]
    Diverged {
        /// The segment.
        segment: SegmentName,
    },
    /// An unfinished segment was stored with other content.
    #[error("`{piece}` was stored with different content")]
    Contradiction {
        /// The piece of the segment.
        piece: String,
    },
    /// The repository failed to take what was received.
    #[error("cannot store WAL of segment {segment}")]
    Store {
        /// The segment.
        segment: SegmentName,
        /// Why.
        source: RepoError,
    },
    /// The repository failed otherwise.
    #[error("cannot tell what WAL the repository has")]
    Repo(#[source] RepoError),
    /// What the repository has cannot be read.
    #[error("cannot tell what the repository has")]
    Inventory(#[source] InventoryError),
}

impl Explain for ReceiveError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Silent { .. } => "LB-RCV-001",
            Self::OutOfOrder { .. } => "LB-RCV-002",
            Self::SlotMissing { .. } => "LB-RCV-003",
            Self::SlotLost { .. } => "LB-RCV-004",
            Self::Foreign { .. } => "LB-RCV-005",
            Self::OtherSystem { .. } => "LB-RCV-006",
            Self::Behind { .. } => "LB-RCV-007",
            Self::History { .. } => "LB-RCV-008",
            Self::HistoryDiverged { .. } => "LB-RCV-009",
            Self::NoSegment { .. } => "LB-RCV-010",
            Self::Diverged { .. } => "LB-RCV-011",
            Self::Contradiction { .. } => "LB-RCV-012",
            Self::Source(source) => return source.code(),
            Self::Store { source, .. } | Self::Repo(source) => return source.code(),
            Self::Inventory(source) => return source.code(),
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Source(source) => source.retry(),
            Self::Store { source, .. } | Self::Repo(source) => source.retry(),
            Self::Inventory(source) => source.retry(),
            Self::Silent { .. } | Self::OutOfOrder { .. } | Self::Behind { .. } => Retry::Later,
            Self::SlotMissing { .. }
            | Self::SlotLost { .. }
            | Self::Foreign { .. }
            | Self::OtherSystem { .. }
            | Self::History { .. }
            | Self::HistoryDiverged { .. }
            | Self::NoSegment { .. }
            | Self::Diverged { .. }
            | Self::Contradiction { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Source(source) => return source.help(),
            Self::Store { source, .. } | Self::Repo(source) => return source.help(),
            Self::Inventory(source) => return source.help(),
            Self::Silent { .. } | Self::OutOfOrder { .. } => return None, // it connects again
            Self::SlotMissing { .. } => {
                "make it with `lifeboat wal receive --create-slot`; on a new primary it does not \
                 exist unless it was made there. WAL that was removed meanwhile is a gap, after \
                 which a new backup is due"
            }
            Self::SlotLost { .. } => {
                "more WAL waited for the receiver than `max_slot_wal_keep_size` allows. `lifeboat \
                 wal receive --create-slot` replaces the slot; what was removed is a gap, after \
                 which a new backup is due"
            }
            Self::Foreign { .. } => "does the connection string lead to another cluster's server?",
            Self::OtherSystem { .. } => {
                "two servers must not share a name: give this one its own `cluster` in \
                 lifeboat.toml"
            }
            Self::Behind { .. } => {
                "does the connection string name the new primary too? The old one must not take \
                 writes any more. `lifeboat wal list` shows the timelines, `lifeboat check` what \
                 follows"
            }
            Self::History { .. } => return None, // the cause says it
            Self::HistoryDiverged { .. } | Self::Diverged { .. } | Self::Contradiction { .. } => {
                "two servers wrote the same timeline: is an old primary, or a copy of it, still \
                 running?"
            }
            Self::NoSegment { source, .. } => return source.help(),
        };
        Some(text.to_owned())
    }
}
