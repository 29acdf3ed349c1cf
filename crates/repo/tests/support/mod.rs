//! What the tests share: keys that repeat, and a driver that stores and reads backups as jobs do.
#![allow(dead_code, reason = "every test binary uses its part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use lifeboat_repo::codec::Decompressor;
use lifeboat_repo::crypt::BoxKind;
use lifeboat_repo::map::{Source, page_hash};
use lifeboat_repo::reader::{IndexReader, ReadBuffers};
use lifeboat_repo::table::{ChunkBuilder, part_count};
use lifeboat_repo::writer::Usage;
use lifeboat_repo::{
    BackupId, BackupWriter, ChunkRef, Cluster, Compression, ContentReader, ExtentWriter, FileEntry,
    Keyring, Manifest, MapPart, PART_PAGES, PackId, PartRef, PartWriter, Protection, Reorder,
    RepoError, Repository, Totals, Transforms, repository,
};
use lifeboat_store::{MemoryStore, Store};
use lifeboat_units::{ByteCount, Entropy, Timestamp};

/// Bytes of a page in these tests: small, so that histories are quick.
pub const PAGE: usize = 512;

/// Random bytes that repeat from a seed (splitmix64).
pub struct Seeded(Mutex<u64>);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

impl Entropy for Seeded {
    fn fill(&self, into: &mut [u8]) {
        for chunk in into.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A transform without any use but to show that one is undone: bytes in reverse.
struct Reverse;

impl Reorder for Reverse {
    fn id(&self) -> u8 {
        200
    }
    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        out.extend(raw.iter().rev());
        !raw.len().is_multiple_of(3 * PAGE)
    }
    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), String> {
        if split.len() != out.len() {
            return Err("another length".to_owned());
        }
        out.copy_from_slice(split);
        out.reverse();
        Ok(())
    }
}

pub fn transforms() -> Transforms {
    Transforms::new(vec![Arc::new(Reverse)])
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + second).unwrap()
}

/// A new repository whose keys lie open, so that no test waits for a key derivation.
pub fn create(store: impl Store + 'static, seed: u64) -> Repository {
    let entropy = Arc::new(Seeded::new(seed));
    Repository::create(Arc::new(store), &Protection::Open, at(0), entropy).unwrap()
}

/// Opens a repository from nothing but its store, as the next process does.
pub fn open(store: impl Store + 'static, seed: u64) -> Result<Repository, RepoError> {
    let store: Arc<dyn Store> = Arc::new(store);
    let id = repository::identify(store.as_ref())?;
    let keyring = Keyring::unlock(store.as_ref(), id, None)?;
    Repository::open(store, keyring, Arc::new(Seeded::new(seed)))
}

pub fn main_cluster(repository: &Repository) -> Cluster {
    repository.cluster("main".parse().unwrap())
}

/// A cluster's files: path → content.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Where a backup ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Never,
    BeforeBarrier,
    BeforeManifest,
}

/// How to take a backup.
#[derive(Debug, Clone, Copy)]
pub struct Take<'a> {
    pub now: Timestamp,
    pub refresh: bool,
    pub compression: Compression,
    pub cut: Cut,
    /// The files as the newest backup has them: pages that are the same are not read but kept.
    pub known: Option<&'a Files>,
}

impl Take<'_> {
    pub fn at(second: i64) -> Self {
        let compression = Compression::Auto;
        Self { now: at(second), refresh: false, compression, cut: Cut::Never, known: None }
    }
}

/// The backup that the next one is compared with, and its files.
struct Previous {
    manifest: Manifest,
    files: BTreeMap<String, FileEntry>,
}

fn newest(cluster: &Cluster) -> Result<Option<Previous>, RepoError> {
    let Some(id) = cluster.backups()?.pop() else { return Ok(None) };
    let manifest = cluster.manifest(id)?;
    let index = IndexReader::new(cluster, manifest.page_bytes);
    let mut files = BTreeMap::new();
    for chunk in &manifest.chunks {
        files.extend(index.chunk(chunk)?.into_iter().map(|file| (file.path.clone(), file)));
    }
    Ok(Some(Previous { manifest, files }))
}

