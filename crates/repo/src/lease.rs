//! One writer per cluster at a time: leases by conditional put.
//!
//! Format and reasons: docs/format/lease.md. A lease is a row of immutable objects with rising
//! numbers; who stores the next number has it, and no number comes twice. A holder that died on
//! this machine is noticed at once; one elsewhere, when its lease was not renewed for [`LAPSE`].

use std::time::Duration;

use lifeboat_store::Key;
use lifeboat_units::{Clock, Timestamp};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::crypt::BoxKind;
use crate::error::RepoError;
use crate::id::hex;
use crate::repository::Cluster;

/// A lease that was not renewed for so long has lapsed.
pub const LAPSE: Duration = Duration::from_secs(15 * 60);
/// How often a holder renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Version byte in front of every lease.
const VERSION: u8 = 1;
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
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Identifies the boot of that host: process numbers mean nothing beyond it.
    pub boot: String,
    /// Identifies the name space of process numbers: containers share a boot and not their
    /// numbers.
    pub pid_namespace: String,
    /// Process.
    pub pid: u32,
    /// Start time of the process (clock ticks since boot), against re-used numbers; 0 if unknown.
    pub process_start: u64,
}

impl Holder {
    /// This process.
    pub fn this_process() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        let process_start = match Process::look_up(pid) {
            Process::Runs { start } => start,
            Process::Gone | Process::Unknown => 0,
        };
        Self {
            host: read("/proc/sys/kernel/hostname").trim().to_owned(),
            boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            pid,
            process_start,
        }
    }

    /// Whether the holder was a process whose number this process can look up, and is gone.
    pub(crate) fn certainly_died(&self, me: &Self) -> bool {
        let comparable = !self.boot.is_empty()
            && self.boot == me.boot
            && !self.pid_namespace.is_empty()
            && self.pid_namespace == me.pid_namespace;
        comparable
            && match Process::look_up(self.pid) {
                Process::Runs { start } => self.process_start != 0 && start != self.process_start,
                Process::Gone => true,
                Process::Unknown => false,
            }
    }
}

/// What is known of a process number.
enum Process {
    /// It runs since this tick after boot.
    Runs { start: u64 },
    /// There is no such process, or it ended and only waits to be noticed.
    Gone,
    /// It cannot be found out.
    Unknown,
}

