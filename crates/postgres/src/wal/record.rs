//! One record of the WAL.

use lifeboat_engine::Lsn;

use super::crc::{Crc32c, crc32c};
use super::{SHORT_HEADER_BYTES, SegmentHeader};
use crate::bytes::{array, u16_at, u32_at, u64_at};
use crate::versions::Version;

/// `SizeOfXLogRecord` in `xlogrecord.h`.
pub(crate) const HEADER_BYTES: usize = 24;

/// `RM_XLOG_ID` in `src/include/access/rmgrlist.h`.
pub(crate) const RM_XLOG: u8 = 0;

/// `RM_XACT_ID` in `src/include/access/rmgrlist.h`.
pub(crate) const RM_XACT: u8 = 1;

/// Last of `src/include/access/rmgrlist.h`, `RM_LOGICALMSG_ID`, in versions 14 to 18.
const RM_LAST: u8 = 21;

/// `RM_MIN_CUSTOM_ID` in `src/include/access/rmgr.h`, since version 15.
const RM_CUSTOM: u8 = 128;

/// `XLOG_SWITCH` in `src/include/catalog/pg_control.h`.
const XLOG_SWITCH: u8 = 0x40;

/// `XLR_RMGR_INFO_MASK` in `xlogrecord.h`: the bits that belong to the resource manager.
pub(crate) const RMGR_INFO: u8 = 0xF0;

/// Whether a record of this `xl_rmid` and `xl_info` is a switch: the rest of its segment is unused.
pub(super) fn is_switch(rmid: u8, info: u8) -> bool {
    rmid == RM_XLOG && info & RMGR_INFO == XLOG_SWITCH
}

/// Whether a version has a resource manager of this number.
pub(super) fn resource_manager_exists(rmid: u8, version: &Version) -> bool {
    rmid <= RM_LAST || (version.major >= 15 && rmid >= RM_CUSTOM)
}

/// `offsetof(XLogRecord, xl_crc)` in `xlogrecord.h`: so much of the header is in the checksum.
const CHECKED_HEADER_BYTES: usize = 20;

/// The checksum of a record: its data, then its header up to `xl_crc`.
pub(crate) fn checksum(header: &[u8; HEADER_BYTES], data: &[u8]) -> u32 {
    crc32c(data, &header[..CHECKED_HEADER_BYTES])
}

/// One record. Cheap to copy: it points into the segment.
///
/// Source of the layout: `XLogRecord` in `xlogrecord.h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    segment: &'a [u8],
    version: &'static Version,
    page_bytes: usize,
    offset: usize,
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends: the position that replay has reached when it is done. Aligned; the end
    /// of the segment for a switch; not meaningful for a record that is cut off.
    pub end: Lsn,
    /// Where the record before begins.
    pub previous: Lsn,
    /// Its transaction, 0 when it belongs to none.
    pub xid: u32,
    /// `xl_rmid`: the resource manager that wrote it, see `rmgrlist.h`.
    pub rmid: u8,
    /// `xl_info`: the upper four bits say what it is within its resource manager.
    pub info: u8,
    /// Length in bytes: header and data, without the page headers in between.
    pub total_bytes: u32,
    crc: u32,
}

impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("start", &format_args!("{}", self.start))
            .field("end", &format_args!("{}", self.end))
            .field("xid", &self.xid)
            .field("rmid", &self.rmid)
            .field("info", &self.info)
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}

impl<'a> Record<'a> {
    /// Reads the header at `offset`; `None` when not all of it lies in the segment.
    pub(super) fn parse(
        segment: &'a [u8],
        header: &SegmentHeader,
        offset: usize,
        total_bytes: u32,
        start: Lsn,
        end: Lsn,
    ) -> Option<Self> {
        let page_bytes = header.page_bytes as usize;
        let room = page_bytes - offset % page_bytes;
        let head: [u8; HEADER_BYTES] = if room >= HEADER_BYTES {
            array(segment, offset)?
        } else {
            // The header itself lies across two pages.
            let mut head = [0; HEADER_BYTES];
            let next = offset + room + SHORT_HEADER_BYTES;
            head[..room].copy_from_slice(segment.get(offset..offset + room)?);
            head[room..].copy_from_slice(segment.get(next..next + HEADER_BYTES - room)?);
            head
        };
        Some(Self {
            segment,
            version: header.version,
            page_bytes,
            offset,
            start,
            end,
            xid: u32_at(&head, 4)?,
            previous: Lsn(u64_at(&head, 8)?),
            info: head[16],
            rmid: head[17],
            total_bytes,
            crc: u32_at(&head, 20)?,
        })
    }

