//! `global/pg_control`: whose data directory this is, and in which state.
//!
//! Source of the layout: `ControlFileData` and `CheckPoint` in PostgreSQL
//! `src/include/catalog/pg_control.h`, on a machine that aligns eight-byte numbers to eight.
//! Up to `data_checksum_version` all supported versions agree.

use lifeboat_engine::{ClusterIdentity, Lsn, SegmentSize, SystemId, TimelineId};
use lifeboat_units::{Code, Explain, Retry, Timestamp};

use crate::bytes::{i64_at, u32_at, u64_at};
use crate::versions::{self, Version};

/// Path of the control file, relative to the data directory.
/// Source: `XLOG_CONTROL_FILE` in `src/include/access/xlog_internal.h`.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Size of the control file in bytes, most of it zero.
/// Source: `PG_CONTROL_FILE_SIZE` in `src/include/catalog/pg_control.h`.
pub const CONTROL_FILE_BYTES: usize = 8192;

/// Why a control file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Fewer bytes than the checksummed part has.
    #[error("the control file is cut short: {have} bytes, at least {need} are needed")]
    TooShort {
        /// Bytes that are there.
        have: usize,
        /// Bytes that must be there.
        need: usize,
    },
    /// Not one of the versions that lifeboat knows.
    #[error(
        "the control file is of an unknown version (control {control_version}, catalog {catalog_version})"
    )]
    UnknownVersion {
        /// `pg_control_version`.
        control_version: u32,
        /// `catalog_version_no`.
        catalog_version: u32,
    },
    /// The content does not match its checksum: damaged, or read while it was being written.
    #[error("the control file's checksum is wrong: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// What the file says.
        stored: u32,
        /// What its content gives.
        computed: u32,
    },
    /// A field holds what no server writes.
    #[error("the control file says {field} = {value}, which no server writes")]
    Impossible {
        /// PostgreSQL's name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl Explain for ControlError {
    fn code(&self) -> Code {
        match self {
            Self::TooShort { .. } => Code("LB-CTL-001"),
            Self::UnknownVersion { .. } => Code("LB-CTL-002"),
            Self::Checksum { .. } => Code("LB-CTL-003"),
            Self::Impossible { .. } => Code("LB-CTL-004"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            // The server rewrites the file in place: a second read may see it whole.
            Self::Checksum { .. } => Retry::Later,
            Self::TooShort { .. } | Self::UnknownVersion { .. } | Self::Impossible { .. } => {
                Retry::Never
            }
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::TooShort { .. } => Some(format!("is `{CONTROL_FILE}` a data directory's own?")),
            Self::UnknownVersion { .. } => Some(format!(
                "lifeboat knows the releases of PostgreSQL {}; is this a pre-release, a fork or \
                 a server of another byte order?",
                versions::range()
            )),
            Self::Checksum { .. } => Some(
                "read it again; if it stays wrong, `pg_controldata` will say the same".to_owned(),
            ),
            Self::Impossible { .. } => None, // the checksum holds: there is nothing to be done
        }
    }
}

/// What the cluster was doing when the control file was last written.
/// Source: `DBState` in `src/include/catalog/pg_control.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// `DB_STARTUP`
    Startup,
    /// `DB_SHUTDOWNED`: a clean stop.
    ShutDown,
    /// `DB_SHUTDOWNED_IN_RECOVERY`: a clean stop of a standby.
    ShutDownInRecovery,
    /// `DB_SHUTDOWNING`
    ShuttingDown,
    /// `DB_IN_CRASH_RECOVERY`
    InCrashRecovery,
    /// `DB_IN_ARCHIVE_RECOVERY`: a standby, or a restore on its way.
    InArchiveRecovery,
    /// `DB_IN_PRODUCTION`
    InProduction,
}

/// How much the server writes to its WAL.
/// Source: `WalLevel` in `src/include/access/xlog.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Too little for a backup to be replayed.
    Minimal,
    /// Enough for backups and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

