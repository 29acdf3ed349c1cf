//! Finds named and numbered targets in the archived WAL.

use std::time::Duration;

use lifeboat_engine::{LogFacts, Lsn, RecoveryTarget, SegmentName};
use lifeboat_repo::{LogHead, LogPlace};
use lifeboat_units::Timestamp;

use super::error::RestoreError;
use crate::facts::ArchivedFacts;
use crate::inventory::Backup;
use crate::ports::Ports;
use crate::wal::tail;

/// How long a record may be under way from taking its time to being written.
pub const WRITING_LAG: Duration = Duration::from_secs(1);

/// Looks into archived segments.
pub struct Finder<'a> {
    ports: &'a Ports<'a>,
    system: String,
}

/// Where a target lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// End of its record.
    pub lsn: Lsn,
    /// When it was written, by the server's clock.
    pub at: Timestamp,
}

impl<'a> Finder<'a> {
    /// A finder for the WAL of one system.
    pub fn new(ports: &'a Ports<'a>, system: lifeboat_engine::SystemId) -> Self {
        Self { ports, system: system.to_string() }
    }

    fn place(&self, name: SegmentName) -> LogPlace {
        LogPlace { system: self.system.clone(), timeline: name.timeline.0, name: name.to_string() }
    }

    /// Head and planner's facts of a segment.
    pub fn facts(&self, name: SegmentName) -> Result<(LogHead, Option<LogFacts>), RestoreError> {
        let head = tail::head(self.ports.cluster, &self.place(name))?;
        let facts: Option<ArchivedFacts> = serde_json::from_value(head.facts.clone()).ok();
        Ok((head, facts.and_then(|facts| facts.log)))
    }

    /// Until when it is certain that nothing ended after a segment's last commit: until shortly
    /// before the server last wrote to it. Archiving may come late, and later segments later
    /// still; and a transaction takes its time a moment before its record is written.
    pub fn covered_until(&self, name: SegmentName) -> Result<Timestamp, RestoreError> {
        let head = tail::head(self.ports.cluster, &self.place(name))?;
        let facts: Option<ArchivedFacts> = serde_json::from_value(head.facts).ok();
        let written_at = facts.as_ref().and_then(|f| f.written_at).unwrap_or(head.archived_at);
        let written_at = written_at.saturating_sub(WRITING_LAG).unwrap_or(Timestamp::MIN);
        let last_commit = facts.and_then(|f| f.log).and_then(|log| log.last_commit);
        Ok(written_at.min(head.archived_at).max(last_commit.unwrap_or(Timestamp::MIN)))
    }

    /// The restore point of this name in these segments, of which replay sees what begins after
    /// `start`.
    ///
    /// Errors: [`RestoreError::Ambiguous`] when there are several: the server would end at the
    /// first of them, and nobody can say whether that was meant.
    pub fn restore_point(
        &self,
        segments: &[SegmentName],
        name: &str,
        start: Lsn,
    ) -> Result<Option<Found>, RestoreError> {
        let mut found: Vec<Found> = Vec::new();
        for segment in segments {
            let (_, facts) = self.facts(*segment)?;
            let points = facts.map(|f| f.restore_points).unwrap_or_default();
            let named = points.iter().filter(|point| point.name == name && point.lsn > start);
            found.extend(named.map(|point| Found { lsn: point.lsn, at: point.at }));
        }
        if found.len() > 1 {
            let places: Vec<_> = found.iter().map(|f| format!("{} ({})", f.lsn, f.at)).collect();
            return Err(RestoreError::Ambiguous { name: name.to_owned(), places });
        }
        Ok(found.pop())
    }

    /// Whether a transaction of this number can end in what follows a backup: a number that is
    /// longer than 32 bits must be the one that these bits mean there.
    pub fn may_meet(&self, backup: &Backup, number: u64) -> bool {
        if u32::try_from(number).is_ok() {
            return true;
        }
        let control = backup.facts.control_file.bytes();
        let near = control.and_then(|c| self.ports.engine.transaction_near(&c, number as u32));
        near == Some(number)
    }

    /// The end of a transaction in these segments. Only segments that may hold it are opened.
    pub fn transaction(
        &self,
        segments: &[SegmentName],
        xid: u32,
    ) -> Result<Option<Found>, RestoreError> {
        for segment in segments.iter().rev() {
            let (_, facts) = self.facts(*segment)?;
            let may_hold = facts.is_none_or(|f| {
                f.cut_off || f.xids.is_some_and(|(low, high)| (low..=high).contains(&xid))
            });
            if !may_hold {
                continue;
            }
            let content = self.content(*segment)?;
            if let Some((lsn, at)) = self.ports.engine.find_transaction(*segment, &content, xid) {
                return Ok(Some(Found { lsn, at }));
            }
        }
        Ok(None)
    }

    /// What the server is told so that it ends where a backup does, with the record that ends at
    /// `stop`.
    ///
    /// With `recovery_target = 'immediate'` it looks at the record after that first, which may not be
    /// archived: a standby's backup may end exactly where a segment does, and after any backup a
    /// record may follow that goes on in the next segment. Told where the last record begins, it
    /// stops as soon as that is replayed. Source: `recoveryStopsBefore` and `recoveryStopsAfter` in
    /// PostgreSQL `src/backend/access/transam/xlogrecovery.c`: only the first knows `immediate`
    /// for a record that ends no transaction.
    ///
    /// - The record is looked for in the last two segments; one that is longer than that, or an
    ///   engine that does not tell, leaves it at `immediate`.
    pub fn end_of_backup(
        &self,
        segments: &[SegmentName],
        stop: Lsn,
    ) -> Result<RecoveryTarget, RestoreError> {
        for segment in segments.iter().rev().take(2) {
            let content = self.content(*segment)?;
            if let Some(begins) = self.ports.engine.record_before(*segment, &content, stop) {
                return Ok(RecoveryTarget::Lsn(begins));
            }
        }
        Ok(RecoveryTarget::Immediate)
    }

    /// The content of a segment, filled up with zeros when it is not finished.
    fn content(&self, name: SegmentName) -> Result<Vec<u8>, RestoreError> {
        let place = self.place(name);
        let missing = match self.ports.cluster.read_log(&place) {
            Ok((_, content)) => return Ok(content),
            Err(error) if error.is_not_found() => error,
            Err(error) => return Err(error.into()),
        };
        let Some((facts, content)) = tail::read(self.ports.cluster, &place)? else {
            return Err(missing.into());
        };
        let facts: Option<ArchivedFacts> = serde_json::from_value(facts).ok();
        let size = facts.and_then(|facts| facts.segment);
        let number = size.and_then(|size| Some((name.number(size)?, size)));
        Ok(match number {
            Some((number, size)) => tail::pad(content, number, size, None),
            None => content,
        })
    }

    /// The greatest commit time in these segments.
    pub fn last_commit(&self, segments: &[SegmentName]) -> Result<Option<Timestamp>, RestoreError> {
        // Commit times may step back a little between backends, never over a whole segment with
        // commits of its own: the newest two that have any decide.
        let mut times = Vec::new();
        for segment in segments.iter().rev() {
            let (_, facts) = self.facts(*segment)?;
            times.extend(facts.and_then(|f| f.last_commit));
            if times.len() == 2 {
                break;
            }
        }
        Ok(times.into_iter().max())
    }
}
