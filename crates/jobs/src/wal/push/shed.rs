//! Giving WAL up: only when the operator set a limit, and never unrecorded.
//!
//! Order: the gap lies in the spool, synced; then the server is told. It is recorded in the
//! repository before anything else is pushed. Format: docs/format/spool.md.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lifeboat_engine::{Engine, LogFile, SegmentName, SystemId, TimelineId};
use lifeboat_repo::{Cluster, Fact, RepoError};
use lifeboat_units::Timestamp;
use serde::{Deserialize, Serialize};

use super::spool::Spool;
use crate::inventory::{Inventory, InventoryError};
use crate::wal::given_up::given_up;

/// Longest gap that is read, in bytes.
const GAP_BYTES_MAX: u64 = 4 << 10;
/// Says that a new backup is needed; removed when one was taken.
const WANTED: &str = "backup.wanted";
/// What it says.
const WISH: &[u8] = b"WAL was given up\n";

/// Segments that were given up, to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingGap {
    /// When the first of them was given up.
    pub at: Timestamp,
    /// Whose they are.
    pub system: SystemId,
    /// First segment.
    pub first: SegmentName,
    /// Last segment, inclusive.
    pub last: SegmentName,
    /// Why.
    pub reason: String,
}

impl PendingGap {
    fn timeline(&self) -> TimelineId {
        self.first.timeline
    }
}

/// Adds segments that are given up to the gaps that are pending: what follows a pending gap of
/// its timeline makes it longer, because nothing is pushed while one is pending.
pub fn widen(
    pending: &[PendingGap],
    files: &[LogFile],
    (system, at, reason): (SystemId, Timestamp, &str),
) -> Vec<PendingGap> {
    let mut changed: Vec<PendingGap> = Vec::new();
    for file in files {
        let LogFile::Segment(name) = file else { continue };
        let same = |gap: &PendingGap| gap.timeline() == name.timeline && gap.system == system;
        if let Some(gap) = changed.iter_mut().find(|gap| same(gap)) {
            gap.first = gap.first.min(*name);
            gap.last = gap.last.max(*name);
            continue;
        }
        let known = pending.iter().find(|gap| same(gap) && gap.first <= *name).cloned();
        let mut gap = known.unwrap_or_else(|| PendingGap {
            at,
            system,
            first: *name,
            last: *name,
            reason: reason.to_owned(),
        });
        gap.last = gap.last.max(*name);
        changed.push(gap);
    }
    changed
}

impl Spool {
    /// Gaps that are still to be recorded. One that cannot be understood is an error: nothing may
    /// be pushed past it.
    pub fn pending_gaps(&self) -> io::Result<Vec<PendingGap>> {
        self.list()?.gaps.iter().map(|name| self.read_gap(name)).collect()
    }

