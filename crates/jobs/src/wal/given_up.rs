//! WAL that was given up: gaps that the journal records.

use lifeboat_engine::{SegmentName, SystemId, TimelineId};
use lifeboat_repo::{Cluster, Fact, RepoError};
use lifeboat_units::Timestamp;
use serde::Serialize;

use crate::inventory::Inventory;

/// Segments that were given up because the server's backlog was over its limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GivenUp {
    /// When.
    pub at: Timestamp,
    /// Whose they were.
    pub system: SystemId,
    /// Their timeline.
    pub timeline: TimelineId,
    /// First segment.
    pub first: SegmentName,
    /// Last segment, inclusive.
    pub last: SegmentName,
    /// Why.
    pub reason: String,
    /// Whether no backup was begun after them yet: nothing later can be restored.
    pub backup_needed: bool,
}

/// What was given up, oldest first. An event that cannot be read is passed over; `verify` says it.
pub fn given_up(cluster: &Cluster, inventory: &Inventory) -> Result<Vec<GivenUp>, RepoError> {
    let mut found = Vec::new();
    for (_, read) in cluster.read_events(cluster.journal_keys()?) {
        let event = match read {
            Ok(recorded) => recorded.event,
            Err(RepoError::Damaged { .. }) => continue,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let Fact::LogGap { system, timeline, first, last, reason } = event.fact else { continue };
        let (Ok(system), Ok(first), Ok(last)) = (system.parse(), first.parse(), last.parse())
        else {
            continue;
        };
        let gap = GivenUp {
            at: event.at,
            system,
            timeline: TimelineId(timeline),
            first,
            last,
            reason,
            backup_needed: false,
        };
        found.push(GivenUp { backup_needed: !is_answered(&gap, inventory), ..gap });
    }
    Ok(found)
}

/// Whether a backup of the system begins after the gap.
fn is_answered(gap: &GivenUp, inventory: &Inventory) -> bool {
    inventory.backups.iter().any(|backup| {
        let identity = &backup.facts.identity;
        let last = gap.last.number(identity.log_segment);
        identity.system_id == gap.system && last.is_some_and(|last| backup.segments().0 > last)
    })
}
