//! What must hold after every tick, and what must come to pass when the trouble ends.

use std::time::Duration;

use lifeboat_engine::Lsn;
use lifeboat_jobs::facts::BackupFacts;
use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::restore::{RestoreError, Target};
use lifeboat_jobs::retention;
use lifeboat_jobs::verify::{self, VerifySettings};
use lifeboat_repo::lease;
use lifeboat_testkit::toy_log::{Files, Record};
use lifeboat_testkit::toy_server::lock;
use lifeboat_testkit::{ToyEngine, ToyServer, toy};
use lifeboat_units::{Clock, Timestamp};

use crate::acts::{Simulation, locked};
use crate::model::{Floor, policy};

impl Simulation {
    /// Every promise made so far still holds.
    pub fn check_invariants(&mut self) {
        self.check_backups(2);
        for _ in 0..2 {
            if let Some((target, expected)) = self.moment() {
                let files = self.world.content_at(target.clone());
                let files = files.unwrap_or_else(|e| panic!("{target:?} is lost: {e}"));
                assert!(expected.contains(&files), "{target:?} has another content");
            }
        }
        self.check_refusals();
        self.check_the_uncertain();
        if self.random.one_in(4) {
            self.verify();
        }
    }

    /// Every backup that was taken and may not go is listed; what is listed restores.
    fn check_backups(&mut self, sample: usize) {
        let listed = self.world.cluster.backups().unwrap();
        let facts = |id| BackupFacts::of(&self.world.cluster.manifest(id).unwrap()).unwrap();
        {
            let mut model = locked(&self.model);
            let lost: Vec<_> = model.taken.difference(&model.may_go).collect();
            let lost: Vec<_> = lost.into_iter().filter(|id| !listed.contains(id)).collect();
            assert!(lost.is_empty(), "taken, not expired and gone: {lost:?}");
            if let (None, Some(first)) = (model.floor, listed.first()) {
                let facts = facts(*first);
                model.floor = Some(Floor { lsn: facts.stop_lsn, at: facts.stopped_at });
            }
        }
        let mut chosen = listed.clone();
        while chosen.len() > sample {
            chosen.remove(self.random.below(chosen.len() as u64) as usize);
        }
        for id in chosen {
            let stop = facts(id).stop_lsn;
            let expected = self.files_at(stop);
            let files = self.world.content_at(Target::Backup(id));
            let files = files.unwrap_or_else(|e| panic!("backup {id} does not restore: {e}"));
            assert!(files == expected, "backup {id} has another content");
        }
    }

    fn files_at(&self, end: Lsn) -> Files {
        let server = lock(&self.world.server);
        let records = server.history().partition_point(|logged| logged.end <= end);
        server.files_after(records)
    }

    /// A promised moment, drawn, and what the server had then: one content or, for the end of the
    /// WAL, one more where a segment may be archived whose push got no answer.
    pub fn moment(&mut self) -> Option<(Target, Vec<Files>)> {
        let (floor, stepped_back) = {
            let model = locked(&self.model);
            (model.floor?, model.stepped_back)
        };
        let archived = self.world.archiver.archived.lock().unwrap().clone();
        let server = lock(&self.world.server);
        let history = server.history();
        let from = history.partition_point(|logged| logged.end <= floor.lsn);
        let to = history.partition_point(|logged| logged.end <= archived.end);
        if from >= to {
            return None;
        }
        let chosen = from + self.random.below((to - from) as u64) as usize;
        let logged = &history[chosen];
        let unsure = server.ready().map(|name| {
            let size = toy::segment_size();
            let after = name.number(size).map_or(Lsn(0), |number| number.end(size));
            server.files_after(history.partition_point(|logged| logged.end <= after))
        });
        let (target, records) = match (self.random.below(4), &logged.record) {
            (0, _) => (Target::Latest, to),
            (1 | 2, Record::Commit { xid, .. }) => (Target::Xid(u64::from(*xid)), chosen + 1),
            (1 | 2, Record::Point { name, .. }) => (Target::Name(name.clone()), chosen + 1),
            (3, Record::Commit { at, .. }) if !stepped_back => {
                // Quiet until the last segment was written, less a second: see `covered_until`.
                let quiet = archived.written_at.map_or(*at, |at| at - Duration::from_secs(1));
                let until = if self.random.one_in(2) { *at } else { quiet.max(*at) };
                return Some((Target::Time(until), vec![files_until(&server, until)]));
            }
            _ => (Target::Lsn(logged.start), chosen + 1),
        };
        let mut expected = vec![server.files_after(records)];
        expected.extend(unsure.filter(|_| target == Target::Latest));
        Some((target, expected))
    }

