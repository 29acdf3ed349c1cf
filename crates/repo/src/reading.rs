//! Notes of who reads backups: what they name is not removed meanwhile.
//!
//! Format and reasons: docs/format/reading.md. A note is one immutable object whose name says until
//! when it counts; who reads on puts a new one and deletes the old. Nobody waits for a reader that
//! is gone: its note lapses.

use std::time::Duration;

use lifeboat_store::Key;
use lifeboat_units::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

use crate::crypt::BoxKind;
use crate::error::RepoError;
use crate::id::{BackupId, hex};
use crate::lease::Holder;
use crate::repository::Cluster;

/// Version byte in front of every note.
const VERSION: u8 = 1;
/// Longest note that is read, in bytes.
const READING_BYTES_MAX: u64 = 64 << 10;
/// A note that lapsed so long ago may be removed, whatever the clocks of its host and ours.
const SWEEP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// No reader's note counts for longer: the longest, and a day for clocks that differ.
const HOLDS_MAX: Duration = Duration::from_secs(48 * 3600);

/// What a reader does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadPurpose {
    /// A restore writes files: over when its process is.
    Restore,
    /// A server that was restored recovers, and asks for WAL: one process for each file.
    Recovery,
}

impl ReadPurpose {
    /// For how long one note counts.
    pub fn holds(self) -> Duration {
        match self {
            Self::Restore => Duration::from_secs(3600),
            Self::Recovery => Duration::from_secs(24 * 3600),
        }
    }

    /// How often a reader puts a new one.
    pub fn renewed_every(self) -> Duration {
        self.holds() / 6
    }

    /// What is done, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Restore => "a restore",
            Self::Recovery => "the recovery of a restored server",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingObject {
    holder: Holder,
    purpose: ReadPurpose,
    backups: Vec<BackupId>,
    since: Timestamp,
}

/// A note that is kept up. Dropping it removes it.
pub struct Reading {
    cluster: Cluster,
    name: String,
    object: ReadingObject,
    left: bool,
}

impl Reading {
    /// Leaves a note. Once it is there, whoever removes backups sees it: what is still listed
    /// *after* this call stays.
    pub fn begin(
        cluster: &Cluster,
        purpose: ReadPurpose,
        backups: &[BackupId],
        clock: &dyn Clock,
    ) -> Result<Self, RepoError> {
        let since = clock.now();
        let holder = Holder::this_process();
        let object = ReadingObject { holder, purpose, backups: backups.to_vec(), since };
        let name = put(cluster, &object, since)?;
        Ok(Self { cluster: cluster.clone(), name, object, left: false })
    }

    /// The name of the note.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts a new note, then removes the old one.
    pub fn renew(&mut self, clock: &dyn Clock) -> Result<(), RepoError> {
        let name = put(&self.cluster, &self.object, clock.now())?;
        let old = std::mem::replace(&mut self.name, name);
        self.cluster.end_reading(&old)
    }

    /// Lets the note lie, and gives its name: another process goes on, and removes it.
    pub fn leave(mut self) -> String {
        self.left = true;
        self.name.clone()
    }

    /// Removes the note.
    pub fn end(mut self) -> Result<(), RepoError> {
        self.left = true;
        self.cluster.end_reading(&self.name)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if !self.left {
            let _ = self.cluster.end_reading(&self.name); // what stays lapses
        }
    }
}

/// A note that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveReading {
    /// Its name.
    pub name: String,
    /// Until when it counts, by the reader's clock.
    pub until: Timestamp,
    /// The backups that are read.
    pub backups: Vec<BackupId>,
    /// What is done.
    pub purpose: ReadPurpose,
    /// Who does it: process and host.
    pub who: String,
}

/// All notes of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readings {
    /// Those that count.
    pub live: Vec<LiveReading>,
    /// Those that would count and cannot be read: name, until when, why.
    pub unreadable: Vec<(String, Timestamp, String)>,
    /// Those that cannot be opened and say that they count for longer than any reader's does: they
    /// hold nothing. Name, why.
    pub forged: Vec<(String, String)>,
    /// Those that nobody will ever look at again.
    pub stale: Vec<Key>,
}

