//! Archived log files: one object each, found by name without a listing.
//!
//! Format: docs/format/log-file.md.

use lifeboat_store::Key;
use lifeboat_units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::codec::{Compression, Decompressor, HEAD_BYTES, Transforms};
use crate::crypt::{BoxKind, TAG_BYTES};
use crate::error::RepoError;
use crate::id::{hex, unhex};
use crate::keys::DataKey;
use crate::log_encoding::{EncodedLog, LOG_PIECE_BYTES};
use crate::repository::Cluster;

/// First bytes of an archived log file: name and format version.
pub(crate) const MAGIC: [u8; 8] = *b"LBLOGF\x00\x01";
/// Magic, and the length of the sealed head.
pub(crate) const FRONT_BYTES: usize = 12;
/// Longest sealed head, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 1 << 20;
/// Largest log file, in bytes: the largest WAL segment.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 30;
/// So many pieces are read with one request: 16 MiB at most.
const READ_PIECES: usize = 16;

/// Where a log file belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPlace {
    /// The system the log is of (PostgreSQL: the system identifier).
    pub system: String,
    /// Timeline.
    pub timeline: u32,
    /// The file's name.
    pub name: String,
}

impl LogPlace {
    /// Name relative to the cluster: to this the file is bound.
    pub(crate) fn relative(&self) -> String {
        format!("wal/{}/{:08X}/{}", self.system, self.timeline, self.name)
    }

    pub(crate) fn key(&self, cluster: &Cluster) -> Result<Key, RepoError> {
        let relative = self.relative();
        // A part with a `/` in it would be an object that no listing gives back.
        if relative.strip_prefix("wal/").and_then(Self::parse).as_ref() != Some(self) {
            return Err(RepoError::BadName { what: "log file", name: relative });
        }
        cluster.key(&relative)
    }

    fn parse(relative: &str) -> Option<Self> {
        let mut parts = relative.split('/');
        let (system, timeline, name) = (parts.next()?, parts.next()?, parts.next()?);
        let number = u32::from_str_radix(timeline, 16).ok()?;
        let whole = parts.next().is_none() && format!("{number:08X}") == timeline;
        whole.then(|| Self { system: system.to_owned(), timeline: number, name: name.to_owned() })
    }
}

/// What is known about an archived log file without opening its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// Its length before compression, in bytes.
    pub size_bytes: u64,
    /// Keyed digest of its content (hexadecimal).
    pub digest: String,
    /// Its data key, wrapped (hexadecimal).
    pub(crate) data_key: String,
    /// Sealed lengths of its pieces.
    pub(crate) pieces: Vec<u32>,
    /// When it was archived, by lifeboat's clock.
    pub archived_at: Timestamp,
    /// What the engine and the job know of it; the repository does not look into it.
    pub facts: serde_json::Value,
}

/// Memory for reading log files, used again and again.
pub struct LogReader {
    decompressor: Decompressor,
    sealed: Vec<u8>,
    content: Vec<u8>,
}

impl LogReader {
    /// What was read last; not to be used after an error.
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

impl LogReader {
    fn new(transforms: &Transforms) -> Self {
        let decompressor = Decompressor::new(transforms.clone());
        Self { decompressor, sealed: Vec::new(), content: Vec::new() }
    }
}

/// What became of a log file that was to be archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is stored now.
    Stored {
        /// Its size on storage, in bytes.
        stored_bytes: u64,
    },
    /// It was stored before, with the same content.
    AlreadyThere,
    /// Another content is stored under its name. Nothing was changed.
    Different {
        /// Digest of what is stored.
        archived: String,
        /// Digest of what was offered.
        offered: String,
    },
}

/// An archived log file in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchivedLog {
    /// Where it belongs.
    pub place: LogPlace,
    /// Its size on storage, in bytes.
    pub stored_bytes: u64,
}

