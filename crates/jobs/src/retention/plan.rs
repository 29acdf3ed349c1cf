//! Decides what goes and what stays, from facts alone: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lifeboat_engine::{SegmentName, SystemId, TimelineId};
use lifeboat_repo::BackupId;
use lifeboat_repo::reading::LiveReading;
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use super::logs::removals;
use super::policy::{KeepReason, Policy, RemoveReason};
use crate::inventory::{Backup, Inventory, Unreadable};

/// What retention would do and why. Printed as it is by `--dry-run`; the only input of
/// [`super::apply()`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The rules it follows.
    pub policy: Policy,
    /// The moment it was made for, by lifeboat's clock.
    pub at: Timestamp,
    /// Backups that stay, oldest first.
    pub keep: Vec<Kept>,
    /// Backups that go, oldest first.
    pub remove: Vec<Removed>,
    /// WAL that goes.
    pub logs: Vec<LogRemoval>,
    /// Why less goes than the rules allow.
    pub notes: Vec<String>,
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The backup.
    pub backup: BackupId,
    /// Why; at least one reason.
    pub reasons: Vec<KeepReason>,
}

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The backup.
    pub backup: BackupId,
    /// Why.
    pub reason: RemoveReason,
}

/// WAL of one timeline that goes: every file of a segment before a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogRemoval {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment that would be kept.
    pub before: SegmentName,
    /// How many files go.
    pub files: u64,
    /// Their size on storage.
    pub stored_bytes: ByteCount,
}

impl Plan {
    /// Whether it would change nothing but waste.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.logs.is_empty()
    }
}

/// Decides what goes and what stays.
///
/// - `keep_count`: from the newest back until so many good backups were met.
/// - `keep_window`: from the newest back until a good one was met that ended before the window and
///   lies in the past of its system's newest backup: from it the window's first moments are
///   reached.
/// - A backup with damaged pages is no good one: it takes no other's place.
/// - While a listed backup cannot be read, no WAL goes: what that backup needs is not known.
/// - What somebody reads stays, with the WAL from there on. While a note of who reads cannot be
///   read itself, nothing goes.
pub fn plan(inventory: &Inventory, policy: &Policy, now: Timestamp) -> Plan {
    let mut reasons: BTreeMap<BackupId, BTreeSet<KeepReason>> = BTreeMap::new();
    let mut keep = |backup: &Backup, reason| {
        reasons.entry(backup.id()).or_default().insert(reason);
    };
    let newest_first = || inventory.backups.iter().rev();
    if !policy.has_rule() {
        newest_first().for_each(|backup| keep(backup, KeepReason::NoRule));
    }
    newest_first()
        .filter(|b| policy.holds.contains(&b.id()))
        .for_each(|backup| keep(backup, KeepReason::Held));
    let readings = &inventory.readings;
    let is_read = |b: &&Backup| {
        !readings.unreadable.is_empty()
            || readings.live.iter().any(|reading| reading.backups.contains(&b.id()))
    };
    newest_first().filter(is_read).for_each(|backup| keep(backup, KeepReason::Read));
    if let Some(count) = policy.keep_count {
        keep_by_count(inventory, count, &mut keep);
    }
    if let Some(window) = policy.keep_window {
        keep_by_window(inventory, window, now, &mut keep);
    }
    match newest_first().find(|b| is_good(b)) {
        Some(backup) => keep(backup, KeepReason::LastGood),
        // None is good: the damaged ones are all there is.
        None => newest_first().for_each(|backup| keep(backup, KeepReason::Damaged)),
    }
    let kept: BTreeSet<BackupId> = reasons.keys().copied().collect();
    let unreadable = inventory.unreadable.iter().any(|u| u.backup().is_some());
    Plan {
        policy: policy.clone(),
        at: now,
        remove: removed(inventory, policy, &kept),
        logs: if unreadable || !policy.has_rule() || reads_unknown(inventory).is_some() {
            Vec::new()
        } else {
            removals(inventory, &kept)
        },
        keep: reasons
            .into_iter()
            .map(|(backup, reasons)| Kept { backup, reasons: reasons.into_iter().collect() })
            .collect(),
        notes: notes(inventory),
    }
}

fn is_good(backup: &Backup) -> bool {
    backup.facts.is_good()
}

