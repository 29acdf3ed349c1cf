//! Stores a backup: pages are compared with the maps of an earlier one, what changed is
//! gathered into extents, extents go into packs, and the manifest comes last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lifeboat_store::Batch;
use lifeboat_units::ByteCount;

use crate::codec::{Compression, Compressor, EXTENT_BYTES_MAX, Transforms};
use crate::crypt::{BoxKind, SealKey, TAG_BYTES};
use crate::error::RepoError;
use crate::id::BackupId;
use crate::keys::DataKey;
use crate::manifest::Manifest;
use crate::map::{MapPart, Run, Source, ZERO_PAGE, page_hash};
use crate::pack::{BOX_BYTES_MAX, BoxRef, PACK_BYTES_TARGET, PackBuilder, PackId};
use crate::page_hash::PageHasher;
use crate::repository::Cluster;
use crate::table::{
    FileEntry, INLINE_BYTES_MAX, PartRef, decode_boxed_part, decode_chunk, encode_boxed_part,
};

/// Pages in one extent of a first backup.
pub const EXTENT_PAGES: u32 = 32;

/// A backup that is being stored. Shared by the threads that read.
pub struct BackupWriter {
    cluster: Cluster,
    id: BackupId,
    index: SealKey,
    content: SealKey,
    wrapped_key: Vec<u8>,
    compression: Compression,
    transforms: Transforms,
    page_bytes: u32,
    batch: Box<dyn Batch>,
    index_pack: Mutex<Option<PackBuilder>>,
    next_pack: AtomicU32,
    next_extent: AtomicU64,
    next_blob: AtomicU64,
    stored_bytes: AtomicU64,
}

impl BackupWriter {
    /// Begins to store backup `id`. Nothing is visible until [`BackupWriter::commit`].
    pub fn begin(
        cluster: &Cluster,
        id: BackupId,
        page_bytes: u32,
        compression: Compression,
        transforms: Transforms,
    ) -> Result<Self, RepoError> {
        let repository = cluster.repository();
        let data_key = DataKey::random(repository.entropy());
        Ok(Self {
            cluster: cluster.clone(),
            id,
            index: cluster.index_key(id),
            content: data_key.seal_key(&cluster.backup_scope(id)),
            wrapped_key: data_key.wrap(&repository.keyring().recipients)?,
            compression,
            transforms,
            page_bytes,
            batch: cluster.store().batch()?,
            index_pack: Mutex::new(None),
            next_pack: AtomicU32::new(0),
            next_extent: AtomicU64::new(0),
            next_blob: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
        })
    }

    /// The backup.
    pub fn id(&self) -> BackupId {
        self.id
    }

    /// Bytes written so far, as they lie on storage.
    pub fn stored_bytes(&self) -> ByteCount {
        ByteCount(self.stored_bytes.load(Ordering::Relaxed))
    }

    /// A writer of extents for one thread.
    pub fn extent_writer(&self) -> ExtentWriter<'_> {
        ExtentWriter {
            backup: self,
            hasher: self.cluster.hasher(),
            compressor: Compressor::new(self.compression, &self.transforms),
            pack: None,
            gathered: Vec::with_capacity(EXTENT_PAGES as usize * self.page_bytes as usize),
            gathered_pages: true,
            resolved: Vec::new(),
            spare: Vec::new(),
        }
    }

    fn new_pack(&self, buffer: Vec<u8>) -> PackBuilder {
        let number = self.next_pack.fetch_add(1, Ordering::Relaxed);
        PackBuilder::new(PackId { session: self.id, number }, buffer)
    }

    /// Writes a finished pack and gives its buffer back.
    fn store_pack(&self, pack: PackBuilder) -> Result<Vec<u8>, RepoError> {
        if pack.is_empty() {
            return Ok(pack.finish(&self.index).1);
        }
        let (id, body) = pack.finish(&self.index);
        self.stored_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        self.batch.put(&id.key(self.cluster.name()), &body)?;
        Ok(body)
    }

    /// Stores a map part or a chunk of the file table.
    ///
    /// Errors: [`RepoError::Damaged`] when no reader would accept it. It is decoded first, so
    /// that what cannot be read never becomes durable.
    pub fn put_index(&self, kind: BoxKind, plain: &[u8]) -> Result<BoxRef, RepoError> {
        let object = "an index object that is to be stored";
        if plain.len() + TAG_BYTES > BOX_BYTES_MAX as usize {
            let what = format!("it has {} bytes, more than a box can hold", plain.len());
            return Err(RepoError::damaged(object, what));
        }
        match kind {
            BoxKind::MapPart => decode_boxed_part(object, plain, self.page_bytes).map(drop)?,
            BoxKind::TableChunk => decode_chunk(object, plain, self.page_bytes).map(drop)?,
            _ => return Err(RepoError::damaged(object, "it is neither a map part nor a chunk")),
        }
        let number = self.next_blob.fetch_add(1, Ordering::Relaxed);
        let mut slot = self.index_pack.lock().unwrap_or_else(|e| e.into_inner());
        let pack = slot.get_or_insert_with(|| self.new_pack(Vec::new()));
        let at = pack.add(&self.index, kind, number, |out| out.extend_from_slice(plain));
        if pack.is_full()
            && let Some(full) = slot.take()
        {
            self.store_pack(full)?;
        }
        Ok(at)
    }

    /// Makes every pack durable and visible. The manifest may be written after this, and not
    /// before.
    pub fn finish_packs(self) -> Result<FinishedBackup, RepoError> {
        let last = self.index_pack.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(pack) = last {
            self.store_pack(pack)?;
        }
        let stored = self.stored_bytes();
        self.batch.commit()?;
        Ok(FinishedBackup {
            cluster: self.cluster,
            id: self.id,
            index: self.index,
            wrapped_key: self.wrapped_key,
            stored,
        })
    }
}

