//! The journal: tells a backup that vanished from one that expired.

use std::collections::BTreeSet;

use lifeboat_repo::{BackupId, Fact};

use super::context::{Context, count, is_damage};
use super::error::VerifyError;
use super::report::FindingKind;
use crate::inventory::chain;

/// Reads the journal and compares it with what is listed; gives what it tells.
pub(super) fn check(
    context: &Context<'_>,
    listed: &BTreeSet<BackupId>,
) -> Result<Vec<Fact>, VerifyError> {
    let mut facts = Vec::new();
    for (key, read) in context.cluster().read_events(context.cluster().journal_keys()?) {
        let object = key.to_string();
        match read {
            Ok(recorded) => {
                count(&context.count.events, 1);
                facts.push(recorded.event.fact);
            }
            Err(error) if error.is_not_found() => {} // dropped since it was listed
            Err(error) if is_damage(&error) => {
                context.findings.add(FindingKind::Journal, &object, &chain(&error), []);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let of = |wanted: fn(&Fact) -> Option<BackupId>| -> BTreeSet<BackupId> {
        facts.iter().filter_map(wanted).collect()
    };
    let added = of(|fact| match fact {
        Fact::BackupAdded { id } => Some(*id),
        _ => None,
    });
    let removed = of(|fact| match fact {
        Fact::BackupRemoved { id, .. } => Some(*id),
        _ => None,
    });
    for id in added.difference(&removed).filter(|id| !listed.contains(id)) {
        let what = "it was listed once, was never removed, and is not there";
        context.findings.add(FindingKind::Vanished, &format!("backup {id}"), what, [*id]);
    }
    for id in listed.difference(&added) {
        context.note(format!("backup {id} is there, but the journal does not tell of it"));
    }
    Ok(facts)
}
