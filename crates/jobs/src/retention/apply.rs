//! Carries a plan out.

use std::collections::BTreeSet;
use std::time::Duration;

use lifeboat_repo::lease::RENEW_EVERY;
use lifeboat_repo::{BackupId, Fact, Lease, LogPlace, Purpose, RepoError, TailPlace};
use lifeboat_units::{ByteCount, Stage, Work};
use serde::Serialize;

use super::collect::{self, Events};
use super::error::RetentionError;
use super::logs::{affected, removals};
use super::plan::{LogRemoval, Plan, Removed, reads_unknown};
use crate::inventory::{Backup, Inventory, is_about_one_object};
use crate::ports::Ports;

/// What retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Backups that were removed, oldest first.
    pub removed: Vec<BackupId>,
    /// Backups of the plan that were left alone, because what is there changed since it was made.
    pub skipped: Vec<BackupId>,
    /// Packs that were removed.
    pub packs: u64,
    /// Their size on storage.
    pub packs_bytes: ByteCount,
    /// Packs to which nobody refers and which are too young to be removed.
    pub packs_waiting: u64,
    /// WAL files that were removed.
    pub logs: u64,
    /// Their size on storage.
    pub logs_bytes: ByteCount,
    /// Events of the journal that were dropped, because what they tell is long gone.
    pub events_dropped: u64,
    /// Temporaries of killed writers that were removed.
    pub temporaries: u64,
    /// What a person should know, such as why packs were left alone.
    pub notes: Vec<String>,
}

/// Carries a plan out, under the cluster's lease.
///
/// What is there is read anew under the lease and planned for once more: only what both plans let
/// go goes, so that nothing is removed on the strength of an old listing.
///
/// Order, so that a crash at any point harms nothing and the next run goes on: for each backup the
/// journal, then its manifest; then another look at who reads (see docs/format/reading.md); then
/// packs to which no remaining manifest refers; then WAL, the journal first and the oldest file
/// first; then old events and temporaries.
pub fn apply(ports: &Ports<'_>, plan: &Plan) -> Result<Report, RetentionError> {
    let mut held = Held::acquire(ports)?;
    let mut inventory = Inventory::load(ports.cluster, ports.engine)?;
    inventory.note_readings(ports.cluster, ports.clock.now())?;
    let fresh = super::plan::plan(&inventory, &plan.policy, plan.at);
    let mut report = Report { notes: fresh.notes.clone(), ..Report::default() };
    let agreed = agree(plan, &fresh, &mut report);
    ports.progress.stage(Stage::Collecting, None);
    for removed in agreed {
        held.keep()?;
        remove_backup(ports, removed)?;
        report.removed.push(removed.backup);
    }
    let events = Events::read(ports)?;
    // Who began to read meanwhile found the manifest gone, or its note is found now.
    inventory.backups.retain(|backup| !report.removed.contains(&backup.id()));
    inventory.note_readings(ports.cluster, ports.clock.now())?;
    match reads_unknown(&inventory) {
        Some(why) if !report.notes.contains(&why) => report.notes.push(why),
        Some(_) => {}
        None => {
            collect::packs(ports, &mut held, plan, &events, &mut report)?;
            remove_logs(ports, &mut held, &inventory, plan, &mut report)?;
            remove_pieces(ports, &mut held, &inventory, &mut report)?;
        }
    }
    for stale in &inventory.readings.stale {
        ports.cluster.store().delete(stale).map_err(RepoError::from)?;
    }
    collect::events(ports, &mut held, &events, &mut report)?;
    let prefix = format!("clusters/{}/", ports.cluster.name());
    held.keep()?;
    let swept = ports.cluster.store().sweep_temporaries(&prefix, plan.policy.grace);
    report.temporaries = swept.map_err(RepoError::from)?;
    held.release()?;
    Ok(report)
}

/// What both plans let go. What only the older one let go is noted.
fn agree<'a>(plan: &'a Plan, fresh: &Plan, report: &mut Report) -> Vec<&'a Removed> {
    let goes = |id: BackupId| fresh.remove.iter().any(|r| r.backup == id);
    let stays = |id: BackupId| fresh.keep.iter().any(|k| k.backup == id);
    for removed in plan.remove.iter().filter(|r| stays(r.backup)) {
        report.skipped.push(removed.backup);
        report.notes.push(format!(
            "{} was to go and stays: what is there changed since the plan was made",
            removed.backup
        ));
    }
    plan.remove.iter().filter(|r| goes(r.backup)).collect()
}

fn remove_backup(ports: &Ports<'_>, removed: &Removed) -> Result<(), RetentionError> {
    let id = removed.backup;
    let reason = removed.reason.words().to_owned();
    // The journal first: a manifest that is gone without a word counts as lost.
    ports.cluster.record(ports.clock.now(), Fact::BackupRemoved { id, reason })?;
    let manifest = ports.cluster.manifest_key(id)?;
    ports.cluster.store().delete(&manifest).map_err(RepoError::from)?;
    ports.progress.advance(Work::Files(1));
    Ok(())
}

