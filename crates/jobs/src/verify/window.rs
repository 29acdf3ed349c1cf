//! One window of the walk: parts of page maps are read, then every pack that they refer to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

use lifeboat_repo::codec::Decompressor;
use lifeboat_repo::crypt::BoxKind;
use lifeboat_repo::map::{Source, page_hash};
use lifeboat_repo::pack::{PACK_BYTES_MAX, TocEntry, read_toc};
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{BackupId, BoxRef, MapPart, PackId, PartRef, RepoError};
use lifeboat_store::StoreError;
use lifeboat_units::Work;

use super::context::{Context, Worker, count, is_damage};
use super::error::VerifyError;
use super::keys::Keys;
use super::report::FindingKind;
use super::walk::pack_name;
use crate::inventory::chain;

/// One part of a file's page map, as some backups have it.
pub(super) struct Version {
    pub(super) path: Arc<str>,
    pub(super) part: PartRef,
    pub(super) pages: u32,
    pub(super) page_bytes: u32,
    /// Length of its last page, which may be short.
    pub(super) last_bytes: u32,
    pub(super) users: Vec<BackupId>,
}

/// What is checked together.
#[derive(Default)]
pub(super) struct Window {
    pub(super) pages: u64,
    versions: Vec<Version>,
    chunks: Vec<(BoxRef, BackupId)>,
}

impl Window {
    /// Adds a part.
    pub(super) fn push(&mut self, version: Version) {
        self.pages += u64::from(version.pages);
        self.versions.push(version);
    }

    /// Adds a chunk of a file table, whose place in its pack is to be checked.
    pub(super) fn refer(&mut self, chunk: BoxRef, user: BackupId) {
        self.chunks.push((chunk, user));
    }
}

/// Pages that a part finds at a place in an extent.
#[derive(Clone, Copy)]
struct Claim {
    version: usize,
    first_page: u32,
    pages: u32,
    offset: u32,
}

/// All that is referred to in one pack.
struct PackWork {
    pack: PackId,
    chunks: Vec<(BoxRef, BackupId)>,
    parts: Vec<(BoxRef, usize)>,
    extents: BTreeMap<(u32, u64), (BoxRef, Vec<Claim>)>,
}

/// Checks windows one after the other.
pub(super) struct Checker<'c, 'a> {
    context: &'c Context<'a>,
    keys: Keys,
    read_before: Mutex<HashSet<PackId>>,
}

impl<'c, 'a> Checker<'c, 'a> {
    pub(super) fn new(context: &'c Context<'a>, keys: Keys) -> Self {
        Self { context, keys, read_before: Mutex::default() }
    }

    /// Checks one window.
    pub(super) fn check(&self, window: &Window) -> Result<(), VerifyError> {
        let parts = self.read_parts(window)?;
        let work = arrange(window, &parts);
        self.context
            .in_parallel(&work, |work, worker| self.check_pack(window, &parts, work, worker))
    }

    fn read_parts(&self, window: &Window) -> Result<Vec<OnceLock<MapPart>>, VerifyError> {
        let parts: Vec<OnceLock<MapPart>> =
            window.versions.iter().map(|_| OnceLock::new()).collect();
        let order: Vec<usize> = (0..parts.len()).collect();
        self.context.in_parallel(&order, |index, _| {
            let version = &window.versions[*index];
            let reader = IndexReader::new(self.context.cluster(), version.page_bytes);
            match reader.part(&version.part, version.pages) {
                Ok(part) => {
                    self.check_part(version, &part);
                    let _ = parts[*index].set(part);
                    Ok(())
                }
                Err(error) if is_damage(&error) => {
                    let what = format!("a part of a page map cannot be read: {}", chain(&error));
                    self.blame(version, FindingKind::Index, &part_name(&version.part), &what);
                    Ok(())
                }
                Err(error) => Err(error.into()),
            }
        })?;
        Ok(parts)
    }

    /// Whether the file table names every pack that the part refers to.
    fn check_part(&self, version: &Version, part: &MapPart) {
        let PartRef::Boxed { packs, .. } = &version.part else { return };
        count(&self.context.count.index_boxes, 1);
        if let Some((pack, _)) = part.packs().into_iter().find(|p| !packs.contains(p)) {
            let what = format!("the file table does not say that it refers to {}", pack_name(pack));
            self.blame(version, FindingKind::Index, &part_name(&version.part), &what);
        }
    }

