//! One writer per cluster at a time: leases by conditional put.
//!
//! Format and reasons: docs/format/lease.md. A lease is a row of immutable objects with rising
//! numbers; who stores the next number has it. A holder that died on this machine is noticed at
//! once; one elsewhere, when its lease was not renewed for [`LAPSE`].

use std::time::Duration;

use lifeboat_store::Key;
use lifeboat_units::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

use crate::crypt::BoxKind;
use crate::error::RepoError;
use crate::id::hex;
use crate::repository::Cluster;

/// A lease that was not renewed for so long has lapsed.
pub const LAPSE: Duration = Duration::from_secs(15 * 60);
/// How often a holder renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Longest lease that is read, in bytes.
const LEASE_BYTES_MAX: u64 = 16 << 10;

/// What the holder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Taking a backup.
    Backup,
    /// Removing backups and collecting what nobody refers to.
    Expire,
}

impl Purpose {
    fn words(self) -> &'static str {
        match self {
            Self::Backup => "backing up",
            Self::Expire => "expiring backups of",
        }
    }
}

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Identifies the boot of that host: process numbers mean nothing beyond it.
    pub boot: String,
    /// Process.
    pub pid: u32,
    /// Start time of the process (clock ticks since boot), against re-used numbers.
    pub process_start: u64,
}

impl Holder {
    /// This process.
    pub fn this_process() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: read("/proc/sys/kernel/hostname").trim().to_owned(),
            boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            pid,
            process_start: process_start(pid).unwrap_or(0),
        }
    }

    /// Whether the holder was a process of this boot of this machine and is gone.
    fn certainly_died(&self, me: &Self) -> bool {
        !self.boot.is_empty()
            && self.boot == me.boot
            && process_start(self.pid) != Some(self.process_start)
    }
}

/// When a process started; `None` when there is no such process. Source: proc(5), field 22 of
/// `/proc/PID/stat`, counted after the command name, which may contain blanks.
fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LeaseObject {
    holder: Holder,
    token: String,
    purpose: Purpose,
    since: Timestamp,
    renewed: Timestamp,
}

/// A lease that is held. Dropping it gives it back.
pub struct Lease {
    cluster: Cluster,
    number: u64,
    object: LeaseObject,
    released: bool,
}

impl Lease {
    /// Takes the lease on a cluster.
    ///
    /// Errors: [`RepoError::Busy`] when somebody else has it.
    pub fn acquire(
        cluster: &Cluster,
        purpose: Purpose,
        clock: &dyn Clock,
    ) -> Result<Self, RepoError> {
        let me = Holder::this_process();
        let mut random = [0; 8];
        cluster.repository().entropy().fill(&mut random);
        let now = clock.now();
        let object = LeaseObject {
            holder: me.clone(),
            token: hex(&random),
            purpose,
            since: now,
            renewed: now,
        };
        let numbers = list(cluster)?;
        let newest = numbers.last().copied();
        if let Some(number) = newest
            && let Some(held) = read(cluster, number)?
            && !held.holder.certainly_died(&me)
            && now.duration_since(held.renewed).unsigned_abs() < LAPSE
        {
            return Err(busy(cluster, &held));
        }
        let mut lease = Self { cluster: cluster.clone(), number: 0, object, released: false };
        lease.number = newest.map_or(1, |n| n + 1);
        match lease.put() {
            Ok(()) => {}
            Err(RepoError::Store(error)) if error.is_already_exists() => {
                let winner = read(cluster, lease.number)?;
                lease.released = true; // it was never ours
                return Err(winner.map_or(RepoError::Store(error), |w| busy(cluster, &w)));
            }
            Err(error) => {
                lease.released = true;
                return Err(error);
            }
        }
        for old in numbers {
            cluster.store().delete(&key(cluster, old)?)?;
        }
        Ok(lease)
    }

    fn put(&self) -> Result<(), RepoError> {
        let name = format!("lease/{:012}", self.number);
        let mut body = vec![1];
        body.extend(serde_json::to_vec(&self.object).expect("texts always serialise"));
        self.cluster.object_key(&name).seal(BoxKind::Lease, 0, &mut body, 1);
        Ok(self.cluster.store().put(&self.cluster.key(&name)?, &body)?)
    }

    /// Renews the lease.
    ///
    /// Errors: [`RepoError::LeaseLost`] when somebody else took it.
    pub fn renew(&mut self, clock: &dyn Clock) -> Result<(), RepoError> {
        self.check()?;
        let old = self.number;
        self.number += 1;
        self.object.renewed = clock.now();
        match self.put() {
            Ok(()) => {}
            Err(RepoError::Store(error)) if error.is_already_exists() => {
                self.number = old;
                return self.check();
            }
            Err(error) => {
                self.number = old;
                return Err(error);
            }
        }
        Ok(self.cluster.store().delete(&key(&self.cluster, old)?)?)
    }

    /// Proves that the lease is still held: called before anything becomes final.
    pub fn check(&self) -> Result<(), RepoError> {
        let newest = list(&self.cluster)?.last().copied();
        let held = newest.map(|n| read(&self.cluster, n)).transpose()?.flatten();
        match held {
            Some(held) if held.token == self.object.token => Ok(()),
            other => Err(RepoError::LeaseLost {
                cluster: self.cluster.name().to_string(),
                to: other.map_or_else(|| "nobody".to_owned(), |o| describe(&o.holder)),
            }),
        }
    }

    /// Gives the lease back.
    pub fn release(mut self) -> Result<(), RepoError> {
        self.released = true;
        Ok(self.cluster.store().delete(&key(&self.cluster, self.number)?)?)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.released
            && let Ok(key) = key(&self.cluster, self.number)
        {
            // Left behind on failure: noticed as a lease of a dead process.
            let _ = self.cluster.store().delete(&key);
        }
    }
}

fn describe(holder: &Holder) -> String {
    format!("process {} on {}", holder.pid, holder.host)
}

fn busy(cluster: &Cluster, held: &LeaseObject) -> RepoError {
    RepoError::Busy {
        cluster: cluster.name().to_string(),
        holder: describe(&held.holder),
        purpose: held.purpose.words().to_owned(),
        since: held.since.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    }
}

fn key(cluster: &Cluster, number: u64) -> Result<Key, RepoError> {
    cluster.key(&format!("lease/{number:012}"))
}

fn list(cluster: &Cluster) -> Result<Vec<u64>, RepoError> {
    let mut numbers = Vec::new();
    let prefix = format!("clusters/{}/lease/", cluster.name());
    cluster.store().list(&prefix, &mut |entry| numbers.extend(entry.key.name().parse::<u64>()))?;
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a lease; `None` when it was given back meanwhile.
fn read(cluster: &Cluster, number: u64) -> Result<Option<LeaseObject>, RepoError> {
    let key = key(cluster, number)?;
    let mut body = match cluster.store().get(&key, LEASE_BYTES_MAX) {
        Ok(body) => body,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if body.first() != Some(&1) {
        return Err(RepoError::TooNew {
            object: key.to_string(),
            found: body.first().copied().unwrap_or(0).into(),
            known: 1,
        });
    }
    let name = format!("lease/{number:012}");
    let plain = cluster.object_key(&name).open(BoxKind::Lease, 0, key.as_str(), &mut body[1..])?;
    serde_json::from_slice(plain)
        .map(Some)
        .map_err(|e| RepoError::damaged(key.as_str(), e.to_string()))
}
