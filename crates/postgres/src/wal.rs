//! WAL segments: whose they are, and the records in them.
//!
//! Source: PostgreSQL `src/include/access/xlog_internal.h` (pages), `xlogrecord.h` (records),
//! `src/backend/access/transam/xlogreader.c` (how records lie across pages).

mod crc;
mod reader;
mod record;

use lifeboat_engine::{LogPart, Lsn, SegmentName, SegmentSize, SystemId, TimelineId};
use lifeboat_units::{Code, Explain, Retry};

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::versions::{self, Version};

pub use reader::{Position, Reader, Tail};
pub use record::Record;
pub(crate) use record::{
    HEADER_BYTES as RECORD_HEADER_BYTES, RM_XACT, RM_XLOG, RMGR_INFO, checksum,
};

/// `SizeOfXLogShortPHD` in `xlog_internal.h`: bytes before the records of most pages.
pub const SHORT_HEADER_BYTES: usize = 24;

/// `SizeOfXLogLongPHD` in `xlog_internal.h`: bytes before the records of a segment's first page.
pub const LONG_HEADER_BYTES: usize = 40;

/// `XLP_FIRST_IS_CONTRECORD` in `xlog_internal.h`: the page begins inside a record.
pub(crate) const FIRST_IS_CONTRECORD: u16 = 0x0001;

/// `XLP_LONG_HEADER` in `xlog_internal.h`.
pub(crate) const LONG_HEADER: u16 = 0x0002;

/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD` in `xlog_internal.h`: a record that was to continue
/// here was never finished (a crash), and others follow in its place.
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;

/// `XLP_ALL_FLAGS` in `xlog_internal.h`.
const ALL_FLAGS: u16 = 0x000F;

/// Why a file is not the WAL segment that it is said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Fewer bytes than the first header has.
    #[error("WAL segment {name} is cut short: {have} bytes, less than a page header")]
    TooShort {
        /// What the file is called.
        name: SegmentName,
        /// Bytes that are there.
        have: usize,
    },
    /// The first page begins with a number that no known version writes.
    #[error("WAL segment {name} begins with {magic:04X}, which no known version writes")]
    Magic {
        /// What the file is called.
        name: SegmentName,
        /// The first two bytes, as a number.
        magic: u16,
    },
    /// The first page has no long header, or flags that do not exist.
    #[error("WAL segment {name} does not begin as a segment does (page flags {info:04X})")]
    NotAFirstPage {
        /// What the file is called.
        name: SegmentName,
        /// `xlp_info`
        info: u16,
    },
    /// The header's segment size is impossible, or too small for the segment's name.
    #[error("WAL segment {name} says its size is {size} bytes, which cannot be")]
    ImpossibleSize {
        /// What the file is called.
        name: SegmentName,
        /// `xlp_seg_size`
        size: u32,
    },
    /// The header's page size is impossible.
    #[error("WAL segment {name} says its pages have {size} bytes, which cannot be")]
    ImpossiblePageSize {
        /// What the file is called.
        name: SegmentName,
        /// `xlp_xlog_blcksz`
        size: u32,
    },
    /// The file is not as long as its header says.
    #[error("WAL segment {name} has {have} bytes instead of {need}")]
    Size {
        /// What the file is called.
        name: SegmentName,
        /// Bytes that are there.
        have: usize,
        /// Size of a segment.
        need: u64,
    },
    /// The content belongs to another position.
    #[error("the file called {name} holds the WAL that begins at {found}, not at {expected}")]
    Position {
        /// What the file is called.
        name: SegmentName,
        /// `xlp_pageaddr`
        found: Lsn,
        /// What follows from the name.
        expected: Lsn,
    },
    /// The content belongs to a later timeline, or to none.
    #[error("the file called {name} holds WAL of timeline {found}")]
    Timeline {
        /// What the file is called.
        name: SegmentName,
        /// `xlp_tli`
        found: TimelineId,
    },
}

impl Explain for WalError {
    fn code(&self) -> Code {
        match self {
            Self::TooShort { .. } => Code("LB-SEG-001"),
            Self::Magic { .. } => Code("LB-SEG-002"),
            Self::NotAFirstPage { .. } => Code("LB-SEG-003"),
            Self::ImpossibleSize { .. } => Code("LB-SEG-004"),
            Self::ImpossiblePageSize { .. } => Code("LB-SEG-005"),
            Self::Size { .. } => Code("LB-SEG-006"),
            Self::Position { .. } => Code("LB-SEG-007"),
            Self::Timeline { .. } => Code("LB-SEG-008"),
        }
    }

    fn retry(&self) -> Retry {
        Retry::Never // a finished segment does not change any more
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::TooShort { .. } | Self::Size { .. } => {
                Some("is it being written, or was a copy cut short?".to_owned())
            }
            Self::Magic { .. } => Some(format!(
                "lifeboat knows the releases of PostgreSQL {}; is it a WAL segment at all, \
                 uncompressed and unencrypted?",
                versions::range()
            )),
            Self::NotAFirstPage { .. }
            | Self::ImpossibleSize { .. }
            | Self::ImpossiblePageSize { .. } => {
                Some("is it a WAL segment, uncompressed and unencrypted?".to_owned())
            }
            Self::Position { .. } | Self::Timeline { .. } => {
                Some("was the file renamed, or recycled before it was read?".to_owned())
            }
        }
    }
}

/// Header of one page. Source: `XLogPageHeaderData` in `xlog_internal.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageHeader {
    magic: u16,
    info: u16,
    timeline: TimelineId,
    address: Lsn,
    /// Bytes on this and later pages of the record in which the page begins.
    remaining: u32,
}

