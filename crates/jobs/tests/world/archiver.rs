//! The server's archiver: pushes finished segments in order, again and again until each is in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_engine::{Lsn, SegmentName};
use lifeboat_jobs::Ports;
use lifeboat_jobs::wal::{self, PushSettings};
use lifeboat_repo::Cluster;
use lifeboat_store::MemoryStore;
use lifeboat_testkit::toy_server::{SharedServer, lock};
use lifeboat_testkit::{Fault, FaultyStore, Schedule, SimClock, ToyEngine};
use lifeboat_units::{Cancel, Clock, Entropy, Silent, Timestamp};

use super::random::Random;
use super::reopen;

/// Pushes finished segments. Every push is a process of its own.
pub struct Archiver {
    pub store: MemoryStore,
    pub cluster: Cluster,
    pub entropy: Arc<dyn Entropy>,
    pub clock: SimClock,
    pub server: SharedServer,
    pub random: Mutex<Random>,
    /// How often the store fails under a push.
    pub fails_one_in: Mutex<Option<u64>>,
    /// What was acknowledged so far.
    pub archived: Mutex<Archived>,
}

/// What was acknowledged.
#[derive(Debug, Default, Clone)]
pub struct Archived {
    pub segments: Vec<SegmentName>,
    /// End of the last record in them.
    pub end: Lsn,
    /// When the server finished the last one.
    pub written_at: Option<Timestamp>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Archiver {
    /// Pushes what waits, until a push fails. Whether nothing waits any more.
    pub fn run(&self) -> bool {
        loop {
            let Some(name) = lock(&self.server).ready() else { return true };
            if !self.push(name) {
                return false;
            }
            let mut server = lock(&self.server);
            let written = std::fs::metadata(server.segment_path(name)).unwrap().modified().unwrap();
            server.archived().unwrap();
            let size = lifeboat_testkit::toy::segment_size();
            let after = name.number(size).unwrap().end(size);
            let inside = server.history().iter().rev().find(|logged| logged.end <= after);
            let mut archived = locked(&self.archived);
            archived.segments.push(name);
            archived.end = inside.unwrap().end;
            archived.written_at = Some(written.try_into().unwrap());
        }
    }

    fn push(&self, name: SegmentName) -> bool {
        let schedule = {
            let mut random = locked(&self.random);
            match *locked(&self.fails_one_in) {
                Some(n) if random.one_in(n) => {
                    Schedule::At(random.below(6), *random.pick(&Fault::ALL).unwrap())
                }
                _ => Schedule::None,
            }
        };
        let path = lock(&self.server).segment_path(name);
        let store = FaultyStore::new(self.store.clone(), schedule);
        let pushed = reopen(&self.cluster, store.clone(), &self.entropy).map(|cluster| {
            let ports = Ports {
                cluster: &cluster,
                engine: &ToyEngine,
                clock: &self.clock,
                progress: &Silent,
                cancel: &Cancel::default(),
            };
            wal::push(&ports, &PushSettings::default(), &path)
        });
        let error = match pushed {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(store.fault_was_hit(), "a push fails without a reason: {error}");
        false
    }
}

/// The clock of whoever waits for the archiver: while they wait, it runs.
pub struct ArchivingClock<'a> {
    pub clock: &'a SimClock,
    pub archiver: &'a Archiver,
}

impl Clock for ArchivingClock<'_> {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration);
        self.archiver.run();
    }
}
