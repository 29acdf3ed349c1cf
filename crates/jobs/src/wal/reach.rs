//! How far recovery gets from a backup along a timeline.

use lifeboat_engine::{Ancestry, Lsn, SegmentNo, TimelineId};

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

/// What is there of the segment after `last` on the way along `ancestry`: where recovery ends, when
/// the segment is not finished.
pub(crate) fn tail_after(
    inventory: &Inventory,
    backup: &Backup,
    ancestry: &Ancestry,
    last: SegmentNo,
) -> Option<(SegmentNo, Lsn)> {
    let (system, size) = (backup.facts.identity.system_id, backup.facts.identity.log_segment);
    let number = last.next();
    let end = |timeline: TimelineId, left_at: Option<Lsn>| {
        let tail = inventory.timelines.get(&(system, timeline))?.tails.get(&number)?;
        let end = tail.end(number, size);
        Some((number, left_at.map_or(end, |left_at| end.min(left_at))))
    };
    // The newest timeline first, as the server asks.
    let begins = ancestry.ancestors.last().map_or(Lsn(0), |a| a.left_at);
    let own = (begins <= number.end(size)).then(|| end(ancestry.timeline, None)).flatten();
    own.or_else(|| {
        let before = |a: &&lifeboat_engine::Ancestor| number.start(size) < a.left_at;
        let mut ancestors = ancestry.ancestors.iter().rev().filter(before);
        ancestors.find_map(|a| end(a.timeline, Some(a.left_at)))
    })
}