fn remove_logs(
    ports: &Ports<'_>,
    held: &mut Held<'_, '_>,
    inventory: &Inventory,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), RetentionError> {
    if inventory.unreadable.iter().any(|u| u.backup().is_some()) {
        return Ok(()); // what that backup needs is not known
    }
    // What is needed by the backups that are there now, whatever the plan knew of them.
    let remaining: BTreeSet<BackupId> = inventory.backups.iter().map(Backup::id).collect();
    let unneeded = removals(inventory, &remaining);
    for planned in &plan.logs {
        let of_it = |l: &&LogRemoval| (l.system, l.timeline) == (planned.system, planned.timeline);
        let Some(now) = unneeded.iter().find(of_it) else { continue };
        let before = planned.before.min(now.before);
        let files = affected(&inventory.logs, planned.system, planned.timeline, before);
        if files.is_empty() {
            continue;
        }
        held.prove()?;
        let fact = Fact::LogRemoved {
            system: planned.system.to_string(),
            timeline: planned.timeline.0,
            before: before.to_string(),
        };
        ports.cluster.record(ports.clock.now(), fact)?;
        for log in files {
            held.keep()?;
            ports.cluster.remove_log(&log.place)?;
            report.logs += 1;
            report.logs_bytes += ByteCount(log.stored_bytes);
            ports.progress.advance(Work::Files(1));
        }
    }
    Ok(())
}

/// Removes pieces of segments that are there as a whole: what a receiver that was killed left.
///
/// Only where the whole segment can be read and holds the same: other pieces are the only trace of
/// two servers that wrote one timeline. A host without the private key leaves them.
fn remove_pieces(
    ports: &Ports<'_>,
    held: &mut Held<'_, '_>,
    inventory: &Inventory,
    report: &mut Report,
) -> Result<(), RetentionError> {
    if ports.cluster.repository().keyring().identity.is_none() {
        return Ok(());
    }
    let there: BTreeSet<&LogPlace> = inventory.logs.iter().map(|log| &log.place).collect();
    let mut whole: Option<(LogPlace, Vec<u8>)> = None;
    for log in &inventory.logs {
        let Some(piece) = TailPlace::parse(&log.place).filter(|p| there.contains(&p.of)) else {
            continue;
        };
        if whole.as_ref().is_none_or(|(place, _)| *place != piece.of) {
            whole = match ports.cluster.read_log(&piece.of) {
                Ok((_, content)) => Some((piece.of.clone(), content)),
                Err(error) if is_about_one_object(&error) => continue,
                Err(error) => return Err(error.into()),
            };
        }
        let digest = match ports.cluster.tail_head(&piece) {
            Ok(head) => head.digest,
            Err(error) if is_about_one_object(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let bytes = whole.as_ref().and_then(|(_, c)| c.get(piece.from as usize..piece.to as usize));
        if bytes.is_none_or(|bytes| ports.cluster.log_digest(bytes) != digest) {
            report.notes.push(format!(
                "{} differs from its finished segment and stays: two servers wrote this timeline",
                log.place.name
            ));
            continue;
        }
        held.keep()?;
        ports.cluster.remove_tail(&piece)?;
        report.logs += 1;
        report.logs_bytes += ByteCount(log.stored_bytes);
    }
    Ok(())
}

/// The lease, renewed as the work goes on.
pub(super) struct Held<'p, 'a> {
    ports: &'p Ports<'a>,
    lease: Lease,
    renewed: Duration,
}

impl<'p, 'a> Held<'p, 'a> {
    fn acquire(ports: &'p Ports<'a>) -> Result<Self, RetentionError> {
        let lease = Lease::acquire(ports.cluster, Purpose::Expire, ports.clock)?;
        Ok(Self { ports, lease, renewed: ports.clock.monotonic() })
    }

    /// Between two steps: renews the lease when it is due, and stops when asked to.
    pub(super) fn keep(&mut self) -> Result<(), RetentionError> {
        if self.ports.cancel.is_cancelled() {
            return Err(RetentionError::Cancelled);
        }
        let now = self.ports.clock.monotonic();
        if now.saturating_sub(self.renewed) >= RENEW_EVERY {
            self.lease.renew(self.ports.clock)?;
            self.renewed = now;
        }
        Ok(())
    }

    /// Before a row of deletions: proves that the lease is held still.
    pub(super) fn prove(&mut self) -> Result<(), RetentionError> {
        self.keep()?;
        Ok(self.lease.check()?)
    }

    fn release(self) -> Result<(), RetentionError> {
        Ok(self.lease.release()?)
    }
}