    /// The version that wrote it.
    pub fn version(&self) -> &'static Version {
        self.version
    }

    /// All bytes of the record, header first, without the page headers in between.
    ///
    /// - Shape: lies in the segment itself where the record is on one page, else in `scratch`,
    ///   which grows by no more than the segment has. Shorter than `total_bytes` for a record
    ///   that is cut off.
    pub fn bytes<'b>(&self, scratch: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if let Some(bytes) = self.on_one_page() {
            return bytes;
        }
        scratch.clear();
        self.parts().for_each(|part| scratch.extend_from_slice(part));
        scratch
    }

    /// All of it, where it lies on one page.
    fn on_one_page(&self) -> Option<&'a [u8]> {
        let (total, room) =
            (self.total_bytes as usize, self.page_bytes - self.offset % self.page_bytes);
        if total > room {
            return None;
        }
        self.segment.get(self.offset..self.offset + total)
    }

    /// What lies of it on each page, in order, as far as it lies in the segment.
    fn parts(&self) -> impl Iterator<Item = &'a [u8]> {
        let Self { segment, page_bytes, offset, .. } = *self;
        let (mut at, mut left) = (offset, self.total_bytes as usize);
        std::iter::from_fn(move || {
            let take = left.min(page_bytes - at % page_bytes);
            let part = segment.get(at..at + take).filter(|part| !part.is_empty())?;
            at += take + SHORT_HEADER_BYTES; // a first page, with its long header, is never a later one
            left -= take;
            Some(part)
        })
    }

    /// Whether the checksum holds. Source: `ValidXLogRecord` in `xlogreader.c`.
    ///
    /// - Speed: what lies on several pages, mostly images of pages, is summed where it lies.
    /// - `scratch` is overwritten.
    pub fn is_intact(&self, scratch: &mut Vec<u8>) -> bool {
        if let Some((head, data)) = self.on_one_page().and_then(<[u8]>::split_first_chunk) {
            return self.crc == checksum(head, data);
        }
        scratch.clear();
        let (mut sum, mut met) = (Crc32c::new(), 0);
        for part in self.parts() {
            let (head, data) = part.split_at(part.len().min(HEADER_BYTES - scratch.len()));
            scratch.extend_from_slice(head);
            sum.add(data);
            met += part.len();
        }
        let Some(head) = scratch.get(..CHECKED_HEADER_BYTES) else { return false };
        sum.add(head);
        met == self.total_bytes as usize && sum.finish() == self.crc
    }

    /// The main data: what the resource manager wrote apart from blocks.
    ///
    /// - `None` when the parts of the record do not fit together, or it is cut off.
    /// - Source: `DecodeXLogRecord` in `xlogreader.c`.
    pub fn main_data<'b>(&self, scratch: &'b mut Vec<u8>) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        let bytes = self.bytes(scratch);
        if bytes.len() != self.total_bytes as usize {
            return None;
        }
        let (headers_end, length) = self.main_data_length(bytes)?;
        let from = bytes.len().checked_sub(length)?;
        (from >= headers_end).then(|| &bytes[from..])
    }

    /// Where the headers of the record's parts end, and how long its main data are.
    fn main_data_length(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        let (mut at, mut blocks) = (HEADER_BYTES, 0);
        // As long as there is more than what belongs to the blocks that were met.
        while bytes.len().checked_sub(at)? > blocks {
            match bytes[at] {
                // XLR_BLOCK_ID_DATA_SHORT
                255 => return Some((at + 2, usize::from(*bytes.get(at + 1)?))),
                // XLR_BLOCK_ID_DATA_LONG
                254 => return Some((at + 5, u32_at(bytes, at + 1)? as usize)),
                // XLR_BLOCK_ID_ORIGIN: a `RepOriginId`
                253 => at += 3,
                // XLR_BLOCK_ID_TOPLEVEL_XID
                252 => at += 5,
                // up to XLR_MAX_BLOCK_ID
                0..=32 => {
                    let (next, data) = self.after_block_header(bytes, at)?;
                    (at, blocks) = (next, blocks + data);
                }
                _ => return None,
            }
        }
        Some((at, 0))
    }

    /// Where the header of the block reference at `at` ends, and how many bytes belong to it.
    /// Source: `XLogRecordBlockHeader` and what follows it, in `xlogrecord.h`.
    fn after_block_header(&self, bytes: &[u8], at: usize) -> Option<(usize, usize)> {
        const HAS_IMAGE: u8 = 0x10; // BKPBLOCK_HAS_IMAGE
        const SAME_REL: u8 = 0x80; // BKPBLOCK_SAME_REL
        const HAS_HOLE: u8 = 0x01; // BKPIMAGE_HAS_HOLE
        // BKPIMAGE_IS_COMPRESSED of 14; since then one bit each for pglz, lz4 and zstd
        let compressed = if self.version.major == 14 { 0x02 } else { 0x04 | 0x08 | 0x10 };
        let flags = *bytes.get(at + 1)?;
        let mut data = usize::from(u16_at(bytes, at + 2)?);
        let mut next = at + 4;
        if flags & HAS_IMAGE != 0 {
            data += usize::from(u16_at(bytes, next)?);
            let image = *bytes.get(next + 4)?;
            next += 5;
            if image & compressed != 0 && image & HAS_HOLE != 0 {
                next += 2;
            }
        }
        if flags & SAME_REL == 0 {
            next += 12; // RelFileLocator
        }
        Some((next + 4, data)) // after the BlockNumber
    }
}
