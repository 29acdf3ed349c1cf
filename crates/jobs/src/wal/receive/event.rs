//! What a receiver tells whoever watches.

use lifeboat_engine::{Lsn, SegmentName, SystemId, TimelineId};
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

/// Something that happened while receiving.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum ReceiveEvent {
    /// A server answered.
    Connected {
        /// The server.
        server: String,
        /// Its system.
        system: SystemId,
        /// Its timeline.
        timeline: TimelineId,
        /// How far its WAL goes.
        end: Lsn,
    },
    /// A replication slot was made.
    SlotCreated {
        /// Its name.
        slot: String,
        /// Whether one that kept nothing was removed for it: the server had given it up.
        replaced: bool,
    },
    /// The stream begins.
    Streaming {
        /// On this timeline.
        timeline: TimelineId,
        /// From this position on: the start of a segment.
        from: Lsn,
    },
    /// A timeline's history file was stored.
    History {
        /// The timeline.
        timeline: TimelineId,
    },
    /// A finished segment was stored.
    Segment {
        /// The segment.
        segment: SegmentName,
        /// What it takes in the repository; 0 when it was there.
        stored_bytes: ByteCount,
    },
    /// How far it is; said from time to time.
    Progress {
        /// Received up to here.
        received: Lsn,
        /// Durable in the repository up to here.
        durable: Option<Lsn>,
        /// How much the server has that was not received yet.
        behind_bytes: ByteCount,
        /// Pieces that were stored since it was said last.
        pieces: u64,
    },
    /// The server went on with another timeline.
    Switched {
        /// The timeline that ended.
        from: TimelineId,
        /// The one that follows.
        to: TimelineId,
        /// Where.
        at: Lsn,
    },
    /// More of a timeline was stored than the one that follows took over.
    LeftBehind {
        /// The timeline that was left.
        timeline: TimelineId,
        /// Where it was left.
        left_at: Lsn,
        /// How far it was stored.
        stored_to: Lsn,
    },
    /// WAL is lost: the server no longer had it.
    Gap {
        /// First segment that is missing.
        first: SegmentName,
        /// Last one.
        last: SegmentName,
        /// Why.
        reason: String,
    },
    /// The repository does not take what was received; tried again.
    Waiting {
        /// Why, with all causes.
        why: String,
    },
    /// The connection ended; the next attempt follows.
    Disconnected {
        /// Why, with all causes.
        why: String,
        /// When the next attempt begins.
        retry_seconds: f64,
    },
    /// Something that harms nothing.
    Note {
        /// What.
        message: String,
    },
    /// It was asked to stop, and everything that was received is durable.
    Stopped {
        /// Durable in the repository up to here.
        durable: Option<Lsn>,
    },
}

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// By lifeboat's clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: ReceiveEvent,
}
