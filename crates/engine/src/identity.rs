//! Whose data these are, and how they are laid out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::log::SegmentSize;

/// The number that initdb gave to a cluster; the same on all its physical copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

// As text, because JSON readers lose digits of numbers above 2^53.
impl Serialize for SystemId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What must agree before data of one place may follow data of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// The number from initdb.
    pub system_id: SystemId,
    /// Major version, such as 18.
    pub major: u32,
    /// Catalog version, such as 202506291.
    pub catalog_version: u32,
    /// Size of a page in bytes (8192 unless built otherwise).
    pub page_bytes: u32,
    /// Pages in one segment file of a relation (131072 unless built otherwise).
    pub pages_per_file: u32,
    /// Size of a WAL segment.
    pub log_segment: SegmentSize,
    /// Whether pages carry checksums. May differ from backup to backup.
    pub checksums: bool,
}
