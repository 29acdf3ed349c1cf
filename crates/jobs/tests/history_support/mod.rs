//! A repository in memory with a toy history in it, shared by the tests of WAL, verification and
//! retention.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod between;

use std::sync::Arc;

use lifeboat_engine::{LogFacts, LogFile, Lsn, SegmentName, SegmentNo, SystemId, TimelineId};
use lifeboat_jobs::Ports;
use lifeboat_jobs::facts::{ArchivedFacts, BackupFacts, StoredFile};
use lifeboat_repo::{BackupId, Cluster, Compression, Fact, Manifest};
use lifeboat_store::{Key, MemoryStore, Store};
use lifeboat_testkit::toy::{self, ToyBackup};
use lifeboat_testkit::{SimClock, ToyEngine};
use lifeboat_units::{Cancel, Clock, Silent, Timestamp};

pub const SYSTEM: SystemId = SystemId(7_000_000_000_000_000_001);
pub const PAGE: u32 = 512;

/// The second at which day `n` of the history begins.
pub fn day(n: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + n * 86_400).unwrap()
}

/// The identifier of the backup of day `n`.
pub fn backup_id(n: i64) -> BackupId {
    format!("{}-{n:08x}", day(n).strftime("%Y%m%dT%H%M%SZ")).parse().unwrap()
}

pub struct World {
    pub store: MemoryStore,
    pub cluster: Cluster,
    pub clock: SimClock,
    pub cancel: Cancel,
}

impl World {
    pub fn new() -> Self {
        let store = MemoryStore::new();
        let cluster = toy::repository(Arc::new(store.clone()), day(0));
        Self { store, cluster, clock: SimClock::new(day(0)), cancel: Cancel::default() }
    }

    /// A copy of everything, which goes its own way.
    pub fn fork(&self) -> Self {
        let store = MemoryStore::new();
        for (key, body) in self.objects() {
            store.put(&Key::new(key).unwrap(), &body).unwrap();
        }
        let cluster = self.through(store.clone());
        Self { store, cluster, clock: SimClock::new(self.clock.now()), cancel: Cancel::default() }
    }

    pub fn ports(&self) -> Ports<'_> {
        self.ports_of(&self.cluster)
    }

    pub fn ports_of<'a>(&'a self, cluster: &'a Cluster) -> Ports<'a> {
        Ports {
            cluster,
            engine: &ToyEngine,
            clock: &self.clock,
            progress: &Silent,
            cancel: &self.cancel,
        }
    }

    /// The same repository through another store.
    pub fn through(&self, store: impl Store + 'static) -> Cluster {
        toy::reopen(&self.cluster, Arc::new(store)).unwrap()
    }

    /// A backup of day `n` on timeline 1 from segment `start` to `start + 1`.
    pub fn backup(
        &self,
        n: i64,
        start: u64,
        files: &[(&str, Vec<u8>)],
        previous: Option<&Manifest>,
    ) -> Manifest {
        self.backup_with(n, start, files, previous, |_| {})
    }

    pub fn backup_with(
        &self,
        n: i64,
        start: u64,
        files: &[(&str, Vec<u8>)],
        previous: Option<&Manifest>,
        change: impl FnOnce(&mut BackupFacts),
    ) -> Manifest {
        let size = toy::segment_size();
        let mut facts = BackupFacts {
            engine: "toy".to_owned(),
            server_version: "1".to_owned(),
            identity: toy::identity(SYSTEM, PAGE),
            timeline: TimelineId(1),
            start_lsn: Lsn(SegmentNo(start).start(size).0 + 40),
            stop_lsn: Lsn(SegmentNo(start + 1).start(size).0 + 80),
            started_at: day(n),
            stopped_at: day(n),
            note: None,
            directories: Vec::new(),
            tablespaces: Vec::new(),
            generated: Vec::new(),
            control_file: StoredFile::new(toy::CONTROL_FILE, b"control"),
            damage: Vec::new(),
            damaged_pages: 0,
            proven: false,
            reading: None,
        };
        change(&mut facts);
        let id = backup_id(n);
        let facts = serde_json::to_value(facts).unwrap();
        let toy = ToyBackup { id, page_bytes: PAGE, files, previous, facts };
        let manifest = toy::write_backup(&self.cluster, toy).unwrap();
        self.cluster.record(day(n), Fact::BackupAdded { id }).unwrap();
        manifest
    }

    /// Archives segments of a timeline, both ends inclusive, on day `n`.
    pub fn archive(&self, n: i64, timeline: u32, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            let log = LogFacts { last_commit: Some(day(n)), ..LogFacts::default() };
            self.archive_with(n, toy::segment_name(timeline, number), log);
        }
    }

    /// Archives a segment of which this is known, on day `n`.
    pub fn archive_with(&self, n: i64, name: SegmentName, log: LogFacts) {
        let content = toy::segment(SYSTEM, name, &log);
        let facts = ArchivedFacts {
            system: Some(SYSTEM),
            segment: Some(toy::segment_size()),
            log: Some(log),
            written_at: None,
            ancestry: None,
        };
        self.push(n, LogFile::Segment(name), &content, &facts);
    }

    pub fn archive_history(&self, n: i64, timeline: u32, ancestors: &[(u32, Lsn)]) {
        let facts = ArchivedFacts {
            system: None,
            segment: None,
            log: None,
            written_at: None,
            ancestry: None,
        };
        let file = LogFile::History(TimelineId(timeline));
        self.push(n, file, &toy::history(ancestors), &facts);
    }

    fn push(&self, n: i64, file: LogFile, content: &[u8], facts: &ArchivedFacts) {
        let facts = serde_json::to_value(facts).unwrap();
        let place = toy::place(SYSTEM, file);
        self.cluster.push_log(&place, content, Compression::Zstd(1), day(n), facts).unwrap();
    }

    /// Every object and its content.
    pub fn objects(&self) -> std::collections::BTreeMap<String, Vec<u8>> {
        let mut keys = Vec::new();
        self.store.list("", &mut |entry| keys.push(entry.key)).unwrap();
        keys.into_iter().map(|k| (k.to_string(), self.store.get(&k, 1 << 30).unwrap())).collect()
    }
}

/// A file of pages that differ by `seed`.
pub fn pages(count: usize, seed: u8) -> Vec<u8> {
    (0..count * PAGE as usize).map(|i| (i / PAGE as usize) as u8 ^ (i as u8) ^ seed).collect()
}
