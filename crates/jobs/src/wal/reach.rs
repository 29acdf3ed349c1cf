//! How far recovery gets from a backup along a timeline.

use lifeboat_engine::{Ancestry, Lsn, SegmentNo};

use crate::inventory::{Backup, Inventory, Timeline};

/// Whether recovery from a backup can go along the past of a timeline.
pub(crate) fn lies_on(backup: &Backup, timeline: &Timeline, ancestry: &Ancestry) -> bool {
    backup.facts.identity.system_id == timeline.system
        && ancestry.contains(backup.facts.timeline, backup.facts.stop_lsn)
}

/// The last segment that recovery from `backup` reaches along `ancestry` without a gap; `None`
/// when even the backup's own segments are not all there.
pub(crate) fn reaches(
    inventory: &Inventory,
    backup: &Backup,
    ancestry: &Ancestry,
) -> Option<SegmentNo> {
    let (start, stop) = backup.segments();
    let size = backup.facts.identity.log_segment;
    let mut last = None;
    let mut next = start;
    // Timeline by timeline: each holds a stretch of consecutive segments.
    loop {
        // The segment in which a timeline was left lies, copied and continued, on the next one.
        let byte = Lsn(next.end(size).0.saturating_sub(1));
        let on = ancestry.timeline_at(byte);
        let timeline = inventory.timelines.get(&(backup.facts.identity.system_id, on));
        let Some(reached) = timeline.and_then(|t| t.reaches(next)) else { break };
        let left_at = ancestry.ancestors.iter().find(|a| a.timeline == on).map(|a| a.left_at);
        let Some(left_at) = left_at else {
            last = Some(reached);
            break;
        };
        // Whole segments before the one that holds the position at which it was left.
        let end = left_at.segment(size);
        if reached.next() < end {
            last = Some(reached);
            break;
        }
        if end <= next {
            break; // a history that does not go forward
        }
        last = Some(SegmentNo(end.0 - 1));
        next = end;
    }
    last.filter(|last| *last >= stop)
}
