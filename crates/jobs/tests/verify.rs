//! Verification of a toy history: clean when it is whole, and every kind of damage is named.

mod history_support;

use history_support::{PAGE, World, backup_id, pages};
use lifeboat_jobs::verify::{self, FindingKind, VerifyReport, VerifySettings};
use lifeboat_repo::RepoError;
use lifeboat_store::{Key, Store};
use lifeboat_testkit::toy;

fn history() -> World {
    let world = World::new();
    world.archive(0, 1, 1..=13);
    let mut content = pages(9000, 0); // more than one part of a map
    content.truncate(9000 * PAGE as usize - 100); // the last page is short
    let first = world.backup(0, 1, &[("base/1", content.clone()), ("base/2", pages(8, 9))], None);
    content[0] ^= 0xff;
    let files = [("base/1", content), ("base/2", pages(8, 9)), ("base/3", vec![0; 4096])];
    world.backup(10, 11, &files, Some(&first));
    world
}

fn run(world: &World, jobs: usize) -> VerifyReport {
    verify::run(&world.ports(), &VerifySettings { backups: None, jobs }).unwrap()
}

fn replace(world: &World, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let key = Key::new(key).unwrap();
    let mut body = world.store.get(&key, 1 << 30).unwrap();
    world.store.delete(&key).unwrap();
    change(&mut body);
    world.store.put(&key, &body).unwrap();
}

fn kinds(report: &VerifyReport) -> Vec<FindingKind> {
    let mut kinds: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_whole_history_is_clean_and_what_backups_share_is_read_once() {
    let world = history();
    for jobs in [1, 4] {
        let report = run(&world, jobs);
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!(report.notes, Vec::<String>::new());
        assert_eq!((report.counts.backups, report.counts.files), (2, 5));
        assert_eq!(report.counts.segments, 13);
        // 9008 pages of the first backup, less one of zeros or more, and one that changed.
        let pages = report.counts.pages;
        assert!((8900..=9009).contains(&pages), "{pages}");
    }
}

#[test]
fn every_object_that_is_altered_cut_short_or_gone_is_found() {
    let whole = history();
    let objects = whole.objects();
    let mut tried = 0;
    for key in objects.keys().filter(|k| k.starts_with("clusters/")) {
        for harm in ["flip", "cut", "gone"] {
            let world = whole.fork();
            let name = Key::new(key.clone()).unwrap();
            match harm {
                "gone" => world.store.delete(&name).unwrap(),
                "cut" => replace(&world, key, |body| body.truncate(body.len() / 2)),
                _ => replace(&world, key, |body| {
                    let middle = body.len() / 2;
                    body[middle] ^= 1;
                }),
            }
            let report = run(&world, 2);
            // An event that is gone tells nothing; the note says that a backup has none.
            let noted = key.contains("/journal/") && harm == "gone" && !report.notes.is_empty();
            // The last segment may be gone without a gap, where no backup needs it.
            let tail = key.ends_with("00000000D") && harm == "gone";
            assert!(!report.is_clean() || noted || tail, "{key} {harm}");
            tried += 1;
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn any_flipped_byte_of_a_pack_is_found_with_the_backups_it_touches() {
    let world = history();
    let keys = world.objects();
    let packs: Vec<_> = keys.iter().filter(|(k, _)| k.contains("/data/")).collect();
    for (key, body) in &packs {
        for at in (0..body.len()).step_by(body.len() / 20 + 1) {
            let world = world.fork();
            replace(&world, key, |body| body[at] ^= 0x40);
            let report = run(&world, 1);
            assert!(!report.is_clean(), "{key} at {at}");
            assert!(report.findings.iter().all(|f| !f.backups.is_empty()), "{:?}", report.findings);
        }
    }
}

#[test]
fn a_missing_pack_names_backups_and_files() {
    let world = history();
    let key = world
        .objects()
        .into_keys()
        .find(|k| k.contains(&format!("/data/{}/", backup_id(0))) && k.ends_with("000000"));
    world.store.delete(&Key::new(key.unwrap()).unwrap()).unwrap();
    let report = run(&world, 1);
    let pack = report.findings.iter().find(|f| f.kind == FindingKind::Pack).unwrap();
    assert_eq!(pack.backups, [backup_id(0), backup_id(10)]);
    assert!(pack.files_count >= 1, "{pack:?}");
}

#[test]
fn a_backup_that_vanished_is_told_from_one_that_expired() {
    let world = history();
    world.store.delete(&world.cluster.manifest_key(backup_id(0)).unwrap()).unwrap();
    assert_eq!(kinds(&run(&world, 1)), [FindingKind::Vanished]);
    let reason = "for a test".to_owned();
    let fact = lifeboat_repo::Fact::BackupRemoved { id: backup_id(0), reason };
    world.cluster.record(history_support::day(11), fact).unwrap();
    assert!(run(&world, 1).is_clean());
}

#[test]
fn gaps_and_missing_segments_say_what_they_cost() {
    let world = history();
    let gone = |n| {
        toy::place(
            history_support::SYSTEM,
            lifeboat_engine::LogFile::Segment(toy::segment_name(1, n)),
        )
    };
    world.cluster.remove_log(&gone(12)).unwrap();
    world.cluster.remove_log(&gone(6)).unwrap();
    let report = run(&world, 1);
    assert_eq!(kinds(&report), [FindingKind::WalMissing]);
    let needed = report.findings.iter().find(|f| f.backups == [backup_id(10)]).unwrap();
    assert!(needed.what.contains("cannot become consistent"), "{needed:?}");
    let gap = report.findings.iter().find(|f| f.what.contains("000000010000000000000006")).unwrap();
    assert!(gap.reach.as_ref().unwrap().contains("0/600000"), "{gap:?}");
}

#[test]
fn waste_and_foreign_names_are_noted_and_are_no_damage() {
    let world = history();
    for key in
        ["data/20260101T000000Z-ffffffff/000000", "notes/x", "wal/readme/00000001/x", "backups/x"]
    {
        world.store.put(&world.cluster.key(key).unwrap(), b"x").unwrap();
    }
    let report = run(&world, 1);
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.counts.waste_packs, 1);
    assert_eq!(report.notes.len(), 4, "{:?}", report.notes);
}

#[test]
fn chosen_backups_need_only_their_own_wal_and_must_exist() {
    let world = history();
    world
        .cluster
        .remove_log(&toy::place(
            history_support::SYSTEM,
            lifeboat_engine::LogFile::Segment(toy::segment_name(1, 2)),
        ))
        .unwrap();
    let only = |id| VerifySettings { backups: Some(vec![id]), jobs: 1 };
    let report = verify::run(&world.ports(), &only(backup_id(10))).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.counts.backups, report.counts.segments), (1, 2));
    assert!(!verify::run(&world.ports(), &only(backup_id(0))).unwrap().is_clean());
    let error = verify::run(&world.ports(), &only(backup_id(5))).unwrap_err();
    assert!(matches!(error, verify::VerifyError::Repo(RepoError::NoSuchBackup { .. })));
}
