//! A toy server, a repository in memory, and real jobs between them: what the simulation and the
//! tests of backup and restore share.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod archiver;
pub mod random;
pub mod request;
pub mod restored;
pub mod warnings;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_engine::{Engine, SystemId};
use lifeboat_jobs::Ports;
use lifeboat_jobs::backup::{self, BackupError, BackupReport, BackupSettings};
use lifeboat_repo::{Cluster, Compression, Protection, RepoError, Repository};
use lifeboat_store::{MemoryStore, Store};
use lifeboat_testkit::toy_log::{Change, PAGE_BYTES};
use lifeboat_testkit::toy_server::{Hints, Moment, SharedServer, lock};
use lifeboat_testkit::{SimClock, ToyEngine, ToyOrigin, ToyServer, toy};
use lifeboat_units::{Cancel, Clock, Entropy, Silent};

use archiver::{Archiver, ArchivingClock};
use random::{Random, SeededEntropy};

pub const SYSTEM: SystemId = SystemId(7_000_000_000_000_000_001);

/// One server and its repository.
pub struct World {
    pub store: MemoryStore,
    pub cluster: Cluster,
    pub clock: SimClock,
    pub server: SharedServer,
    pub archiver: Arc<Archiver>,
    pub cancel: Cancel,
    entropy: Arc<dyn Entropy>,
    /// Data directory and restored directories, in memory where there is such a place.
    pub home: tempfile::TempDir,
}

/// A directory for a test, in memory where there is such a place.
pub fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("lifeboat-toy-").tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

impl World {
    pub fn new(mut random: Random) -> Self {
        let home = directory();
        let clock = SimClock::default();
        let store = MemoryStore::new();
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy(Mutex::new(random.fork())));
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let made = Repository::create(shared, &Protection::Open, clock.now(), entropy.clone());
        let cluster = made.unwrap().cluster("main".parse().unwrap());
        let cluster = cluster.with_log_transforms(toy::log_transforms());
        let server = ToyServer::create(&home.path().join("data"), SYSTEM).unwrap();
        let server = Arc::new(Mutex::new(server));
        let archiver = Archiver {
            store: store.clone(),
            cluster: cluster.clone(),
            entropy: entropy.clone(),
            clock: clock.clone(),
            server: Arc::clone(&server),
            random: Mutex::new(random.fork()),
            fails_one_in: Mutex::new(None),
            archived: Mutex::default(),
        };
        let archiver = Arc::new(archiver);
        Self { store, cluster, clock, server, archiver, cancel: Cancel::default(), entropy, home }
    }

    /// The same server with a copy of the repository that goes its own way.
    pub fn fork(&self) -> Self {
        let store = MemoryStore::from_snapshot(self.store.snapshot());
        let cluster = self.through(store.clone()).unwrap();
        let archiver = Archiver {
            store: store.clone(),
            cluster: cluster.clone(),
            entropy: self.entropy.clone(),
            clock: self.clock.clone(),
            server: Arc::clone(&self.server),
            random: Mutex::new(Random(1)),
            fails_one_in: Mutex::new(None),
            archived: Mutex::default(),
        };
        Self {
            store,
            cluster,
            clock: self.clock.clone(),
            server: Arc::clone(&self.server),
            archiver: Arc::new(archiver),
            cancel: Cancel::default(),
            entropy: self.entropy.clone(),
            home: directory(),
        }
    }

    /// Changes pages in one transaction.
    pub fn commit(&self, changes: Vec<Change>) -> u32 {
        self.clock.advance(Duration::from_secs(1));
        lock(&self.server).transaction(changes, self.clock.now()).unwrap()
    }

    /// Finishes a segment and archives it.
    pub fn archive(&self) {
        lock(&self.server).switch(self.clock.now()).unwrap();
        assert!(self.archiver.run());
    }

    /// The repository as a new process finds it, through another store.
    pub fn through(&self, store: impl Store + 'static) -> Result<Cluster, RepoError> {
        reopen(&self.cluster, store, &self.entropy)
    }

    pub fn ports(&self) -> Ports<'_> {
        self.ports_of(&self.cluster, &ToyEngine, &self.clock)
    }

    pub fn ports_of<'a>(
        &'a self,
        cluster: &'a Cluster,
        engine: &'a dyn Engine,
        clock: &'a dyn Clock,
    ) -> Ports<'a> {
        Ports { cluster, engine, clock, progress: &Silent, cancel: &self.cancel }
    }

    /// Takes a backup of a quiet server.
    pub fn backup(&self) -> Result<BackupReport, BackupError> {
        self.backup_with(&self.cluster, &ToyEngine, |_| {})
    }

    /// Takes a backup of a server at which something happens meanwhile.
    pub fn backup_with(
        &self,
        cluster: &Cluster,
        engine: &dyn Engine,
        meanwhile: impl FnMut(Moment) + Send,
    ) -> Result<BackupReport, BackupError> {
        self.backup_as(cluster, engine, meanwhile, (Hints::True, settings()))
    }

    /// Takes a backup of a server that says this of its changes.
    pub fn backup_as(
        &self,
        cluster: &Cluster,
        engine: &dyn Engine,
        meanwhile: impl FnMut(Moment) + Send,
        (hints, settings): (Hints, BackupSettings),
    ) -> Result<BackupReport, BackupError> {
        let clock = ArchivingClock { clock: &self.clock, archiver: &self.archiver };
        let archiver = || {
            self.archiver.run();
        };
        let origin = ToyOrigin::new(&self.server, &self.clock, archiver);
        let mut origin = origin.with_meanwhile(meanwhile).with_hints(hints);
        backup::run(&self.ports_of(cluster, engine, &clock), &mut origin, &settings)
    }

    /// Writes to the server as `random` says.
    pub fn write(&self, random: &mut Random) {
        write(&self.server, &self.clock, random);
    }
}

pub fn reopen(
    like: &Cluster,
    store: impl Store + 'static,
    entropy: &Arc<dyn Entropy>,
) -> Result<Cluster, RepoError> {
    let keyring = like.repository().keyring().clone();
    let repository = Repository::open(Arc::new(store), keyring, entropy.clone())?;
    let cluster = repository.cluster(like.name().clone());
    Ok(cluster.with_log_transforms(like.log_transforms().clone()))
}

pub fn settings() -> BackupSettings {
    BackupSettings {
        jobs: 1,
        compression: Compression::Zstd(1),
        note: None,
        archive_timeout: Duration::from_secs(120),
        full_read: false,
        sweep_of: 14,
    }
}

/// A change of one page to something new.
pub fn change(random: &mut Random, file: u32, page_number: u32) -> Change {
    Change::Page { file, page: page_number, bytes: page(random) }
}

/// A page that is like no other.
pub fn page(random: &mut Random) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_BYTES);
    while page.len() < PAGE_BYTES {
        page.extend_from_slice(&random.draw().to_le_bytes());
        page.extend_from_slice(b"and then");
    }
    page
}

/// One transaction of a few changes. No two end at the same time: which of them a moment
/// includes would be anybody's guess.
pub fn write(server: &SharedServer, clock: &SimClock, random: &mut Random) {
    clock.advance(Duration::from_millis(1));
    let changes = (0..1 + random.below(6)).map(|_| {
        let file = random.below(6) as u32;
        match random.below(24) {
            0 => Change::Remove { file },
            1 | 2 => Change::Truncate { file, pages: random.below(40) as u32 },
            _ => Change::Page { file, page: random.below(60) as u32, bytes: page(random) },
        }
    });
    lock(server).transaction(changes.collect(), clock.now()).unwrap();
}