/// A backup whose packs are durable and whose manifest is not yet written.
pub struct FinishedBackup {
    cluster: Cluster,
    id: BackupId,
    index: SealKey,
    wrapped_key: Vec<u8>,
    stored: ByteCount,
}

impl FinishedBackup {
    /// Completes the manifest (keys, packs, stored size) and stores it: from now on the backup
    /// exists. `sessions` names those whose content is referred to; their wrapped keys are taken
    /// from `previous`.
    pub fn commit(
        self,
        mut manifest: Manifest,
        used: &Usage,
        previous: Option<&Manifest>,
    ) -> Result<Manifest, RepoError> {
        manifest.set_packs(&used.packs);
        for session in &used.sessions {
            if *session == self.id {
                manifest.set_wrapped_key(self.id, &self.wrapped_key);
            } else {
                let wrapped = previous.map(|p| p.wrapped_key(*session)).transpose()?;
                let missing = || {
                    RepoError::damaged(
                        format!("backup {}", self.id),
                        format!("it refers to {session}, whose key is not at hand"),
                    )
                };
                manifest.set_wrapped_key(*session, &wrapped.ok_or_else(missing)?);
            }
        }
        manifest.totals.new_bytes = self.stored;
        let sealed = manifest.seal(self.cluster.name(), &self.index)?;
        self.cluster.repository().confirm()?;
        self.cluster.store().put(&self.cluster.manifest_key(self.id)?, &sealed)?;
        Ok(manifest)
    }
}

/// What a backup refers to, gathered while its file table is written.
#[derive(Debug, Default)]
pub struct Usage {
    /// Packs.
    pub packs: BTreeSet<PackId>,
    /// Sessions whose content keys are needed.
    pub sessions: BTreeSet<BackupId>,
}

impl Usage {
    /// Counts what one file refers to.
    pub fn add(&mut self, file: &FileEntry) {
        for part in &file.parts {
            part.each_pack(|pack, sealed_by| {
                self.packs.insert(pack);
                self.sessions.extend(sealed_by);
            });
        }
    }

    /// Counts a chunk of the file table.
    pub fn add_chunk(&mut self, at: BoxRef) {
        self.packs.insert(at.pack);
    }
}

/// Where a page went that is being gathered: resolved when its extent is sealed.
#[derive(Debug, Clone, Copy)]
struct NewSlot {
    extent: u32,
    offset: u32,
}

/// Gathers pages into extents, compresses, seals and packs them; one per thread.
pub struct ExtentWriter<'a> {
    backup: &'a BackupWriter,
    hasher: PageHasher,
    compressor: Compressor,
    pack: Option<PackBuilder>,
    gathered: Vec<u8>,
    gathered_pages: bool,
    resolved: Vec<BoxRef>,
    spare: Vec<u8>,
}

