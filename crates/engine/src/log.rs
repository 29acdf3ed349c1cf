//! Positions, timelines, segments and names of the write-ahead log.
//!
//! Source of the names and their arithmetic: PostgreSQL
//! `src/include/access/xlog_internal.h` (`XLogFileName`, `XLogSegNoOffset…`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name or position that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogNameError {
    /// Neither a segment nor any other file of the log.
    #[error("`{0}` is not the name of a WAL file")]
    NotALogFile(String),
    /// Not of the form `hex/hex`.
    #[error("`{0}` is not a WAL position; it looks like 16/B374D848")]
    NotAPosition(String),
    /// Not a power of two from 1 MiB to 1 GiB.
    #[error("a WAL segment of {0} bytes is not possible: it is a power of two from 1 MiB to 1 GiB")]
    SegmentSize(u64),
}

/// Position in the WAL byte stream of one timeline.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The segment that holds the byte at this position (rounds down).
    pub fn segment(self, size: SegmentSize) -> SegmentNo {
        SegmentNo(self.0 / u64::from(size.0))
    }

    /// The segment that holds the byte just before this position: the last segment that is
    /// needed to replay up to here.
    pub fn segment_before(self, size: SegmentSize) -> SegmentNo {
        SegmentNo(self.0.saturating_sub(1) / u64::from(size.0))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = LogNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || LogNameError::NotAPosition(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let part = |s: &str| match s.len() {
            1..=8 if s.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(s, 16).ok(),
            _ => None,
        };
        match (part(high), part(low)) {
            (Some(high), Some(low)) => Ok(Self((u64::from(high) << 32) | u64::from(low))),
            _ => Err(bad()),
        }
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Number of a timeline; starts at 1, grows with each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ordinal of a segment: LSN / segment size. Not a file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// First position in this segment.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0 * u64::from(size.0))
    }

    /// First position after this segment.
    pub fn end(self, size: SegmentSize) -> Lsn {
        Lsn((self.0 + 1) * u64::from(size.0))
    }

    /// The segment after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Size of a WAL segment in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MiB, what initdb chooses unless told otherwise.
    pub const DEFAULT: Self = Self(16 << 20);

    /// Checks the size. Source: `IsValidWalSegSize` in `xlog_internal.h`.
    pub fn new(bytes: u64) -> Result<Self, LogNameError> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(Self(bytes as u32))
        } else {
            Err(LogNameError::SegmentSize(bytes))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share one "log" number in file names (4 GiB / size).
    pub fn per_log(self) -> u64 {
        (1u64 << 32) / u64::from(self.0)
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = LogNameError;
    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.bytes()
    }
}

/// Name of a whole segment: 24 upper-case hexadecimal digits (timeline, log, segment).
/// Sorts by timeline, then by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Timeline on which the segment was written.
    pub timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of segment `number` on `timeline`.
    pub fn new(timeline: TimelineId, number: SegmentNo, size: SegmentSize) -> Self {
        Self {
            timeline,
            log: (number.0 / size.per_log()) as u32,
            segment: (number.0 % size.per_log()) as u32,
        }
    }

    /// The ordinal of this segment, given the size of segments.
    /// `None` when no segment of that size can have this name.
    pub fn number(self, size: SegmentSize) -> Option<SegmentNo> {
        (u64::from(self.segment) < size.per_log())
            .then(|| SegmentNo(u64::from(self.log) * size.per_log() + u64::from(self.segment)))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = LogNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match LogFile::from_str(text) {
            Ok(LogFile::Segment(name)) => Ok(name),
            _ => Err(LogNameError::NotALogFile(text.to_owned())),
        }
    }
}

impl Serialize for SegmentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SegmentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Any file that a server hands to its archiver or asks for in recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogFile {
    /// `000000010000000000000001`
    Segment(SegmentName),
    /// `000000010000000000000001.partial`: the last segment of a timeline that was left.
    Partial(SegmentName),
    /// `000000010000000000000001.00000028.backup`: where a backup began and ended.
    BackupHistory(SegmentName, u32),
    /// `00000002.history`: where a timeline branched off.
    History(TimelineId),
}

impl LogFile {
    /// The timeline that the name tells.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupHistory(name, _) => {
                name.timeline
            }
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::BackupHistory(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
        }
    }
}

impl FromStr for LogFile {
    type Err = LogNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || LogNameError::NotALogFile(text.to_owned());
        let hex = |s: &str| {
            let digits = s.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            (s.len() == 8 && digits).then(|| u32::from_str_radix(s, 16).ok()).flatten()
        };
        if !text.is_ascii() {
            return Err(bad());
        }
        if let Some(stem) = text.strip_suffix(".history") {
            return hex(stem).map(|t| Self::History(TimelineId(t))).ok_or_else(bad);
        }
        if text.len() < 24 {
            return Err(bad());
        }
        let (stem, suffix) = text.split_at(24);
        let name = match (hex(&stem[..8]), hex(&stem[8..16]), hex(&stem[16..])) {
            (Some(t), Some(log), Some(segment)) => {
                SegmentName { timeline: TimelineId(t), log, segment }
            }
            _ => return Err(bad()),
        };
        if suffix.is_empty() {
            return Ok(Self::Segment(name));
        }
        if suffix == ".partial" {
            return Ok(Self::Partial(name));
        }
        suffix
            .strip_prefix('.')
            .and_then(|s| s.strip_suffix(".backup"))
            .and_then(hex)
            .map(|offset| Self::BackupHistory(name, offset))
            .ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_follow_the_segment_size() {
        let small = SegmentSize::new(1 << 20).unwrap();
        let large = SegmentSize::new(1 << 30).unwrap();
        let at = Lsn(0x0000_0002_4010_0000);
        let name = |size| SegmentName::new(TimelineId(0x1A), at.segment(size), size).to_string();
        assert_eq!(name(SegmentSize::DEFAULT), "0000001A0000000200000040");
        assert_eq!(name(small), "0000001A0000000200000401");
        assert_eq!(name(large), "0000001A0000000200000001");
        let parsed: SegmentName = "0000001A0000000200000040".parse().unwrap();
        assert_eq!(parsed.number(SegmentSize::DEFAULT), Some(SegmentNo(0x240)));
        assert_eq!(parsed.number(large), None, "a 1 GiB segment number is below 4");
    }

    #[test]
    fn every_archived_name_reads_back_as_written() {
        for text in [
            "000000010000000000000001",
            "000000010000000A000000FF.partial",
            "000000010000000A000000FF.00000028.backup",
            "0000000A.history",
        ] {
            assert_eq!(text.parse::<LogFile>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "00000001000000000000000",
            "00000001000000000000000g",
            "000000010000000a000000ff",
            "0000000100000000000000010",
            "../0000000A.history",
            "000000010000000A000000FF.28.backup",
            "000000010000000A000000F\u{e9}",
        ] {
            assert!(text.parse::<LogFile>().is_err(), "{text}");
        }
    }

    #[test]
    fn positions_read_back_and_nonsense_is_refused() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap(), Lsn(0x16_B374_D848));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        for text in ["", "16", "16/", "/1", "16/B374D8481", "+1/2", "g/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_segment_before_a_boundary_is_the_finished_one() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(Lsn(2 << 24).segment(size), SegmentNo(2));
        assert_eq!(Lsn(2 << 24).segment_before(size), SegmentNo(1));
        assert_eq!(Lsn((2 << 24) + 1).segment_before(size), SegmentNo(2));
    }
}
