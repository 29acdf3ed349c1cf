//! Which timeline descends from which, and where each was left.

use serde::{Deserialize, Serialize};

use crate::log::{Lsn, TimelineId};

/// One ancestor: the timeline, and the position at which its descendant left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The older timeline.
    pub timeline: TimelineId,
    /// First position that no longer belongs to the descendant's past.
    pub left_at: Lsn,
}

/// The past of one timeline: its ancestors, oldest first, and itself last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestry {
    /// Whose past this is.
    pub timeline: TimelineId,
    /// Ancestors, oldest first; `left_at` never falls.
    pub ancestors: Vec<Ancestor>,
}

impl Ancestry {
    /// A timeline without ancestors, such as timeline 1.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Whether position `at` on `timeline` lies in this past (or on this very timeline).
    ///
    /// A position equal to where the timeline was left still belongs to it: everything before
    /// it was written there.
    pub fn contains(&self, timeline: TimelineId, at: Lsn) -> bool {
        timeline == self.timeline
            || self.ancestors.iter().any(|a| a.timeline == timeline && at <= a.left_at)
    }

    /// The timeline whose WAL holds the byte at `at`.
    pub fn timeline_at(&self, at: Lsn) -> TimelineId {
        self.ancestors.iter().find(|a| at < a.left_at).map_or(self.timeline, |a| a.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grandchild() -> Ancestry {
        Ancestry {
            timeline: TimelineId(4),
            ancestors: vec![
                Ancestor { timeline: TimelineId(1), left_at: Lsn(100) },
                Ancestor { timeline: TimelineId(3), left_at: Lsn(200) },
            ],
        }
    }

    #[test]
    fn a_sibling_is_not_in_the_past() {
        assert!(!grandchild().contains(TimelineId(2), Lsn(50)));
    }

    #[test]
    fn an_ancestor_counts_only_up_to_where_it_was_left() {
        let past = grandchild();
        assert!(past.contains(TimelineId(1), Lsn(100)));
        assert!(!past.contains(TimelineId(1), Lsn(101)));
        assert!(past.contains(TimelineId(3), Lsn(150)));
        assert!(past.contains(TimelineId(4), Lsn(10_000)));
    }

    #[test]
    fn each_byte_lies_on_one_timeline() {
        let past = grandchild();
        assert_eq!(past.timeline_at(Lsn(99)), TimelineId(1));
        assert_eq!(past.timeline_at(Lsn(100)), TimelineId(3));
        assert_eq!(past.timeline_at(Lsn(200)), TimelineId(4));
    }
}
