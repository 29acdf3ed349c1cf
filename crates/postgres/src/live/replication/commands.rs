//! Replication commands with short answers: who the server is, its settings, timelines and slots.
//!
//! Source: PostgreSQL documentation, "Streaming Replication Protocol".

use lifeboat_engine::{Lsn, SegmentSize, SystemId, TimelineId};
use lifeboat_units::ByteCount;

use super::connection::{Connection, Rows};
use crate::live::error::LiveError;
use crate::live::privileges::quote_identifier;
use crate::live::slots::is_slot_name;

/// Answer of `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemInfo {
    /// The number from initdb.
    pub system: SystemId,
    /// The timeline that is being written, or on a standby the newest that was received.
    pub timeline: TimelineId,
    /// How far the WAL is flushed.
    pub flushed: Lsn,
}

/// What a physical replication slot holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotState {
    /// Oldest WAL that it keeps; none before it reserved anything, and none once the server gave
    /// up keeping it (`max_slot_wal_keep_size`).
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub restart_timeline: Option<TimelineId>,
}

impl Connection {
    /// Asks who the server is.
    pub fn identify_system(&mut self) -> Result<SystemInfo, LiveError> {
        const DOING: &str = "asking which system this is";
        let rows = self.query(DOING, "IDENTIFY_SYSTEM")?;
        let answer = || LiveError::Answer { doing: DOING };
        let [system, timeline, flushed] = columns(&rows).ok_or_else(answer)?;
        Ok(SystemInfo {
            system: system.parse().map_err(|_| answer())?,
            timeline: TimelineId(timeline.parse().map_err(|_| answer())?),
            flushed: flushed.parse().map_err(|source| LiveError::Position { source })?,
        })
    }

    /// A setting, as `SHOW` prints it.
    pub fn show(&mut self, setting: &str) -> Result<String, LiveError> {
        const DOING: &str = "reading a setting";
        let rows = self.query(DOING, &format!("SHOW {}", quote_identifier(setting)))?;
        let [value] = columns(&rows).ok_or(LiveError::Answer { doing: DOING })?;
        Ok(value.to_owned())
    }

    /// The size of the server's WAL segments.
    pub fn segment_size(&mut self) -> Result<SegmentSize, LiveError> {
        let text = self.show("wal_segment_size")?;
        let size = size_bytes(&text).and_then(|bytes| SegmentSize::new(bytes).ok());
        size.ok_or(LiveError::Answer { doing: "reading the size of WAL segments" })
    }

    /// How much WAL the server keeps for slots at most; `None` without a limit.
    pub fn slots_keep_max(&mut self) -> Result<Option<ByteCount>, LiveError> {
        let text = self.show("max_slot_wal_keep_size")?;
        match size_bytes(&text) {
            Some(bytes) => Ok(Some(ByteCount(bytes))),
            None if text == "-1" => Ok(None),
            None => Err(LiveError::Answer { doing: "reading how much WAL is kept for slots" }),
        }
    }

    /// The history of a timeline: the name of its file, and what is in it. Timeline 1 has none.
    pub fn timeline_history(
        &mut self,
        timeline: TimelineId,
    ) -> Result<(String, Vec<u8>), LiveError> {
        const DOING: &str = "fetching a timeline's history";
        let rows = self.rows(&format!("TIMELINE_HISTORY {timeline}"));
        let mut rows: Rows = rows.map_err(|error| self.sort(DOING, error))?;
        let answer = || LiveError::Answer { doing: DOING };
        let mut row = rows.pop().ok_or_else(answer)?.into_iter();
        let (Some(Some(name)), Some(Some(content))) = (row.next(), row.next()) else {
            return Err(answer());
        };
        Ok((String::from_utf8(name).map_err(|_| answer())?, content))
    }

    /// Makes a physical slot. With `reserve_wal` it keeps WAL from now on, without it from its
    /// first use on.
    ///
    /// - Errors: SQLSTATE 42710 when there is one of that name, 53400 when there are too many.
    pub fn create_physical_slot(&mut self, name: &str, reserve_wal: bool) -> Result<(), LiveError> {
        let reserve = if reserve_wal { " RESERVE_WAL" } else { "" };
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL{reserve}", slot_name(name)?);
        self.query("making a replication slot", &command).map(drop)
    }

    /// What a physical slot keeps; `None` when there is none of that name. PostgreSQL 15 and
    /// later.
    ///
    /// - Errors: SQLSTATE 0A000 for a logical slot.
    pub fn read_slot(&mut self, name: &str) -> Result<Option<SlotState>, LiveError> {
        const DOING: &str = "reading a replication slot";
        if self.major() < 15 {
            return Err(LiveError::TooOld { doing: DOING, major: self.major(), needed: 15 });
        }
        let rows = self.query(DOING, &format!("READ_REPLICATION_SLOT {}", slot_name(name)?))?;
        let answer = || LiveError::Answer { doing: DOING };
        let [kind, lsn, timeline] =
            rows.first().and_then(|row| row.first_chunk::<3>()).ok_or_else(answer)?;
        if kind.is_none() {
            return Ok(None);
        }
        let lsn = lsn.as_deref().map(|text| text.parse::<Lsn>());
        let timeline = timeline.as_deref().map(|text| text.parse().map(TimelineId));
        Ok(Some(SlotState {
            restart_lsn: lsn.transpose().map_err(|source| LiveError::Position { source })?,
            restart_timeline: timeline.transpose().map_err(|_| answer())?,
        }))
    }

    /// Removes a slot.
    ///
    /// - Errors: SQLSTATE 42704 when there is none of that name, 55006 while it is in use.
    pub fn drop_slot(&mut self, name: &str) -> Result<(), LiveError> {
        let command = format!("DROP_REPLICATION_SLOT {}", slot_name(name)?);
        self.query("removing a replication slot", &command).map(drop)
    }
}

/// The columns of the first row, if it has as many and none is NULL.
fn columns<const N: usize>(rows: &[Vec<Option<String>>]) -> Option<[&str; N]> {
    let row = rows.first()?.first_chunk::<N>()?;
    let mut columns = [""; N];
    for (column, value) in columns.iter_mut().zip(row) {
        *column = value.as_deref()?;
    }
    Some(columns)
}

/// Checks and quotes a slot's name.
pub(super) fn slot_name(name: &str) -> Result<String, LiveError> {
    if !is_slot_name(name) {
        return Err(LiveError::SlotName { name: name.to_owned() });
    }
    Ok(quote_identifier(name))
}

/// Reads a size as `SHOW` prints it, such as `16MB`; zero has no unit.
fn size_bytes(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..end].parse().ok()?;
    let unit: u64 = match &text[end..] {
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_name_cannot_smuggle_a_command() {
        assert_eq!(slot_name("life_boat1").unwrap(), "\"life_boat1\"");
        for name in ["", "A", "a b", "a\"; DROP", "ä", &"a".repeat(64)] {
            assert!(slot_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_shown() {
        assert_eq!(size_bytes("16MB"), Some(16 << 20));
        assert_eq!(size_bytes("1GB"), Some(1 << 30));
        assert_eq!(size_bytes("2TB"), Some(2 << 40));
        assert_eq!(size_bytes("0"), Some(0));
        assert_eq!(size_bytes("16"), None);
        assert_eq!(size_bytes("-1"), None);
        assert_eq!(size_bytes("99999999999999999999GB"), None);
    }
}
