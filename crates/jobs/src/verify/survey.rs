//! What is stored, and what of it is referred to.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_repo::reading::until_of;
use lifeboat_repo::{BackupId, PackId, RepoError};
use lifeboat_units::ByteCount;

use super::context::Context;
use super::error::VerifyError;
use super::report::FindingKind;
use super::walk::pack_name;
use super::window::PACK_MISSING;
use crate::inventory::{Backup, Inventory};
use crate::retention::parse_pack;

/// Whether an object below a cluster, no pack, is one that lifeboat writes. What lies below
/// `journal/` and `wal/` is read, and reported there.
fn is_known(rest: &str) -> bool {
    match rest.split_once('/') {
        Some(("backups", name)) => name.parse::<BackupId>().is_ok(),
        Some(("lease", name)) => name.parse::<u64>().is_ok(),
        Some(("reading", _)) => until_of(rest).is_some(),
        Some(("journal" | "wal", _)) => true,
        _ => false,
    }
}

/// Every pack that is stored, with its size in bytes. Names that lifeboat does not use are noted.
pub(super) fn packs(context: &Context<'_>) -> Result<BTreeMap<PackId, u64>, VerifyError> {
    let prefix = format!("clusters/{}/", context.cluster().name());
    let data = format!("{prefix}data/");
    let mut packs = BTreeMap::new();
    let mut strange = Vec::new();
    context
        .cluster()
        .store()
        .list(&prefix, &mut |entry| {
            let rest = entry.key.as_str().strip_prefix(&prefix).unwrap_or_default();
            if let Some(pack) = parse_pack(&data, &entry.key) {
                packs.insert(pack, entry.size_bytes);
            } else if !is_known(rest) {
                strange.push(entry.key.to_string());
            }
        })
        .map_err(RepoError::from)?;
    strange.sort_unstable();
    for key in strange {
        context.note(format!("`{key}` is no object of lifeboat's; it is left alone"));
    }
    Ok(packs)
}

/// The backups that are to be verified, oldest first. One that cannot be read is a finding.
pub(super) fn chosen<'i>(
    context: &Context<'_>,
    inventory: &'i Inventory,
    wanted: Option<&[BackupId]>,
) -> Result<Vec<&'i Backup>, VerifyError> {
    let is_wanted = |id: BackupId| wanted.is_none_or(|wanted| wanted.contains(&id));
    for unreadable in &inventory.unreadable {
        match unreadable.backup() {
            Some(id) if is_wanted(id) => {
                let object = format!("manifest {id}");
                context.findings.add(FindingKind::Manifest, &object, &unreadable.why, [id]);
            }
            // A file of the log: it is read again, and reported with what it touches.
            _ => {}
        }
    }
    let listed = listed(inventory);
    if let Some(missing) = wanted.unwrap_or_default().iter().find(|id| !listed.contains(id)) {
        return Err(VerifyError::Repo(RepoError::NoSuchBackup {
            id: missing.to_string(),
            cluster: context.cluster().name().to_string(),
        }));
    }
    Ok(inventory.backups.iter().filter(|b| is_wanted(b.id())).collect())
}

/// Every backup that is listed, also those that cannot be read.
pub(super) fn listed(inventory: &Inventory) -> BTreeSet<BackupId> {
    let unreadable = inventory.unreadable.iter().filter_map(|u| u.backup());
    inventory.backups.iter().map(Backup::id).chain(unreadable).collect()
}

/// The packs to which the chosen backups refer, and number and size of those to which none of all
/// backups does. A pack that is missing is a finding.
pub(super) fn usage(
    context: &Context<'_>,
    inventory: &Inventory,
    chosen: &[&Backup],
    stored: &BTreeMap<PackId, u64>,
) -> (BTreeSet<PackId>, (u64, ByteCount)) {
    let mut used = BTreeSet::new();
    for backup in chosen {
        backup.manifest.each_pack(|pack| {
            used.insert(pack);
            if !stored.contains_key(&pack) {
                let name = pack_name(pack);
                context.findings.add(FindingKind::Pack, &name, PACK_MISSING, [backup.id()]);
            }
        });
    }
    let mut by_all = BTreeSet::new();
    for backup in &inventory.backups {
        backup.manifest.each_pack(|pack| {
            by_all.insert(pack);
        });
    }
    // What a manifest that cannot be read refers to is not known.
    if inventory.unreadable.iter().any(|u| u.backup().is_some()) {
        return (used, (0, ByteCount(0)));
    }
    let waste: Vec<u64> =
        stored.iter().filter(|(pack, _)| !by_all.contains(pack)).map(|(_, size)| *size).collect();
    let bytes = ByteCount(waste.iter().sum());
    if !waste.is_empty() {
        let count = waste.len();
        context.note(format!(
            "{count} packs ({bytes}) belong to no backup: `lifeboat expire` removes them"
        ));
    }
    (used, (waste.len() as u64, bytes))
}
