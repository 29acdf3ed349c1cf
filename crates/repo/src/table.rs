//! File tables: the files of a backup, in chunks that are re-used as long as nothing in them
//! changes.
//!
//! Format: docs/format/file-table.md.

use crate::error::RepoError;
use crate::id::BackupId;
use crate::map::{MapPart, PART_PAGES, Sessions};
use crate::pack::{BOX_BYTES_MAX, BoxRef, PACK_BYTES_MAX, PackId};
use crate::wire::{Reader, put_bytes, put_varint};

/// Version byte in front of every chunk.
const VERSION: u8 = 1;
/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// A map part that is at most this long is written into the chunk itself, in bytes.
pub const INLINE_BYTES_MAX: usize = 512;
/// A chunk is closed after this many files at the latest.
const CHUNK_FILES_MAX: usize = 4096;
/// A chunk is closed once it is this long, in bytes.
const CHUNK_BYTES_MAX: usize = 512 << 10;

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the data directory; see [`check_path`].
    pub path: String,
    /// Size in bytes; the last page may be short.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Number of the file's first page if it holds pages of a relation.
    pub first_page: Option<u32>,
    /// Its page map.
    pub parts: Vec<PartRef>,
}

impl FileEntry {
    /// How many pages of `page_bytes` the file has; the last may be short.
    pub fn pages(&self, page_bytes: u32) -> u64 {
        self.size_bytes.div_ceil(u64::from(page_bytes))
    }
}

/// Where a part of a page map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartRef {
    /// All its pages are zero.
    Zero,
    /// In the file table itself.
    Inline(MapPart),
    /// In a pack.
    Boxed {
        /// The sealed part.
        at: BoxRef,
        /// The packs that hold its pages, each with the session that sealed them.
        packs: Vec<(PackId, BackupId)>,
    },
}

impl PartRef {
    /// Calls `each` for every pack that this part needs, with the session whose data key opens
    /// what it needs there (`None` for the sealed part itself: the index key opens it).
    pub fn each_pack(&self, mut each: impl FnMut(PackId, Option<BackupId>)) {
        match self {
            Self::Zero => {}
            Self::Inline(part) => part.extents.iter().for_each(|e| each(e.pack, Some(e.sealed_by))),
            Self::Boxed { at, packs } => {
                each(at.pack, None);
                packs.iter().for_each(|(pack, sealed_by)| each(*pack, Some(*sealed_by)));
            }
        }
    }
}

/// Refuses a path that could leave the directory into which a restore writes.
pub fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return Err("is empty or too long");
    }
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if path.contains('\0') {
        return Err("contains a NUL byte");
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("has an empty, `.` or `..` part");
    }
    Ok(())
}

/// Whether a chunk ends after this path: on average every 512th, by a rule that depends on the
/// path alone, so that a file that comes or goes changes one chunk.
fn ends_chunk(path: &str) -> bool {
    let hash = blake3::hash(path.as_bytes());
    let [a, b, ..] = *hash.as_bytes();
    u16::from_le_bytes([a, b]).is_multiple_of(512)
}

/// Gathers files into chunks.
#[derive(Default)]
pub struct ChunkBuilder {
    sessions: Sessions,
    body: Vec<u8>,
    files: usize,
    previous: String,
    ended: bool,
}

impl ChunkBuilder {
    /// Adds a file. Paths must come in ascending order.
    pub fn add(&mut self, file: &FileEntry, page_bytes: u32) {
        debug_assert!(self.previous < file.path, "files come in order of their paths");
        let shared = shared_prefix(&self.previous, &file.path);
        put_varint(&mut self.body, shared as u64);
        put_bytes(&mut self.body, &file.path.as_bytes()[shared..]);
        put_varint(&mut self.body, file.size_bytes);
        put_varint(&mut self.body, u64::from(file.mode));
        put_varint(&mut self.body, file.first_page.map_or(0, |page| u64::from(page) + 1));
        debug_assert_eq!(file.parts.len() as u64, part_count(file.size_bytes, page_bytes));
        for part in &file.parts {
            self.add_part(part, page_bytes);
        }
        self.files += 1;
        self.ended = ends_chunk(&file.path);
        self.previous.clone_from(&file.path);
    }