    fn read_gap(&self, name: &str) -> io::Result<PendingGap> {
        let path = self.path(name, "gap");
        if fs::metadata(&path)?.len() > GAP_BYTES_MAX {
            return Err(io::Error::other(format!("`{}` is no gap", path.display())));
        }
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Leaves a gap to be recorded, and a wish for a backup; both are durable.
    pub fn leave_gap(&self, gap: &PendingGap) -> io::Result<()> {
        let body = serde_json::to_vec(gap).expect("names and numbers always serialise");
        self.replace_synced(WANTED, WISH)?;
        self.replace_synced(&format!("{}.gap", gap.first), &body)?;
        // A backup may have answered an older wish meanwhile.
        if self.backup_is_wanted() { Ok(()) } else { self.replace_synced(WANTED, WISH) }
    }

    /// Whether a new backup is needed because WAL was given up.
    pub fn backup_is_wanted(&self) -> bool {
        self.directory().join(WANTED).exists()
    }

    /// Takes the wish for a backup away when the repository has one for everything that was given
    /// up, whoever took it. Says whether a backup is still needed.
    pub fn answer_wanted(
        &self,
        cluster: &Cluster,
        engine: &dyn Engine,
    ) -> Result<bool, InventoryError> {
        // What cannot be listed may hold a gap that the repository does not know of.
        let pending = || self.list().map_or(true, |listing| !listing.gaps.is_empty());
        if !self.backup_is_wanted() {
            return Ok(false);
        }
        if pending() {
            return Ok(true);
        }
        let inventory = Inventory::load(cluster, engine)?;
        if given_up(cluster, &inventory)?.iter().any(|gap| gap.backup_needed) || pending() {
            return Ok(true);
        }
        let _ = fs::remove_file(self.directory().join(WANTED));
        Ok(false)
    }

    /// Records all pending gaps in the cluster's journal; says whether there are some left. A crash
    /// in between records one twice, and so does one that grew meanwhile: it stays, as it is now.
    ///
    /// Whoever leaves a gap holds `changing` while doing so. It is not held while a gap is being
    /// recorded: the repository may hang, and what waits must not grow over the limit by that.
    pub fn record_gaps(&self, cluster: &Cluster, changing: &Mutex<()>) -> Result<bool, GapError> {
        let mut left = false;
        for gap in self.pending_gaps().map_err(GapError::Spool)? {
            let fact = Fact::LogGap {
                system: gap.system.to_string(),
                timeline: gap.timeline().0,
                first: gap.first.to_string(),
                last: gap.last.to_string(),
                reason: gap.reason.clone(),
            };
            cluster.record(gap.at, fact).map_err(GapError::Repo)?;
            let _only = changing.lock().unwrap_or_else(PoisonError::into_inner);
            let name = gap.first.to_string();
            if self.read_gap(&name).map_err(GapError::Spool)? != gap {
                left = true;
                continue;
            }
            fs::remove_file(self.path(&name, "gap")).map_err(GapError::Spool)?;
        }
        Ok(left)
    }

    fn replace_synced(&self, name: &str, body: &[u8]) -> io::Result<()> {
        let temporary = self.directory().join(format!("{name}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&temporary, self.directory().join(name))?;
        File::open(self.directory())?.sync_all()
    }
}

/// The backup that is wanted because WAL was given up: started when the repository is well, and
/// again after a while when it failed.
#[derive(Default)]
pub(super) struct WantedBackup {
    running: Option<Child>,
    failures: u32,
    retry_at: Duration,
}

impl WantedBackup {
    /// Starts of one pusher; the next one tries again.
    const STARTS_MAX: u32 = 5;

    /// Starts a backup that is wanted and looks after it; says whether the pusher is needed for
    /// it. `well` says whether the repository works and nothing waits to be pushed.
    pub(super) fn tend(
        &mut self,
        spool: &Spool,
        (now, well): (Duration, bool),
        start: &dyn Fn() -> io::Result<Child>,
        log: &dyn Fn(&str),
    ) -> bool {
        if let Some(child) = &mut self.running {
            match child.try_wait() {
                Ok(None) => return true,
                // Findings: damaged pages were there before, and the backup counts. The backup
                // itself took the wish away, unless more was given up since it began.
                Ok(Some(status)) if matches!(status.code(), Some(0 | 3)) => {
                    log("a new backup was taken");
                }
                Ok(Some(status)) => log(&format!("the new backup failed: {status}")),
                Err(error) => log(&format!("the new backup cannot be waited for: {error}")),
            }
            self.running = None;
            self.failures += 1;
            self.retry_at = now.saturating_add(super::order::pause(self.failures + 3));
        }
        if !spool.backup_is_wanted() || self.failures >= Self::STARTS_MAX {
            return false;
        }
        if well && now >= self.retry_at {
            log("WAL was given up: taking a new backup");
            match start() {
                Ok(child) => self.running = Some(child),
                Err(error) => {
                    log(&format!("a new backup cannot be started: {error}"));
                    self.failures += 1;
                }
            }
        }
        true
    }
}

/// A gap was not recorded.
#[derive(Debug)]
pub enum GapError {
    /// The spool failed.
    Spool(io::Error),
    /// The repository failed.
    Repo(RepoError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> LogFile {
        name.parse().unwrap()
    }

    fn gap(first: &str, last: &str) -> PendingGap {
        PendingGap {
            at: Timestamp::UNIX_EPOCH,
            system: SystemId(7),
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
            reason: "why".to_owned(),
        }
    }

    #[test]
    fn a_pending_gap_grows_and_each_timeline_has_its_own() {
        let how = (SystemId(7), Timestamp::UNIX_EPOCH, "why");
        let files = [file("000000010000000000000005"), file("000000010000000000000006")];
        let one = widen(&[], &files, how);
        assert_eq!(one, [gap("000000010000000000000005", "000000010000000000000006")]);
        let more = [file("000000010000000000000007"), file("000000020000000000000007")];
        assert_eq!(
            widen(&one, &more, how),
            [
                gap("000000010000000000000005", "000000010000000000000007"),
                gap("000000020000000000000007", "000000020000000000000007"),
            ]
        );
        assert_eq!(widen(&one, &[file("00000002.history")], how), []);
    }

    #[test]
    fn what_is_left_is_found_again() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::of(home.path());
        spool.create().unwrap();
        let one = gap("000000010000000000000005", "000000010000000000000006");
        spool.leave_gap(&one).unwrap();
        assert_eq!(spool.pending_gaps().unwrap(), [one]);
        assert!(spool.backup_is_wanted());
        fs::write(spool.directory().join("x.gap"), "torn").unwrap();
        assert!(spool.pending_gaps().is_err());
    }
}