impl Process {
    /// Source: proc(5), fields 3 (state) and 22 (start time) of `/proc/PID/stat`, counted after
    /// the command name, which may contain blanks.
    fn look_up(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        match (fields.next(), fields.nth(18).and_then(|field| field.parse().ok())) {
            (Some("Z" | "X"), _) => Self::Gone,
            (Some(_), Some(start)) => Self::Runs { start },
            // The file may be hidden from this user (mount option hidepid): the kernel knows.
            _ => match i32::try_from(pid).ok().and_then(Pid::from_raw).map(test_kill_process) {
                Some(Err(Errno::SRCH)) => Self::Gone,
                _ => Self::Unknown,
            },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseObject {
    holder: Holder,
    token: String,
    purpose: Purpose,
    since: Timestamp,
    renewed: Timestamp,
    /// It was given back. The object stays, so that no number comes twice.
    released: bool,
}

impl LeaseObject {
    /// Whether somebody may still be at work under it.
    fn is_held(&self, me: &Holder, now: Timestamp) -> bool {
        !self.released
            && !self.holder.certainly_died(me)
            && now.duration_since(self.renewed).unsigned_abs() < LAPSE
    }
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
            released: false,
        };
        let numbers = list(cluster)?;
        let newest = numbers.last().copied();
        if let Some(number) = newest
            && let Some(other) = read(cluster, number)?
            && other.is_held(&me, now)
        {
            return Err(busy(cluster, &other));
        }
        let number = after(cluster, newest.unwrap_or(0))?;
        put(cluster, number, &object)?;
        let lease = Self { cluster: cluster.clone(), number, object, released: false };
        match lease.check() {
            Ok(()) => {}
            // Somebody went through this number and further since the listing.
            Err(RepoError::LeaseLost { .. }) => {
                let winner = newest_of(cluster)?.and_then(|(_, object)| object);
                return Err(busy(cluster, &winner.unwrap_or_else(|| lease.object.clone())));
            }
            Err(error) => return Err(error),
        }
        for old in numbers {
            cluster.store().delete(&key(cluster, old)?)?;
        }
        Ok(lease)
    }

    /// Renews the lease.
    ///
    /// Errors: [`RepoError::LeaseLost`] when somebody else took it.
    pub fn renew(&mut self, clock: &dyn Clock) -> Result<(), RepoError> {
        let old = self.held()?;
        let number = after(&self.cluster, old)?;
        let renewed = LeaseObject { renewed: clock.now(), ..self.object.clone() };
        match put(&self.cluster, number, &renewed) {
            Ok(()) => (self.number, self.object) = (number, renewed),
            Err(RepoError::Busy { .. }) => return self.check(),
            Err(error) => return Err(error),
        }
        self.cluster.store().delete(&key(&self.cluster, old)?)?;
        // Others may have gone through this number and further between the look and the put.
        self.check()
    }

    /// Proves that the lease is still held: called before anything becomes final.
    pub fn check(&self) -> Result<(), RepoError> {
        self.held().map(drop)
    }

    /// The number under which it is held: the newest of all, and ours. It is not the one we know
    /// when the answer to a renewal was lost.
    fn held(&self) -> Result<u64, RepoError> {
        let lost_to = match newest_of(&self.cluster)? {
            Some((number, Some(object))) if object.token == self.object.token => {
                if !object.released {
                    return Ok(number);
                }
                "nobody".to_owned()
            }
            Some((_, Some(other))) if !other.released => describe(&other.holder),
            _ => "nobody".to_owned(),
        };
        Err(RepoError::LeaseLost { cluster: self.cluster.name().to_string(), to: lost_to })
    }

    /// Gives the lease back.
    pub fn release(mut self) -> Result<(), RepoError> {
        self.released = true;
        self.give_back()
    }

    fn give_back(&self) -> Result<(), RepoError> {
        let released = LeaseObject { released: true, ..self.object.clone() };
        match self.held() {
            Ok(number) => {
                match put(&self.cluster, after(&self.cluster, number)?, &released) {
                    Ok(()) | Err(RepoError::Busy { .. }) => {} // busy: another has it now
                    Err(error) => return Err(error),
                }
                self.cluster.store().delete(&key(&self.cluster, number)?)?;
            }
            Err(RepoError::LeaseLost { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(self.cluster.store().delete(&key(&self.cluster, self.number)?)?)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.released {
            // Left behind on failure: noticed as a lease of a dead process.
            let _ = self.give_back();
        }
    }
}

/// Stores a lease under its number.
///
/// Errors: [`RepoError::Busy`] when another holder has the number.
fn put(cluster: &Cluster, number: u64, object: &LeaseObject) -> Result<(), RepoError> {
    let plain = serde_json::to_vec(object).expect("texts always serialise");
    let mut body = vec![VERSION];
    cluster.seal_single(&name(number), BoxKind::Lease, &plain, &mut body);
    let Err(error) = cluster.store().put(&key(cluster, number)?, &body) else { return Ok(()) };
    // After an error the object may be there all the same, and then it is ours.
    match read(cluster, number) {
        Ok(Some(there)) if there == *object => Ok(()),
        Ok(Some(other)) if error.is_already_exists() => Err(busy(cluster, &other)),
        _ => Err(error.into()),
    }
}

/// The number after `number`.
fn after(cluster: &Cluster, number: u64) -> Result<u64, RepoError> {
    let next = number.checked_add(1);
    next.ok_or_else(|| RepoError::damaged(format!("lease of {}", cluster.name()), "no number left"))
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

/// Name of a lease, relative to its cluster: to this the object is bound.
fn name(number: u64) -> String {
    format!("lease/{number:012}")
}

fn key(cluster: &Cluster, number: u64) -> Result<Key, RepoError> {
    cluster.key(&name(number))
}

fn list(cluster: &Cluster) -> Result<Vec<u64>, RepoError> {
    let (mut numbers, mut foreign) = (Vec::new(), None);
    let root = format!("clusters/{}/", cluster.name());
    cluster.store().list(&format!("{root}lease/"), &mut |entry| {
        let number = entry.key.name().parse().ok();
        match number.filter(|n| entry.key.as_str().strip_prefix(&root) == Some(&name(*n))) {
            Some(number) => numbers.push(number),
            None => foreign = Some(entry.key),
        }
    })?;
    if let Some(key) = foreign {
        return Err(RepoError::damaged(key.as_str(), "this is not the name of a lease"));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The newest lease; its object is `None` when it went away meanwhile.
fn newest_of(cluster: &Cluster) -> Result<Option<(u64, Option<LeaseObject>)>, RepoError> {
    let newest = list(cluster)?.last().copied();
    newest.map(|number| Ok((number, read(cluster, number)?))).transpose()
}

/// Reads a lease; `None` when it was given back meanwhile.
fn read(cluster: &Cluster, number: u64) -> Result<Option<LeaseObject>, RepoError> {
    let key = key(cluster, number)?;
    let damaged = |what: String| RepoError::damaged(key.as_str(), what);
    let mut body = match cluster.store().get(&key, LEASE_BYTES_MAX) {
        Ok(body) => body,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match body.first() {
        Some(&VERSION) => {}
        Some(version) => {
            return Err(RepoError::TooNew {
                object: key.to_string(),
                found: u32::from(*version),
                known: u32::from(VERSION),
            });
        }
        None => return Err(damaged("it is empty".to_owned())),
    }
    let plain = cluster.open_single(&name(number), BoxKind::Lease, key.as_str(), &mut body[1..])?;
    serde_json::from_slice(plain).map(Some).map_err(|e| damaged(e.to_string()))
}
