//! Backups of a server that says what changed: what is read, what the sweep finds, and what
//! becomes of a lie.

mod world;

use lifeboat_jobs::backup::{BackupError, BackupReport, BackupSettings};
use lifeboat_jobs::facts::{BackupFacts, Reading, Way};
use lifeboat_jobs::restore::Target;
use lifeboat_jobs::verify::{self, VerifySettings};
use lifeboat_repo::BackupId;
use lifeboat_testkit::toy_log::{Change, Files};
use lifeboat_testkit::toy_server::{Hints, Moment, lock};
use lifeboat_testkit::{ToyEngine, toy_log};
use world::World;
use world::random::Random;

const PAGE: u64 = 512;

/// A server with files of 100 pages, and a first backup of it.
fn with_files(files: u32) -> (World, Random) {
    let mut random = Random(11);
    let world = World::new(random.fork());
    for file in 0..files {
        world.commit((0..100).map(|page| world::change(&mut random, file, page)).collect());
    }
    world.backup().unwrap();
    (world, random)
}

fn backup(world: &World, hints: Hints, sweep_of: u32) -> BackupReport {
    let settings = BackupSettings { sweep_of, ..world::settings() };
    world.backup_as(&world.cluster, &ToyEngine, |_| {}, (hints, settings)).unwrap()
}

fn backup_as_it_goes(world: &World) -> Result<BackupReport, BackupError> {
    world.backup_with(&world.cluster, &ToyEngine, |_| {})
}

fn reading(report: &BackupReport) -> &Reading {
    report.reading.as_ref().unwrap()
}

fn content(world: &World, id: BackupId) -> Files {
    world.content_at(Target::Backup(id)).unwrap()
}

const SELDOM: u32 = 1_000_000;

#[test]
fn only_what_changed_is_read_and_the_backup_is_right() {
    let (world, mut random) = with_files(20);
    world.commit(vec![
        world::change(&mut random, 1, 7),
        world::change(&mut random, 1, 8),
        world::change(&mut random, 2, 100), // grows
        Change::Truncate { file: 3, pages: 90 },
        Change::Truncate { file: 4, pages: 90 },
        world::change(&mut random, 4, 99), // zeros before it
        Change::Remove { file: 5 },
        Change::Remove { file: 6 },
        world::change(&mut random, 6, 0),
        world::change(&mut random, 30, 3),
    ]);
    let report = backup(&world, Hints::True, SELDOM);
    let found = reading(&report);
    assert_eq!((found.way, found.faulty_pages, found.swept_pages), (Way::Hints, 0, 0));
    assert_eq!(found.to_lsn.map(|to| to > found.from_lsn.unwrap()), Some(true));
    // 2 pages changed, 1 grown, 90 of the file that shrank, 10 of the one that was cut and grew,
    // 1 that came back, 4 of the new file; holes are not read.
    let read = report.totals.read_bytes.0 / PAGE;
    assert!((100..=108).contains(&read), "{read} pages were read");
    assert!(content(&world, report.id) == *lock(&world.server).files());
    let quiet = backup(&world, Hints::True, SELDOM);
    assert_eq!((quiet.totals.read_bytes.0, quiet.totals.pages_new), (0, 0));
    assert_eq!(quiet.totals.pages, report.totals.pages);
    assert!(content(&world, quiet.id) == *lock(&world.server).files());
}

#[test]
fn without_a_word_from_the_server_or_with_full_read_everything_is_read() {
    let (world, _) = with_files(5);
    let silent = backup(&world, Hints::None, 14);
    assert_eq!(reading(&silent).way, Way::Hashes);
    assert_eq!(reading(&silent).because, "it does not tell");
    assert_eq!(silent.totals.read_bytes.0, 500 * PAGE);
    let settings = BackupSettings { full_read: true, ..world::settings() };
    let asked = world.backup_as(&world.cluster, &ToyEngine, |_| {}, (Hints::True, settings));
    let asked = asked.unwrap();
    assert!(reading(&asked).because.contains("--full-read"));
    assert_eq!(asked.totals.read_bytes.0, 500 * PAGE);
}

