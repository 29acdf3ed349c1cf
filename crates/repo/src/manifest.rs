//! Manifests: a backup exists when its manifest does.
//!
//! Format: docs/format/manifest.md.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_store::Key;
use lifeboat_units::{ByteCount, Timestamp};
use serde::{Deserialize, Serialize};

use crate::crypt::{BoxKind, SealKey};
use crate::error::RepoError;
use crate::id::{BackupId, ClusterName, hex, unhex};
use crate::pack::{BoxRef, PackId};

/// First bytes of a manifest: name and format version.
const MAGIC: [u8; 8] = *b"LBMANIF\x01";
/// Most packs that a backup can refer to: 256 TiB of full ones.
const PACKS_MAX: u64 = 1 << 24;
/// Longest manifest after decompression, in bytes.
const PLAIN_BYTES_MAX: usize = 256 << 20;

/// Everything about one backup, complete by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The backup.
    pub id: BackupId,
    /// The cluster it was taken of.
    pub cluster: String,
    /// The backup whose maps it was compared with, if any. A note: it is not needed to restore.
    pub compared_with: Option<BackupId>,
    /// When it began, by lifeboat's clock.
    pub began_at: Timestamp,
    /// When all of it was stored, by lifeboat's clock.
    pub ended_at: Timestamp,
    /// Size of a page, in bytes.
    pub page_bytes: u32,
    /// The file table.
    pub chunks: Vec<ChunkRef>,
    /// For every session whose content is referred to: its data key, wrapped (hexadecimal).
    pub data_keys: BTreeMap<BackupId, String>,
    /// Every pack that is referred to: by session, ranges of numbers, both ends inclusive.
    pub packs: BTreeMap<BackupId, Vec<(u32, u32)>>,
    /// Sums.
    pub totals: Totals,
    /// What the engine and the job know; the repository does not look into it.
    pub facts: serde_json::Value,
}

/// A 64-bit number as 16 hexadecimal digits: JSON readers lose digits of numbers above 2^53.
mod hex64 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value = u64::from_str_radix(&text, 16).ok();
        let same = value.filter(|value| format!("{value:016x}") == text);
        same.ok_or_else(|| serde::de::Error::custom("a digest has 16 hexadecimal digits"))
    }
}

/// Sums over a backup.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Size of the database, in bytes.
    pub size_bytes: ByteCount,
    /// Pages (blocks of the page size) of all files.
    pub pages: u64,
    /// Pages that were stored anew.
    pub pages_new: u64,
    /// Of those, pages that had not changed but were stored anew to keep restores fast.
    pub pages_refreshed: u64,
    /// Bytes that were read from the data directory.
    pub read_bytes: ByteCount,
    /// What this backup added to the repository, in bytes.
    pub new_bytes: ByteCount,
}

/// A chunk of the file table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRef {
    /// The backup that wrote the pack.
    pub session: BackupId,
    /// The pack's number.
    pub pack: u32,
    /// Offset in the pack.
    pub offset: u32,
    /// Sealed length.
    pub length: u32,
    /// The session whose key sealed it.
    pub sealed_by: BackupId,
    /// Its number in that session.
    pub number: u64,
    /// How many files it lists.
    pub files: u32,
    /// First 8 bytes of its keyed digest: tells an unchanged chunk.
    #[serde(with = "hex64")]
    pub digest: u64,
}

impl ChunkRef {
    /// A reference to a chunk at `at`.
    pub fn new(at: BoxRef, files: u32, digest: u64) -> Self {
        Self {
            session: at.pack.session,
            pack: at.pack.number,
            offset: at.offset,
            length: at.length,
            sealed_by: at.sealed_by,
            number: at.number,
            files,
            digest,
        }
    }

    /// Where the chunk lies.
    pub fn at(&self) -> BoxRef {
        BoxRef {
            pack: PackId { session: self.session, number: self.pack },
            offset: self.offset,
            length: self.length,
            sealed_by: self.sealed_by,
            number: self.number,
        }
    }
}

impl Manifest {
    /// Longest sealed manifest that is read, in bytes.
    pub const BYTES_MAX: u64 = 128 << 20;

    /// Encodes and seals; decodes the result once more before it may be stored.
    pub fn seal(&self, cluster: &ClusterName, key: &SealKey) -> Result<Vec<u8>, RepoError> {
        let plain = serde_json::to_vec(self).expect("a manifest always serialises");
        let mut body = MAGIC.to_vec();
        let packed = zstd::bulk::compress(&plain, 3).expect("zstd compresses any bytes");
        body.extend_from_slice(&packed);
        key.seal(BoxKind::Manifest, 0, &mut body, MAGIC.len());
        let name = Key::new(format!("clusters/{cluster}/backups/{}", self.id))?;
        let again = Self::open(&name, body.clone(), key, self.id, cluster)?;
        if again == *self && body.len() as u64 <= Self::BYTES_MAX {
            Ok(body)
        } else {
            Err(RepoError::damaged(name.as_str(), "it does not read back as it was written"))
        }
    }