impl Cluster {
    /// Removes a note that was left under this name; one that is gone is no error.
    pub fn end_reading(&self, name: &str) -> Result<(), RepoError> {
        match until_of(name) {
            Some(_) => Ok(self.store().delete(&self.key(name)?)?),
            None => Err(RepoError::damaged(name, "this is not the name of a note")),
        }
    }

    /// Reads the notes. Names that are none count for nothing; verification notes them.
    pub fn readings(&self, now: Timestamp) -> Result<Readings, RepoError> {
        let root = format!("clusters/{}/", self.name());
        let mut keys = Vec::new();
        self.store().list(&format!("{root}reading/"), &mut |entry| keys.push(entry.key))?;
        keys.sort_unstable();
        let me = Holder::this_process();
        let mut found = Readings::default();
        for key in keys {
            let name = key.as_str().strip_prefix(&root).unwrap_or_default().to_owned();
            let Some(until) = until_of(&name) else { continue };
            if until <= now {
                if now.duration_since(until).unsigned_abs() >= SWEEP_AFTER {
                    found.stale.push(key);
                }
                continue;
            }
            match read(self, &name) {
                Ok(object) if object.is_over(&me) => found.stale.push(key),
                Ok(ReadingObject { holder, purpose, backups, .. }) => {
                    let who = format!("process {} on {}", holder.pid, holder.host);
                    found.live.push(LiveReading { name, until, backups, purpose, who });
                }
                Err(error) if error.is_not_found() => {} // removed since it was listed
                Err(error @ RepoError::Damaged { .. }) if is_too_far(until, now) => {
                    found.forged.push((name, error.to_string()));
                }
                Err(error @ (RepoError::Damaged { .. } | RepoError::TooNew { .. })) => {
                    found.unreadable.push((name, until, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

impl ReadingObject {
    /// Whether it is certain that nobody reads any more, although the note has not lapsed.
    fn is_over(&self, me: &Holder) -> bool {
        self.purpose == ReadPurpose::Restore && self.holder.certainly_died(me)
    }
}

fn is_too_far(until: Timestamp, now: Timestamp) -> bool {
    now.checked_add(HOLDS_MAX).is_ok_and(|last| until > last)
}

/// Until when the note of this name counts; `None` when the name is that of no note.
pub fn until_of(name: &str) -> Option<Timestamp> {
    // A backup's identifier has the same form: a second in UTC that exists, and 32 random bits.
    name.strip_prefix("reading/")?.parse::<BackupId>().ok()?.began_at()
}

/// Stores a note that counts from now on, and gives its name.
fn put(cluster: &Cluster, object: &ReadingObject, now: Timestamp) -> Result<String, RepoError> {
    let until = now.checked_add(object.purpose.holds()).unwrap_or(Timestamp::MAX);
    let mut random = [0; 4];
    cluster.repository().entropy().fill(&mut random);
    let name = format!("reading/{}-{}", until.strftime("%Y%m%dT%H%M%SZ"), hex(&random));
    let plain = serde_json::to_vec(object).expect("texts always serialise");
    let mut body = vec![VERSION];
    cluster.seal_single(&name, BoxKind::Reading, &plain, &mut body);
    cluster.store().put(&cluster.key(&name)?, &body)?;
    Ok(name)
}

fn read(cluster: &Cluster, name: &str) -> Result<ReadingObject, RepoError> {
    let key = cluster.key(name)?;
    let damaged = |what: String| RepoError::damaged(key.as_str(), what);
    let mut body = cluster.store().get(&key, READING_BYTES_MAX)?;
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
    let plain = cluster.open_single(name, BoxKind::Reading, key.as_str(), &mut body[1..])?;
    serde_json::from_slice(plain).map_err(|error| damaged(error.to_string()))
}
