//! Names of summary files, and whether they cover a range of the WAL.

use std::fmt;
use std::str::FromStr;

use lifeboat_engine::{Lsn, TimelineId};

/// The name of a summary file: timeline, first position, and the position after the last, 8, 16 and
/// 16 hexadecimal digits. Source: `OpenWalSummaryFile` in `src/backend/backup/walsummary.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SummaryName {
    /// Whose WAL it sums up.
    pub timeline: TimelineId,
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends; the position itself is not part of it.
    pub end: Lsn,
}

impl fmt::Display for SummaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:016X}{:016X}.summary", self.timeline.0, self.start.0, self.end.0)
    }
}

/// Not the name of a summary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a WAL summary")]
pub struct NotASummary;

impl FromStr for SummaryName {
    type Err = NotASummary;

    fn from_str(name: &str) -> Result<Self, NotASummary> {
        let digits = name.strip_suffix(".summary").ok_or(NotASummary)?;
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if digits.len() != 40 || !digits.bytes().all(hexadecimal) {
            return Err(NotASummary);
        }
        let number = |at: std::ops::Range<usize>| {
            u64::from_str_radix(&digits[at], 16).map_err(|_| NotASummary)
        };
        let timeline = u32::try_from(number(0..8)?).map_err(|_| NotASummary)?;
        let (start, end) = (Lsn(number(8..24)?), Lsn(number(24..40)?));
        if start >= end {
            return Err(NotASummary);
        }
        Ok(Self { timeline: TimelineId(timeline), start, end })
    }
}

/// The files that cover `from` to `to` of one timeline without a gap, in order.
///
/// Errors: the first position that none of them covers.
pub fn covering(
    names: &[SummaryName],
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
) -> Result<Vec<SummaryName>, Lsn> {
    let mut wanted: Vec<SummaryName> = names
        .iter()
        .filter(|name| name.timeline == timeline && name.end > from && name.start < to)
        .copied()
        .collect();
    wanted.sort_unstable();
    let mut reached = from;
    for name in &wanted {
        if name.start > reached {
            break;
        }
        reached = reached.max(name.end);
    }
    if reached >= to { Ok(wanted) } else { Err(reached) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(timeline: u32, start: u64, end: u64) -> SummaryName {
        SummaryName { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn names_read_back_and_others_are_none() {
        let text = "0000000100000000010000280000000001500000.summary";
        let read: SummaryName = text.parse().unwrap();
        assert_eq!(read, name(1, 0x0100_0028, 0x0150_0000));
        assert_eq!(read.to_string(), text);
        for other in [
            "temp.summary",
            "0000000100000000010000280000000001500000",
            "000000010000000001000028000000000150000g.summary",
            "000000010000000001000028000000000150000f.summary",
            "+000000100000000010000280000000001500000.summary",
            "0000000100000000015000000000000001500000.summary", // empty
            "000000010000000001500000000000000150000.summary",
        ] {
            assert!(other.parse::<SummaryName>().is_err(), "{other}");
        }
    }

    #[test]
    fn a_gap_is_seen_wherever_it_is() {
        let (t, at) = (TimelineId(1), Lsn);
        let names = [name(1, 200, 300), name(1, 100, 200), name(2, 300, 400), name(1, 50, 70)];
        let cover = |from, to| covering(&names, t, at(from), at(to));
        assert_eq!(cover(100, 300).unwrap(), [name(1, 100, 200), name(1, 200, 300)]);
        assert_eq!(cover(150, 160).unwrap(), [name(1, 100, 200)]);
        assert_eq!(cover(100, 301), Err(at(300)), "the end is not summed up, or elsewhere");
        assert_eq!(cover(99, 300), Err(at(99)));
        assert_eq!(cover(60, 300), Err(at(70)));
        assert_eq!(covering(&[], t, at(1), at(2)), Err(at(1)));
        // Overlaps are no gaps.
        let overlapping = [name(1, 100, 250), name(1, 150, 200), name(1, 200, 300)];
        assert_eq!(covering(&overlapping, t, at(100), at(300)).unwrap().len(), 3);
    }
}