impl ExtentWriter<'_> {
    /// What a page map says of a page.
    fn hash(&self, page: &[u8]) -> u64 {
        if is_zero(page) { ZERO_PAGE } else { page_hash(self.hasher.page(page)) }
    }

    /// What a page map says of pages that lie one after the other; it replaces what is in `hashes`.
    pub fn hash_pages(&self, pages: &[u8], hashes: &mut Vec<u64>) {
        let page_bytes = self.backup.page_bytes as usize;
        self.hasher.pages(pages, page_bytes, hashes);
        for (hash, page) in hashes.iter_mut().zip(pages.chunks(page_bytes)) {
            *hash = if is_zero(page) { ZERO_PAGE } else { page_hash(*hash) };
        }
    }

    fn push(&mut self, page: &[u8], whole_page: bool) -> Result<NewSlot, RepoError> {
        let full = EXTENT_PAGES as usize * self.backup.page_bytes as usize;
        let room = full.min(EXTENT_BYTES_MAX);
        if !self.gathered.is_empty()
            && (self.gathered.len() + page.len() > room || self.gathered_pages != whole_page)
        {
            self.seal_extent()?;
        }
        self.gathered_pages = whole_page;
        let slot =
            NewSlot { extent: self.resolved.len() as u32, offset: self.gathered.len() as u32 };
        self.gathered.extend_from_slice(page);
        Ok(slot)
    }

    fn seal_extent(&mut self) -> Result<(), RepoError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let number = self.backup.next_extent.fetch_add(1, Ordering::Relaxed);
        let pack = match &mut self.pack {
            Some(pack) => pack,
            none => {
                let mut buffer = std::mem::take(&mut self.spare);
                buffer.reserve(PACK_BYTES_TARGET + EXTENT_BYTES_MAX);
                none.insert(self.backup.new_pack(buffer))
            }
        };
        let at = pack.add(&self.backup.content, BoxKind::Extent, number, |out| {
            self.compressor.compress(&self.gathered, self.gathered_pages, out);
        });
        self.resolved.push(at);
        self.gathered.clear();
        if pack.is_full()
            && let Some(full) = self.pack.take()
        {
            self.spare = self.backup.store_pack(full)?;
        }
        Ok(())
    }

    /// Seals what is gathered, completes the parts written since the last call, and stores the
    /// larger ones. Parts come back in the order in which they are given.
    pub fn finish_parts(&mut self, parts: Vec<PartWriter>) -> Result<Vec<PartRef>, RepoError> {
        self.seal_extent()?;
        self.compressor.next_file();
        let resolved = std::mem::take(&mut self.resolved);
        parts.into_iter().map(|part| part.finish(self.backup, &resolved)).collect()
    }

    /// Ends this thread's work: its last pack is written.
    pub fn close(mut self) -> Result<(), RepoError> {
        self.seal_extent()?;
        match self.pack.take() {
            Some(pack) => self.backup.store_pack(pack).map(drop),
            None => Ok(()),
        }
    }
}

/// Where a page of a part lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    Zero,
    Old(Source),
    New(NewSlot),
}

/// How a page compares with the one that lay in the same place when the earlier backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// There was none.
    New,
    /// By its hash it is the same.
    Same,
    /// By its hash it is another. Names the session that stored the earlier one; `None` when that
    /// was a page of zeros.
    Differs(Option<BackupId>),
}

impl Compared {
    fn of(old: Option<(u64, Source)>, hash: u64, extents: &[BoxRef]) -> Self {
        match old {
            None => Self::New,
            Some((old, _)) if old == hash => Self::Same,
            Some((_, Source::Zero)) => Self::Differs(None),
            Some((_, Source::Extent { index, .. })) => {
                Self::Differs(extents.get(index as usize).map(|extent| extent.sealed_by))
            }
        }
    }
}

/// A page that was compared and is yet to be added.
#[derive(Debug, Clone, Copy)]
pub struct Looked {
    hash: u64,
    old: Option<(u64, Source)>,
}

impl Looked {
    /// Whether, by its hash, it is the page that lay in the same place before.
    pub fn is_same(&self) -> bool {
        self.old.is_some_and(|(old, _)| old == self.hash)
    }

    /// Whether it is a page of zeros.
    pub fn is_zero(&self) -> bool {
        self.hash == ZERO_PAGE
    }

    /// The same place, after the page was read again.
    #[must_use]
    pub fn again(self, writer: &ExtentWriter<'_>, page: &[u8]) -> Self {
        Self { hash: writer.hash(page), ..self }
    }
}

