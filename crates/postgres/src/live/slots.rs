//! Physical replication slots, as the server's view shows them.

use lifeboat_engine::Lsn;
use lifeboat_units::{ByteCount, Timestamp};

use super::error::LiveError;
use super::server::lsn;
use super::session::Session;

/// First version that tells since when a slot is not in use.
const TELLS_INACTIVE_SINCE: u32 = 17;

const DOING: &str = "reading pg_replication_slots";

/// Longest name of a slot, in bytes. Source: `NAMEDATALEN` in `pg_config_manual.h`.
const NAME_BYTES_MAX: usize = 63;

/// Whether a slot may have this name. Source: `ReplicationSlotValidateName` in `slot.c`.
pub fn is_slot_name(name: &str) -> bool {
    let is_allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// How a slot's WAL stands. Source: `wal_status` of `pg_replication_slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptWal {
    /// It has reserved nothing yet.
    Nothing,
    /// All that it needs is kept (`reserved`, `extended`).
    Kept,
    /// More is held back than is allowed: the next checkpoint may remove it (`unreserved`).
    Threatened,
    /// What it needs was removed (`lost`).
    Lost,
}

/// A physical replication slot that outlives its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Whether somebody receives through it now.
    pub in_use: bool,
    /// Since when nobody does; PostgreSQL 17 and later.
    pub unused_since: Option<Timestamp>,
    /// How its WAL stands.
    pub kept: KeptWal,
    /// Up to here its receiver said that all is durable; WAL from here on is kept for it.
    pub position: Option<Lsn>,
    /// How much the server has written since; a standby: has replayed.
    pub behind: Option<ByteCount>,
}

impl Slot {
    /// Whether somebody receives through it, and nothing is lost.
    pub fn is_alive(&self) -> bool {
        self.in_use && matches!(self.kept, KeptWal::Kept | KeptWal::Nothing)
    }

    /// All of them. Every role may see them.
    pub fn all(session: &mut Session) -> Result<Vec<Self>, LiveError> {
        read(session, "$1 = ''", "")
    }

    /// Reads the slot of this name; `None` when there is none, or it is of another kind.
    pub fn read(session: &mut Session, name: &str) -> Result<Option<Self>, LiveError> {
        Ok(read(session, "slot_name = $1", name)?.pop())
    }

    /// A slot that is in use, whatever it is called.
    pub fn in_use(session: &mut Session) -> Result<Option<Self>, LiveError> {
        Ok(read(session, "active AND $1 = ''", "")?.pop())
    }
}

fn read(session: &mut Session, which: &str, value: &str) -> Result<Vec<Slot>, LiveError> {
    let since = match session.version_num() / 10_000 {
        TELLS_INACTIVE_SINCE.. => "(extract(epoch FROM inactive_since) * 1000000)::int8",
        _ => "NULL::int8",
    };
    let which = which.replace("slot_name", "slot_name::text").replace("$1", "$1::text");
    let sql = format!(
        "SELECT slot_name::text, active, wal_status, restart_lsn::text, \
         pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() \
         THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, \
         restart_lsn)::int8, {since} FROM pg_catalog.pg_replication_slots \
         WHERE slot_type = 'physical' AND NOT temporary AND {which} ORDER BY slot_name"
    );
    let rows = session.ask_all(DOING, &sql, &[&value])?;
    let slot = |row: postgres::Row| -> Result<Slot, LiveError> {
        let position: Option<String> = row.get(3);
        let since: Option<i64> = row.get(5);
        Ok(Slot {
            name: row.get(0),
            in_use: row.get(1),
            unused_since: since.and_then(|at| Timestamp::from_microsecond(at).ok()),
            kept: match row.get::<_, Option<&str>>(2) {
                None => KeptWal::Nothing,
                Some("lost") => KeptWal::Lost,
                Some("unreserved") => KeptWal::Threatened,
                Some(_) => KeptWal::Kept,
            },
            position: position.as_deref().map(lsn).transpose()?,
            behind: row
                .get::<_, Option<i64>>(4)
                .map(|bytes| ByteCount(bytes.max(0).unsigned_abs())),
        })
    };
    rows.into_iter().map(slot).collect()
}
