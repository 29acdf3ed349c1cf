//! What is different when the server is a standby.
//!
//! Backup mode on a standby makes a restart point and takes its redo position for the start; the
//! backup is consistent at the minimum recovery point of the control file, which is therefore
//! copied after everything else. No WAL record marks the end, nothing is switched, and the
//! segments come from the primary's archiver (or from the standby's own, with
//! `archive_mode = always`). Source: `do_pg_backup_start` and `do_pg_backup_stop` in PostgreSQL
//! `src/backend/access/transam/xlog.c`.

use std::time::{Duration, Instant};

use lifeboat_engine::{
    Lsn, SegmentName, SegmentNo, SegmentSize, SegmentSwitch, SystemId, TimelineId,
};
use lifeboat_units::{Cancel, Timestamp};

use super::segment;
use crate::control::{ClusterState, ControlFile};
use crate::live::conninfo::{Conninfo, Wanted, hosts_in};
use crate::live::error::LiveError;
use crate::live::server::{lsn, position};
use crate::live::session::Session;

/// Pause between two looks at how far replay is.
const PAUSE: Duration = Duration::from_millis(50);

/// Which WAL a standby replays.
#[derive(Debug, Clone, Copy)]
pub(in crate::live) struct Replayed {
    /// Its system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// Size of its segments.
    pub segment: SegmentSize,
}

impl Replayed {
    /// As the standby's control file says.
    pub fn of(control: &ControlFile) -> Self {
        let timeline = replayed_timeline(control);
        Self { system: control.system_id, timeline, segment: control.log_segment }
    }

    /// As the standby itself says, which is of the same control file. An error when it is a
    /// standby no more.
    pub fn ask(session: &mut Session) -> Result<Self, LiveError> {
        const DOING: &str = "reading what the standby replays";
        let row = session.ask(
            DOING,
            "SELECT s.system_identifier, i.bytes_per_wal_segment, c.timeline_id, \
             r.min_recovery_end_timeline, pg_catalog.pg_is_in_recovery() \
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_init() i, \
             pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r",
            &[],
        )?;
        if !row.get::<_, bool>(4) {
            return Err(LiveError::Promoted);
        }
        let number = |at| row.get::<_, i32>(at) as u32;
        let segment = SegmentSize::new(u64::from(number(1)));
        Ok(Self {
            system: SystemId(row.get::<_, i64>(0) as u64),
            timeline: TimelineId(if number(3) == 0 { number(2) } else { number(3) }),
            segment: segment.map_err(|_| LiveError::Answer { doing: DOING })?,
        })
    }
}

/// The standby's side of a backup: its primary, and how far replay must be.
pub(in crate::live) struct Standby {
    /// How to reach the primary, or why that is not known.
    way: Result<Conninfo, String>,
    /// The session there, when there is one.
    primary: Option<Session>,
    /// Why there is none.
    trouble: Option<String>,
    /// Replay must have passed this before the backup starts: where the primary was just before.
    follow: Option<Lsn>,
    /// How long replay may take for that.
    patience: Duration,
    cancel: Cancel,
}

impl Standby {
    /// Finds the primary: as told, or among the hosts of the connection, or where the standby
    /// itself receives WAL from. That it cannot be found or reached is no error.
    pub fn new(
        session: &mut Session,
        conninfo: &Conninfo,
        told: Option<Conninfo>,
        patience: Duration,
        cancel: Cancel,
    ) -> Self {
        let way = match told {
            Some(told) => Ok(Conninfo { wanted: Wanted::Primary, ..told }),
            None if conninfo.hosts.len() > 1 => {
                Ok(Conninfo { wanted: Wanted::Primary, ..conninfo.clone() })
            }
            None => upstream(session, conninfo),
        };
        let trouble = way.as_ref().err().cloned();
        let mut standby = Self { way, primary: None, trouble, follow: None, patience, cancel };
        standby.connect();
        standby
    }

    /// Why the primary cannot be reached; `None` when it can.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The session on the primary, opened again if it was lost.
    fn connect(&mut self) -> Option<&mut Session> {
        if self.primary.as_mut().is_some_and(|session| session.time().is_err()) {
            self.primary = None;
        }
        if self.primary.is_none() {
            match self.way.as_ref().ok().map(Session::open)? {
                Ok(session) => (self.primary, self.trouble) = (Some(session), None),
                Err(error) => self.trouble = Some(chain(&error)),
            }
        }
        self.primary.as_mut()
    }

    /// Finishes the primary's segment; when the primary cannot be reached, gives the newest
    /// segment that it has finished for certain: the one before that which is being replayed.
    pub fn finish_segment(
        &mut self,
        session: &mut Session,
        ours: Replayed,
    ) -> Result<SegmentSwitch, LiveError> {
        let size = ours.segment;
        let Some(primary) = self.connect() else {
            let (_, replayed) = position(session, true)?;
            let number = SegmentNo(replayed.segment(size).0.saturating_sub(1));
            return Ok(SegmentSwitch { segment: SegmentName::new(ours.timeline, number, size) });
        };
        same_cluster(primary, ours)?;
        let (_, follow) = position(primary, false)?;
        let switched = segment::finish(primary, size)?;
        self.follow = Some(follow);
        Ok(switched)
    }

