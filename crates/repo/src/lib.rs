//! The encrypted repository: bytes, extents, packs, manifests, keys, leases. Knows no database.
//!
//! | module | what it holds |
//! |---|---|
//! | [`repository`] | [`Repository`]: create, open; [`Cluster`], one cluster's part of it |
//! | [`keys`] | key slots, [`Keyring`], data keys, the unlocked key file of a host |
//! | `kdf` | from a passphrase to the key of a slot |
//! | [`crypt`] | sealing and page hashes |
//! | [`codec`] | compression of extents |
//! | [`pack`], [`map`], [`table`], [`manifest`] | what lies on storage, from the inside out |
//! | [`writer`] | [`BackupWriter`]: stores a backup |
//! | [`reader`] | [`ContentReader`]: reads one back |
//! | [`logs`], [`log_batch`] | archived log files, one by one and many at a time |
//! | [`log_encoding`] | a log file on its way to its object, piece by piece |
//! | [`tails`] | pieces of a log file that is not finished yet |
//! | [`journal`] | facts that outlive backups: what was added, removed, lost |
//! | [`lease`] | one writer per cluster at a time |
//! | [`reading`] | who reads, so that nothing is removed meanwhile |
//!
//! The bytes are specified in `docs/format/`.

pub mod codec;
pub mod crypt;
pub mod error;
pub mod id;
pub mod journal;
mod kdf;
pub mod keys;
pub mod lease;
pub mod log_batch;
pub mod log_encoding;
pub mod logs;
pub mod manifest;
pub mod map;
pub mod pack;
pub mod page_hash;
pub mod reader;
pub mod reading;
pub mod repository;
pub mod table;
pub mod tails;
pub mod wire;
pub mod writer;

pub use codec::{Compression, Reorder, Transforms};
pub use crypt::SystemEntropy;
pub use error::RepoError;
pub use id::{BackupId, ClusterName, RepositoryId};
pub use journal::{Event, Fact};
pub use keys::{Identity, Keyring, Protection};
pub use lease::{Lease, Purpose};
pub use log_batch::LogBatch;
pub use log_encoding::{EncodedLog, LOG_PIECE_BYTES, LogDigest, LogEncoding, LogWriter};
pub use logs::{ArchivedLog, LogHead, LogPlace, LogReader, PushOutcome};
pub use manifest::{ChunkRef, Manifest, Totals};
pub use map::{MapPart, PART_PAGES};
pub use pack::{BoxRef, PackId};
pub use page_hash::PageHasher;
pub use reader::ContentReader;
pub use reading::{ReadPurpose, Reading, Readings};
pub use repository::{Cluster, Repository};
pub use table::{FileEntry, PartRef};
pub use tails::{TailError, TailPlace, assemble};
pub use writer::{BackupWriter, Compared, ExtentWriter, PartWriter};