/// The fields of a control file that a backup or restore looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The version that wrote it.
    pub version: &'static Version,
    /// The number from initdb.
    pub system_id: SystemId,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// When the file was last written, by the server's clock (whole seconds).
    pub written_at: Timestamp,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// Timeline of that checkpoint.
    pub timeline: TimelineId,
    /// The timeline before, when that checkpoint begins a new one; else the same.
    pub previous_timeline: TimelineId,
    /// Whether full pages were written at that checkpoint.
    pub full_page_writes: bool,
    /// The next transaction ID, epoch in the upper half.
    pub next_xid: u64,
    /// When that checkpoint was made, by the server's clock (whole seconds).
    pub checkpoint_at: Timestamp,
    /// Replay must reach this position before the server may open; 0 outside recovery.
    pub min_recovery: Lsn,
    /// Timeline of `min_recovery`; 0 outside recovery.
    pub min_recovery_timeline: TimelineId,
    /// Redo position of the backup that is being recovered; 0 otherwise.
    pub backup_start: Lsn,
    /// Where that backup ends, when it came from a standby; 0 otherwise.
    pub backup_end: Lsn,
    /// Whether replay must meet a backup-end record before the server may open.
    pub backup_end_required: bool,
    /// The setting `wal_level`.
    pub wal_level: WalLevel,
    /// The setting `wal_log_hints`.
    pub wal_log_hints: bool,
    /// The setting `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// Alignment of tuples, in bytes.
    pub max_align: u32,
    /// Size of a page of a relation, in bytes.
    pub page_bytes: u32,
    /// Pages in one segment file of a relation.
    pub pages_per_file: u32,
    /// Size of a page of the WAL, in bytes.
    pub wal_page_bytes: u32,
    /// Size of a WAL segment.
    pub log_segment: SegmentSize,
    /// Version of the page checksums; 0 when they are off.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads a control file.
    ///
    /// - Shape: `bytes` is the whole file, or at least its checksummed part.
    /// - Errors: as [`ControlError`] says. Never panics.
    /// - Source: `ReadControlFile` in `src/backend/access/transam/xlog.c`.
    /// - Checked by: `control_files_of_all_versions_read_as_pg_controldata_says`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let version = Self::version_of(bytes)?;
        let end = version.control_crc_offset;
        let stored = u32_at(bytes, end)
            .ok_or(ControlError::TooShort { have: bytes.len(), need: end + 4 })?;
        let computed = crc32c(&bytes[..end]);
        if stored != computed {
            return Err(ControlError::Checksum { stored, computed });
        }
        // Every read below lies before the checksum.
        let word = |at| u32_at(bytes, at).unwrap_or_default();
        let long = |at| u64_at(bytes, at).unwrap_or_default();
        let flag = |at: usize| bytes[at] != 0;
        let seconds = |at, field| {
            let value = i64_at(bytes, at).unwrap_or_default();
            Timestamp::from_second(value)
                .map_err(|_| ControlError::Impossible { field, value: value as u64 })
        };
        Ok(Self {
            version,
            system_id: SystemId(long(0)),
            state: state(word(16))?,
            written_at: seconds(24, "time")?,
            checkpoint: Lsn(long(32)),
            redo: Lsn(long(40)),
            timeline: TimelineId(word(48)),
            previous_timeline: TimelineId(word(52)),
            full_page_writes: flag(56),
            next_xid: long(64),
            checkpoint_at: seconds(104, "checkPointCopy.time")?,
            min_recovery: Lsn(long(136)),
            min_recovery_timeline: TimelineId(word(144)),
            backup_start: Lsn(long(152)),
            backup_end: Lsn(long(160)),
            backup_end_required: flag(168),
            wal_level: wal_level(word(172))?,
            wal_log_hints: flag(176),
            track_commit_timestamp: flag(200),
            max_align: word(204),
            page_bytes: power_of_two("blcksz", word(216), 1 << 15)?,
            pages_per_file: at_least_one("relseg_size", word(220))?,
            wal_page_bytes: power_of_two("xlog_blcksz", word(224), 1 << 16)?,
            log_segment: SegmentSize::new(u64::from(word(228))).map_err(|_| {
                ControlError::Impossible { field: "xlog_seg_size", value: u64::from(word(228)) }
            })?,
            data_checksum_version: word(252),
        })
    }

    /// Reads only which version wrote the file, without looking at the checksum.
    pub fn version_of(bytes: &[u8]) -> Result<&'static Version, ControlError> {
        let (Some(control_version), Some(catalog_version)) = (u32_at(bytes, 8), u32_at(bytes, 12))
        else {
            return Err(ControlError::TooShort { have: bytes.len(), need: 16 });
        };
        versions::by_control(control_version, catalog_version)
            .ok_or(ControlError::UnknownVersion { control_version, catalog_version })
    }

    /// The whole number of the transaction near this checkpoint whose lower 32 bits are `xid`: at most
    /// 2^31 before or after the next one, as far as the server itself tells older from newer.
    /// `None` for one before the first epoch.
    ///
    /// - Source: `FullTransactionIdFromAllowableAt` in PostgreSQL 18's
    ///   `src/include/access/transam.h`, `TransactionIdPrecedes` in
    ///   `src/backend/access/transam/transam.c`.
    pub fn transaction_near(&self, xid: u32) -> Option<u64> {
        let ahead = xid.wrapping_sub(self.next_xid as u32).cast_signed();
        self.next_xid.checked_add_signed(i64::from(ahead))
    }

    /// Whether pages carry checksums.
    pub fn checksums(&self) -> bool {
        self.data_checksum_version != 0
    }

    /// What must agree before data of one place may follow data of another.
    pub fn identity(&self) -> ClusterIdentity {
        ClusterIdentity {
            system_id: self.system_id,
            major: self.version.major,
            catalog_version: self.version.catalog_version,
            page_bytes: self.page_bytes,
            pages_per_file: self.pages_per_file,
            log_segment: self.log_segment,
            checksums: self.checksums(),
        }
    }
}

/// CRC-32C (Castagnoli), as `src/include/port/pg_crc32c.h` computes it.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn state(value: u32) -> Result<ClusterState, ControlError> {
    Ok(match value {
        0 => ClusterState::Startup,
        1 => ClusterState::ShutDown,
        2 => ClusterState::ShutDownInRecovery,
        3 => ClusterState::ShuttingDown,
        4 => ClusterState::InCrashRecovery,
        5 => ClusterState::InArchiveRecovery,
        6 => ClusterState::InProduction,
        _ => return Err(ControlError::Impossible { field: "state", value: value.into() }),
    })
}

fn wal_level(value: u32) -> Result<WalLevel, ControlError> {
    Ok(match value {
        0 => WalLevel::Minimal,
        1 => WalLevel::Replica,
        2 => WalLevel::Logical,
        _ => return Err(ControlError::Impossible { field: "wal_level", value: value.into() }),
    })
}

/// Sizes of pages are powers of two from 1 KiB. Source: `configure --with-blocksize` (up to
/// 32 KiB) and `--with-wal-blocksize` (up to 64 KiB).
fn power_of_two(field: &'static str, value: u32, max: u32) -> Result<u32, ControlError> {
    if value.is_power_of_two() && (1024..=max).contains(&value) {
        Ok(value)
    } else {
        Err(ControlError::Impossible { field, value: value.into() })
    }
}

fn at_least_one(field: &'static str, value: u32) -> Result<u32, ControlError> {
    if value == 0 {
        return Err(ControlError::Impossible { field, value: 0 });
    }
    Ok(value)
}