    /// Waits until replay has passed what the primary had written when it was last asked: proof
    /// that this standby follows it, and that the backup is not of long ago.
    pub fn wait_for_replay(&self, session: &mut Session) -> Result<(), LiveError> {
        let Some(wanted) = self.follow else { return Ok(()) };
        let began = Instant::now();
        loop {
            let row = session.ask(
                "reading how far replay is",
                "SELECT pg_last_wal_replay_lsn()::text, pg_is_wal_replay_paused(), \
                 current_setting('recovery_min_apply_delay')",
                &[],
            )?;
            let replayed = match row.get::<_, Option<String>>(0) {
                Some(text) => lsn(&text)?,
                None => return Err(LiveError::Promoted),
            };
            if replayed >= wanted {
                return Ok(());
            }
            let waited = began.elapsed();
            if waited >= self.patience || self.cancel.is_cancelled() {
                let (paused, delay) = (row.get(1), row.get::<_, String>(2));
                let delay = (delay != "0").then_some(delay);
                return Err(LiveError::Behind { replayed, wanted, waited, paused, delay });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Makes sure, where the primary can be reached, that it finishes the segment that holds the
    /// end of the backup. What fails here shows when the segment does not arrive.
    pub fn finish_last(&mut self, stop: Lsn, ours: Replayed) {
        let size = ours.segment;
        let Some(primary) = self.connect() else { return };
        let mut finish = || -> Result<(), LiveError> {
            same_cluster(primary, ours)?;
            let (_, written) = position(primary, false)?;
            if written.segment_before(size) <= stop.segment_before(size) {
                segment::finish(primary, size)?;
            }
            Ok(())
        };
        if let Err(error) = finish() {
            self.trouble = Some(chain(&error));
        }
    }

    /// Why a segment may not arrive.
    pub fn archiver_failure(
        &mut self,
        session: &mut Session,
        awaited: SegmentName,
    ) -> Result<Option<String>, LiveError> {
        if let Some(primary) = self.connect() {
            return segment::archiver_failure(primary, awaited);
        }
        let own: String =
            session.ask("reading how the server archives", "SHOW archive_mode", &[])?.get(0);
        let why = self.trouble.as_deref().unwrap_or("for no known reason");
        let archives =
            if own == "always" { "the standby archives" } else { "the primary archives" };
        Ok(Some(format!(
            "{archives} a segment once the primary has finished it, and the primary, which could \
             be asked to, cannot be reached: {why}"
        )))
    }
}

/// Checks that the primary writes what this standby replays.
fn same_cluster(primary: &mut Session, ours: Replayed) -> Result<(), LiveError> {
    let sql = "SELECT system_identifier FROM pg_control_system()";
    let row = primary.ask("reading the primary's system identifier", sql, &[])?;
    let theirs = SystemId(row.get::<_, i64>(0) as u64);
    let (written, _) = position(primary, false)?;
    if theirs != ours.system || written != ours.timeline {
        return Err(LiveError::OtherPrimary {
            primary: (theirs, written),
            standby: (ours.system, ours.timeline),
        });
    }
    Ok(())
}

/// The timeline that a standby replays. The control file's checkpoint may still be of the one
/// before.
pub(super) fn replayed_timeline(control: &ControlFile) -> TimelineId {
    if control.min_recovery_timeline.0 == 0 {
        control.timeline
    } else {
        control.min_recovery_timeline
    }
}

/// What recovery will ask of the copied control file of a standby's backup. Source:
/// `InitWalRecovery` in PostgreSQL `src/backend/access/transam/xlogrecovery.c`.
pub(super) fn can_be_recovered(control: &ControlFile, start: Lsn) -> bool {
    let state = [ClusterState::InArchiveRecovery, ClusterState::ShutDownInRecovery];
    state.contains(&control.state) && control.min_recovery > start
}

/// The standby's minimum recovery point as the server reads it from its own control file.
pub(super) fn servers_minimum(session: &mut Session) -> Result<Lsn, LiveError> {
    let sql = "SELECT min_recovery_end_lsn::text FROM pg_control_recovery()";
    lsn(&session.ask("reading the minimum recovery point", sql, &[])?.get::<_, String>(0))
}

/// Waits until replay has reached the backup's end, and gives a time that is not before any
/// transaction in the backup: the standby's clock, or the primary's when that is ahead.
pub(super) fn time_at(session: &mut Session, stop: Lsn) -> Result<Timestamp, LiveError> {
    const LOOKS_MAX: u32 = 100;
    for _ in 0..LOOKS_MAX {
        let (_, replayed) = position(session, true)?;
        if replayed >= stop {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    time_now(session)
}

/// A time that is not before any transaction that was replayed.
pub(in crate::live) fn time_now(session: &mut Session) -> Result<Timestamp, LiveError> {
    const DOING: &str = "reading the time of the last transaction";
    let sql = "SELECT (extract(epoch FROM greatest(clock_timestamp(), \
               pg_last_xact_replay_timestamp())) * 1000000)::int8";
    let row = session.ask(DOING, sql, &[])?;
    Timestamp::from_microsecond(row.get(0)).map_err(|_| LiveError::Answer { doing: DOING })
}

/// Where the standby receives WAL from, to be entered with the role that the backup has: roles
/// and passwords of a standby are those of its primary.
fn upstream(session: &mut Session, ours: &Conninfo) -> Result<Conninfo, String> {
    let row = session
        .ask(
            "reading primary_conninfo",
            "SELECT (SELECT setting FROM pg_settings WHERE name = 'primary_conninfo')",
            &[],
        )
        .map_err(|error| chain(&error))?;
    let text = match row.get::<_, Option<String>>(0) {
        None => return Err("the role may not read primary_conninfo".into()),
        Some(text) if text.is_empty() => return Err("the standby has no primary_conninfo".into()),
        Some(text) => text,
    };
    let mut hosts = hosts_in(&text)
        .map_err(|error| format!("primary_conninfo cannot be used: {}", chain(&error)))?;
    let password = ours.hosts.first().and_then(|host| host.password.clone());
    hosts.iter_mut().for_each(|host| host.password = password.clone());
    Ok(Conninfo { hosts, wanted: Wanted::Primary, ..ours.clone() })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
