//! Packs: sealed boxes back to back, with a table of contents at the end.
//!
//! Format: docs/format/pack.md.

use lifeboat_store::Key;

use crate::crypt::{BoxKind, SealKey, TAG_BYTES};
use crate::error::RepoError;
use crate::id::{BackupId, ClusterName};
use crate::map::Sessions;
use crate::wire::{Reader, put_varint};

/// First bytes of every pack: name and format version.
pub const MAGIC: [u8; 8] = *b"LBPACK\x00\x01";
/// Length of the sealed table of contents and a closing mark, at the very end.
pub const TAIL_BYTES: usize = 8;
const TAIL_MARK: [u8; 4] = *b"LBPE";
/// Packs are closed once they are this long, in bytes.
pub const PACK_BYTES_TARGET: usize = 16 << 20;
/// Longest pack that is read, in bytes. No box begins beyond.
pub const PACK_BYTES_MAX: u64 = 64 << 20;

/// Which pack: the backup that wrote it, and its number within that backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The backup in whose course it was written.
    pub session: BackupId,
    /// Ordinal, from 0.
    pub number: u32,
}

impl PackId {
    /// Name of the object.
    pub fn key(self, cluster: &ClusterName) -> Key {
        Key::new(format!("clusters/{cluster}/data/{}/{:06}", self.session, self.number))
            .expect("checked names make a key")
    }
}

/// Where a sealed box lies, and which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BoxRef {
    /// The pack that holds it.
    pub pack: PackId,
    /// Offset of its first byte in the pack.
    pub offset: u32,
    /// Its sealed length.
    pub length: u32,
    /// The session whose key sealed it. Differs from the pack's when collection moved it.
    pub sealed_by: BackupId,
    /// Its number in that session.
    pub number: u64,
}

/// Longest sealed box, in bytes: an extent that could not be compressed, or a map part.
pub const BOX_BYTES_MAX: u32 = (2 << 20) + TAG_BYTES as u32;

/// One line of a pack's table of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TocEntry {
    /// What the box holds.
    pub kind: BoxKind,
    /// The session whose key sealed it.
    pub sealed_by: BackupId,
    /// Its number in the session.
    pub number: u64,
    /// Its sealed length.
    pub length: u32,
}

/// A pack that is being filled.
pub struct PackBuilder {
    id: PackId,
    body: Vec<u8>,
    toc: Vec<TocEntry>,
}

impl PackBuilder {
    /// An empty pack.
    pub fn new(id: PackId, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&MAGIC);
        Self { id, body: buffer, toc: Vec::new() }
    }

    /// Whether it is long enough to be closed.
    pub fn is_full(&self) -> bool {
        self.body.len() >= PACK_BYTES_TARGET
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.toc.is_empty()
    }

    /// Adds a box: `write` appends its plain content, which is then sealed.
    pub fn add(
        &mut self,
        key: &SealKey,
        kind: BoxKind,
        number: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> BoxRef {
        let offset = self.body.len();
        write(&mut self.body);
        key.seal(kind, number, &mut self.body, offset);
        let length = (self.body.len() - offset) as u32;
        self.toc.push(TocEntry { kind, sealed_by: self.id.session, number, length });
        BoxRef { pack: self.id, offset: offset as u32, length, sealed_by: self.id.session, number }
    }

    /// Closes the pack: its name and whole content.
    pub fn finish(mut self, index: &SealKey) -> (PackId, Vec<u8>) {
        let at = self.body.len();
        let (mut sessions, mut lines) = (Sessions::default(), Vec::new());
        for entry in &self.toc {
            lines.push(entry.kind as u8);
            put_varint(&mut lines, sessions.place(entry.sealed_by));
            put_varint(&mut lines, entry.number);
            put_varint(&mut lines, u64::from(entry.length));
        }
        sessions.encode(&mut self.body);
        put_varint(&mut self.body, self.toc.len() as u64);
        self.body.extend_from_slice(&lines);
        index.seal(BoxKind::PackTrailer, u64::from(self.id.number), &mut self.body, at);
        let sealed = (self.body.len() - at) as u32;
        self.body.extend_from_slice(&sealed.to_le_bytes());
        self.body.extend_from_slice(&TAIL_MARK);
        (self.id, self.body)
    }
}

/// Reads the table of contents of a whole pack, checking that it describes exactly what is there.
pub fn read_toc(id: PackId, index: &SealKey, pack: &[u8]) -> Result<Vec<TocEntry>, RepoError> {
    let object = format!("{}/{:06}", id.session, id.number);
    let damaged = |what: &str| RepoError::damaged(object.as_str(), what);
    let (magic, body) =
        pack.split_first_chunk::<8>().ok_or_else(|| damaged("it does not begin as a pack"))?;
    if magic[..7] != MAGIC[..7] {
        return Err(damaged("it does not begin as a pack"));
    }
    if magic[7] != MAGIC[7] {
        return Err(RepoError::TooNew {
            object,
            found: u32::from(magic[7]),
            known: u32::from(MAGIC[7]),
        });
    }
    let (rest, tail) =
        body.split_last_chunk::<TAIL_BYTES>().ok_or_else(|| damaged("it is cut short"))?;
    let [a, b, c, d, mark @ ..] = *tail;
    if mark != TAIL_MARK {
        return Err(damaged("it does not end as a pack: it is cut short or altered"));
    }
    let sealed = u32::from_le_bytes([a, b, c, d]) as usize;
    let boxes = rest
        .len()
        .checked_sub(sealed)
        .ok_or_else(|| damaged("its table of contents is longer than the pack"))?;
    let mut toc = rest[boxes..].to_vec();
    let plain = index.open(BoxKind::PackTrailer, u64::from(id.number), &object, &mut toc)?;
    let mut reader = Reader::new(&object, plain);
    let sessions = Sessions::decode(&mut reader)?;
    let count = reader.count(4, "the number of boxes")?;
    let mut entries = Vec::with_capacity(count);
    let mut total = 0u64;
    for _ in 0..count {
        let kind = match reader.byte()? {
            1 => BoxKind::Extent,
            2 => BoxKind::MapPart,
            3 => BoxKind::TableChunk,
            other => return Err(damaged(&format!("it holds a box of unknown kind {other}"))),
        };
        let sealed_by = sessions.read(&mut reader)?;
        let number = reader.varint()?;
        let length = reader.bounded(u64::from(BOX_BYTES_MAX), "the length of a box")? as u32;
        total += u64::from(length);
        entries.push(TocEntry { kind, sealed_by, number, length });
    }
    reader.finish()?;
    if total == boxes as u64 {
        Ok(entries)
    } else {
        Err(damaged("its table of contents does not add up to its length"))
    }
}
