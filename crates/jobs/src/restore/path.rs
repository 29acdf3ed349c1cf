//! The way from a backup to a target: which timelines, which segments, and where WAL is missing.
//! Pure: decides from the inventory alone.

use lifeboat_engine::{Ancestry, Lsn, SegmentName, SegmentNo, SystemId, TimelineId};

use super::TimelineChoice;
use super::error::RestoreError;
use crate::inventory::{Backup, Inventory, SegmentRange, Timeline};
use crate::wal::LeftTimeline;

/// A way along one timeline and its ancestors.
pub struct Way<'a> {
    inventory: &'a Inventory,
    system: SystemId,
    /// The past of the timeline on which it ends.
    pub past: Ancestry,
}

/// Where a timeline was left and yet went on.
pub struct Fork {
    /// The older timeline's segment in which it was left.
    pub left: SegmentName,
    /// The older timeline's last segment.
    pub old_last: SegmentName,
    /// The newer timeline's first segment that is its own alone.
    pub new_second: Option<SegmentName>,
}

/// What lies on a way from a segment on.
pub struct Reach {
    /// Segments in order, as far as they follow each other.
    pub segments: Vec<SegmentName>,
    /// First and last missing segment, and how many, if there is WAL beyond a gap.
    pub gap: Option<(SegmentName, SegmentName, u64)>,
}

impl<'a> Way<'a> {
    /// The way that a choice of timeline means for a backup.
    pub fn choose(
        inventory: &'a Inventory,
        backup: &Backup,
        choice: TimelineChoice,
    ) -> Result<Self, RestoreError> {
        let system = backup.facts.identity.system_id;
        let own = backup.facts.timeline;
        let past = match choice {
            TimelineChoice::Current => {
                past_of(inventory, system, own).unwrap_or_else(|| Ancestry::root(own))
            }
            TimelineChoice::Latest => {
                let past =
                    newest_descendant(inventory, backup).unwrap_or_else(|| Ancestry::root(own));
                // What is newer may descend from it: to pass it over would end too early.
                if let Some(timeline) = newest_unknown(inventory, system, past.timeline) {
                    let why = "has WAL in the repository, but its history file is missing or \
                               damaged: whether it is the newest cannot be told";
                    return Err(RestoreError::Timeline { timeline, why: why.to_owned() });
                }
                past
            }
            TimelineChoice::Number(timeline) => {
                let wrong = |why: String| RestoreError::Timeline { timeline, why };
                if timeline != own && !inventory.timelines.contains_key(&(system, timeline)) {
                    return Err(wrong("has no WAL in the repository".to_owned()));
                }
                let past = past_of(inventory, system, timeline)
                    .or_else(|| (timeline == own).then(|| Ancestry::root(own)))
                    .ok_or_else(|| wrong("has no history file in the repository".to_owned()))?;
                if !past.contains(own, backup.facts.stop_lsn) {
                    let why = format!("does not descend from backup {}", backup.id());
                    return Err(wrong(why));
                }
                past
            }
        };
        Ok(Self { inventory, system, past })
    }

    fn timeline(&self, id: TimelineId) -> Option<&Timeline> {
        self.inventory.timelines.get(&(self.system, id))
    }

    /// The name under which segment `number` is there on this way. The server asks the newest
    /// timeline first: the segment of a switch is on both.
    fn find(&self, number: SegmentNo, size: lifeboat_engine::SegmentSize) -> Option<SegmentName> {
        let on = |id: TimelineId| {
            let timeline = self.timeline(id)?;
            timeline.has(number).then(|| timeline.name(number))
        };
        if let Some(name) = on(self.past.timeline)
            && self.begins_at(self.past.timeline) <= number.end(size)
        {
            return Some(name);
        }
        self.past.ancestors.iter().rev().find_map(|ancestor| {
            (number.start(size) < ancestor.left_at).then(|| on(ancestor.timeline)).flatten()
        })
    }

    /// How far a segment that is not finished is there, as far as this way goes along it; `None`
    /// when nothing of it is missing.
    pub fn tail_of(&self, name: SegmentName, size: lifeboat_engine::SegmentSize) -> Option<Lsn> {
        let number = name.number(size)?;
        let timeline = self.timeline(name.timeline)?;
        if timeline.segments.contains_key(&number) {
            return None;
        }
        let tail = timeline.tails.get(&number).filter(|tail| !tail.is_whole(size))?;
        let left = self.past.ancestors.iter().find(|a| a.timeline == name.timeline);
        let end = tail.end(number, size);
        Some(left.map_or(end, |left| end.min(left.left_at)))
    }

    /// Where a timeline of this way begins.
    fn begins_at(&self, timeline: TimelineId) -> Lsn {
        let place = self.past.ancestors.iter().position(|a| a.timeline == timeline);
        let before = place.unwrap_or(self.past.ancestors.len()).checked_sub(1);
        before.map_or(Lsn(0), |i| self.past.ancestors[i].left_at)
    }

    /// What is there from a segment on.
    pub fn reach(&self, backup: &Backup) -> Reach {
        let size = backup.facts.identity.log_segment;
        let (first, _) = backup.segments();
        let mut segments = Vec::new();
        let mut number = first;
        while let Some(name) = self.find(number, size) {
            segments.push(name);
            if self.tail_of(name, size).is_some() {
                // It ends here; what lies beyond follows a hole.
                return Reach { segments, gap: self.gap_after(number, size) };
            }
            number = number.next();
        }
        Reach { segments, gap: self.gap_after(number, size) }
    }

