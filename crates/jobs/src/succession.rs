//! Which system is the cluster: pg_upgrade gives it a new system identifier, and the past goes on
//! under the same name.
//!
//! The newest backup tells which system it is, and what the journal records after that backup who
//! continues it. Nothing else does: two servers that point at one name by mistake are refused.

use std::time::Duration;

use lifeboat_engine::{ClusterIdentity, SystemId};
use lifeboat_repo::{BackupId, Cluster, Fact, RepoError};
use lifeboat_units::Timestamp;
use serde::Serialize;

use crate::facts::BackupFacts;

/// Which system is the cluster now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Current {
    /// The system.
    pub system: SystemId,
    /// The one that it continues, and since when, if no backup of it was taken yet.
    pub continues: Option<(SystemId, Timestamp)>,
}

/// A takeover that was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Continued {
    /// The system that was the cluster.
    pub from: SystemId,
    /// The system that is the cluster.
    pub to: SystemId,
}

/// Which system a cluster is; `None` while it has no readable backup and may become any.
///
/// Costs one listing and one manifest, and what the journal tells since the newest backup.
pub fn current(cluster: &Cluster) -> Result<Option<Current>, RepoError> {
    let Some((id, system)) = newest_backup(cluster)? else { return Ok(None) };
    follow(cluster, id, system).map(Some)
}

/// Follows what was recorded after a backup of `system`.
pub fn follow(cluster: &Cluster, id: BackupId, system: SystemId) -> Result<Current, RepoError> {
    let mut current = Current { system, continues: None };
    let since = id.to_string();
    // Names of events and of backups begin with the same kind of time, to the second.
    const SECONDS: usize = "20261122T231501".len();
    let mut keys = cluster.journal_keys()?;
    keys.retain(|key| key.name().get(..SECONDS) >= since.get(..SECONDS));
    for (_, read) in cluster.read_events(keys) {
        let recorded = match read {
            Ok(recorded) => recorded,
            // What cannot be read continues nothing; `verify` names it.
            Err(RepoError::Damaged { .. }) => continue,
            Err(error) if error.is_not_found() => continue,
            Err(other) => return Err(other),
        };
        let Fact::SystemContinued { from, to } = &recorded.event.fact else { continue };
        if let (Ok(from), Ok(to)) = (from.parse::<SystemId>(), to.parse::<SystemId>())
            && from == current.system
        {
            current = Current { system: to, continues: Some((from, recorded.event.at)) };
        }
    }
    Ok(current)
}

/// The newest backup that can be read, and its system; a damaged manifest stops nobody.
fn newest_backup(cluster: &Cluster) -> Result<Option<(BackupId, SystemId)>, RepoError> {
    for id in cluster.backups()?.into_iter().rev() {
        match cluster.manifest(id).and_then(|manifest| BackupFacts::of(&manifest)) {
            Ok(facts) => return Ok(Some((id, facts.identity.system_id))),
            Err(RepoError::NoSuchBackup { .. } | RepoError::Damaged { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}

/// Records that a server continues the cluster; `None` when it is the cluster already.
pub fn record(
    cluster: &Cluster,
    now: Timestamp,
    identity: &ClusterIdentity,
) -> Result<Option<Continued>, RepoError> {
    let Some((newest, system)) = newest_backup(cluster)? else { return Ok(None) };
    let current = follow(cluster, newest, system)?;
    let (from, to) = (current.system, identity.system_id);
    if from == to {
        return Ok(None);
    }
    let fact = Fact::SystemContinued { from: from.to_string(), to: to.to_string() };
    // After the backup whose system it follows, and after what was recorded before, also when the
    // clock was set back since.
    let began = newest.began_at().unwrap_or(now);
    let before = current.continues.map(|(_, at)| at.saturating_add(Duration::from_micros(1)));
    let before = before.and_then(Result::ok).unwrap_or(now);
    let at = now.max(began).max(before);
    cluster.record(at, fact)?;
    Ok(Some(Continued { from, to }))
}
