//! Which WAL nobody needs any more.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_engine::{LogFile, SegmentName, SegmentNo, SystemId, TimelineId};
use lifeboat_repo::{ArchivedLog, BackupId, TailPlace};
use lifeboat_units::{ByteCount, Timestamp};

use super::plan::LogRemoval;
use crate::inventory::{Backup, Inventory, Timeline};

/// Decides which WAL goes once only `kept` backups are there.
///
/// - On a timeline that a kept backup lies on, or from whose past recovery may branch to it:
///   everything before that backup's first segment. What follows stays, also between backups.
/// - On an ancestor of a kept backup's timeline: everything before the first segment of the
///   oldest kept backup.
/// - Any other timeline, and what is left of an ancestor, goes as a whole, once its newest
///   segment was archived before the oldest kept backup began.
/// - Nothing goes while no backup is kept. History files always stay.
pub(super) fn removals(inventory: &Inventory, kept: &BTreeSet<BackupId>) -> Vec<LogRemoval> {
    let kept: Vec<&Backup> = inventory.backups.iter().filter(|b| kept.contains(&b.id())).collect();
    let Some(oldest_began) = kept.iter().map(|b| b.manifest.began_at).min() else {
        return Vec::new();
    };
    let mut removals = Vec::new();
    for timeline in inventory.timelines.values() {
        let mine: Vec<&Backup> = kept
            .iter()
            .copied()
            .filter(|b| b.facts.identity.system_id == timeline.system)
            .collect();
        let before = first_needed(timeline, &mine)
            .or_else(|| forgotten(inventory, timeline, oldest_began))
            .or_else(|| before_descendants(inventory, timeline, &mine));
        removals.extend(before.and_then(|before| removal(inventory, timeline, before)));
    }
    removals
}

/// The first segment of this timeline that recovery from a kept backup can ask for.
fn first_needed(timeline: &Timeline, kept: &[&Backup]) -> Option<SegmentNo> {
    let may_pass = |backup: &&&Backup| match &timeline.ancestry {
        Some(past) => past.contains(backup.facts.timeline, backup.facts.stop_lsn),
        // Its past is not known: it may descend from any older timeline.
        None => backup.facts.timeline <= timeline.timeline,
    };
    kept.iter().filter(may_pass).map(|b| b.segments().0).min()
}

/// Everything of a timeline that nobody can reach, once it is older than all that is kept.
fn forgotten(
    inventory: &Inventory,
    timeline: &Timeline,
    oldest_began: Timestamp,
) -> Option<SegmentNo> {
    let newest = inventory.newest_logs.get(&(timeline.system, timeline.timeline))?;
    let last =
        timeline.segments.keys().chain(&timeline.partials).chain(timeline.tails.keys()).max()?;
    (newest.archived_at < oldest_began).then(|| last.next())
}

/// What of an ancestor lies before all that is kept.
fn before_descendants(
    inventory: &Inventory,
    timeline: &Timeline,
    kept: &[&Backup],
) -> Option<SegmentNo> {
    let descends = |backup: &&Backup| {
        let theirs = inventory.timelines.get(&(timeline.system, backup.facts.timeline));
        let past = theirs.and_then(|t| t.ancestry.as_ref());
        past.is_some_and(|p| p.ancestors.iter().any(|a| a.timeline == timeline.timeline))
    };
    let oldest = kept.iter().min_by_key(|b| b.segments().0)?;
    descends(oldest).then(|| oldest.segments().0)
}

fn removal(inventory: &Inventory, timeline: &Timeline, before: SegmentNo) -> Option<LogRemoval> {
    let before = timeline.name(before);
    let logs = affected(&inventory.logs, timeline.system, timeline.timeline, before);
    (!logs.is_empty()).then(|| LogRemoval {
        system: timeline.system,
        timeline: timeline.timeline,
        before,
        files: logs.len() as u64,
        stored_bytes: logs.iter().map(|log| ByteCount(log.stored_bytes)).sum(),
    })
}

/// The files of a timeline before a segment, oldest first. History files are not among them.
pub(super) fn affected(
    logs: &[ArchivedLog],
    system: SystemId,
    timeline: TimelineId,
    before: SegmentName,
) -> Vec<&ArchivedLog> {
    let mut found: BTreeMap<(SegmentName, &str), &ArchivedLog> = BTreeMap::new();
    let system = system.to_string();
    for log in logs.iter().filter(|log| log.place.system == system) {
        let piece = TailPlace::parse(&log.place);
        let of = piece.as_ref().map_or(log.place.name.as_str(), |piece| piece.of.name.as_str());
        let Ok(file) = of.parse::<LogFile>() else { continue };
        let (LogFile::Segment(name) | LogFile::Partial(name) | LogFile::BackupHistory(name, _)) =
            file
        else {
            continue;
        };
        // Names of one timeline sort by position.
        if name.timeline == timeline && log.place.timeline == timeline.0 && name < before {
            found.insert((name, log.place.name.as_str()), log);
        }
    }
    found.into_values().collect()
}
