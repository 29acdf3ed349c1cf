//! Gathers findings from all threads.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lifeboat_repo::BackupId;

use super::report::{Finding, FindingKind};

/// So many files are named in a finding.
const FILES_NAMED: usize = 5;

/// What is wrong with one object, before what it touches is known.
type Key = (FindingKind, String, String);

/// Findings so far: one for every object and fault, whoever comes across it.
#[derive(Default)]
pub(super) struct Findings(Mutex<BTreeMap<Key, Touched>>);

#[derive(Default)]
struct Touched {
    backups: BTreeSet<BackupId>,
    files: BTreeSet<String>,
    // Hashes only: a pack that is missing can touch a million files.
    all_files: HashSet<u64>,
    reach: Option<String>,
}

impl Findings {
    /// Notes a fault and the backups it touches.
    pub(super) fn add(
        &self,
        kind: FindingKind,
        object: &str,
        what: &str,
        backups: impl IntoIterator<Item = BackupId>,
    ) {
        self.with(kind, object, what, |touched| touched.backups.extend(backups));
    }

    /// Notes a fault, the file and the backups it touches.
    pub(super) fn add_file(
        &self,
        (kind, object, what): (FindingKind, &str, &str),
        backups: impl IntoIterator<Item = BackupId>,
        path: &str,
    ) {
        self.with(kind, object, what, |touched| {
            touched.backups.extend(backups);
            let mut hasher = DefaultHasher::new();
            path.hash(&mut hasher);
            touched.all_files.insert(hasher.finish());
            if touched.files.len() < FILES_NAMED {
                touched.files.insert(path.to_owned());
            }
        });
    }

    /// Notes a fault and what can no longer be reached because of it.
    pub(super) fn add_reach(
        &self,
        (kind, object, what): (FindingKind, &str, &str),
        backups: impl IntoIterator<Item = BackupId>,
        reach: Option<String>,
    ) {
        self.with(kind, object, what, |touched| {
            touched.backups.extend(backups);
            touched.reach = reach;
        });
    }

    fn with(&self, kind: FindingKind, object: &str, what: &str, note: impl FnOnce(&mut Touched)) {
        let mut map = self.lock();
        note(map.entry((kind, object.to_owned(), what.to_owned())).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Touched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All findings, by kind and object.
    pub(super) fn take(&self) -> Vec<Finding> {
        std::mem::take(&mut *self.lock())
            .into_iter()
            .map(|((kind, object, what), touched)| Finding {
                kind,
                object,
                what,
                backups: touched.backups.into_iter().collect(),
                files: touched.files.into_iter().collect(),
                files_count: touched.all_files.len() as u64,
                reach: touched.reach,
            })
            .collect()
    }
}