    fn blame(&self, version: &Version, kind: FindingKind, object: &str, what: &str) {
        let users = version.users.iter().copied();
        self.context.findings.add_file((kind, object, what), users, &version.path);
    }

    fn check_pack(
        &self,
        window: &Window,
        parts: &[OnceLock<MapPart>],
        work: &PackWork,
        worker: &mut Worker,
    ) -> Result<(), VerifyError> {
        let cluster = self.context.cluster();
        let name = pack_name(work.pack);
        let key = work.pack.key(cluster.name());
        let pack = match cluster.store().get(&key, PACK_BYTES_MAX).map_err(RepoError::from) {
            Ok(pack) => pack,
            Err(error) if is_damage(&error) => {
                let what = match &error {
                    RepoError::Store(StoreError::NotFound { .. }) => PACK_MISSING.to_owned(),
                    other => format!("it cannot be read: {}", chain(other)),
                };
                self.blame_all(window, work, &name, &what);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        count(&self.context.count.read_bytes, pack.len() as u64);
        let mut read_before = self.read_before.lock().unwrap_or_else(|e| e.into_inner());
        if read_before.insert(work.pack) {
            self.context.progress().advance(Work::Bytes(pack.len() as u64));
        }
        drop(read_before);
        match read_toc(work.pack, &cluster.index_key(work.pack.session), &pack) {
            Ok(toc) => self.check_toc(window, work, &name, &toc),
            Err(error) => self.blame_all(window, work, &name, &chain(&error)),
        }
        for (at, claims) in work.extents.values() {
            self.check_extent((window, parts), *at, claims, &pack, worker);
        }
        Ok(())
    }

    /// Everything that refers to a pack is touched by what is wrong with it.
    fn blame_all(&self, window: &Window, work: &PackWork, name: &str, what: &str) {
        for (_, user) in &work.chunks {
            self.context.findings.add(FindingKind::Pack, name, what, [*user]);
        }
        let in_extents = work.extents.values().flat_map(|(_, claims)| claims);
        let versions = work.parts.iter().map(|(_, version)| *version);
        let touched: HashSet<usize> = versions.chain(in_extents.map(|c| c.version)).collect();
        for version in touched {
            self.blame(&window.versions[version], FindingKind::Pack, name, what);
        }
    }

    /// Whether the pack's own table of contents agrees with what refers to it.
    fn check_toc(&self, window: &Window, work: &PackWork, name: &str, toc: &[TocEntry]) {
        let mut offset = lifeboat_repo::pack::MAGIC.len() as u64;
        let mut boxes: HashMap<u64, &TocEntry> = HashMap::new();
        for entry in toc {
            boxes.insert(offset, entry);
            offset += u64::from(entry.length);
        }
        let agrees = |at: &BoxRef, kind: BoxKind| {
            boxes.get(&u64::from(at.offset)).is_some_and(|entry| {
                (entry.kind, entry.number, entry.length) == (kind, at.number, at.length)
            })
        };
        let what = |at: &BoxRef| {
            format!(
                "its table of contents does not list the box at {} that is referred to",
                at.offset
            )
        };
        for (at, user) in work.chunks.iter().filter(|(at, _)| !agrees(at, BoxKind::TableChunk)) {
            self.context.findings.add(FindingKind::Pack, name, &what(at), [*user]);
        }
        for (at, version) in work.parts.iter().filter(|(at, _)| !agrees(at, BoxKind::MapPart)) {
            self.blame(&window.versions[*version], FindingKind::Pack, name, &what(at));
        }
        for (at, claims) in work.extents.values().filter(|(at, _)| !agrees(at, BoxKind::Extent)) {
            for claim in claims {
                self.blame(&window.versions[claim.version], FindingKind::Pack, name, &what(at));
            }
        }
    }

    fn check_extent(
        &self,
        (window, parts): (&Window, &[OnceLock<MapPart>]),
        at: BoxRef,
        claims: &[Claim],
        pack: &[u8],
        worker: &mut Worker,
    ) {
        let object = format!("{} at {}", pack_name(at.pack), at.offset);
        let page_bytes = claims.first().map_or(0, |c| window.versions[c.version].page_bytes);
        if let Err(what) = self.open(&object, at, page_bytes, pack, worker) {
            for claim in claims {
                self.blame(&window.versions[claim.version], FindingKind::Extent, &object, &what);
            }
            return;
        }
        count(&self.context.count.extents, 1);
        let hasher = self.context.cluster().hasher();
        // Backups share pages: each is hashed once, and compared with what every one expects.
        let mut hashes: HashMap<(u64, u32), Option<u64>> = HashMap::new();
        for claim in claims {
            let version = &window.versions[claim.version];
            let Some(part) = parts[claim.version].get() else { continue };
            for page in claim.first_page..claim.first_page + claim.pages {
                let within = u64::from(page - claim.first_page) * u64::from(version.page_bytes);
                let from = u64::from(claim.offset) + within;
                let last = page + 1 == version.pages;
                let length = if last { version.last_bytes } else { version.page_bytes };
                let found = *hashes.entry((from, length)).or_insert_with(|| {
                    let to = from + u64::from(length);
                    let bytes = worker.raw.get(from as usize..to as usize)?;
                    Some(page_hash(hasher.page(bytes)))
                });
                let what = match found {
                    Some(hash) if Some(&hash) == part.hashes.get(page as usize) => continue,
                    Some(_) => "a page in it is not the one that was backed up",
                    None => "a page is said to lie beyond its end",
                };
                self.blame(version, FindingKind::Page, &object, what);
            }
        }
        count(&self.context.count.pages, hashes.len() as u64);
    }

    /// Opens an extent into the worker's buffer; the text says what is wrong.
    fn open(
        &self,
        object: &str,
        at: BoxRef,
        page_bytes: u32,
        pack: &[u8],
        worker: &mut Worker,
    ) -> Result<(), String> {
        let key = self.keys.get(&at.sealed_by).ok_or_else(|| {
            format!("it is sealed by {}, whose data key is not at hand", at.sealed_by)
        })?;
        let from = at.offset as usize;
        let sealed = pack
            .get(from..from.saturating_add(at.length as usize))
            .ok_or("the pack ends before it does")?;
        worker.sealed.clear();
        worker.sealed.extend_from_slice(sealed);
        let plain = key
            .open(BoxKind::Extent, at.number, object, &mut worker.sealed)
            .map_err(|e| chain(&e))?;
        let decompressor = match &mut worker.decompressor {
            Some((size, decompressor)) if *size == page_bytes => decompressor,
            other => {
                let transforms = self.context.ports.transforms(page_bytes);
                &mut other.insert((page_bytes, Decompressor::new(transforms))).1
            }
        };
        decompressor.decompress(object, plain, &mut worker.raw).map_err(|e| chain(&e))
    }
}

/// What is said of a pack that is not there.
pub(super) const PACK_MISSING: &str = "it is not in the repository";

fn part_name(part: &PartRef) -> String {
    match part {
        PartRef::Boxed { at, .. } => format!("{} at {}", pack_name(at.pack), at.offset),
        PartRef::Zero | PartRef::Inline(_) => "a file table".to_owned(),
    }
}

/// Sorts what is referred to by packs.
fn arrange(window: &Window, parts: &[OnceLock<MapPart>]) -> Vec<PackWork> {
    let mut packs: BTreeMap<PackId, PackWork> = BTreeMap::new();
    fn of(packs: &mut BTreeMap<PackId, PackWork>, pack: PackId) -> &mut PackWork {
        packs.entry(pack).or_insert_with(|| PackWork {
            pack,
            chunks: Vec::new(),
            parts: Vec::new(),
            extents: BTreeMap::new(),
        })
    }
    for (at, user) in &window.chunks {
        of(&mut packs, at.pack).chunks.push((*at, *user));
    }
    for (index, version) in window.versions.iter().enumerate() {
        if let PartRef::Boxed { at, .. } = &version.part {
            of(&mut packs, at.pack).parts.push((*at, index));
        }
        let Some(part) = parts[index].get() else { continue };
        let mut first_page = 0;
        for run in &part.runs {
            if let Source::Extent { index: extent, offset } = run.source
                && let Some(at) = part.extents.get(extent as usize)
            {
                let extents = &mut of(&mut packs, at.pack).extents;
                let entry = extents.entry((at.offset, at.number)).or_insert((*at, Vec::new()));
                entry.1.push(Claim { version: index, first_page, pages: run.pages, offset });
            }
            first_page += run.pages;
        }
    }
    packs.into_values().collect()
}
