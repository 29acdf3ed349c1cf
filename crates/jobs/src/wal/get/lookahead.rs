//! Which segments recovery will ask for next. Pure.

use lifeboat_engine::{LogFile, SegmentName, SegmentSize};

use super::super::state::RecoveryState;

/// What is known about the way that recovery takes.
#[derive(Debug, Clone)]
pub(super) struct Lookahead {
    /// Size of a segment.
    pub size: SegmentSize,
    /// So many segments ahead, at most.
    pub segments: usize,
    /// What a restore noted; none for a server that was set up by hand.
    pub state: Option<RecoveryState>,
}

impl Lookahead {
    /// The segments that follow `asked` on its timeline, in order, as far as it makes sense to
    /// fetch them now.
    ///
    /// - Never what the state hides: recovery must not see it.
    /// - While recovery still reads what the plan named, nothing behind that: as a rule the
    ///   target lies there, and what follows is never asked for. A standby has no target.
    pub fn after(&self, asked: SegmentName) -> Vec<SegmentName> {
        let Some(number) = asked.number(self.size) else { return Vec::new() };
        let planned = self.state.as_ref().filter(|state| !state.standby).and_then(|state| {
            let holds = |first, last| (first..=last).contains(&asked);
            state.needed.iter().find(|range| holds(range.first, range.last)).map(|range| range.last)
        });
        let hidden = |name: SegmentName| {
            self.state.as_ref().is_some_and(|state| state.hides(LogFile::Segment(name)))
        };
        (1..=self.segments as u64)
            .map_while(|ahead| {
                let number = lifeboat_engine::SegmentNo(number.0.checked_add(ahead)?);
                let name = SegmentName::new(asked.timeline, number, self.size);
                // Behind the last possible name the numbers begin anew.
                let goes_on = name > asked && planned.is_none_or(|last| name <= last);
                (goes_on && !hidden(name)).then_some(name)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::{SystemId, TimelineId};

    use super::super::super::state::RECOVERY_VERSION;
    use super::*;
    use crate::inventory::SegmentRange;

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    fn state(ranges: &[(&str, &str)]) -> RecoveryState {
        let range = |(first, last): &(&str, &str)| SegmentRange {
            first: name(first),
            last: name(last),
            segments: 0,
            stored_bytes: 0,
        };
        RecoveryState {
            version: RECOVERY_VERSION,
            cluster: "main".into(),
            system: SystemId(1),
            needed: ranges.iter().map(range).collect(),
            histories: vec![TimelineId(2)],
            standby: false,
            last: None,
            tail_to: None,
            left: Vec::new(),
        }
    }

    fn after(state: Option<RecoveryState>, segments: usize, asked: &str) -> Vec<String> {
        let lookahead = Lookahead { size: SegmentSize::DEFAULT, segments, state };
        lookahead.after(name(asked)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_follows_lies_on_the_same_timeline_and_crosses_log_files() {
        assert_eq!(
            after(None, 3, "0000000200000004000000FE"),
            ["0000000200000004000000FF", "000000020000000500000000", "000000020000000500000001"]
        );
        assert_eq!(after(None, 0, "000000010000000000000001"), [""; 0]);
        assert_eq!(after(None, 2, "00000001FFFFFFFF000000FF"), [""; 0], "there is no next name");
        assert_eq!(after(None, 2, "000000010000000000000100"), [""; 0], "no such segment");
    }

    #[test]
    fn the_plan_ends_the_lookahead_while_it_lasts() {
        let state = state(&[
            ("000000010000000000000002", "000000010000000000000004"),
            ("000000020000000000000005", "000000020000000000000006"),
        ]);
        let of = |asked: &str| after(Some(state.clone()), 3, asked);
        assert_eq!(of("000000010000000000000002").len(), 2);
        assert_eq!(of("000000010000000000000004").len(), 0);
        assert_eq!(of("000000020000000000000005"), ["000000020000000000000006"]);
        // Recovery goes on behind the plan: what was archived since is wanted too.
        assert_eq!(of("000000020000000000000007").len(), 3);
        let standby = RecoveryState { standby: true, ..state.clone() };
        assert_eq!(after(Some(standby), 3, "000000010000000000000004").len(), 3);
    }

    #[test]
    fn nothing_behind_the_last_segment_that_recovery_may_see() {
        let mut state = state(&[]);
        state.last = Some(name("000000010000000000000003"));
        let of = |asked: &str| after(Some(state.clone()), 9, asked);
        assert_eq!(
            of("000000010000000000000001"),
            ["000000010000000000000002", "000000010000000000000003"]
        );
        assert_eq!(of("000000010000000000000003"), [""; 0]);
        assert_eq!(of("000000020000000000000003"), [""; 0]);
    }
}
