//! Whole histories of a cluster against a model that is too simple to be wrong.

mod support;

use std::collections::BTreeMap;

use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{BackupId, BackupWriter, Cluster, Compared, Compression, PartWriter};
use lifeboat_store::MemoryStore;
use proptest::prelude::*;
use proptest::sample::Index;
use support::{Cut, Files, PAGE, Seeded, Take};

const PATHS: [&str; 8] = [
    "PG_VERSION",
    "base/1/1259",
    "base/1/1259_fsm",
    "base/1/2619",
    "base/16384/\u{e4}\u{f6}",
    "global/1260",
    "pg_xact/0000",
    "zzz",
];

#[derive(Debug, Clone)]
enum Step {
    Create { file: usize, length: usize, seed: u64 },
    Change { file: usize, at: Index, length: usize, seed: u64 },
    Append { file: usize, length: usize, seed: u64 },
    Truncate { file: usize, to: Index },
    Zero { file: usize, at: Index, pages: usize },
    Delete { file: usize },
    Backup { refresh: bool, keep: bool, compression: Compression, cut: Cut },
    Forget { which: Index },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..PATHS.len();
    let compression = prop_oneof![
        Just(Compression::Auto),
        Just(Compression::Zstd(1)),
        Just(Compression::Lz4),
        Just(Compression::None),
    ];
    let cut = prop_oneof![
        6 => Just(Cut::Never),
        1 => Just(Cut::BeforeBarrier),
        1 => Just(Cut::BeforeManifest)
    ];
    prop_oneof![
        3 => (file(), 0usize..90 * PAGE, any::<u64>())
            .prop_map(|(file, length, seed)| Step::Create { file, length, seed }),
        5 => (file(), any::<Index>(), 1usize..3 * PAGE, any::<u64>())
            .prop_map(|(file, at, length, seed)| Step::Change { file, at, length, seed }),
        2 => (file(), 0usize..20 * PAGE, any::<u64>())
            .prop_map(|(file, length, seed)| Step::Append { file, length, seed }),
        2 => (file(), any::<Index>()).prop_map(|(file, to)| Step::Truncate { file, to }),
        2 => (file(), any::<Index>(), 0usize..20)
            .prop_map(|(file, at, pages)| Step::Zero { file, at, pages }),
        1 => file().prop_map(|file| Step::Delete { file }),
        7 => (prop::bool::weighted(0.1), any::<bool>(), compression, cut).prop_map(
            |(refresh, keep, compression, cut)| Step::Backup { refresh, keep, compression, cut }
        ),
        2 => any::<Index>().prop_map(|which| Step::Forget { which }),
        1 => Just(Step::Reopen),
    ]
}

/// Half of all content compresses well, half not at all.
fn content(length: usize, seed: u64) -> Vec<u8> {
    if seed.is_multiple_of(2) {
        Seeded::new(seed).bytes(length)
    } else {
        seed.to_string().into_bytes().into_iter().cycle().take(length).collect()
    }
}

struct World {
    store: MemoryStore,
    cluster: Cluster,
    live: Files,
    listed: BTreeMap<BackupId, Files>,
    now: i64,
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::new();
        let cluster = support::main_cluster(&support::create(store.clone(), 3));
        let live = Files::from([(PATHS[0].to_owned(), b"18\n".to_vec())]);
        Self { store, cluster, live, listed: BTreeMap::new(), now: 0 }
    }

    fn file(&mut self, file: usize) -> Option<&mut Vec<u8>> {
        self.live.get_mut(PATHS[file])
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Create { file, length, seed } => {
                self.live.insert(PATHS[*file].to_owned(), content(*length, *seed));
            }
            Step::Change { file, at, length, seed } => {
                if let Some(bytes) = self.file(*file).filter(|bytes| !bytes.is_empty()) {
                    let from = at.index(bytes.len());
                    let to = bytes.len().min(from + length);
                    bytes[from..to].copy_from_slice(&content(to - from, *seed));
                }
            }
            Step::Append { file, length, seed } => {
                if let Some(bytes) = self.file(*file) {
                    bytes.extend(content(*length, *seed));
                }
            }
            Step::Truncate { file, to } => {
                if let Some(bytes) = self.file(*file) {
                    bytes.truncate(to.index(bytes.len() + 1));
                }
            }
            Step::Zero { file, at, pages } => {
                if let Some(bytes) = self.file(*file).filter(|bytes| !bytes.is_empty()) {
                    let from = at.index(bytes.len()) / PAGE * PAGE;
                    let to = bytes.len().min(from + pages * PAGE);
                    bytes[from..to].fill(0);
                }
            }
            Step::Delete { file } => {
                self.live.remove(PATHS[*file]);
            }
            Step::Backup { refresh, keep, compression, cut } => {
                let newest = self.listed.last_key_value().map(|(_, files)| files.clone());
                let take = Take {
                    known: newest.as_ref().filter(|_| *keep),
                    refresh: *refresh,
                    compression: *compression,
                    cut: *cut,
                    ..Take::at(self.now)
                };
                let done = support::take_backup(&self.cluster, &self.live, &take).unwrap();
                if let Some(manifest) = done {
                    self.listed.insert(manifest.id, self.live.clone());
                }
            }
            Step::Forget { which } => {
                let ids: Vec<_> = self.listed.keys().copied().collect();
                if !ids.is_empty() {
                    let id = ids[which.index(ids.len())];
                    support::forget(&self.cluster, id).unwrap();
                    self.listed.remove(&id);
                }
            }
            Step::Reopen => {
                let seed = 1000 + self.now as u64;
                self.cluster =
                    support::main_cluster(&support::open(self.store.clone(), seed).unwrap());
            }
        }
        self.now += 1;
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let listed: Vec<_> = self.listed.keys().copied().collect();
        prop_assert_eq!(self.cluster.backups().unwrap(), listed);
        for (id, files) in &self.listed {
            let read = support::read_backup(&self.cluster, *id).unwrap();
            prop_assert!(&read == files, "backup {} reads back as something else", id);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Law: whatever was stored, refreshed, cut short, forgotten and collected, every listed
    /// backup reads back to the model's bytes, with the hashes of its map.
    #[test]
    fn listed_backups_always_read_back(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            if matches!(step, Step::Backup { .. } | Step::Forget { .. } | Step::Reopen) {
                world.check()?;
            }
        }
    }
}