impl PageHeader {
    fn parse(page: &[u8]) -> Option<Self> {
        let header: &[u8; SHORT_HEADER_BYTES] = page.first_chunk()?;
        Some(Self {
            magic: u16_at(header, 0)?,
            info: u16_at(header, 2)?,
            timeline: TimelineId(u32_at(header, 4)?),
            address: Lsn(u64_at(header, 8)?),
            remaining: u32_at(header, 16)?,
        })
    }

    /// Source: `XLogPageHeaderSize` in `xlog_internal.h`.
    fn size(&self) -> usize {
        if self.info & LONG_HEADER != 0 { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }
}

/// What the first page of a segment says. Source: `XLogLongPageHeaderData` in
/// `xlog_internal.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The version that wrote it.
    pub version: &'static Version,
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// Timeline of its first page: the name's own, or an ancestor's when the segment was
    /// copied where the timelines part.
    pub timeline: TimelineId,
    /// Position of its first byte.
    pub start: Lsn,
    /// Size of a segment.
    pub size: SegmentSize,
    /// Size of a page, in bytes.
    pub page_bytes: u32,
}

impl SegmentHeader {
    /// Reads the first page's header and compares it with the name and size of the file.
    ///
    /// - Shape: at least the first page, of the whole file, also of a `.partial` one (they are full
    ///   size).
    /// - Errors: as [`WalError`] says. Never panics.
    /// - Source: `XLogReaderValidatePageHeader` in `src/backend/access/transam/xlogreader.c`.
    /// - Checked by: `segments_of_a_real_cluster_walk_as_pg_waldump_walks_them`.
    pub fn parse(name: SegmentName, segment: LogPart<'_>) -> Result<Self, WalError> {
        let header = Self::read(name, segment)?;
        if segment.size as u64 != header.size.bytes() {
            let need = header.size.bytes();
            return Err(WalError::Size { name, have: segment.size, need });
        }
        Ok(header)
    }

    fn read(name: SegmentName, segment: LogPart<'_>) -> Result<Self, WalError> {
        let short = || WalError::TooShort { name, have: segment.size };
        let segment = if segment.from == 0 { segment.bytes } else { &[] };
        let page = PageHeader::parse(segment).ok_or_else(short)?;
        let version = versions::by_wal_magic(page.magic)
            .ok_or(WalError::Magic { name, magic: page.magic })?;
        if page.info & LONG_HEADER == 0 || page.info & !ALL_FLAGS != 0 {
            return Err(WalError::NotAFirstPage { name, info: page.info });
        }
        let system_id = SystemId(u64_at(segment, 24).ok_or_else(short)?);
        let size_bytes = u32_at(segment, 32).ok_or_else(short)?;
        let page_bytes = u32_at(segment, 36).ok_or_else(short)?;
        let impossible = WalError::ImpossibleSize { name, size: size_bytes };
        let size = SegmentSize::new(u64::from(size_bytes)).map_err(|_| impossible.clone())?;
        let number = name.number(size).ok_or(impossible)?;
        if !(page_bytes.is_power_of_two() && (1 << 10..=1 << 16).contains(&page_bytes)) {
            return Err(WalError::ImpossiblePageSize { name, size: page_bytes });
        }
        let start = number.start(size);
        if page.address != start {
            return Err(WalError::Position { name, found: page.address, expected: start });
        }
        if page.timeline > name.timeline || page.timeline.0 == 0 {
            return Err(WalError::Timeline { name, found: page.timeline });
        }
        Ok(Self { version, system_id, timeline: page.timeline, start, size, page_bytes })
    }
}

/// Whose segment this is: system identifier and segment size.
///
/// - Errors when the file is no segment, its name and content disagree, or it is cut short.
pub fn segment_origin(
    name: SegmentName,
    segment: &[u8],
) -> Result<(SystemId, SegmentSize), WalError> {
    let header = SegmentHeader::parse(name, LogPart::whole(segment))?;
    Ok((header.system_id, header.size))
}