/// Does what a backup job does; `None` when it was cut.
pub fn take_backup(
    cluster: &Cluster,
    files: &Files,
    take: &Take<'_>,
) -> Result<Option<Manifest>, RepoError> {
    let previous = newest(cluster)?;
    let newest = previous.as_ref().map(|p| p.manifest.id);
    let id = BackupId::new(take.now, newest, cluster.repository().entropy());
    let writer = BackupWriter::begin(cluster, id, PAGE as u32, take.compression, transforms())?;
    let mut totals = Totals::default();
    let mut extents = writer.extent_writer();
    let mut entries = Vec::new();
    let (mut waiting, mut waiting_bytes) = (Vec::new(), 0);
    for (path, content) in files {
        let old = previous.as_ref().and_then(|p| p.files.get(path));
        let known = take.known.and_then(|files| files.get(path)).map_or(&[][..], |c| c);
        let parts = write_parts(cluster, &mut extents, content, (old, known), take.refresh)?;
        totals.pages_new += parts.iter().map(|part| part.pages_new().0).sum::<u64>();
        totals.pages += content.len().div_ceil(PAGE) as u64;
        waiting_bytes += content.len();
        waiting.push((path, content, parts));
        // Several small files share a call, a large one has its own.
        if waiting_bytes > 64 * PAGE || waiting.len() == 5 {
            finish(&mut extents, &mut waiting, &mut entries)?;
            waiting_bytes = 0;
        }
    }
    finish(&mut extents, &mut waiting, &mut entries)?;
    extents.close()?;
    let mut used = Usage::default();
    let chunks =
        write_table(cluster, &writer, &entries, previous.as_ref().map(|p| &p.manifest), &mut used)?;
    if take.cut == Cut::BeforeBarrier {
        return Ok(None);
    }
    let finished = writer.finish_packs()?;
    if take.cut == Cut::BeforeManifest {
        return Ok(None);
    }
    totals.files = files.len() as u64;
    totals.size_bytes = ByteCount(files.values().map(|f| f.len() as u64).sum());
    let manifest = Manifest {
        id,
        cluster: cluster.name().to_string(),
        compared_with: newest,
        began_at: take.now,
        ended_at: take.now,
        page_bytes: PAGE as u32,
        chunks,
        data_keys: BTreeMap::new(),
        packs: BTreeMap::new(),
        totals,
        facts: serde_json::json!({ "test": true }),
    };
    finished.commit(manifest, &used, previous.as_ref().map(|p| &p.manifest)).map(Some)
}

type Waiting<'a> = Vec<(&'a String, &'a Vec<u8>, Vec<PartWriter>)>;

fn finish(
    extents: &mut ExtentWriter<'_>,
    waiting: &mut Waiting<'_>,
    entries: &mut Vec<FileEntry>,
) -> Result<(), RepoError> {
    let mut shape = Vec::new();
    let mut all = Vec::new();
    for (path, content, parts) in waiting.drain(..) {
        shape.push((path, content, parts.len()));
        all.extend(parts);
    }
    let mut done = extents.finish_parts(all)?.into_iter();
    for (path, content, count) in shape {
        entries.push(FileEntry {
            path: path.clone(),
            size_bytes: content.len() as u64,
            mode: 0o600,
            first_page: path.starts_with("base/").then_some(0),
            parts: done.by_ref().take(count).collect(),
        });
    }
    Ok(())
}

fn write_parts(
    cluster: &Cluster,
    extents: &mut ExtentWriter<'_>,
    content: &[u8],
    (old, known): (Option<&FileEntry>, &[u8]),
    refresh: bool,
) -> Result<Vec<PartWriter>, RepoError> {
    let index = IndexReader::new(cluster, PAGE as u32);
    let mut parts = Vec::new();
    for (number, content) in content.chunks(PART_PAGES as usize * PAGE).enumerate() {
        let previous = match old.and_then(|file| Some((file, file.parts.get(number)?))) {
            Some((file, part)) => {
                let map = index.part(part, pages_of_part(file, number))?;
                Some((part.clone(), map))
            }
            None => None,
        };
        let mut part = PartWriter::with_previous(previous, refresh);
        let mut known = known.chunks(PAGE).skip(number * PART_PAGES as usize);
        for (i, page) in content.chunks(PAGE).enumerate() {
            if known.next() == Some(page) && page.len() == PAGE {
                assert_eq!(part.keep(extents, 1), 1);
                continue;
            }
            // Every other page of zeros comes as a hole that was not read.
            if i % 2 == 0 && page.iter().all(|b| *b == 0) {
                part.add_zeros(extents, 1);
            } else {
                part.add(extents, page, page.len() == PAGE)?;
            }
        }
        parts.push(part);
    }
    Ok(parts)
}

fn pages_of_part(file: &FileEntry, number: usize) -> u32 {
    let before = number as u64 * u64::from(PART_PAGES);
    (file.pages(PAGE as u32) - before).min(u64::from(PART_PAGES)) as u32
}

fn write_table(
    cluster: &Cluster,
    writer: &BackupWriter,
    entries: &[FileEntry],
    previous: Option<&Manifest>,
    used: &mut Usage,
) -> Result<Vec<ChunkRef>, RepoError> {
    let mut known: BTreeMap<u64, ChunkRef> = BTreeMap::new();
    known.extend(previous.iter().flat_map(|m| m.chunks.iter().map(|c| (c.digest, *c))));
    let (mut chunks, mut builder) = (Vec::new(), ChunkBuilder::default());
    for (i, entry) in entries.iter().enumerate() {
        used.add(entry);
        builder.add(entry, PAGE as u32);
        if builder.is_full() || i % 3 == 2 || i + 1 == entries.len() {
            let count = builder.files() as u32;
            let plain = builder.finish();
            let digest = cluster.hasher().page(&plain);
            let chunk = match known.get(&digest) {
                Some(chunk) => *chunk,
                None => {
                    ChunkRef::new(writer.put_index(BoxKind::TableChunk, &plain)?, count, digest)
                }
            };
            used.add_chunk(chunk.at());
            chunks.push(chunk);
        }
    }
    Ok(chunks)
}