    fn add_part(&mut self, part: &PartRef, page_bytes: u32) {
        match part {
            PartRef::Zero => self.body.push(0),
            PartRef::Inline(part) => {
                self.body.push(1);
                part.encode(page_bytes, &mut self.sessions, &mut self.body);
            }
            PartRef::Boxed { at, packs } => {
                self.body.push(2);
                // A reference is an extent list of one, written as maps write it.
                let one = MapPart { extents: vec![*at], ..MapPart::default() };
                one.encode(page_bytes, &mut self.sessions, &mut self.body);
                let used = MapPart { extents: packs.iter().map(pack_only).collect(), ..one };
                used.encode(page_bytes, &mut self.sessions, &mut self.body);
            }
        }
    }

    /// Whether it is time to close the chunk.
    pub fn is_full(&self) -> bool {
        self.ended || self.files >= CHUNK_FILES_MAX || self.body.len() >= CHUNK_BYTES_MAX
    }

    /// How many files are in it.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Closes the chunk, leaving an empty builder.
    pub fn finish(&mut self) -> Vec<u8> {
        let done = std::mem::take(self);
        let mut out = vec![VERSION];
        done.sessions.encode(&mut out);
        put_varint(&mut out, done.files as u64);
        out.extend_from_slice(&done.body);
        out
    }
}

/// Number of map parts of a file.
pub fn part_count(size_bytes: u64, page_bytes: u32) -> u64 {
    size_bytes.div_ceil(u64::from(page_bytes) * u64::from(PART_PAGES))
}

fn pack_only((pack, sealed_by): &(PackId, BackupId)) -> BoxRef {
    BoxRef { pack: *pack, offset: 0, length: 0, sealed_by: *sealed_by, number: 0 }
}

fn shared_prefix(a: &str, b: &str) -> usize {
    let shared = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=shared).rev().find(|n| b.is_char_boundary(*n)).unwrap_or(0)
}

/// Reads a chunk back.
pub fn decode_chunk(
    object: &str,
    chunk: &[u8],
    page_bytes: u32,
) -> Result<Vec<FileEntry>, RepoError> {
    let mut reader = Reader::new(object, chunk);
    let version = reader.byte()?;
    if version != VERSION {
        return Err(RepoError::TooNew {
            object: object.to_owned(),
            found: u32::from(version),
            known: u32::from(VERSION),
        });
    }
    let sessions = Sessions::decode(&mut reader)?;
    let count = reader.count(5, "the number of files")?;
    let mut files: Vec<FileEntry> = Vec::with_capacity(count);
    for _ in 0..count {
        let previous = files.last().map_or("", |f| f.path.as_str());
        let file = decode_file(&mut reader, previous, page_bytes, &sessions)?;
        if !previous.is_empty() && file.path.as_str() <= previous {
            return Err(reader.damaged("its files are not in order"));
        }
        files.push(file);
    }
    reader.finish()?;
    Ok(files)
}

fn decode_file(
    reader: &mut Reader<'_>,
    previous: &str,
    page_bytes: u32,
    sessions: &Sessions,
) -> Result<FileEntry, RepoError> {
    let shared = reader.bounded(previous.len() as u64, "a shared prefix")? as usize;
    let Some(prefix) = previous.get(..shared) else {
        return Err(reader.damaged("a shared prefix cuts a letter in two"));
    };
    let path = format!("{prefix}{}", reader.text()?);
    check_path(&path).map_err(|why| reader.damaged(format!("path {path:?} {why}")))?;
    let size_bytes = reader.bounded(1 << 50, "the size of a file")?;
    let mode = reader.bounded(0o7777, "a file mode")? as u32;
    let first_page = match reader.bounded(1 << 32, "a first page")? {
        0 => None,
        page => Some((page - 1) as u32),
    };
    let count = part_count(size_bytes, page_bytes);
    if count > reader.remaining() as u64 {
        return Err(reader.damaged("a file has more map parts than there is room for"));
    }
    // A reference is much larger here than there: space is taken as they come.
    let mut parts = Vec::new();
    let pages = size_bytes.div_ceil(u64::from(page_bytes));
    for number in 0..count {
        let part = decode_part_ref(reader, page_bytes, sessions)?;
        let here = (pages - number * u64::from(PART_PAGES)).min(u64::from(PART_PAGES));
        if let PartRef::Inline(part) = &part
            && u64::from(part.pages()) != here
        {
            return Err(reader.damaged("a map part has the wrong number of pages"));
        }
        parts.push(part);
    }
    Ok(FileEntry { path, size_bytes, mode, first_page, parts })
}