/// Bytes that a history added to the store, from the sizes of its packs.
fn stored(cluster: &Cluster) -> u64 {
    let sizes = support::packs(cluster).into_iter().map(|key| cluster.store().size(&key).unwrap());
    sizes.sum()
}

#[test]
fn a_file_of_many_parts_costs_what_changed_and_reads_back() {
    for seed in 0..3 {
        let random = Seeded::new(seed);
        let mut world = World::new();
        let length = 8192 * PAGE * 2 + random.below(5000);
        world.live.insert("base/1/1259".to_owned(), random.bytes(length));
        for round in 0..6 {
            let before = stored(&world.cluster);
            let refresh = round == 5;
            let live = world.live["base/1/1259"].iter().filter(|b| **b != 0).count() as u64;
            let take = Take { refresh, ..Take::at(round * 100) };
            let done = support::take_backup(&world.cluster, &world.live, &take).unwrap().unwrap();
            world.listed.insert(done.id, world.live.clone());
            let grown = stored(&world.cluster) - before;
            match round {
                0 | 5 => assert!(grown > live, "seed {seed}: all is stored"),
                // 20 pages, the maps of up to three parts (8 bytes a page) and what surrounds them.
                _ => assert!(grown < 260 << 10, "seed {seed} round {round}: {grown} bytes"),
            }
            let file = world.live.get_mut("base/1/1259").unwrap();
            for _ in 0..20 {
                let at = random.below(file.len());
                file[at] ^= 0x55;
            }
            match round {
                1 => file.truncate(8192 * PAGE + 100),
                2 => file.extend(random.bytes(30 * PAGE)),
                3 => file[..700 * PAGE].fill(0),
                _ => {}
            }
        }
        world.check().unwrap();
        let first = *world.listed.keys().next().unwrap();
        support::forget(&world.cluster, first).unwrap();
        world.listed.remove(&first);
        world.check().unwrap();
    }
}

#[test]
fn an_unchanged_cluster_adds_only_a_manifest() {
    let mut world = World::new();
    world.live = support::some_files();
    let backup =
        |cut| Step::Backup { refresh: false, keep: false, compression: Compression::Auto, cut };
    world.apply(&backup(Cut::Never));
    let before = support::packs(&world.cluster);
    world.apply(&backup(Cut::Never));
    assert_eq!(support::packs(&world.cluster), before);
    world.check().unwrap();
}

#[test]
fn only_pages_that_the_earlier_part_has_are_kept() {
    let cluster = support::main_cluster(&support::create(MemoryStore::new(), 3));
    let files = Files::from([("base/1/1259".to_owned(), Seeded::new(1).bytes(10 * PAGE))]);
    let first = support::take_backup(&cluster, &files, &Take::at(0)).unwrap().unwrap();
    let index = IndexReader::new(&cluster, PAGE as u32);
    let file = index.chunk(&first.chunks[0]).unwrap().remove(0);
    let known = (file.parts[0].clone(), index.part(&file.parts[0], 10).unwrap());
    let id = BackupId::new(support::at(9), Some(first.id), cluster.repository().entropy());
    let writer =
        BackupWriter::begin(&cluster, id, PAGE as u32, Compression::Auto, support::transforms())
            .unwrap();
    let mut extents = writer.extent_writer();

    let mut fresh = PartWriter::new();
    assert_eq!(fresh.keep(&extents, 1), 0, "without a past there is nothing to keep");

    let mut same = PartWriter::with_previous(Some(known.clone()), false);
    assert_eq!(same.keep(&extents, 4), 4);
    let page = &files["base/1/1259"][4 * PAGE..5 * PAGE];
    assert_eq!(same.add(&mut extents, page, true).unwrap(), Compared::Same);
    assert_eq!(same.keep(&extents, 99), 5, "the earlier part ends after ten pages");
    assert_eq!(same.add(&mut extents, page, true).unwrap(), Compared::New);

    let mut whole = PartWriter::with_previous(Some(known.clone()), false);
    assert_eq!(whole.keep(&extents, 10), 10);
    assert_eq!(whole.pages_new(), (0, 0));
    let mut other = PartWriter::with_previous(Some(known), false);
    assert_eq!(other.add(&mut extents, page, true).unwrap(), Compared::Differs(Some(first.id)));
    let zeros = other.add(&mut extents, &vec![0; PAGE], true).unwrap();
    assert_eq!(zeros, Compared::Differs(Some(first.id)));
    let done = extents.finish_parts(vec![same, whole, other]).unwrap();
    assert_eq!(done[1], file.parts[0], "a part that is kept as a whole is referred to");
}

#[test]
fn when_all_is_forgotten_no_pack_is_left() {
    let mut world = World::new();
    world.live = support::some_files();
    for seed in 0..4 {
        let backup = Step::Backup {
            refresh: false,
            keep: false,
            compression: Compression::Auto,
            cut: Cut::Never,
        };
        world.apply(&backup);
        world.apply(&Step::Append { file: 1, length: 900, seed });
    }
    for id in world.cluster.backups().unwrap() {
        support::forget(&world.cluster, id).unwrap();
    }
    assert!(support::packs(&world.cluster).is_empty());
}