impl Cluster {
    /// Memory for reading this cluster's log files.
    pub fn log_reader(&self) -> LogReader {
        LogReader::new(self.log_transforms())
    }

    /// Archives a log file.
    pub fn push_log(
        &self,
        place: &LogPlace,
        content: &[u8],
        compression: Compression,
        archived_at: Timestamp,
        facts: serde_json::Value,
    ) -> Result<PushOutcome, RepoError> {
        // Asked first, because the server repeats a push whose answer it did not get.
        if self.has_log(place)? {
            return self.compare_log(place, &self.log_digest(content));
        }
        let mut writer = self.log_writer(compression);
        let encoded = self.encode_whole_log(place, content, &mut writer, archived_at, facts)?;
        self.put_log(&encoded)
    }

    /// Stores an encoded log file; it is durable when this returns.
    pub fn put_log(&self, log: &EncodedLog<'_>) -> Result<PushOutcome, RepoError> {
        match self.store().put(&log.key, log.body) {
            Ok(()) => {
                self.repository().confirm()?;
                Ok(PushOutcome::Stored { stored_bytes: log.body.len() as u64 })
            }
            Err(error) if error.is_already_exists() => self.compare_log(&log.place, log.digest()),
            Err(error) => Err(error.into()),
        }
    }

    /// Compares with what is there, and makes that durable when it is the same: whoever put it may
    /// have been killed before it was. `offered` is a [`Cluster::log_digest`].
    pub fn compare_log(&self, place: &LogPlace, offered: &str) -> Result<PushOutcome, RepoError> {
        let head = self.log_head(place)?;
        if head.digest == offered {
            self.store().confirm(&place.key(self)?)?;
            self.repository().confirm()?;
            Ok(PushOutcome::AlreadyThere)
        } else {
            Ok(PushOutcome::Different { archived: head.digest, offered: offered.to_owned() })
        }
    }