fn decode_part_ref(
    reader: &mut Reader<'_>,
    page_bytes: u32,
    sessions: &Sessions,
) -> Result<PartRef, RepoError> {
    match reader.byte()? {
        0 => Ok(PartRef::Zero),
        1 => MapPart::decode(reader, page_bytes, sessions).map(PartRef::Inline),
        2 => {
            let one = MapPart::decode(reader, page_bytes, sessions)?;
            let [at] = one.extents[..] else {
                return Err(reader.damaged("a reference does not name one box"));
            };
            if at.length > BOX_BYTES_MAX || u64::from(at.offset) >= PACK_BYTES_MAX {
                return Err(reader.damaged("a reference is out of bounds"));
            }
            let used = MapPart::decode(reader, page_bytes, sessions)?;
            let packs = used.packs();
            // In order and each once, as written: nothing was hidden between them.
            if one.pages() > 0 || used.pages() > 0 || packs.len() != used.extents.len() {
                return Err(reader.damaged("a reference holds what is none of its business"));
            }
            Ok(PartRef::Boxed { at, packs })
        }
        other => Err(reader.damaged(format!("a map part of unknown kind {other}"))),
    }
}

/// Encodes a map part as it lies in a pack.
pub fn encode_boxed_part(part: &MapPart, page_bytes: u32, out: &mut Vec<u8>) {
    let (mut sessions, mut body) = (Sessions::default(), Vec::new());
    part.encode(page_bytes, &mut sessions, &mut body);
    out.push(VERSION);
    sessions.encode(out);
    out.extend_from_slice(&body);
}

/// Reads a map part that lies in a pack.
pub fn decode_boxed_part(
    object: &str,
    bytes: &[u8],
    page_bytes: u32,
) -> Result<MapPart, RepoError> {
    let mut reader = Reader::new(object, bytes);
    let version = reader.byte()?;
    if version != VERSION {
        return Err(RepoError::TooNew {
            object: object.to_owned(),
            found: u32::from(version),
            known: u32::from(VERSION),
        });
    }
    let sessions = Sessions::decode(&mut reader)?;
    let part = MapPart::decode(&mut reader, page_bytes, &sessions)?;
    reader.finish()?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, parts: Vec<PartRef>, size_bytes: u64) -> FileEntry {
        FileEntry { path: path.to_owned(), size_bytes, mode: 0o600, first_page: Some(0), parts }
    }

    #[test]
    fn a_chunk_reads_back() {
        let session: crate::BackupId = "20261122T231501Z-00000001".parse().unwrap();
        let pack = PackId { session, number: 3 };
        let at = BoxRef { pack, offset: 8, length: 70_000, sealed_by: session, number: 9 };
        let big = u64::from(PART_PAGES) * 8192;
        let files = [
            entry("base/1/1259", vec![PartRef::Zero], 8192),
            entry("base/1/1259_fsm", vec![], 0),
            entry("base/1/\u{e9}", vec![PartRef::Boxed { at, packs: vec![(pack, session)] }], big),
            entry("base/1/\u{ea}", vec![PartRef::Zero, PartRef::Zero], big + 1),
        ];
        let mut builder = ChunkBuilder::default();
        files.iter().for_each(|f| builder.add(f, 8192));
        assert_eq!(decode_chunk("x", &builder.finish(), 8192).unwrap(), files);
    }

    #[test]
    fn a_path_that_leaves_the_target_is_refused() {
        for path in ["", "/etc/passwd", "..", "a/../../b", "a//b", "./a", "a/.", "a\0b"] {
            assert!(check_path(path).is_err(), "{path:?}");
            let mut builder = ChunkBuilder::default();
            if !path.is_empty() {
                builder.add(&entry(path, vec![], 0), 8192);
                let error = decode_chunk("x", &builder.finish(), 8192).unwrap_err();
                assert!(matches!(error, RepoError::Damaged { .. }), "{path:?}: {error}");
            }
        }
    }

    #[test]
    fn nonsense_never_panics() {
        let session: crate::BackupId = "20261122T231501Z-00000001".parse().unwrap();
        let at = BoxRef {
            pack: PackId { session, number: 3 },
            offset: 8,
            length: 70_000,
            sealed_by: session,
            number: 9,
        };
        let mut builder = ChunkBuilder::default();
        let big = u64::from(PART_PAGES) * 8192;
        builder.add(&entry("base/1/2", vec![PartRef::Boxed { at, packs: vec![] }], big), 8192);
        builder.add(&entry("base/1/3", vec![PartRef::Zero], 8192), 8192);
        let good = builder.finish();
        for at in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let _ = decode_chunk("x", &bad, 8192);
            }
            let _ = decode_chunk("x", &good[..at], 8192);
        }
    }
}
