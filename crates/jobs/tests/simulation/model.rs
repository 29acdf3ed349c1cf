//! What was promised so far, in words too simple to be wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use lifeboat_engine::Lsn;
use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::retention::{Plan, Policy};
use lifeboat_repo::BackupId;
use lifeboat_units::Timestamp;

/// What was promised.
#[derive(Debug, Default)]
pub struct Model {
    /// Backups whose taking was reported as a success.
    pub taken: BTreeSet<BackupId>,
    /// Backups that a plan let go: they may be there or not.
    pub may_go: BTreeSet<BackupId>,
    /// Every moment after this one is promised; `None` before the first backup.
    pub floor: Option<Floor>,
    /// The wall clock was set back: a moment by time may mean several.
    pub stepped_back: bool,
    /// A process left its lease behind, or may have.
    pub lease_left: bool,
}

/// The end of the oldest backup that is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    pub lsn: Lsn,
    pub at: Timestamp,
}

impl Model {
    /// Notes a plan that is about to be carried out, and checks that it keeps what the policy
    /// says.
    pub fn expire(&mut self, inventory: &Inventory, policy: &Policy, plan: &Plan) {
        let kept = kept(inventory, policy, plan.at);
        let removed: BTreeSet<BackupId> = plan.remove.iter().map(|r| r.backup).collect();
        assert!(kept.is_disjoint(&removed), "{removed:?} go although {kept:?} must stay");
        self.may_go.extend(removed);
        let backups = inventory.backups.iter().filter(|b| kept.contains(&b.id()));
        let oldest = backups.min_by_key(|b| b.facts.stop_lsn);
        let oldest = oldest.map(|b| Floor { lsn: b.facts.stop_lsn, at: b.facts.stopped_at });
        self.floor = match (self.floor, oldest) {
            (Some(now), Some(oldest)) if oldest.lsn < now.lsn => Some(now),
            (now, oldest) => oldest.or(now),
        };
    }
}

/// What a policy keeps at least: the newest so many, and those of the window with the one before.
fn kept(inventory: &Inventory, policy: &Policy, now: Timestamp) -> BTreeSet<BackupId> {
    let newest_first: Vec<_> = inventory.backups.iter().rev().collect();
    let count = policy.keep_count.map_or(1, |count| count.max(1)) as usize;
    let mut kept: BTreeSet<BackupId> = newest_first.iter().take(count).map(|b| b.id()).collect();
    if let Some(window) = policy.keep_window {
        let begins = now.checked_sub(window).unwrap();
        for backup in newest_first {
            kept.insert(backup.id());
            if backup.facts.stopped_at < begins {
                break;
            }
        }
    }
    kept
}

/// A policy that lets something go.
pub fn policy(count: Option<u32>, window_hours: Option<u64>) -> Policy {
    Policy {
        keep_count: count,
        keep_window: window_hours.map(|hours| Duration::from_secs(hours * 3600)),
        ..Policy::default()
    }
}
