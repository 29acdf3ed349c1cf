//! A server that streams its log to whoever receives it.

use std::time::Duration;

use lifeboat_units::{ByteCount, Timestamp};

use crate::error::EngineError;
use crate::identity::SystemId;
use crate::log::{Lsn, SegmentSize, TimelineId};

/// A server, or several of which one is the primary, whose log can be received as it is written.
///
/// Calls come in this order: `connect`, then any number of `history`, `slot`, `create_slot`,
/// `drop_slot`; then `start`; then `next` and `report` as often as wanted. After an error, and
/// after [`SourceEvent::TimelineEnded`], begin with `connect` again.
pub trait LogSource: Send {
    /// Connects anew, to the primary among the servers that are known, and says who answered. An
    /// earlier connection is closed.
    fn connect(&mut self) -> Result<SourceIdentity, SourceError>;
    /// A timeline's history file, as the server has it.
    fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, SourceError>;
    /// What the server knows of a replication slot.
    fn slot(&mut self, name: &str) -> Result<SlotState, SourceError>;
    /// Makes a physical replication slot that keeps WAL from now on.
    fn create_slot(&mut self, name: &str) -> Result<(), SourceError>;
    /// Removes a replication slot.
    fn drop_slot(&mut self, name: &str) -> Result<(), SourceError>;
    /// Begins to stream the log of `timeline` from a position on.
    fn start(&mut self, slot: &str, timeline: TimelineId, from: Lsn) -> Result<(), SourceError>;
    /// What comes next; waits no longer than `wait` for it, and not at all when that is zero.
    fn next(&mut self, wait: Duration) -> Result<SourceEvent, SourceError>;
    /// Tells the server what was received, and what of it is durable; `None` when nothing is known
    /// to be durable yet, which leaves the slot where it is.
    fn report(&mut self, received: Lsn, durable: Option<Lsn>) -> Result<(), SourceError>;
}

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The server in words: host and port, without secrets.
    pub server: String,
    /// Whose log it is.
    pub system: SystemId,
    /// The timeline that the server writes, or follows if it is a standby.
    pub timeline: TimelineId,
    /// How far its log goes.
    pub end: Lsn,
    /// Size of its segments.
    pub segment: SegmentSize,
}

/// A replication slot, as far as it matters to who receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// There is none of this name.
    Missing,
    /// It is there; the server keeps the log from this position on. `None` when it keeps nothing:
    /// the slot was never used, or the server gave it up.
    Present {
        /// Oldest position that the server keeps for it.
        keeps_from: Option<Lsn>,
        /// The server gives the slot up when it would have to keep more; `None` without a limit.
        keeps_bytes_max: Option<ByteCount>,
    },
    /// The server does not tell; the stream will say whether it is there.
    Untold,
}

/// What a stream gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    /// Bytes of the log.
    Log {
        /// Position of the first.
        at: Lsn,
        /// The bytes; at least one.
        bytes: Vec<u8>,
        /// How far the server's log went when it sent them.
        server_end: Lsn,
        /// When, by the server's clock.
        server_time: Timestamp,
    },
    /// The server is there and has nothing new.
    Alive {
        /// How far its log goes.
        server_end: Lsn,
        /// When, by the server's clock.
        server_time: Timestamp,
        /// It wants an answer at once.
        reply: bool,
    },
    /// Nothing came in the time that was given.
    Quiet,
    /// All of the timeline was sent; the server went on with another.
    TimelineEnded {
        /// The timeline that follows.
        next: TimelineId,
        /// Where it left this one.
        at: Lsn,
    },
}

/// Why a stream cannot begin or go on. What the receiver must tell apart is told apart.
#[derive(Debug)]
pub enum SourceError {
    /// The server no longer has the log from the position that was asked for.
    Removed(EngineError),
    /// There is no slot of this name.
    SlotMissing(EngineError),
    /// The server gave the slot up: it held back more than is allowed.
    SlotLost(EngineError),
    /// Anything else.
    Failed(EngineError),
}

impl SourceError {
    /// The engine's own error.
    pub fn into_inner(self) -> EngineError {
        match self {
            Self::Removed(e) | Self::SlotMissing(e) | Self::SlotLost(e) | Self::Failed(e) => e,
        }
    }
}