#[test]
fn fourteen_backups_read_everything_once_whatever_fails_and_goes_in_between() {
    let (world, _) = with_files(60);
    let mut read = 0;
    for n in 0..14 {
        if n % 4 == 1 {
            // One that fails, and one that reads everything: neither takes a turn away.
            let broken = world.home.path().join("data/base/1/77");
            std::fs::create_dir(&broken).unwrap();
            backup_as_it_goes(&world).unwrap_err();
            std::fs::remove_dir(&broken).unwrap();
            backup(&world, Hints::None, 14);
        }
        let report = backup(&world, Hints::True, 14);
        let found = reading(&report);
        assert_eq!((found.way, found.sweep_of, found.sweep), (Way::Hints, Some(14), n + 1));
        assert_eq!(report.totals.read_bytes.0, found.swept_pages * PAGE);
        assert!(found.swept_pages <= 1500, "the turns are even: {} pages", found.swept_pages);
        read += found.swept_pages;
    }
    assert_eq!(read, 6000, "each page once");
}

/// Changes a page of which the server will say nothing; gives its file.
fn unseen(world: &World, random: &mut Random) -> u32 {
    world.commit(vec![world::change(random, 2, 50), world::change(random, 3, 60)]);
    2
}

#[test]
fn a_lie_is_found_when_its_turn_comes_and_the_backup_that_finds_it_is_right() {
    let (world, mut random) = with_files(10);
    let file = unseen(&world, &mut random);
    let mut taken = Vec::new();
    let caught = loop {
        assert!(taken.len() < 14, "the lie was not found within 14 backups");
        let report = backup(&world, Hints::Forget(file), 14);
        taken.push(report.id);
        if reading(&report).faulty_pages > 0 {
            break report;
        }
    };
    let found = reading(&caught);
    assert_eq!(found.way, Way::Hashes, "what was not read is not trusted either");
    assert_eq!((found.faulty_pages, found.faults[0].page), (1, 50));
    assert!(content(&world, caught.id) == *lock(&world.server).files());
    let next = backup(&world, Hints::True, 14);
    assert_eq!(reading(&next).way, Way::Hashes, "the next one takes nothing on trust");
    assert_eq!(reading(&backup(&world, Hints::True, 14)).way, Way::Hints);
}

#[test]
fn a_lie_in_a_part_that_is_due_is_named_by_file_and_page() {
    let (world, mut random) = with_files(10);
    let file = unseen(&world, &mut random);
    let report = backup(&world, Hints::Forget(file), 1);
    let found = reading(&report);
    assert_eq!((found.faulty_pages, found.faults.len()), (1, 1));
    assert_eq!(found.faults[0].path, toy_log::path(file));
    assert_eq!(found.faults[0].page, 50);
    assert!(found.faults[0].what.contains("it changed at"), "{}", found.faults[0].what);
    assert!(content(&world, report.id) == *lock(&world.server).files());
    let facts = BackupFacts::of(&world.cluster.manifest(report.id).unwrap()).unwrap();
    assert_eq!(facts.reading.as_ref(), Some(found));
    let settings = VerifySettings { backups: None, jobs: 1 };
    let verified = verify::run(&world.ports(), &settings).unwrap();
    assert!(verified.findings.is_empty(), "{:#?}", verified.findings);
}

#[test]
fn a_page_that_was_lost_is_a_fault_and_one_that_changes_meanwhile_is_none() {
    let (world, mut random) = with_files(4);
    let disk = world.home.path().join("data").join(toy_log::path(1));
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[9 * 512..10 * 512].fill(0);
    std::fs::write(&disk, bytes).unwrap();
    let settings = BackupSettings { sweep_of: 1, ..world::settings() };
    let new = world::change(&mut random, 3, 3);
    let meanwhile = |moment: Moment| {
        if moment == Moment::Listed {
            world.commit(vec![new.clone()]);
        }
    };
    let report =
        world.backup_as(&world.cluster, &ToyEngine, meanwhile, (Hints::True, settings)).unwrap();
    let found = reading(&report);
    assert_eq!(found.faulty_pages, 1, "{:?}", found.faults);
    assert_eq!((found.faults[0].path.as_str(), found.faults[0].page), ("base/1/1", 9));
    assert!(found.faults[0].what.contains("lost"), "{}", found.faults[0].what);
}
