//! Reads a backup: file tables and maps with the index key, pages with the data keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::codec::Decompressor;
use crate::crypt::{BoxKind, SealKey};
use crate::error::RepoError;
use crate::id::BackupId;
use crate::keys::DataKey;
use crate::manifest::{ChunkRef, Manifest};
use crate::map::{MapPart, Run, Source, ZERO_PAGE};
use crate::pack::{BOX_BYTES_MAX, BoxRef, PackId};
use crate::repository::Cluster;
use crate::table::{FileEntry, PartRef, decode_boxed_part, decode_chunk};

/// Ranges of one pack that lie this close are read together, in bytes.
const GAP_BYTES_MAX: u32 = 64 << 10;
/// Longest range that is read at once, in bytes.
const READ_BYTES_MAX: u32 = 4 << 20;

/// Reads file tables and page maps; needs the index key only.
pub struct IndexReader {
    cluster: Cluster,
    page_bytes: u32,
    keys: Mutex<HashMap<BackupId, Arc<SealKey>>>,
    fetched_bytes: AtomicU64,
}

impl IndexReader {
    /// A reader for backups with pages of this size.
    pub fn new(cluster: &Cluster, page_bytes: u32) -> Self {
        Self {
            cluster: cluster.clone(),
            page_bytes,
            keys: Mutex::default(),
            fetched_bytes: AtomicU64::new(0),
        }
    }

    /// Bytes that were read from storage so far.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    fn key(&self, session: BackupId) -> Arc<SealKey> {
        let mut keys = self.keys.lock().unwrap_or_else(|e| e.into_inner());
        let key = keys.entry(session).or_insert_with(|| Arc::new(self.cluster.index_key(session)));
        Arc::clone(key)
    }

    fn open_box(&self, kind: BoxKind, at: BoxRef) -> Result<(String, Vec<u8>), RepoError> {
        let object = describe(at);
        if at.length > BOX_BYTES_MAX {
            return Err(RepoError::damaged(object, "it claims to be longer than a box can be"));
        }
        self.fetched_bytes.fetch_add(u64::from(at.length), Ordering::Relaxed);
        let mut sealed = Vec::new();
        self.cluster.store().get_range(
            &at.pack.key(self.cluster.name()),
            u64::from(at.offset),
            at.length as usize,
            &mut sealed,
        )?;
        let plain = self.key(at.sealed_by).open(kind, at.number, &object, &mut sealed)?.len();
        sealed.truncate(plain);
        Ok((object, sealed))
    }

    /// The files that a chunk lists.
    pub fn chunk(&self, chunk: &ChunkRef) -> Result<Vec<FileEntry>, RepoError> {
        let (object, plain) = self.open_box(BoxKind::TableChunk, chunk.at())?;
        decode_chunk(&object, &plain, self.page_bytes)
    }

    /// A part of a page map that is to have `pages` pages.
    pub fn part(&self, part: &PartRef, pages: u32) -> Result<MapPart, RepoError> {
        let (object, part) = match part {
            PartRef::Zero => {
                let runs = vec![Run { pages, source: Source::Zero }];
                let hashes = vec![ZERO_PAGE; pages as usize];
                return Ok(MapPart { hashes, runs, extents: Vec::new() });
            }
            PartRef::Inline(part) => ("a file table".to_owned(), part.clone()),
            PartRef::Boxed { at, .. } => {
                let (object, plain) = self.open_box(BoxKind::MapPart, *at)?;
                let part = decode_boxed_part(&object, &plain, self.page_bytes)?;
                (object, part)
            }
        };
        if part.pages() == pages {
            Ok(part)
        } else {
            let what = format!("it maps {} pages, the file has {pages} there", part.pages());
            Err(RepoError::damaged(object, what))
        }
    }
}

/// Names a box in messages.
fn describe(at: BoxRef) -> String {
    format!("data/{}/{:06} at {}", at.pack.session, at.pack.number, at.offset)
}

/// Reads pages; needs the private key. Shared by threads.
pub struct ContentReader {
    cluster: Cluster,
    keys: HashMap<BackupId, SealKey>,
}