    /// Whether a log file of this name is archived; its content is not looked at.
    pub fn has_log(&self, place: &LogPlace) -> Result<bool, RepoError> {
        match self.store().size(&place.key(self)?) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What is known about an archived log file.
    pub fn log_head(&self, place: &LogPlace) -> Result<LogHead, RepoError> {
        self.read_head(place).map(|(head, _)| head)
    }

    /// The head, and the offset of the first piece.
    fn read_head(&self, place: &LogPlace) -> Result<(LogHead, u64), RepoError> {
        let key = place.key(self)?;
        let damaged = |what: String| RepoError::damaged(key.as_str(), what);
        let mut buffer = Vec::new();
        self.store().get_range(&key, 0, FRONT_BYTES, &mut buffer)?;
        if buffer[..7] != MAGIC[..7] {
            return Err(damaged("it does not begin as an archived log file".to_owned()));
        }
        if buffer[7] != MAGIC[7] {
            return Err(RepoError::TooNew {
                object: key.to_string(),
                found: u32::from(buffer[7]),
                known: u32::from(MAGIC[7]),
            });
        }
        let [.., a, b, c, d] = buffer[..] else { return Err(damaged("it is cut short".into())) };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > HEAD_BYTES_MAX {
            return Err(damaged(format!("its head claims {length} bytes")));
        }
        self.store().get_range(&key, FRONT_BYTES as u64, length, &mut buffer)?;
        let plain =
            self.open_single(&place.relative(), BoxKind::LogHead, key.as_str(), &mut buffer)?;
        let head: LogHead = serde_json::from_slice(plain).map_err(|e| damaged(e.to_string()))?;
        let fits = head.size_bytes <= FILE_BYTES_MAX
            && head.pieces.len() as u64 == head.size_bytes.div_ceil(LOG_PIECE_BYTES as u64)
            && head.pieces.iter().all(|p| *p as usize <= LOG_PIECE_BYTES + HEAD_BYTES + TAG_BYTES);
        if fits {
            Ok((head, (FRONT_BYTES + length) as u64))
        } else {
            Err(damaged("its head does not fit together".to_owned()))
        }
    }

    /// Reads an archived log file, checks its digest, and gives its content.
    ///
    /// Errors: [`RepoError::is_not_found`] only when it is certainly not there.
    pub fn read_log(&self, place: &LogPlace) -> Result<(LogHead, Vec<u8>), RepoError> {
        let mut reader = self.log_reader();
        let head = self.read_log_with(place, &mut reader)?;
        Ok((head, reader.content))
    }

    /// As [`Cluster::read_log`], with memory that is used again: the content is the reader's.
    pub fn read_log_with(
        &self,
        place: &LogPlace,
        reader: &mut LogReader,
    ) -> Result<LogHead, RepoError> {
        let key = place.key(self)?;
        let damaged = |what: &str| RepoError::damaged(key.as_str(), what);
        let (head, mut offset) = self.read_head(place)?;
        let wrapped = unhex(&head.data_key).ok_or_else(|| damaged("its data key is none"))?;
        let identity = self.repository().keyring().identity.as_ref();
        let data_key = DataKey::unwrap(&wrapped, identity, key.as_str())?;
        let content_key = data_key.seal_key(&self.object_scope(&place.relative()));
        let pieces: u64 = head.pieces.iter().map(|length| u64::from(*length)).sum();
        if self.store().size(&key)? != offset + pieces {
            return Err(damaged("it is shorter or longer than its head says"));
        }
        let LogReader { decompressor, sealed, content } = reader;
        match content.len() {
            0 => *content = vec![0; head.size_bytes as usize], // zeros from the system cost nothing
            _ => content.resize(head.size_bytes as usize, 0),
        }
        let mut raw = content.chunks_mut(LOG_PIECE_BYTES);
        let mut number = 0;
        let mut left = &head.pieces[..];
        while !left.is_empty() {
            // Many pieces with one request.
            let (now, later) = left.split_at(READ_PIECES.min(left.len()));
            let together: usize = now.iter().map(|length| *length as usize).sum();
            self.store().get_range(&key, offset, together, sealed)?;
            offset += together as u64;
            let mut rest = &mut sealed[..];
            for length in now {
                let (piece, behind) = rest.split_at_mut(*length as usize);
                rest = behind;
                let plain = content_key.open(BoxKind::Extent, number, key.as_str(), piece)?;
                let out = raw.next().ok_or_else(|| damaged("it has too many pieces"))?;
                decompressor.decompress_exactly(key.as_str(), plain, out)?;
                number += 1;
            }
            left = later;
        }
        if hex(&self.hasher().digest(content)) != head.digest {
            return Err(damaged("its content does not have the digest it was stored with"));
        }
        Ok(head)
    }

    /// All archived log files, sorted.
    pub fn logs(&self) -> Result<Vec<ArchivedLog>, RepoError> {
        self.logs_below("wal/")
    }

    /// The archived log files of one timeline, sorted.
    pub fn logs_of(&self, system: &str, timeline: u32) -> Result<Vec<ArchivedLog>, RepoError> {
        self.logs_below(&format!("wal/{system}/{timeline:08X}/"))
    }

    fn logs_below(&self, prefix: &str) -> Result<Vec<ArchivedLog>, RepoError> {
        let root = format!("clusters/{}/wal/", self.name());
        let mut logs = Vec::new();
        let below = format!("clusters/{}/{prefix}", self.name());
        self.store().list(&below, &mut |entry| {
            let place = entry.key.as_str().strip_prefix(&root).and_then(LogPlace::parse);
            logs.extend(place.map(|place| ArchivedLog { place, stored_bytes: entry.size_bytes }));
        })?;
        logs.sort_unstable();
        Ok(logs)
    }

    /// Removes an archived log file.
    pub fn remove_log(&self, place: &LogPlace) -> Result<(), RepoError> {
        Ok(self.store().delete(&place.key(self)?)?)
    }
}
