//! The journal of a cluster: facts that outlive backups. What was added, removed, lost.
//!
//! Format: docs/format/journal.md. With it a backup that vanished is told from one that expired.

use lifeboat_store::Key;
use lifeboat_units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypt::BoxKind;
use crate::error::RepoError;
use crate::id::{BackupId, hex};
use crate::repository::Cluster;

/// Version byte in front of every event. A new kind of fact raises it: an event has the version
/// that first knew its kind, so that older programs refuse only what they cannot know.
const VERSION: u8 = 1;
/// The version that first knew [`Fact::SystemContinued`], and the newest that is read.
const VERSION_CONTINUED: u8 = 2;
/// Longest event that is read, in bytes.
const EVENT_BYTES_MAX: u64 = 64 << 10;

/// From so many events on they are read on several threads: on a file server it is the waiting that
/// costs, not the work.
const EVENTS_ALONE_MAX: usize = 64;
/// Threads that read events.
const READERS: usize = 8;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When, by lifeboat's clock.
    pub at: Timestamp,
    /// What.
    pub fact: Fact,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Fact {
    /// A backup was listed.
    BackupAdded {
        /// The backup.
        id: BackupId,
    },
    /// A backup was removed on purpose.
    BackupRemoved {
        /// The backup.
        id: BackupId,
        /// Why.
        reason: String,
    },
    /// Log files were removed on purpose: all of this timeline below a position.
    LogRemoved {
        /// The system.
        system: String,
        /// The timeline.
        timeline: u32,
        /// The first file that was kept; everything before it is gone.
        before: String,
    },
    /// Log files were given up: a gap.
    LogGap {
        /// The system.
        system: String,
        /// The timeline.
        timeline: u32,
        /// First file that is missing.
        first: String,
        /// Last file that is missing.
        last: String,
        /// Why.
        reason: String,
    },
    /// From now on another system is this cluster, as after an upgrade to a new major version.
    SystemContinued {
        /// The system that was the cluster.
        from: String,
        /// The system that is the cluster.
        to: String,
    },
}

impl Fact {
    fn version(&self) -> u8 {
        match self {
            Self::SystemContinued { .. } => VERSION_CONTINUED,
            _ => VERSION,
        }
    }
}

/// An event and the name of its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The object.
    pub key: Key,
    /// The event.
    pub event: Event,
}

impl Cluster {
    /// Records an event.
    pub fn record(&self, at: Timestamp, fact: Fact) -> Result<(), RepoError> {
        let mut random = [0; 4];
        self.repository().entropy().fill(&mut random);
        let name = format!("journal/{}-{}", at.strftime("%Y%m%dT%H%M%S%.6fZ"), hex(&random));
        let mut body = vec![fact.version()];
        let plain = serde_json::to_vec(&Event { at, fact }).expect("texts always serialise");
        self.seal_single(&name, BoxKind::Event, &plain, &mut body);
        if body.len() as u64 > EVENT_BYTES_MAX {
            return Err(RepoError::damaged(name, "it would be longer than an event can be"));
        }
        Ok(self.store().put(&self.key(&name)?, &body)?)
    }

    /// All events, oldest first.
    pub fn journal(&self) -> Result<Vec<Recorded>, RepoError> {
        self.read_events(self.journal_keys()?).into_iter().map(|(_, read)| read).collect()
    }

    /// Reads events, in the order of their names: each by itself, so that one that is damaged does
    /// not cost the others.
    pub fn read_events(&self, keys: Vec<Key>) -> Vec<(Key, Result<Recorded, RepoError>)> {
        let read = |keys: &[Key]| -> Vec<_> {
            keys.iter().map(|key| (key.clone(), self.read_event(key.clone()))).collect()
        };
        if keys.len() <= EVENTS_ALONE_MAX {
            return read(&keys);
        }
        std::thread::scope(|scope| {
            let parts = keys.chunks(keys.len().div_ceil(READERS));
            let readers: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
            let joined = readers.into_iter().map(|reader| reader.join().expect("it cannot panic"));
            joined.flatten().collect()
        })
    }

    /// Names of all events, oldest first; for a reader that goes on after a damaged one.
    pub fn journal_keys(&self) -> Result<Vec<Key>, RepoError> {
        let prefix = format!("clusters/{}/journal/", self.name());
        let mut keys = Vec::new();
        self.store().list(&prefix, &mut |entry| keys.push(entry.key))?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// Reads one event.
    pub fn read_event(&self, key: Key) -> Result<Recorded, RepoError> {
        let mut body = self.store().get(&key, EVENT_BYTES_MAX)?;
        let damaged = |what: &str| RepoError::damaged(key.as_str(), what);
        match body.first() {
            Some(&(VERSION | VERSION_CONTINUED)) => {}
            Some(version) => {
                return Err(RepoError::TooNew {
                    object: key.to_string(),
                    found: u32::from(*version),
                    known: u32::from(VERSION_CONTINUED),
                });
            }
            None => return Err(damaged("it is empty")),
        }
        let name = format!("journal/{}", key.name());
        let plain = self.open_single(&name, BoxKind::Event, key.as_str(), &mut body[1..])?;
        let event = serde_json::from_slice(plain).map_err(|e| damaged(&e.to_string()))?;
        Ok(Recorded { key, event })
    }
}