    /// Opens and checks a manifest that is to be that of `id` in `cluster`.
    pub fn open(
        name: &Key,
        mut body: Vec<u8>,
        key: &SealKey,
        id: BackupId,
        cluster: &ClusterName,
    ) -> Result<Self, RepoError> {
        let damaged = |what: String| RepoError::damaged(name.as_str(), what);
        let magic = body.first_chunk::<8>().copied().unwrap_or_default();
        if magic[..7] != MAGIC[..7] {
            return Err(damaged("it does not begin as a manifest".to_owned()));
        }
        if magic[7] != MAGIC[7] {
            return Err(RepoError::TooNew {
                object: name.to_string(),
                found: u32::from(magic[7]),
                known: u32::from(MAGIC[7]),
            });
        }
        let packed = key.open(BoxKind::Manifest, 0, name.as_str(), &mut body[MAGIC.len()..])?;
        let plain = decompress(packed).map_err(damaged)?;
        let manifest: Self = serde_json::from_slice(&plain).map_err(|e| damaged(e.to_string()))?;
        if manifest.id != id || manifest.cluster != cluster.as_str() {
            return Err(damaged(format!(
                "it is the manifest of {} of cluster {}",
                manifest.id, manifest.cluster
            )));
        }
        let page_ok = manifest.page_bytes.is_power_of_two()
            && (512..=32 << 10).contains(&manifest.page_bytes);
        if !page_ok {
            return Err(damaged(format!(
                "a page of {} bytes is not possible",
                manifest.page_bytes
            )));
        }
        manifest.check_packs().map_err(|what| damaged(what.to_owned()))?;
        Ok(manifest)
    }

    /// The list of packs decides what collection keeps: it must be in order, of a sane length,
    /// and hold at least where the file table itself lies.
    fn check_packs(&self) -> Result<(), &'static str> {
        let mut total = 0u64;
        for ranges in self.packs.values() {
            let mut next = 0u64;
            for (first, last) in ranges {
                if u64::from(*first) < next || last < first {
                    return Err("its list of packs is not in order");
                }
                next = u64::from(*last) + 2;
                total += u64::from(last - first) + 1;
            }
        }
        if total > PACKS_MAX {
            return Err("it claims more packs than a backup can have");
        }
        let held = |chunk: &ChunkRef| {
            let ranges = self.packs.get(&chunk.session).map_or(&[][..], Vec::as_slice);
            ranges.iter().any(|(first, last)| (first..=last).contains(&&chunk.pack))
        };
        if self.chunks.iter().all(held) {
            Ok(())
        } else {
            Err("its file table lies in a pack that it does not list")
        }
    }

    /// Every pack that this backup refers to.
    pub fn each_pack(&self, mut each: impl FnMut(PackId)) {
        for (session, ranges) in &self.packs {
            for (first, last) in ranges {
                (*first..=*last).for_each(|number| each(PackId { session: *session, number }));
            }
        }
    }

    /// Records the packs in ranges.
    pub fn set_packs(&mut self, packs: &BTreeSet<PackId>) {
        self.packs.clear();
        for pack in packs {
            let ranges = self.packs.entry(pack.session).or_default();
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == pack.number => *last = pack.number,
                _ => ranges.push((pack.number, pack.number)),
            }
        }
    }

    /// The wrapped data key of a session.
    pub fn wrapped_key(&self, session: BackupId) -> Result<Vec<u8>, RepoError> {
        self.data_keys.get(&session).and_then(|text| unhex(text)).ok_or_else(|| {
            RepoError::damaged(
                format!("manifest {}", self.id),
                format!("it has no data key for {session}"),
            )
        })
    }

    /// Records the wrapped data key of a session.
    pub fn set_wrapped_key(&mut self, session: BackupId, wrapped: &[u8]) {
        self.data_keys.insert(session, hex(wrapped));
    }
}

/// Decompresses, refusing more than [`PLAIN_BYTES_MAX`] before space is reserved for it.
fn decompress(packed: &[u8]) -> Result<Vec<u8>, String> {
    let claimed = zstd::zstd_safe::get_frame_content_size(packed)
        .ok()
        .flatten()
        .ok_or("its length is not said")?;
    if claimed > PLAIN_BYTES_MAX as u64 {
        return Err(format!("it claims {claimed} bytes"));
    }
    zstd::bulk::decompress(packed, claimed as usize).map_err(|e| e.to_string())
}