/// Buffers and contexts of one reading thread.
pub struct ReadBuffers {
    decompressor: Decompressor,
    range: Vec<u8>,
    raw: Vec<u8>,
    fetched_bytes: u64,
}

impl ReadBuffers {
    /// Buffers for a thread.
    pub fn new(decompressor: Decompressor) -> Self {
        Self { decompressor, range: Vec::new(), raw: Vec::new(), fetched_bytes: 0 }
    }

    /// Bytes that were read from storage through these buffers.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes
    }
}

impl ContentReader {
    /// Unwraps every data key that a backup needs.
    ///
    /// Errors: [`RepoError::WriteOnly`] when the private key is not at hand.
    pub fn new(cluster: &Cluster, manifest: &Manifest) -> Result<Self, RepoError> {
        let mut reader = Self { cluster: cluster.clone(), keys: HashMap::new() };
        reader.add_keys(manifest)?;
        Ok(reader)
    }

    /// Unwraps the data keys of one more backup.
    pub fn add_keys(&mut self, manifest: &Manifest) -> Result<(), RepoError> {
        let identity = self.cluster.repository().keyring().identity.as_ref();
        let object = format!("manifest {}", manifest.id);
        for session in manifest.data_keys.keys() {
            if !self.keys.contains_key(session) {
                let key = DataKey::unwrap(&manifest.wrapped_key(*session)?, identity, &object)?;
                self.keys.insert(*session, key.seal_key(&self.cluster.backup_scope(*session)));
            }
        }
        Ok(())
    }

    /// Reads extents, neighbours together, and calls `each` with the position in `wanted` and
    /// the raw bytes. `each` may be called in any order; its error ends the reading.
    pub fn extents<E: From<RepoError>>(
        &self,
        wanted: &[BoxRef],
        buffers: &mut ReadBuffers,
        mut each: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_unstable_by_key(|i| (wanted[*i].pack, wanted[*i].offset));
        let mut rest = order.as_slice();
        while let Some(first) = rest.first() {
            let (pack, start) = (wanted[*first].pack, wanted[*first].offset);
            let mut end = start;
            let together = rest
                .iter()
                .take_while(|i| {
                    let at = wanted[**i];
                    let reach = at.offset.saturating_add(at.length);
                    let near = at.pack == pack
                        && at.offset <= end.saturating_add(GAP_BYTES_MAX)
                        && (end == start || reach - start <= READ_BYTES_MAX);
                    if near {
                        end = end.max(reach);
                    }
                    near
                })
                .count();
            let (now, later) = rest.split_at(together.max(1));
            self.read_range(pack, start, end, wanted, now, buffers, &mut each)?;
            rest = later;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one call site; the range is one thought")]
    fn read_range<E: From<RepoError>>(
        &self,
        pack: PackId,
        start: u32,
        end: u32,
        wanted: &[BoxRef],
        now: &[usize],
        buffers: &mut ReadBuffers,
        each: &mut impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let key = pack.key(self.cluster.name());
        let length = (end - start) as usize;
        let ReadBuffers { decompressor, range, raw, fetched_bytes } = buffers;
        *fetched_bytes += length as u64;
        self.cluster
            .store()
            .get_range(&key, u64::from(start), length, range)
            .map_err(RepoError::from)?;
        let mut last: Option<BoxRef> = None;
        for i in now {
            let at = wanted[*i];
            if last != Some(at) {
                self.open_extent(at, start, range, decompressor, raw)?;
                last = Some(at);
            }
            each(*i, raw)?;
        }
        Ok(())
    }

    fn open_extent(
        &self,
        at: BoxRef,
        start: u32,
        range: &mut [u8],
        decompressor: &mut Decompressor,
        raw: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        let object = describe(at);
        let Some(key) = self.keys.get(&at.sealed_by) else {
            let what = format!("it is sealed by {}, whose key is not at hand", at.sealed_by);
            return Err(RepoError::damaged(object, what));
        };
        let from = (at.offset - start) as usize;
        let sealed = &mut range[from..from + at.length as usize];
        let plain = key.open(BoxKind::Extent, at.number, &object, sealed)?;
        decompressor.decompress(&object, plain, raw)
    }
}