/// One part of a page map that is being written: pages are added in order.
pub struct PartWriter {
    previous: Option<(PartRef, MapPart)>,
    refresh: bool,
    pages_new: u64,
    pages_refreshed: u64,
    hashes: Vec<u64>,
    places: Vec<Place>,
    old: OldPlaces,
}

/// Walks over the places of an earlier part.
#[derive(Default)]
struct OldPlaces {
    run: usize,
    within: u32,
}

impl OldPlaces {
    /// The place of the next page, and steps on.
    fn next(&mut self, part: &MapPart, page_bytes: u32) -> Option<Source> {
        let run = part.runs.get(self.run)?;
        let source = match run.source {
            Source::Zero => Source::Zero,
            Source::Extent { index, offset } => {
                Source::Extent { index, offset: offset + self.within * page_bytes }
            }
        };
        self.within += 1;
        if self.within == run.pages {
            self.run += 1;
            self.within = 0;
        }
        Some(source)
    }
}

impl PartWriter {
    /// A part without a past.
    pub fn new() -> Self {
        Self::with_previous(None, false)
    }

    /// A part that is compared with an earlier one. `refresh` stores all its pages anew.
    pub fn with_previous(previous: Option<(PartRef, MapPart)>, refresh: bool) -> Self {
        Self {
            previous,
            refresh,
            pages_new: 0,
            pages_refreshed: 0,
            hashes: Vec::new(),
            places: Vec::new(),
            old: OldPlaces::default(),
        }
    }

    /// Adds the next page, and says how it compares with the one in the same place before.
    ///
    /// - `page` is a whole page, or the short end of a file.
    /// - `whole_page` says that it is a page of a relation, for which reordering can help.
    pub fn add(
        &mut self,
        writer: &mut ExtentWriter<'_>,
        page: &[u8],
        whole_page: bool,
    ) -> Result<Compared, RepoError> {
        let looked = self.look(writer, writer.hash(page));
        self.add_looked(writer, page, whole_page, looked)
    }

    /// Compares the next page, which has this hash ([`ExtentWriter::hash_pages`]), with the one in the
    /// same place before. [`PartWriter::add_looked`] with the same page must follow, before anything
    /// else is added.
    #[must_use = "a page that is not added afterwards shifts all later ones"]
    pub fn look(&mut self, writer: &ExtentWriter<'_>, hash: u64) -> Looked {
        let at = self.hashes.len();
        let old = match &self.previous {
            Some((_, part)) => {
                let source = self.old.next(part, writer.backup.page_bytes);
                source.map(|source| (part.hashes[at], source))
            }
            None => None,
        };
        Looked { hash, old }
    }

    /// Adds the page that was looked at.
    pub fn add_looked(
        &mut self,
        writer: &mut ExtentWriter<'_>,
        page: &[u8],
        whole_page: bool,
        Looked { hash, old }: Looked,
    ) -> Result<Compared, RepoError> {
        let extents = self.previous.as_ref().map_or(&[][..], |(_, part)| &part.extents);
        let compared = Compared::of(old, hash, extents);
        self.hashes.push(hash);
        if hash == ZERO_PAGE {
            self.places.push(Place::Zero);
            self.pages_new += u64::from(matches!(compared, Compared::Differs(_)));
            return Ok(compared);
        }
        let place = match old {
            Some((old_hash, source)) if old_hash == hash && !self.refresh => Place::Old(source),
            other => {
                self.pages_new += 1;
                self.pages_refreshed += u64::from(other.is_some_and(|(old, _)| old == hash));
                Place::New(writer.push(page, whole_page)?)
            }
        };
        self.places.push(place);
        Ok(compared)
    }

    /// Adds `pages` pages of zeros without their being read (a hole in a sparse file). Gives how
    /// many of them differ from what the earlier part has in their places.
    pub fn add_zeros(&mut self, writer: &ExtentWriter<'_>, pages: u32) -> u32 {
        let mut differ = 0;
        for _ in 0..pages {
            let at = self.hashes.len();
            if let Some((_, part)) = &self.previous
                && self.old.next(part, writer.backup.page_bytes).is_some()
            {
                differ += u32::from(part.hashes[at] != ZERO_PAGE);
            }
            self.hashes.push(ZERO_PAGE);
            self.places.push(Place::Zero);
        }
        self.pages_new += u64::from(differ);
        differ
    }

