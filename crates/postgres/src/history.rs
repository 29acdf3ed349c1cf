//! Timeline history files: which timeline a timeline branched off, and where.
//!
//! Source: `readTimeLineHistory` in PostgreSQL `src/backend/access/transam/timeline.c`.

use lifeboat_engine::{Ancestor, Ancestry, Lsn, TimelineId};
use lifeboat_units::{Code, Explain, Retry};

/// Why a history file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line is neither empty nor a comment, and does not begin as a switch does.
    #[error("line {line} of {timeline:08X}.history is not a timeline switch: `{text}`", timeline = .timeline.0)]
    Syntax {
        /// Whose history.
        timeline: TimelineId,
        /// Which line, from 1.
        line: usize,
        /// The line, its beginning.
        text: String,
    },
    /// Ancestors are not in rising order, or not older than the timeline itself.
    #[error("line {line} of {timeline:08X}.history has timeline {found} out of order", timeline = .timeline.0)]
    Order {
        /// Whose history.
        timeline: TimelineId,
        /// Which line, from 1.
        line: usize,
        /// The ancestor.
        found: TimelineId,
    },
    /// A timeline was left before it began.
    #[error("line {line} of {timeline:08X}.history goes back to {found}", timeline = .timeline.0)]
    Backwards {
        /// Whose history.
        timeline: TimelineId,
        /// Which line, from 1.
        line: usize,
        /// Where the ancestor is said to have been left.
        found: Lsn,
    },
    /// No ancestor at all: no server writes such a file.
    #[error("{timeline:08X}.history names no ancestor", timeline = .timeline.0)]
    Empty {
        /// Whose history.
        timeline: TimelineId,
    },
}

impl Explain for HistoryError {
    fn code(&self) -> Code {
        match self {
            Self::Syntax { .. } => Code("LB-HIS-001"),
            Self::Order { .. } => Code("LB-HIS-002"),
            Self::Backwards { .. } => Code("LB-HIS-003"),
            Self::Empty { .. } => Code("LB-HIS-004"),
        }
    }

    fn retry(&self) -> Retry {
        Retry::Never // a history file is written once
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Syntax { .. } | Self::Order { .. } | Self::Backwards { .. } => {
                Some("was the file changed by hand, or does it belong to another timeline?".into())
            }
            Self::Empty { .. } => Some("was the file cut short when it was copied?".into()),
        }
    }
}

/// Reads the history file of a timeline.
///
/// - Shape: `bytes` is the whole file. Timeline 1 has none; an empty one is taken for it.
/// - Accepts comments, empty lines and any white space, as the server does. Stricter than the
///   server in two points, each of which would end in a wrong past: no ancestor at all, and
///   positions that fall.
/// - Never panics.
pub fn parse_history(timeline: TimelineId, bytes: &[u8]) -> Result<Ancestry, HistoryError> {
    let mut ancestry = Ancestry::root(timeline);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let line = index + 1;
        let ancestor = ancestor(text).ok_or_else(|| HistoryError::Syntax {
            timeline,
            line,
            text: text.chars().take(60).collect(),
        })?;
        let (newest, left_at) =
            ancestry.ancestors.last().map_or((0, Lsn(0)), |last| (last.timeline.0, last.left_at));
        if ancestor.timeline.0 <= newest || ancestor.timeline >= timeline {
            return Err(HistoryError::Order { timeline, line, found: ancestor.timeline });
        }
        if ancestor.left_at < left_at {
            return Err(HistoryError::Backwards { timeline, line, found: ancestor.left_at });
        }
        ancestry.ancestors.push(ancestor);
    }
    if ancestry.ancestors.is_empty() && timeline > TimelineId(1) {
        return Err(HistoryError::Empty { timeline });
    }
    Ok(ancestry)
}

/// `<parent timeline> <switch point> <anything>`
fn ancestor(text: &str) -> Option<Ancestor> {
    let mut fields = text.split_whitespace();
    let timeline = fields.next()?.parse().ok()?;
    let left_at = fields.next()?.parse().ok()?;
    Some(Ancestor { timeline: TimelineId(timeline), left_at })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T: fn(u32) -> TimelineId = TimelineId;

    #[test]
    fn files_that_servers_write_are_read() {
        let text = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000A28\tbefore 2026-11-22 10:00:00+00\n";
        let ancestry = parse_history(T(3), text.as_bytes()).unwrap();
        let ancestors = vec![
            Ancestor { timeline: T(1), left_at: Lsn(0x300_0000) },
            Ancestor { timeline: T(2), left_at: Lsn(0x500_0A28) },
        ];
        assert_eq!(ancestry, Ancestry { timeline: T(3), ancestors });
    }

    #[test]
    fn comments_blanks_and_odd_spaces_are_accepted() {
        let text = b"# a comment\n \t\n  # another\r\n 1  16/B374D848\r\n4\t16/b374d848\treason \xff\x00 x";
        let ancestry = parse_history(T(9), text).unwrap();
        assert_eq!(ancestry.ancestors.len(), 2);
        assert_eq!(ancestry.ancestors[1].left_at, Lsn(0x16_B374_D848));
        assert_eq!(parse_history(T(1), b""), Ok(Ancestry::root(T(1))));
    }

    #[test]
    fn nonsense_is_refused() {
        let error = |timeline, text: &str| parse_history(T(timeline), text.as_bytes()).unwrap_err();
        for text in
            ["one\t0/1", "1", "1\t0", "1\t0/x", "-1\t0/1", "4294967296\t0/1", "1 0/123456789"]
        {
            assert!(matches!(error(5, text), HistoryError::Syntax { line: 1, .. }), "{text}");
        }
        assert!(matches!(error(5, "2\t0/1\n2\t0/2"), HistoryError::Order { line: 2, .. }));
        assert!(matches!(error(5, "0\t0/1"), HistoryError::Order { .. }));
        assert!(matches!(error(2, "2\t0/1"), HistoryError::Order { .. }));
        assert!(matches!(error(1, "1\t0/1"), HistoryError::Order { .. }));
        assert!(matches!(error(5, "1\t0/2\n2\t0/1"), HistoryError::Backwards { line: 2, .. }));
        assert!(matches!(error(2, "# nothing\n"), HistoryError::Empty { .. }));
        assert_eq!(
            error(10, "\nx").to_string(),
            "line 2 of 0000000A.history is not a timeline switch: `x`"
        );
    }

    proptest! {
        /// Law: no input makes the decoder panic, and what it accepts is in order.
        #[test]
        fn what_is_accepted_is_in_order(text in "([0-9]{1,2}[ \t][0-9]/[0-9A-F]{1,3}[a-z#\n]{0,3}){0,6}") {
            if let Ok(ancestry) = parse_history(T(50), text.as_bytes()) {
                prop_assert!(ancestry.ancestors.is_sorted_by(|a, b| a.timeline < b.timeline && a.left_at <= b.left_at));
            }
        }

        /// Law: random bytes do no harm.
        #[test]
        fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_history(T(7), &bytes);
        }
    }
}