/// Reads a backup back as a whole and checks every page against its hash.
pub fn read_backup(cluster: &Cluster, id: BackupId) -> Result<Files, RepoError> {
    let manifest = cluster.manifest(id)?;
    let index = IndexReader::new(cluster, manifest.page_bytes);
    let content = ContentReader::new(cluster, &manifest)?;
    let mut buffers = ReadBuffers::new(Decompressor::new(transforms()));
    let mut files = Files::new();
    for chunk in &manifest.chunks {
        for file in index.chunk(chunk)? {
            assert_eq!(file.parts.len() as u64, part_count(file.size_bytes, manifest.page_bytes));
            let mut bytes = vec![0; file.size_bytes as usize];
            for (number, part) in file.parts.iter().enumerate() {
                let map = index.part(part, pages_of_part(&file, number))?;
                let from = number * PART_PAGES as usize * PAGE;
                read_part(cluster, &content, &mut buffers, &map, &mut bytes[from..])?;
            }
            let before = files.insert(file.path.clone(), bytes);
            assert!(before.is_none(), "{} is listed twice", file.path);
        }
    }
    Ok(files)
}

fn read_part(
    cluster: &Cluster,
    content: &ContentReader,
    buffers: &mut ReadBuffers,
    map: &MapPart,
    into: &mut [u8],
) -> Result<(), RepoError> {
    content.extents(&map.extents, buffers, |which, raw| {
        let mut page = 0;
        for run in &map.runs {
            if let Source::Extent { index, offset } = run.source
                && index as usize == which
            {
                for i in 0..run.pages as usize {
                    let from = (page + i) * PAGE;
                    let to = into.len().min(from + PAGE);
                    let at = offset as usize + i * PAGE;
                    let bytes = raw.get(at..at + to - from).ok_or_else(|| {
                        RepoError::damaged("a part", "a page lies beyond its extent")
                    })?;
                    let hash = page_hash(cluster.hasher().page(bytes));
                    assert_eq!(hash, map.hashes[page + i], "the hash of page {}", page + i);
                    into[from..to].copy_from_slice(bytes);
                }
            }
            page += run.pages as usize;
        }
        Ok(())
    })
}

/// Packs that lie in the store.
pub fn packs(cluster: &Cluster) -> Vec<lifeboat_store::Key> {
    let mut keys = Vec::new();
    let prefix = format!("clusters/{}/data/", cluster.name());
    cluster.store().list(&prefix, &mut |entry| keys.push(entry.key)).unwrap();
    keys
}

/// Removes a backup: its manifest, then the packs that nobody refers to any more.
pub fn forget(cluster: &Cluster, id: BackupId) -> Result<(), RepoError> {
    cluster.store().delete(&cluster.manifest_key(id)?)?;
    let mut used = std::collections::BTreeSet::new();
    for id in cluster.backups()? {
        cluster.manifest(id)?.each_pack(|pack: PackId| {
            used.insert(pack.key(cluster.name()));
        });
    }
    for key in packs(cluster).iter().filter(|key| !used.contains(key)) {
        cluster.store().delete(key)?;
    }
    Ok(())
}

/// Files for a first backup: pages, text, zeros, nothing, an odd end.
pub fn some_files() -> Files {
    let random = Seeded::new(7);
    Files::from([
        ("PG_VERSION".to_owned(), b"18\n".to_vec()),
        ("base/1/1259".to_owned(), random.bytes(40 * PAGE)),
        ("base/1/1260".to_owned(), b"the same again and again ".repeat(300)),
        ("base/1/1261".to_owned(), vec![0; 9 * PAGE]),
        ("base/1/1262".to_owned(), Vec::new()),
        ("global/1233".to_owned(), random.bytes(PAGE + 17)),
    ])
}

/// A repository with one backup of [`some_files`].
pub fn with_baseline() -> (MemoryStore, BackupId) {
    let store = MemoryStore::new();
    let cluster = main_cluster(&create(store.clone(), 1));
    let manifest = take_backup(&cluster, &some_files(), &Take::at(10)).unwrap();
    (store, manifest.unwrap().id)
}

/// Where a part lies, if it is in a pack.
pub fn boxed(part: &PartRef) -> Option<lifeboat_repo::BoxRef> {
    match part {
        PartRef::Boxed { at, .. } => Some(*at),
        _ => None,
    }
}