fn keep_by_count(inventory: &Inventory, count: u32, keep: &mut impl FnMut(&Backup, KeepReason)) {
    let mut good = 0;
    for backup in inventory.backups.iter().rev() {
        if is_good(backup) {
            keep(backup, KeepReason::Count);
            good += 1;
        } else {
            keep(backup, KeepReason::Damaged);
        }
        if good >= count.max(1) {
            return;
        }
    }
}

fn keep_by_window(
    inventory: &Inventory,
    window: Duration,
    now: Timestamp,
    keep: &mut impl FnMut(&Backup, KeepReason),
) {
    let begins = now.checked_sub(window).unwrap_or(Timestamp::MIN);
    for backup in inventory.backups.iter().rev() {
        let within = backup.facts.stopped_at >= begins;
        match (is_good(backup), within) {
            (true, true) => keep(backup, KeepReason::Window),
            (true, false) => keep(backup, KeepReason::WindowStart),
            (false, _) => keep(backup, KeepReason::Damaged),
        }
        if is_good(backup) && !within && leads_to_newest(inventory, backup) {
            return;
        }
    }
}

/// Whether the newest backup of the same system lies on a timeline that recovery from this one
/// can follow. A backup on a branch that was given up does not open the window's first moments.
fn leads_to_newest(inventory: &Inventory, backup: &Backup) -> bool {
    let system = backup.facts.identity.system_id;
    let same = |b: &&Backup| b.facts.identity.system_id == system;
    let Some(newest) = inventory.backups.iter().rev().find(same) else { return true };
    let timeline = newest.facts.timeline;
    let past = inventory.timelines.get(&(system, timeline)).and_then(|t| t.ancestry.as_ref());
    match past {
        Some(past) => past.contains(backup.facts.timeline, backup.facts.stop_lsn),
        None => backup.facts.timeline == timeline,
    }
}

fn removed(inventory: &Inventory, policy: &Policy, kept: &BTreeSet<BackupId>) -> Vec<Removed> {
    let reason = match (policy.keep_count, policy.keep_window) {
        (Some(_), Some(_)) => RemoveReason::CountAndWindow,
        (None, Some(_)) => RemoveReason::Window,
        (_, None) => RemoveReason::Count,
    };
    let goes = |b: &&Backup| !kept.contains(&b.id());
    let removed = |b: &Backup| Removed { backup: b.id(), reason };
    inventory.backups.iter().filter(goes).map(removed).collect()
}

fn notes(inventory: &Inventory) -> Vec<String> {
    let blocked = |unreadable: &Unreadable| {
        let Unreadable { object, why } = unreadable;
        match unreadable.backup() {
            Some(_) => format!(
                "backup {object} cannot be read ({why}); until it can, no \
                 WAL and no pack goes"
            ),
            None => format!("{object} cannot be read ({why})"),
        }
    };
    let read = inventory.readings.live.iter().flat_map(|reading| {
        reading.backups.iter().map(|backup| {
            let LiveReading { purpose, who, until, .. } = reading;
            format!("{backup} is being read by {} ({who}), noted until {until}", purpose.words())
        })
    });
    let unknown = reads_unknown(inventory).into_iter();
    let forged = inventory.readings.forged.iter().map(|(name, why)| {
        format!("{name} counts for nothing: {why}, and no reader's note lies so far ahead")
    });
    inventory.unreadable.iter().map(blocked).chain(read).chain(unknown).chain(forged).collect()
}

/// Why it is not known what readers need; `None` when it is.
pub(super) fn reads_unknown(inventory: &Inventory) -> Option<String> {
    let readings = &inventory.readings;
    if let Some((name, until, why)) = readings.unreadable.first() {
        return Some(format!("{name} cannot be read ({why}); until {until} nothing goes"));
    }
    let is_listed = |id: &BackupId| {
        let unreadable = inventory.unreadable.iter().filter_map(|u| u.backup());
        inventory.backups.iter().map(Backup::id).chain(unreadable).any(|listed| listed == *id)
    };
    readings.live.iter().find_map(|reading| {
        let gone = reading.backups.iter().find(|id| !is_listed(id))?;
        let LiveReading { name, purpose, who, until, .. } = reading;
        Some(format!(
            "{gone} is gone, and {} ({who}) still reads it; until {until} no pack and no WAL goes \
             ({name})",
            purpose.words()
        ))
    })
}
