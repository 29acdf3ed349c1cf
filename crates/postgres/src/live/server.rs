//! What a running server says about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lifeboat_engine::{Lsn, SegmentSize, SystemId, TimelineId};
use lifeboat_units::{ByteCount, Timestamp};

use super::error::LiveError;
use super::privileges::Privileges;
use super::session::Session;
use super::slots::Slot;

/// Settings that backups, checks and restores look at.
const SETTINGS: &[&str] = &[
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "block_size",
    "cluster_name",
    "config_file",
    "data_checksums",
    "data_directory",
    "fsync",
    "full_page_writes",
    "hba_file",
    "listen_addresses",
    "log_timezone",
    "max_wal_senders",
    "port",
    "restore_command",
    "segment_size",
    "server_version",
    "shared_preload_libraries",
    "summarize_wal",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_compression",
    "wal_keep_size",
    "wal_level",
    "wal_segment_size",
    "wal_summary_keep_time",
];

/// A server as its own functions and views describe it.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Such as 180006.
    pub version_num: u32,
    /// In the server's words, such as `18.6 (Debian 18.6-3)`.
    pub version: String,
    /// The number from initdb.
    pub system_id: SystemId,
    /// The timeline that is being written, or replayed on a standby.
    pub timeline: TimelineId,
    /// Current end of the WAL; on a standby the end of replay.
    pub lsn: Lsn,
    /// Whether it is a standby (or still recovering).
    pub in_recovery: bool,
    /// Time by the server's clock.
    pub time: Timestamp,
    /// When the server started.
    pub started_at: Timestamp,
    /// All databases together; without those that the role may not connect to.
    pub size: ByteCount,
    /// What the session's role is called.
    pub role: String,
    /// What it may do.
    pub privileges: Privileges,
    /// The settings that matter, as `pg_settings` shows them; those hidden from the role are
    /// missing.
    pub settings: BTreeMap<String, String>,
    /// What the archiver did.
    pub archiver: Archiver,
    /// Physical replication slots.
    pub slots: Vec<Slot>,
    /// How many of those that `synchronous_standby_names` means receive now; `None` where the role
    /// may not see it.
    pub synchronous: Option<u32>,
}

/// `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archiver {
    /// Segments archived since the statistics were reset.
    pub archived: u64,
    /// Last one archived, and when.
    pub last: Option<(String, Timestamp)>,
    /// Failed attempts.
    pub failed: u64,
    /// Last one that failed, and when.
    pub last_failed: Option<(String, Timestamp)>,
}

impl Archiver {
    /// Whether the last thing that happened was a failure.
    pub fn is_failing(&self) -> bool {
        match (&self.last_failed, &self.last) {
            (Some((_, failed)), Some((_, archived))) => failed > archived,
            (failed, _) => failed.is_some(),
        }
    }

    /// Reads the view.
    pub fn of(session: &mut Session) -> Result<Self, LiveError> {
        const DOING: &str = "reading pg_stat_archiver";
        let row = session.ask(
            DOING,
            "SELECT archived_count, last_archived_wal::text, \
             (extract(epoch FROM last_archived_time) * 1000000)::int8, \
             failed_count, last_failed_wal::text, \
             (extract(epoch FROM last_failed_time) * 1000000)::int8 \
             FROM pg_catalog.pg_stat_archiver",
            &[],
        )?;
        let event = |name: usize| -> Result<Option<(String, Timestamp)>, LiveError> {
            match (row.get::<_, Option<String>>(name), row.get::<_, Option<i64>>(name + 1)) {
                (Some(name), Some(at)) => Ok(Some((name, timestamp(DOING, at)?))),
                _ => Ok(None),
            }
        };
        Ok(Self {
            archived: row.get::<_, i64>(0).unsigned_abs(),
            last: event(1)?,
            failed: row.get::<_, i64>(3).unsigned_abs(),
            last_failed: event(4)?,
        })
    }
}

