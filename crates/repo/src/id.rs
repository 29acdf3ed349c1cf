//! Names of repositories, clusters and backups.

use std::fmt;
use std::str::FromStr;

use lifeboat_units::{Entropy, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::RepoError;

/// Number of a repository: 128 random bits, as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryId(pub [u8; 16]);

impl RepositoryId {
    /// A new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RepositoryId {
    type Err = RepoError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        unhex(text)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| RepoError::BadName { what: "repository", name: text.to_owned() })
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The bytes that [`hex`] wrote.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

/// Name of a cluster within a repository: 1 to 64 of `a-z`, `0-9`, `-`, `_`, letter or digit
/// first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterName {
    type Err = RepoError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ok = (1..=64).contains(&text.len())
            && text.bytes().all(|b| part(b) || b == b'-' || b == b'_')
            && part(text.as_bytes()[0]);
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(RepoError::BadName { what: "cluster", name: text.to_owned() })
        }
    }
}

/// Identifier of a backup, and of everything written in its course: the second in which it began
/// (UTC) and 32 random bits, such as `20261122T231501Z-1a2b3c4d`. Sorts by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId([u8; Self::BYTES]);

impl BackupId {
    /// Length of the text in bytes.
    pub const BYTES: usize = 25;

    /// A new identifier, greater than `newest` also when the clock stepped back.
    pub fn new(now: Timestamp, newest: Option<BackupId>, entropy: &dyn Entropy) -> Self {
        let mut random = [0; 4];
        entropy.fill(&mut random);
        let mut second = now.as_second();
        if let Some(newest) = newest {
            second = second.max(newest.second() + 1);
        }
        let at = Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
        let text = format!("{}-{}", at.strftime("%Y%m%dT%H%M%SZ"), hex(&random));
        Self(text.as_bytes().try_into().expect("the year has four digits until 9999"))
    }

    /// Second since 1970 in which the backup began, by lifeboat's clock (or later, see `new`).
    fn second(self) -> i64 {
        self.began_at().map_or(0, Timestamp::as_second)
    }

    /// When the backup began; `None` for a date that does not exist.
    pub fn began_at(self) -> Option<Timestamp> {
        let text = self.as_str();
        let iso = format!(
            "{}-{}-{}T{}:{}:{}Z",
            &text[0..4],
            &text[4..6],
            &text[6..8],
            &text[9..11],
            &text[11..13],
            &text[13..15]
        );
        iso.parse().ok()
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }

    /// The identifier as bytes.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Checks 25 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; Self::BYTES] = bytes.try_into().ok()?;
        let shape_ok = bytes.iter().enumerate().all(|(i, b)| match i {
            8 => *b == b'T',
            15 => *b == b'Z',
            16 => *b == b'-',
            0..=14 => b.is_ascii_digit(),
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(b),
        });
        (shape_ok && Self(bytes).began_at().is_some()).then_some(Self(bytes))
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BackupId {
    type Err = RepoError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(text.as_bytes())
            .ok_or_else(|| RepoError::BadName { what: "backup", name: text.to_owned() })
    }
}

impl Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeros;
    impl Entropy for Zeros {
        fn fill(&self, into: &mut [u8]) {
            into.fill(0);
        }
    }

    #[test]
    fn a_clock_that_steps_back_still_gives_a_newer_identifier() {
        let now: Timestamp = "2026-11-22T23:15:01Z".parse().unwrap();
        let first = BackupId::new(now, None, &Zeros);
        assert_eq!(first.as_str(), "20261122T231501Z-00000000");
        let earlier: Timestamp = "2026-11-22T22:15:01Z".parse().unwrap();
        let second = BackupId::new(earlier, Some(first), &Zeros);
        assert!(second > first, "{second} {first}");
        assert_eq!(second.began_at(), Some("2026-11-22T23:15:02Z".parse().unwrap()));
    }

    #[test]
    fn nonsense_is_no_backup() {
        for text in ["", "latest", "20261322T231501Z-00000000", "20261122T231501Z-0000000G"] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cluster_name_cannot_be_a_path() {
        for text in ["", "..", "a/b", "Main", "-a", "a b", &"a".repeat(65)] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
        assert!("main-2_b".parse::<ClusterName>().is_ok());
    }
}
