//! What happens in a history: one act a tick.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_engine::PageVerdict;
use lifeboat_jobs::backup::{BackupError, BackupSettings};
use lifeboat_jobs::facts::{BackupFacts, DamagedPage};
use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::restore::{RESTORING_MARK, Target};
use lifeboat_jobs::retention::{self, RetentionError};
use lifeboat_repo::{BackupId, Cluster, RepoError, lease};
use lifeboat_store::MemoryStore;
use lifeboat_testkit::toy_server::{Hints, Moment, lock};
use lifeboat_testkit::{Fault, FaultyStore, HookedEngine, Schedule, ToyEngine, toy};
use lifeboat_units::Clock;

use crate::model::{Model, policy};
use crate::world::random::Random;
use crate::world::{World, settings};

/// One history.
pub struct Simulation {
    pub random: Random,
    pub world: Arc<World>,
    pub model: Arc<Mutex<Model>>,
    pub mix: Mix,
    pub points: u64,
}

/// Which trouble there is. The seed draws it: some faults are only seen without others.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// A process in so many meets a failing store.
    pub faults: Option<u64>,
    pub clock_steps: bool,
    pub busy_server: bool,
    pub takeovers: bool,
    /// The server may leave a file out when it says what changed.
    pub lies: bool,
}

pub fn locked(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mix = Mix {
            faults: [None, Some(4), Some(2)][random.below(3) as usize],
            clock_steps: random.one_in(3),
            busy_server: !random.one_in(4),
            takeovers: random.one_in(2),
            lies: random.one_in(3),
        };
        let world = World::new(random.fork());
        *world.archiver.fails_one_in.lock().unwrap() = mix.faults;
        let model = Arc::default();
        Self { random, world: Arc::new(world), model, mix, points: 0 }
    }

    pub fn tick(&mut self, _tick: u32) {
        self.world.clock.advance(Duration::from_millis(self.random.below(90_000)));
        match self.random.below(20) {
            0..6 => self.write(),
            6..8 => self.switch(),
            8..12 => self.backup(),
            12..14 => self.expire(),
            14..16 => self.restore_through_a_failing_store(),
            16 => self.wal_arrives_between_restore_and_recovery(),
            17 => self.step_the_clock(),
            _ => self.world.clock.advance(Duration::from_secs(3600 * (1 + self.random.below(30)))),
        }
    }

    fn write(&mut self) {
        for _ in 0..1 + self.random.below(4) {
            self.world.write(&mut self.random);
            self.world.clock.advance(Duration::from_millis(self.random.below(3_000)));
        }
        if self.random.one_in(2) {
            self.points += 1;
            let name = format!("point {}", self.points);
            lock(&self.world.server).restore_point(&name, self.world.clock.now()).unwrap();
        }
    }

    /// A segment is finished; the archiver may run at once, later, or fail.
    fn switch(&mut self) {
        lock(&self.world.server).switch(self.world.clock.now()).unwrap();
        if !self.random.one_in(3) {
            self.world.archiver.run();
        }
    }

    fn schedule(&mut self, calls: u64) -> Schedule {
        match self.mix.faults {
            Some(n) if self.random.one_in(n) => {
                let fault = *self.random.pick(&Fault::ALL).unwrap();
                Schedule::At(self.random.below(calls), fault)
            }
            _ => Schedule::None,
        }
    }

    /// A new process on a store that may fail.
    fn process(&mut self, calls: u64) -> (FaultyStore<MemoryStore>, Option<Cluster>) {
        let schedule = self.schedule(calls);
        let store = FaultyStore::new(self.world.store.clone(), schedule);
        let cluster = self.world.through(store.clone()).ok();
        assert!(cluster.is_some() || store.fault_was_hit());
        (store, cluster)
    }

    /// Waits until a lease that was left behind has lapsed.
    fn wait_for_the_lease(&mut self) {
        let mut model = locked(&self.model);
        assert!(model.lease_left, "the lease is held although nobody left it");
        model.lease_left = false;
        self.world.clock.advance(lease::LAPSE);
    }

    fn backup(&mut self) {
        let (store, cluster) = self.process(70);
        let Some(cluster) = cluster else { return };
        let taken_over = Arc::new(Mutex::new(false));
        let engine = self.engine(&taken_over);
        let (mut random, world) = (self.random.fork(), Arc::clone(&self.world));
        let busy = self.mix.busy_server;
        let meanwhile = |_: Moment| {
            if busy && random.one_in(2) {
                world.write(&mut random);
                world.clock.advance(Duration::from_millis(random.below(500)));
            }
        };
        let (hints, settings) = self.reading();
        let lying = matches!(hints, Hints::Forget(_));
        let result = self.world.backup_as(&cluster, &engine, meanwhile, (hints, settings));
        let taken_over = *taken_over.lock().unwrap();
        match result {
            Ok(report) => {
                assert!(!taken_over, "a backup that lost its lease was listed");
                let reading = report.reading.as_ref().unwrap();
                let named = self.faults_of(report.compared_with);
                let named = |fault: &DamagedPage| {
                    named.iter().any(|old| (&old.path, old.page) == (&fault.path, fault.page))
                };
                for fault in reading.faults.iter().filter(|fault| !lying && !named(fault)) {
                    // A page that was cut off and came back as zeros since the backup began
                    // cannot be told from one that was lost.
                    let lost = fault.what.contains("zeros") || fault.what.contains("hole");
                    assert!(busy && lost, "no reason for a fault: {fault:?}");
                }
                let mut model = locked(&self.model);
                model.taken.insert(report.id);
            }
            Err(BackupError::Repo(RepoError::Busy { .. })) => self.wait_for_the_lease(),
            Err(error) => {
                locked(&self.model).lease_left = true;
                assert!(store.fault_was_hit() || taken_over, "no reason to fail: {error}");
            }
        }
    }

    /// What a backup found that nothing had told of: the next one names what is lost still.
    fn faults_of(&self, backup: Option<BackupId>) -> Vec<DamagedPage> {
        let manifest = backup.and_then(|id| self.world.cluster.manifest(id).ok());
        let facts = manifest.map(|manifest| BackupFacts::of(&manifest).unwrap());
        facts.and_then(|facts| facts.reading).map(|reading| reading.faults).unwrap_or_default()
    }

    /// What the server says of its changes. Where it may lie, the sweep reads everything: a lie
    /// that is not yet due makes a wrong backup, which nothing here could tell from a fault.
    fn reading(&mut self) -> (Hints, BackupSettings) {
        let sweep_of = if self.mix.lies { 1 } else { 1 + self.random.below(14) as u32 };
        let hints = match self.random.below(4) {
            0 => Hints::None,
            1 if self.mix.lies => Hints::Forget(self.random.below(6) as u32),
            _ => Hints::True,
        };
        let full_read = self.random.one_in(10);
        (hints, BackupSettings { full_read, sweep_of, ..settings() })
    }

    /// While pages are read, the server writes; once in a while the whole process freezes, and
    /// another host takes over.
    fn engine(&mut self, taken_over: &Arc<Mutex<bool>>) -> HookedEngine {
        let freeze = (self.mix.takeovers && self.random.one_in(4)).then(|| self.random.below(40));
        let state = Mutex::new((self.random.fork(), 0));
        let (world, model) = (Arc::clone(&self.world), Arc::clone(&self.model));
        let (busy, taken_over) = (self.mix.busy_server, Arc::clone(taken_over));
        HookedEngine::at_pages(Arc::new(move |_, _| -> Option<PageVerdict> {
            let mut state = state.lock().unwrap();
            let (random, pages) = &mut *state;
            *pages += 1;
            if busy && random.one_in(8) {
                world.write(random);
            }
            if freeze == Some(*pages) {
                world
                    .clock
                    .advance(Duration::from_secs([3600, 30 * 3600][random.below(2) as usize]));
                let ran = expire(&world, &world.cluster, &model, random);
                ran.unwrap_or_else(|e| panic!("a lapsed lease is not taken over: {e}"));
                *taken_over.lock().unwrap() = true;
            }
            None
        }))
    }

    fn expire(&mut self) {
        let (store, cluster) = self.process(60);
        let Some(cluster) = cluster else { return };
        match expire(&self.world, &cluster, &self.model, &mut self.random) {
            Ok(()) => {}
            Err(RetentionError::Repo(RepoError::Busy { .. })) => self.wait_for_the_lease(),
            Err(error) => {
                locked(&self.model).lease_left = true;
                assert!(store.fault_was_hit(), "no reason to fail: {error}");
            }
        }
    }

    fn step_the_clock(&mut self) {
        if self.mix.clock_steps {
            let back = self.random.one_in(2);
            self.world.clock.step(if back { -3600 } else { 3600 });
            locked(&self.model).stepped_back |= back;
        }
    }

    /// Either it fails, or it is right; and it succeeds when it is repeated in the same place.
    fn restore_through_a_failing_store(&mut self) {
        let Some((target, expected)) = self.moment() else { return };
        let (store, cluster) = self.process(50);
        let Some(cluster) = cluster else { return };
        let into = self.world.fresh();
        match self.world.restore(&cluster, &into, target.clone()) {
            Ok(_) => match self.world.recover(&cluster, &into) {
                Ok(files) => assert!(expected.contains(&files), "{target:?}"),
                Err(error) => assert!(store.fault_was_hit(), "{target:?}: {error}"),
            },
            Err(error) => {
                assert!(store.fault_was_hit(), "{target:?}: {error}");
                assert!(!into.join(toy::CONTROL_FILE).exists());
                assert!(!into.exists() || into.join(RESTORING_MARK).exists());
                self.world.restore(&self.world.cluster, &into, target.clone()).unwrap();
                let files = self.world.recover(&self.world.cluster, &into).unwrap();
                assert!(expected.contains(&files), "{target:?} after {error}");
            }
        }
        fs::remove_dir_all(&into).unwrap();
    }

    /// A moment that was asked for by time stays that moment, whatever is archived later.
    fn wal_arrives_between_restore_and_recovery(&mut self) {
        let Some((target, expected)) = self.moment() else { return };
        let into = self.world.fresh();
        self.world.restore(&self.world.cluster, &into, target.clone()).unwrap();
        self.write();
        lock(&self.world.server).switch(self.world.clock.now()).unwrap();
        self.world.archiver.run();
        let files = self.world.recover(&self.world.cluster, &into).unwrap();
        if target != Target::Latest {
            assert!(expected.contains(&files), "{target:?}");
        }
        fs::remove_dir_all(&into).unwrap();
    }
}

/// Plans and applies retention by a policy that is drawn.
fn expire(
    world: &World,
    cluster: &Cluster,
    model: &Mutex<Model>,
    random: &mut Random,
) -> Result<(), RetentionError> {
    let policy = match random.below(3) {
        0 => policy(Some(1 + random.below(3) as u32), None),
        1 => policy(None, Some(1 + random.below(60))),
        _ => policy(Some(1 + random.below(3) as u32), Some(1 + random.below(60))),
    };
    let ports = world.ports_of(cluster, &ToyEngine, &world.clock);
    let inventory = Inventory::load(cluster, &ToyEngine).map_err(RetentionError::Inventory)?;
    let plan = retention::plan(&inventory, &policy, world.clock.now());
    locked(model).expire(&inventory, &policy, &plan);
    retention::apply(&ports, &plan).map(drop)
}
