//! Removes what nobody refers to: packs, old events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lifeboat_repo::{BackupId, Event, Fact, PackId, RepoError};
use lifeboat_store::Key;
use lifeboat_units::{ByteCount, Timestamp, Work};

use super::apply::{Held, Report};
use super::error::RetentionError;
use super::plan::Plan;
use crate::inventory::{chain, is_about_one_object};
use crate::ports::Ports;

/// What the journal tells of a backup that is gone is dropped after so long.
const EVENTS_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// The journal, as far as it can be read.
pub(super) struct Events(Vec<(Key, Event)>);

impl Events {
    /// Reads the journal. An event that cannot be read is left alone: `verify` reports it.
    pub(super) fn read(ports: &Ports<'_>) -> Result<Self, RetentionError> {
        let mut events = Vec::new();
        for (_, read) in ports.cluster.read_events(ports.cluster.journal_keys()?) {
            match read {
                Ok(recorded) => events.push((recorded.key, recorded.event)),
                Err(error) if is_about_one_object(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self(events))
    }

    /// For each timeline of a system, the event that tells of the furthest removal of WAL.
    fn furthest_removals(&self) -> BTreeMap<(&str, u32), (&str, &Key)> {
        let mut furthest: BTreeMap<(&str, u32), (&str, &Key)> = BTreeMap::new();
        for (key, event) in &self.0 {
            if let Fact::LogRemoved { system, timeline, before } = &event.fact {
                // Names of one timeline sort by position.
                let best = furthest.entry((system, *timeline)).or_insert((before, key));
                *best = (*best).max((before, key));
            }
        }
        furthest
    }

    /// Backups that were removed on purpose.
    fn removed(&self) -> BTreeSet<BackupId> {
        let removed = |(_, event): &(Key, Event)| match &event.fact {
            Fact::BackupRemoved { id, .. } => Some(*id),
            _ => None,
        };
        self.0.iter().filter_map(removed).collect()
    }
}

/// Removes packs to which no listed backup refers.
///
/// A pack of a backup that was removed goes at once. One of a backup that was never listed goes
/// after the grace period: the backup may still be under way elsewhere. While a listed manifest
/// cannot be read none goes, for nobody knows what it refers to.
pub(super) fn packs(
    ports: &Ports<'_>,
    held: &mut Held<'_, '_>,
    plan: &Plan,
    events: &Events,
    report: &mut Report,
) -> Result<(), RetentionError> {
    // Listed before the manifests are: a pack that comes later is not in it.
    let stored = list_packs(ports)?;
    let used = match used_packs(ports, held)? {
        Ok(used) => used,
        Err(why) => {
            report.notes.push(format!("no pack was removed: {why}"));
            return Ok(());
        }
    };
    let removed = events.removed();
    let now = ports.clock.now();
    held.prove()?;
    for (pack, (key, size_bytes)) in stored {
        if used.contains(&pack) {
            continue;
        }
        if !removed.contains(&pack.session) && !is_older(pack.session, plan.policy.grace, now) {
            report.packs_waiting += 1;
            continue;
        }
        held.keep()?;
        ports.cluster.store().delete(&key).map_err(RepoError::from)?;
        report.packs += 1;
        report.packs_bytes += ByteCount(size_bytes);
        ports.progress.advance(Work::Files(1));
    }
    Ok(())
}

/// Whether a backup began longer ago than `age`. Its identifier tells when, by lifeboat's clock.
fn is_older(id: BackupId, age: Duration, now: Timestamp) -> bool {
    let until = now.checked_sub(age).unwrap_or(Timestamp::MIN);
    id.began_at().is_some_and(|began| began < until)
}

/// All packs on storage. Other names are left alone: `verify` reports them.
fn list_packs(ports: &Ports<'_>) -> Result<BTreeMap<PackId, (Key, u64)>, RetentionError> {
    let prefix = format!("clusters/{}/data/", ports.cluster.name());
    let mut packs = BTreeMap::new();
    ports
        .cluster
        .store()
        .list(&prefix, &mut |entry| {
            if let Some(id) = parse_pack(&prefix, &entry.key) {
                packs.insert(id, (entry.key, entry.size_bytes));
            }
        })
        .map_err(RepoError::from)?;
    Ok(packs)
}

/// The pack that an object below `prefix` is.
pub(crate) fn parse_pack(prefix: &str, key: &Key) -> Option<PackId> {
    let (session, number) = key.as_str().strip_prefix(prefix)?.split_once('/')?;
    let digits = number.len() >= 6 && number.bytes().all(|b| b.is_ascii_digit());
    let pack = PackId { session: session.parse().ok()?, number: number.parse().ok()? };
    // Written one way only: `000001`, not `0000001`.
    (digits && format!("{:06}", pack.number) == number).then_some(pack)
}

/// Every pack to which a listed backup refers; the text says why that cannot be told.
fn used_packs(
    ports: &Ports<'_>,
    held: &mut Held<'_, '_>,
) -> Result<Result<BTreeSet<PackId>, String>, RetentionError> {
    let mut used = BTreeSet::new();
    for id in ports.cluster.backups()? {
        held.keep()?;
        match ports.cluster.manifest(id) {
            Ok(manifest) => manifest.each_pack(|pack| {
                used.insert(pack);
            }),
            Err(error) if is_about_one_object(&error) => {
                return Ok(Err(format!("backup {id} cannot be read ({})", chain(&error))));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Ok(used))
}

/// Drops what the journal tells that nobody needs to know any more.
///
/// - Of backups that were removed long ago: first that they were added, then that they were removed.
///   The other way round they would seem lost.
/// - That WAL was removed, once more of the same timeline was.
/// - Gaps long ago in WAL that was removed since.
pub(super) fn events(
    ports: &Ports<'_>,
    held: &mut Held<'_, '_>,
    events: &Events,
    report: &mut Report,
) -> Result<(), RetentionError> {
    let listed: BTreeSet<BackupId> = ports.cluster.backups()?.into_iter().collect();
    let until = ports.clock.now().checked_sub(EVENTS_KEPT).unwrap_or(Timestamp::MIN);
    let mut last_removal: BTreeMap<BackupId, Timestamp> = BTreeMap::new();
    for (_, event) in &events.0 {
        if let Fact::BackupRemoved { id, .. } = &event.fact {
            let at = last_removal.entry(*id).or_insert(event.at);
            *at = (*at).max(event.at);
        }
    }
    let long_gone = |id: &BackupId| {
        !listed.contains(id) && last_removal.get(id).is_some_and(|removed| *removed < until)
    };
    let added = events.0.iter().filter(|(_, event)| match &event.fact {
        Fact::BackupAdded { id } => long_gone(id),
        _ => false,
    });
    let removed = events.0.iter().filter(|(_, event)| match &event.fact {
        Fact::BackupRemoved { id, .. } => long_gone(id),
        _ => false,
    });
    let furthest = events.furthest_removals();
    let told_again = events.0.iter().filter(|(key, event)| match &event.fact {
        Fact::LogRemoved { system, timeline, .. } => {
            furthest.get(&(system.as_str(), *timeline)).is_some_and(|(_, newest)| *newest != key)
        }
        Fact::LogGap { system, timeline, last, .. } => {
            let removed = furthest.get(&(system.as_str(), *timeline));
            event.at < until && removed.is_some_and(|(before, _)| last.as_str() < *before)
        }
        _ => false,
    });
    for (key, _) in added.chain(removed).chain(told_again) {
        held.keep()?;
        ports.cluster.store().delete(key).map_err(RepoError::from)?;
        report.events_dropped += 1;
    }
    Ok(())
}
