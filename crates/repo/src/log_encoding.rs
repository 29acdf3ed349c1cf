//! A log file on its way to its object, piece by piece.
//!
//! Format: docs/format/log-file.md.

use lifeboat_store::Key;
use lifeboat_units::Timestamp;

use crate::codec::{Compression, Compressor, EXTENT_BYTES_MAX, Transforms};
use crate::crypt::{BoxKind, SALT_BYTES, SealKey, TAG_BYTES};
use crate::error::RepoError;
use crate::id::hex;
use crate::keys::DataKey;
use crate::logs::{FILE_BYTES_MAX, FRONT_BYTES, HEAD_BYTES_MAX, LogHead, LogPlace, MAGIC};
use crate::page_hash::Digesting;
use crate::repository::Cluster;

/// A log file is compressed and sealed in pieces of this length; the last one may be shorter.
pub const LOG_PIECE_BYTES: usize = EXTENT_BYTES_MAX;
/// Left free in front of the pieces for what is known only after them. A longer head moves them.
const HEAD_ROOM_BYTES: usize = 16 << 10;

/// Memory for storing log files, used again and again.
pub struct LogWriter {
    compressor: Compressor,
    /// The object: unused room, then front and head, then the pieces.
    object: Vec<u8>,
}

impl LogWriter {
    pub(crate) fn new(compression: Compression, transforms: &Transforms) -> Self {
        Self { compressor: Compressor::for_logs(compression, transforms), object: Vec::new() }
    }
}

/// The digest of a log file that is read piece by piece.
pub struct LogDigest(Digesting);

impl LogDigest {
    /// Adds the next piece, of any length.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.add(piece);
    }

    /// As [`Cluster::log_digest`] of all pieces (hexadecimal).
    pub fn finish(&self) -> String {
        hex(&self.0.finish())
    }
}

/// A log file of which some pieces are encoded.
///
/// Whoever reads a file piece by piece hands over each while it is still in the processor's cache:
/// digest, compression and sealing find it there.
pub struct LogEncoding<'a> {
    cluster: &'a Cluster,
    place: LogPlace,
    data_key: DataKey,
    content_key: SealKey,
    digest: LogDigest,
    size_bytes: u64,
    pieces: Vec<u32>,
    writer: &'a mut LogWriter,
}

/// A log file as it will lie in the repository.
pub struct EncodedLog<'a> {
    pub(crate) place: LogPlace,
    pub(crate) key: Key,
    digest: String,
    pub(crate) body: &'a [u8],
}

impl EncodedLog<'_> {
    /// Keyed digest of the file (hexadecimal), as [`Cluster::log_digest`] gives it.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Cluster {
    /// Memory for storing log files of this cluster, compressed in this way.
    pub fn log_writer(&self, compression: Compression) -> LogWriter {
        LogWriter::new(compression, self.log_transforms())
    }

    /// Begins the digest of a log file that is read piece by piece.
    pub fn digest_log(&self) -> LogDigest {
        LogDigest(self.hasher().digesting())
    }

    /// Begins to encode a log file; nothing is stored.
    pub fn encode_log<'a>(
        &'a self,
        place: &LogPlace,
        writer: &'a mut LogWriter,
    ) -> LogEncoding<'a> {
        let scope = self.object_scope(&place.relative());
        let data_key = DataKey::random(self.repository().entropy());
        writer.object.clear();
        writer.object.resize(HEAD_ROOM_BYTES, 0);
        LogEncoding {
            cluster: self,
            place: place.clone(),
            content_key: data_key.seal_key(&scope),
            data_key,
            digest: self.digest_log(),
            size_bytes: 0,
            pieces: Vec::new(),
            writer,
        }
    }

    /// Encodes a log file that lies in memory.
    pub(crate) fn encode_whole_log<'a>(
        &'a self,
        place: &LogPlace,
        content: &[u8],
        writer: &'a mut LogWriter,
        archived_at: Timestamp,
        facts: serde_json::Value,
    ) -> Result<EncodedLog<'a>, RepoError> {
        let mut encoding = self.encode_log(place, writer);
        content.chunks(LOG_PIECE_BYTES).for_each(|piece| encoding.add(piece));
        encoding.finish(archived_at, facts)
    }
}

impl<'a> LogEncoding<'a> {
    /// Adds the next piece.
    ///
    /// - Shape: [`LOG_PIECE_BYTES`] bytes; 1 to so many when it is the last one.
    pub fn add(&mut self, piece: &[u8]) {
        let whole = self.size_bytes.is_multiple_of(LOG_PIECE_BYTES as u64);
        assert!(whole && piece.len() <= LOG_PIECE_BYTES, "a log file is encoded piece by piece");
        let LogWriter { compressor, object } = &mut *self.writer;
        let (number, from) = (self.pieces.len() as u64, object.len());
        self.digest.add(piece);
        compressor.compress(piece, true, object);
        self.content_key.seal(BoxKind::Extent, number, object, from);
        self.pieces.push((object.len() - from) as u32);
        self.size_bytes += piece.len() as u64;
    }

    /// The object that the pieces become.
    ///
    /// - `facts` are what the engine and the job know of the file.
    pub fn finish(
        self,
        archived_at: Timestamp,
        facts: serde_json::Value,
    ) -> Result<EncodedLog<'a>, RepoError> {
        let Self { cluster, place, data_key, digest, size_bytes, pieces, writer, .. } = self;
        let (relative, key) = (place.relative(), place.key(cluster)?);
        if size_bytes > FILE_BYTES_MAX {
            return Err(RepoError::damaged(key.as_str(), "it is longer than a log file can be"));
        }
        let digest = digest.finish();
        let wrapped = data_key.wrap(&cluster.repository().keyring().recipients)?;
        let head = LogHead {
            size_bytes,
            digest: digest.clone(),
            data_key: hex(&wrapped),
            pieces,
            archived_at,
            facts,
        };
        let plain = serde_json::to_vec(&head).expect("a head always serialises");
        let mut front = Vec::with_capacity(FRONT_BYTES + SALT_BYTES + plain.len() + TAG_BYTES);
        front.extend_from_slice(&MAGIC);
        front.extend_from_slice(&[0; FRONT_BYTES - MAGIC.len()]);
        cluster.seal_single(&relative, BoxKind::LogHead, &plain, &mut front);
        let sealed_bytes = front.len() - FRONT_BYTES;
        if sealed_bytes > HEAD_BYTES_MAX {
            return Err(RepoError::damaged(relative, "its head would be longer than heads can be"));
        }
        front[MAGIC.len()..FRONT_BYTES].copy_from_slice(&(sealed_bytes as u32).to_le_bytes());
        // In front of the pieces, so that they need not be copied.
        let begin = HEAD_ROOM_BYTES.saturating_sub(front.len());
        drop(writer.object.splice(begin..HEAD_ROOM_BYTES, front));
        Ok(EncodedLog { place, key, digest, body: &writer.object[begin..] })
    }
}