impl ServerFacts {
    /// Asks the server.
    pub fn read(session: &mut Session) -> Result<Self, LiveError> {
        const DOING: &str = "reading the server's state";
        let row = session.ask(
            DOING,
            "SELECT pg_catalog.pg_is_in_recovery(), system_identifier, \
             (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::int8, \
             (SELECT coalesce(sum(pg_catalog.pg_database_size(oid)), 0)::int8 \
              FROM pg_catalog.pg_database \
              WHERE pg_catalog.has_database_privilege(oid, 'CONNECT')) \
             FROM pg_catalog.pg_control_system()",
            &[],
        )?;
        let in_recovery: bool = row.get(0);
        let (timeline, lsn) = position(session, in_recovery)?;
        let settings = settings(session)?;
        Ok(Self {
            version_num: session.version_num(),
            version: settings.get("server_version").cloned().unwrap_or_default(),
            system_id: SystemId(row.get::<_, i64>(1) as u64),
            timeline,
            lsn,
            in_recovery,
            time: session.time()?,
            started_at: timestamp(DOING, row.get(2))?,
            size: ByteCount(row.get::<_, i64>(3).unsigned_abs()),
            role: session.role().to_owned(),
            privileges: Privileges::of(session)?,
            settings,
            archiver: Archiver::of(session)?,
            slots: Slot::all(session)?,
            synchronous: synchronous(session)?,
        })
    }

    /// Major version, such as 18.
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }

    /// A setting's value; `None` when the version lacks it or the role may not see it.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// The data directory, when the role may see it.
    pub fn data_directory(&self) -> Option<PathBuf> {
        self.setting("data_directory").map(PathBuf::from)
    }

    /// Size of a WAL segment.
    pub fn segment_size(&self) -> Option<SegmentSize> {
        let bytes = self.setting("wal_segment_size")?.parse().ok()?;
        SegmentSize::new(bytes).ok()
    }

    /// Whether finished segments are handed to an archiver.
    pub fn archives(&self) -> bool {
        let set = |name| self.setting(name).is_some_and(|value| !value.is_empty());
        let mode = self.setting("archive_mode");
        mode.is_some_and(|mode| mode != "off") && (set("archive_command") || set("archive_library"))
    }
}

/// Timeline and end of the WAL; on a standby those of replay.
pub(crate) fn position(
    session: &mut Session,
    in_recovery: bool,
) -> Result<(TimelineId, Lsn), LiveError> {
    const DOING: &str = "reading the server's WAL position";
    let sql = if in_recovery {
        "SELECT coalesce(pg_catalog.pg_last_wal_replay_lsn(), redo_lsn)::text, timeline_id \
         FROM pg_catalog.pg_control_checkpoint()"
    } else {
        // The control file learns of a new timeline only at the next checkpoint.
        "SELECT lsn::text, ('x' || substr(pg_catalog.pg_walfile_name(lsn), 1, 8))::bit(32)::int4 \
         FROM pg_catalog.pg_current_wal_lsn() AS lsn"
    };
    let row = session.ask(DOING, sql, &[])?;
    let lsn = lsn(&row.get::<_, String>(0))?;
    Ok((TimelineId(row.get::<_, i32>(1) as u32), lsn))
}

/// Reads a position that the server sent as text.
pub(crate) fn lsn(text: &str) -> Result<Lsn, LiveError> {
    text.parse().map_err(|source| LiveError::Position { source })
}

fn timestamp(doing: &'static str, microseconds: i64) -> Result<Timestamp, LiveError> {
    Timestamp::from_microsecond(microseconds).map_err(|_| LiveError::Answer { doing })
}

/// Source: `pg_stat_get_wal_senders` in PostgreSQL `src/backend/replication/walsender.c`: to a role
/// that may not see them, all columns but the process are null.
fn synchronous(session: &mut Session) -> Result<Option<u32>, LiveError> {
    let row = session.ask(
        "reading pg_stat_replication",
        "SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')), \
         count(*) FILTER (WHERE sync_state IS NULL) FROM pg_catalog.pg_stat_replication",
        &[],
    )?;
    let (seen, hidden): (i64, i64) = (row.get(0), row.get(1));
    Ok((hidden == 0).then_some(u32::try_from(seen).unwrap_or(u32::MAX)))
}

fn settings(session: &mut Session) -> Result<BTreeMap<String, String>, LiveError> {
    let rows = session.ask_all(
        "reading pg_settings",
        "SELECT name, coalesce(setting, '') FROM pg_catalog.pg_settings WHERE name = ANY($1)",
        &[&SETTINGS],
    )?;
    Ok(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect())
}