    /// What cannot be reached is refused, and nothing is written.
    fn check_refusals(&mut self) {
        if locked(&self.model).floor.is_none() {
            return;
        }
        let into = self.world.fresh();
        let targets = [
            Target::Lsn(Lsn(1)),
            Target::Lsn(Lsn(u64::MAX / 2)),
            Target::Time(Timestamp::UNIX_EPOCH),
            Target::Time(self.world.clock.now() + Duration::from_secs(7 * 24 * 3600)),
            Target::Name("nobody made it".to_owned()),
            Target::Xid(1),
        ];
        let target = self.random.pick(&targets).unwrap().clone();
        let error = self.world.restore(&self.world.cluster, &into, target.clone()).unwrap_err();
        let right = match &target {
            Target::Lsn(Lsn(1)) => matches!(error, RestoreError::TooEarly { .. }),
            Target::Time(at) if *at == Timestamp::UNIX_EPOCH => {
                matches!(error, RestoreError::TooEarly { .. })
            }
            Target::Lsn(_) | Target::Time(_) => matches!(error, RestoreError::TooLate { .. }),
            _ => matches!(error, RestoreError::NotFound { .. }),
        };
        assert!(right, "{target:?}: {error}");
        assert!(!into.exists(), "{target:?} was refused after something was written");
    }

    /// Now: whatever ended since the last segment was finished is not archived. The plan refuses,
    /// or it is right; it never lands short of it.
    fn check_the_uncertain(&mut self) {
        if locked(&self.model).floor.is_none() || locked(&self.model).stepped_back {
            return;
        }
        let now = self.world.clock.now();
        let into = self.world.fresh();
        match self.world.restore(&self.world.cluster, &into, Target::Time(now)) {
            Err(error) => assert!(matches!(error, RestoreError::TooLate { .. }), "{error}"),
            Ok(plan) => {
                let files = self.world.recover(&self.world.cluster, &into).unwrap();
                let server = lock(&self.world.server);
                assert!(files == files_until(&server, now), "{now} fell short: {plan:?}");
                std::fs::remove_dir_all(&into).unwrap();
            }
        }
    }

    fn verify(&mut self) -> verify::VerifyReport {
        let settings = VerifySettings { backups: None, jobs: 1 };
        let report = verify::run(&self.world.ports(), &settings).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        report
    }

    /// The trouble ends: everything catches up.
    pub fn settle_then_require_progress(&mut self) {
        *self.world.archiver.fails_one_in.lock().unwrap() = None;
        self.world.clock.advance(lease::LAPSE + Duration::from_secs(2 * 3600));
        assert!(self.world.archiver.run(), "the archiver catches up");
        self.world.write(&mut self.random);
        let first = self.world.backup().expect("a backup is taken");
        // Waste of cut-short backups is collected after its grace period.
        self.world.clock.advance(Duration::from_secs(50 * 3600));
        let second = self.world.backup().expect("a backup is taken");
        locked(&self.model).taken.extend([first.id, second.id]);
        let inventory = Inventory::load(&self.world.cluster, &ToyEngine).unwrap();
        let rule = policy(Some(2), None);
        let plan = retention::plan(&inventory, &rule, self.world.clock.now());
        locked(&self.model).expire(&inventory, &rule, &plan);
        retention::apply(&self.world.ports(), &plan).expect("retention is applied");
        let kept = self.world.cluster.backups().unwrap();
        let newest = inventory.backups.iter().rev().take(2);
        if newest.filter(|backup| backup.facts.is_good()).count() == 2 {
            assert_eq!(kept, [first.id, second.id]);
        } else {
            // A server that lies of its zero pages seems to have lost them: good ones stay.
            assert!(kept.ends_with(&[first.id, second.id]), "{kept:?}");
        }
        let report = self.verify();
        assert_eq!(report.counts.waste_packs, 0, "{report:#?}");
        self.check_backups(usize::MAX);
        self.check_invariants();
        let latest = self.world.content_at(Target::Latest).unwrap();
        assert!(latest == self.files_at(self.world.archiver.archived.lock().unwrap().end));
    }
}

/// What was there at a moment: everything before the first transaction that ended later.
fn files_until(server: &ToyServer, until: Timestamp) -> Files {
    let later = |record: &Record| matches!(record, Record::Commit { at, .. } if *at > until);
    let history = server.history();
    let next = history.iter().position(|logged| later(&logged.record));
    server.files_after(next.unwrap_or(history.len()))
}
