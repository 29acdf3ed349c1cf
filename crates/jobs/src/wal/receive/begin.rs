//! Where receiving begins: decided from what the repository has. Pure.

use lifeboat_engine::{
    Ancestry, LogFile, Lsn, SegmentName, SegmentNo, SegmentSize, SlotState, SystemId, TimelineId,
};
use lifeboat_repo::{Fact, TailPlace};

use crate::inventory::{Backup, Inventory};
use crate::wal::place::place;

/// What is known when a stream is to begin.
pub(super) struct Known<'a> {
    pub inventory: &'a Inventory,
    pub events: &'a [Fact],
    pub system: SystemId,
    pub size: SegmentSize,
    /// The past of the server's timeline.
    pub past: &'a Ancestry,
    /// What the server keeps for the slot.
    pub slot: SlotState,
    /// How far the server's WAL goes.
    pub end: Lsn,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begin {
    pub timeline: TimelineId,
    pub number: SegmentNo,
}

impl Known<'_> {
    /// The first segment that is missing in the repository and wanted: the one after what follows
    /// the newest backup without a gap, or after what the slot keeps.
    pub(super) fn wanted(&self) -> Begin {
        let kept = self.kept();
        match self.backup().map(|backup| self.first_missing(backup.segments().0)) {
            Some(wanted) if kept.is_none_or(|kept| wanted.number < kept.number) => wanted,
            _ => kept.unwrap_or_else(|| self.after_last()),
        }
    }

    /// Where to begin when the server no longer has what is wanted: where it has WAL, and will not
    /// give it up before it was received.
    ///
    /// A new slot keeps WAL from the last checkpoint's start on, which may lie further back than
    /// `max_slot_wal_keep_size` allows: the next checkpoint would give it up again. So no more is
    /// asked for than half of what is allowed. What is left out is worth little: it lies behind a
    /// gap, and before the backup that answers it. Source: `ReplicationSlotReserveWal` in `slot.c`,
    /// `KeepLogSeg` in `xlog.c`.
    ///
    /// It lies beyond `missing`, which the server did not have, unless that is where it writes.
    pub(super) fn certain(&self, missing: SegmentNo) -> Begin {
        let here = self.end.segment(self.size);
        let from = match self.slot {
            SlotState::Present { keeps_from: Some(from), keeps_bytes_max } => {
                let back = keeps_bytes_max.map(|bytes| bytes.0 / 2 / self.size.bytes());
                let safe = SegmentNo(back.map_or(0, |back| here.0.saturating_sub(back)));
                from.segment(self.size).max(safe)
            }
            _ => here,
        };
        self.first_missing(from.max(missing.next().min(here)))
    }

    /// The first segment that is missing of what the slot keeps.
    fn kept(&self) -> Option<Begin> {
        match self.slot {
            SlotState::Present { keeps_from: Some(from), .. } => {
                Some(self.first_missing(from.segment(self.size)))
            }
            _ => None,
        }
    }

    fn backup(&self) -> Option<&Backup> {
        let on_the_way = |backup: &&Backup| {
            backup.facts.identity.system_id == self.system
                && self.past.contains(backup.facts.timeline, backup.facts.stop_lsn)
        };
        self.inventory.backups.iter().rev().find(on_the_way)
    }

    /// Without backup and slot: what follows the last segment that is there.
    fn after_last(&self) -> Begin {
        let on = |timeline: TimelineId| {
            let there = self.inventory.timelines.get(&(self.system, timeline))?;
            there.segments.last_key_value().map(|(number, _)| number.next())
        };
        let ancestors = self.past.ancestors.iter().rev().map(|a| a.timeline);
        let after = [self.past.timeline].into_iter().chain(ancestors).find_map(on);
        // What the server has not written yet cannot be wanted: it was set back.
        let here = self.end.segment(self.size);
        self.first_missing(after.map_or(here, |after| after.min(here)))
    }

    /// The timeline on which a segment is received: where one is left, the next one's segment holds
    /// both.
    pub(super) fn timeline_of(&self, number: SegmentNo) -> TimelineId {
        let left = self.past.ancestors.iter().find(|a| number < a.left_at.segment(self.size));
        left.map_or(self.past.timeline, |a| a.timeline)
    }

    fn first_missing(&self, from: SegmentNo) -> Begin {
        let mut number = from;
        loop {
            let timeline = self.timeline_of(number);
            let there = self
                .inventory
                .timelines
                .get(&(self.system, timeline))
                .is_some_and(|t| t.segments.contains_key(&number));
            if there {
                number = number.next();
            } else if let Some(beyond) = self.beyond_gap(timeline, number) {
                number = beyond;
            } else {
                return Begin { timeline, number };
            }
        }
    }

    /// The segment after a gap that is recorded and holds this one.
    fn beyond_gap(&self, timeline: TimelineId, number: SegmentNo) -> Option<SegmentNo> {
        let system = self.system.to_string();
        let name = SegmentName::new(timeline, number, self.size);
        self.events.iter().find_map(|fact| match fact {
            Fact::LogGap { system: of, first, last, .. } if *of == system => {
                let (Ok(LogFile::Segment(first)), Ok(LogFile::Segment(last))) =
                    (first.parse(), last.parse())
                else {
                    return None;
                };
                let inside =
                    first.number(self.size)? <= number && number <= last.number(self.size)?;
                let on = (first.timeline..=last.timeline).contains(&name.timeline);
                (inside && on).then(|| last.number(self.size).map(SegmentNo::next)).flatten()
            }
            _ => None,
        })
    }

    /// One segment earlier, if pieces of it lie beside the finished one: an earlier run was cut
    /// short before it had compared the two.
    pub(super) fn to_be_compared(&self, begin: Begin) -> Option<Begin> {
        let number = SegmentNo(begin.number.0.checked_sub(1)?);
        let timeline = self.timeline_of(number);
        let of =
            place(self.system, LogFile::Segment(SegmentName::new(timeline, number, self.size)));
        let beside = |place| TailPlace::parse(place).is_some_and(|piece| piece.of == of);
        let there = self.inventory.logs.iter().any(|log| beside(&log.place));
        there.then_some(Begin { timeline, number })
    }

    /// Timelines of the past of which more is stored than was taken over: timeline, where it was
    /// left, how far it is stored.
    pub(super) fn left_behind(&self) -> Vec<(TimelineId, Lsn, Lsn)> {
        let beyond = |a: &lifeboat_engine::Ancestor| {
            let timeline = self.inventory.timelines.get(&(self.system, a.timeline))?;
            let stored = timeline.end()?;
            (stored > a.left_at).then_some((a.timeline, a.left_at, stored))
        };
        self.past.ancestors.iter().filter_map(beyond).collect()
    }
}