    /// Takes over up to `pages` of the next pages as the earlier part has them, without their being
    /// read: hash and place are those of the earlier part, also when it is being refreshed. Gives
    /// how many there were to take over; the caller has to [`PartWriter::add`] the rest.
    ///
    /// Right only for whole pages that are known to be the same: nobody compares them here.
    #[must_use = "pages that the earlier part does not have are not in this one either"]
    pub fn keep(&mut self, writer: &ExtentWriter<'_>, pages: u32) -> u32 {
        let Some((_, part)) = &self.previous else { return 0 };
        for kept in 0..pages {
            let Some(source) = self.old.next(part, writer.backup.page_bytes) else { return kept };
            let hash = part.hashes[self.hashes.len()];
            self.hashes.push(hash);
            self.places.push(Place::Old(source));
        }
        pages
    }

    /// Pages so far.
    pub fn pages(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// Pages stored anew so far, and how many of them only to keep restores fast.
    pub fn pages_new(&self) -> (u64, u64) {
        (self.pages_new, self.pages_refreshed)
    }

    fn finish(self, backup: &BackupWriter, resolved: &[BoxRef]) -> Result<PartRef, RepoError> {
        if let Some((reference, part)) = &self.previous
            && self.pages_new == 0
            && part.hashes == self.hashes
        {
            return Ok(reference.clone());
        }
        let old = self.previous.as_ref().map_or(&[][..], |(_, part)| &part.extents);
        let part = assemble(&self.hashes, &self.places, old, resolved, backup.page_bytes);
        if part.is_zero() {
            return Ok(PartRef::Zero);
        }
        let mut plain = Vec::with_capacity(part.hashes.len() * 8 + part.extents.len() * 16 + 64);
        encode_boxed_part(&part, backup.page_bytes, &mut plain);
        if plain.len() <= INLINE_BYTES_MAX {
            return Ok(PartRef::Inline(part));
        }
        let packs = part.packs();
        let at = backup.put_index(BoxKind::MapPart, &plain)?;
        Ok(PartRef::Boxed { at, packs })
    }
}

impl Default for PartWriter {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts a part together: extents that are used, and runs over them.
fn assemble(
    hashes: &[u64],
    places: &[Place],
    old: &[BoxRef],
    resolved: &[BoxRef],
    page_bytes: u32,
) -> MapPart {
    let mut part = MapPart { hashes: hashes.to_vec(), ..MapPart::default() };
    let mut index_of: BTreeMap<(bool, u32), u32> = BTreeMap::new();
    for place in places {
        let source = match *place {
            Place::Zero | Place::Old(Source::Zero) => Source::Zero,
            Place::Old(Source::Extent { index, offset }) => {
                let at = old[index as usize];
                let index = intern(&mut index_of, &mut part.extents, (false, index), at);
                Source::Extent { index, offset }
            }
            Place::New(NewSlot { extent, offset }) => {
                let at = resolved[extent as usize];
                let index = intern(&mut index_of, &mut part.extents, (true, extent), at);
                Source::Extent { index, offset }
            }
        };
        match (part.runs.last_mut(), source) {
            (Some(run), source) if continues(run, source, page_bytes) => run.pages += 1,
            _ => part.runs.push(Run { pages: 1, source }),
        }
    }
    part
}

fn intern(
    places: &mut BTreeMap<(bool, u32), u32>,
    extents: &mut Vec<BoxRef>,
    key: (bool, u32),
    at: BoxRef,
) -> u32 {
    *places.entry(key).or_insert_with(|| {
        extents.push(at);
        (extents.len() - 1) as u32
    })
}

/// Whether a page at `source` continues a run.
fn continues(run: &Run, source: Source, page_bytes: u32) -> bool {
    match (run.source, source) {
        (Source::Zero, Source::Zero) => true,
        (Source::Extent { index: a, offset }, Source::Extent { index: b, offset: next }) => {
            a == b && offset + run.pages * page_bytes == next
        }
        _ => false,
    }
}

/// Whether all bytes are zero. Compares in steps that the compiler turns into wide loads.
fn is_zero(page: &[u8]) -> bool {
    let (chunks, rest) = page.as_chunks::<64>();
    rest.iter().all(|b| *b == 0)
        && chunks.iter().all(|chunk| chunk.iter().fold(0, |acc, b| acc | b) == 0)
}