    /// The gap that begins with the missing segment `from`, if there is anything beyond it.
    fn gap_after(
        &self,
        from: SegmentNo,
        size: lifeboat_engine::SegmentSize,
    ) -> Option<(SegmentName, SegmentName, u64)> {
        let ids = self.past.ancestors.iter().map(|a| (a.timeline, Some(a.left_at)));
        let beyond = ids
            .chain([(self.past.timeline, None)])
            .filter_map(|(id, left_at)| {
                let numbers = self.timeline(id)?.segments.range(from..);
                let inside = |n: &SegmentNo| left_at.is_none_or(|left| n.start(size) < left);
                numbers.map(|(number, _)| *number).find(inside)
            })
            .min()?;
        let last = SegmentNo(beyond.0 - 1);
        let timeline = self.past.timeline_at(from.start(size));
        let name = |number| SegmentName::new(timeline, number, size);
        Some((name(from), name(last), beyond.0 - from.0))
    }

    /// Where `old` was left by the next timeline of this way, if `old` went on beyond that.
    pub fn fork(&self, old: TimelineId, size: lifeboat_engine::SegmentSize) -> Option<Fork> {
        let place = self.past.ancestors.iter().position(|a| a.timeline == old)?;
        let left = self.past.ancestors[place].left_at.segment(size);
        let new = self.past.ancestors.get(place + 1).map_or(self.past.timeline, |a| a.timeline);
        let timeline = self.timeline(old)?;
        let mut beyond = timeline.segments.range(left..).map(|(number, _)| timeline.name(*number));
        let first = beyond.next()?;
        let second = self.timeline(new).and_then(|t| {
            t.segments.range(left.next()..).next().map(|(number, _)| t.name(*number))
        });
        Some(Fork {
            left: first,
            old_last: beyond.next_back().unwrap_or(first),
            new_second: second,
        })
    }

    /// Where replay leaves each timeline that it passes from the backup on.
    pub fn left(&self, backup: &Backup, size: lifeboat_engine::SegmentSize) -> Vec<LeftTimeline> {
        let passed = self.past.ancestors.iter().filter(|a| a.left_at > backup.facts.start_lsn);
        let left = passed.map(|a| LeftTimeline {
            last: SegmentName::new(a.timeline, a.left_at.segment_before(size), size),
            cut: (a.left_at != a.left_at.segment(size).start(size)).then_some(a.left_at),
        });
        left.collect()
    }

    /// Timelines that replay passes from the backup on, oldest first.
    pub fn timelines(&self, backup: &Backup) -> Vec<TimelineId> {
        let mut timelines: Vec<_> = self
            .past
            .ancestors
            .iter()
            .filter(|a| a.left_at > backup.facts.start_lsn)
            .map(|a| a.timeline)
            .collect();
        timelines.push(self.past.timeline);
        timelines
    }

    /// Segments as ranges, with stored sizes.
    pub fn ranges(
        &self,
        segments: &[SegmentName],
        size: lifeboat_engine::SegmentSize,
    ) -> Vec<SegmentRange> {
        let mut ranges: Vec<SegmentRange> = Vec::new();
        for name in segments {
            let number = name.number(size);
            let stored_bytes = number
                .and_then(|n| {
                    let timeline = self.timeline(name.timeline)?;
                    let tail = timeline.tails.get(&n).map(|tail| tail.stored_bytes);
                    timeline.segments.get(&n).copied().or(tail)
                })
                .unwrap_or(0);
            match ranges.last_mut() {
                Some(range) if range.last.timeline == name.timeline => {
                    range.last = *name;
                    range.segments += 1;
                    range.stored_bytes += stored_bytes;
                }
                _ => ranges.push(SegmentRange {
                    first: *name,
                    last: *name,
                    segments: 1,
                    stored_bytes,
                }),
            }
        }
        ranges
    }
}

/// The past of a timeline, if it is known.
fn past_of(inventory: &Inventory, system: SystemId, timeline: TimelineId) -> Option<Ancestry> {
    inventory.timelines.get(&(system, timeline))?.ancestry.clone()
}

/// The newest timeline that descends from a backup.
fn newest_descendant(inventory: &Inventory, backup: &Backup) -> Option<Ancestry> {
    let system = backup.facts.identity.system_id;
    inventory
        .timelines
        .iter()
        .filter(|((of, _), _)| *of == system)
        .filter_map(|(_, timeline)| timeline.ancestry.as_ref())
        .filter(|past| past.contains(backup.facts.timeline, backup.facts.stop_lsn))
        .max_by_key(|past| past.timeline)
        .cloned()
}

/// The newest timeline after `known` that has segments and whose past is not known.
fn newest_unknown(
    inventory: &Inventory,
    system: SystemId,
    known: TimelineId,
) -> Option<TimelineId> {
    let newer = inventory.timelines.values().filter(|timeline| {
        timeline.system == system
            && timeline.timeline > known
            && timeline.ancestry.is_none()
            && timeline.last().is_some()
    });
    newer.map(|timeline| timeline.timeline).max()
}
