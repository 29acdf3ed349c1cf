//! WAL that the server no longer has.
//!
//! A gap is recorded once it is certain where it ends: when WAL came from behind it. Until then
//! nothing is acknowledged, so that whoever dies in between finds the same again.

use lifeboat_engine::{SegmentName, SegmentNo, SystemId};
use lifeboat_repo::{Fact, RepoError};

use super::begin::{Begin, Known};
use super::ship::Tools;
use super::{ReceiveError, ReceiveEvent};

/// Segments that are lost, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    system: SystemId,
    first: SegmentName,
    last: SegmentName,
    /// What the server said of it.
    reason: String,
}

impl Gap {
    /// From what was wanted up to the segment before `goes_on`.
    pub fn of(known: &Known<'_>, wanted: Begin, goes_on: SegmentNo, reason: &str) -> Self {
        let last = SegmentNo(goes_on.0.saturating_sub(1));
        Self {
            system: known.system,
            first: SegmentName::new(wanted.timeline, wanted.number, known.size),
            last: SegmentName::new(known.timeline_of(last), last, known.size),
            reason: reason.to_owned(),
        }
    }

    /// Writes it into the journal.
    pub fn record(&self, tools: Tools<'_>) -> Result<(), RepoError> {
        let fact = Fact::LogGap {
            system: self.system.to_string(),
            timeline: self.first.timeline.0,
            first: self.first.to_string(),
            last: self.last.to_string(),
            reason: self.reason.clone(),
        };
        tools.cluster.record(tools.clock.now(), fact)
    }

    /// What is told of it.
    pub fn event(self) -> ReceiveEvent {
        ReceiveEvent::Gap { first: self.first, last: self.last, reason: self.reason }
    }
}

/// The server said that it no longer has what was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    pub wanted: Begin,
    /// The last segment that was asked for in vain.
    pub beyond: SegmentNo,
    /// In the server's words.
    pub why: String,
}

/// The server no longer has WAL that it should keep for the slot.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Removed(String);

impl lifeboat_units::Explain for Removed {
    fn code(&self) -> lifeboat_units::Code {
        lifeboat_units::Code("LB-RCV-013")
    }
    fn retry(&self) -> lifeboat_units::Retry {
        lifeboat_units::Retry::Later
    }
    fn help(&self) -> Option<String> {
        None
    }
}

/// The error for what the server should have and does not; it is tried again.
pub(super) fn removed(why: String) -> ReceiveError {
    ReceiveError::Source(lifeboat_engine::EngineError::new(Removed(why)))
}
