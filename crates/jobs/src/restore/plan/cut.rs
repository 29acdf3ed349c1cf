//! Which of the segments that are there a plan needs, and which are missing. Pure.

use lifeboat_engine::{SegmentName, SegmentNo};

use crate::inventory::Backup;
use crate::restore::RestoreError;
use crate::restore::path::Reach;

/// The last segment without which the backup does not become consistent.
pub fn needed_for_consistency(backup: &Backup) -> SegmentNo {
    backup.segments().1
}

/// What is reached, at least what the backup itself needs; anything beyond a gap is left out.
pub fn cut_lenient(backup: &Backup, reach: Reach) -> Result<Vec<SegmentName>, RestoreError> {
    let (first, consistent) = backup.segments();
    let reached =
        SegmentNo((first.0 + reach.segments.len() as u64).saturating_sub(1).max(consistent.0));
    cut(backup, reach, Some(reached))
}

/// The segments up to `last` (all, and no gap, when `None`).
pub fn cut(
    backup: &Backup,
    reach: Reach,
    last: Option<SegmentNo>,
) -> Result<Vec<SegmentName>, RestoreError> {
    let size = backup.facts.identity.log_segment;
    let (first, consistent) = backup.segments();
    let wanted = last.unwrap_or(consistent).max(consistent);
    let reached = first.0 + reach.segments.len() as u64; // first segment that is not there
    let mut segments = reach.segments;
    let missing = |number: u64| {
        let name = |n| SegmentName::new(backup.facts.timeline, SegmentNo(n), size);
        match reach.gap {
            Some((first, last, count)) => RestoreError::Gap { first, last, count },
            // Nothing beyond: the end of the WAL, unless the backup itself needs it.
            None if wanted > consistent => {
                RestoreError::Gap { first: name(number), last: name(wanted.0), count: 0 }
            }
            None => RestoreError::Gap {
                first: name(number),
                last: name(wanted.0),
                count: wanted.0 + 1 - number,
            },
        }
    };
    if reached <= wanted.0 || (last.is_none() && reach.gap.is_some()) {
        return Err(missing(reached));
    }
    if let Some(last) = last {
        segments.truncate((last.0 + 1 - first.0) as usize);
    }
    Ok(segments)
}
