//! One summary file.
//!
//! Source: `BlockRefTableSerializedEntry`, `WriteBlockRefTable` and `BlockRefTableFileTerminate` in
//! PostgreSQL `src/common/blkreftable.c`, the magic number in `src/include/common/blkreftable.h`;
//! the same in 17 and 18. A file is: magic; for each fork its entry (six 32-bit numbers:
//! tablespace, database, relation, fork, limit block, number of chunks), how many 16-bit numbers
//! each chunk has, and the chunks; an entry of zeros; the CRC-32C of everything before it. A chunk
//! of 4096 numbers is a bitmap, lowest bit first; a shorter one lists blocks.

use std::io::{self, Read};

use super::{CHUNK_BLOCKS, Fork};
use crate::bytes::{array, u32_at};

/// First four bytes. Source: `BLOCKREFTABLE_MAGIC` in `src/include/common/blkreftable.h`.
pub const MAGIC: u32 = 0x652b_137b;
/// Numbers in a chunk that is a bitmap. Source: `MAX_ENTRIES_PER_CHUNK`.
pub const BITMAP_WORDS: u16 = (CHUNK_BLOCKS / 16) as u16;
/// Chunks that cover every block number there is.
const CHUNKS_MAX: u32 = u32::MAX / CHUNK_BLOCKS + 1;
/// Length of an entry in bytes.
const ENTRY_BYTES: usize = 24;

/// Why a summary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// It cannot be read to its end.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It ends too early.
    #[error("it is cut short")]
    Short,
    /// It begins with something else.
    #[error("it begins with {0:08x}, which no summary does")]
    Magic(u32),
    /// It says what no server writes.
    #[error("it claims {0}")]
    Claim(&'static str),
    /// Its content does not match its checksum.
    #[error("its checksum is wrong: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// What the file says.
        stored: u32,
        /// What its content gives.
        computed: u32,
    },
}

/// What a file says of one fork, as it is read.
pub trait Sink {
    /// The fork was never shorter than `limit` blocks; `None` when it kept its length.
    fn limit(&mut self, fork: Fork, limit: Option<u32>);
    /// These blocks of the fork were touched: `chunk` counts in [`CHUNK_BLOCKS`], `words` is a
    /// bitmap when there are [`BITMAP_WORDS`] of them, else a list of offsets.
    ///
    /// Errors when it takes more room than it may.
    fn chunk(&mut self, fork: Fork, chunk: u32, words: &[u16]) -> Result<(), SummaryError>;
}

/// Reads a file into `sink`.
///
/// What the sink was told counts only when this succeeds: the checksum comes last.
///
/// - Memory: 8 KiB for a chunk and at most 128 KiB for their sizes, whatever the file claims.
/// - Errors: as [`SummaryError`] says; never panics.
/// - Checked by: `what_is_read_is_what_pg_walsummary_prints`, and cuts and flips of every byte.
pub fn read(source: impl Read, sink: &mut dyn Sink) -> Result<(), SummaryError> {
    let mut reader =
        Summed { source, crc: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi) };
    let magic = u32::from_le_bytes(reader.array()?);
    if magic != MAGIC {
        return Err(SummaryError::Magic(magic));
    }
    let mut words = Vec::new();
    loop {
        let entry: [u8; ENTRY_BYTES] = reader.array()?;
        if entry == [0; ENTRY_BYTES] {
            return reader.finish();
        }
        let field = |n: usize| u32_at(&entry, n * 4).unwrap_or_default();
        let fork =
            Fork { tablespace: field(0), database: field(1), relation: field(2), fork: field(3) };
        // `InvalidBlockNumber` in `src/include/storage/block.h`: the length was never cut.
        sink.limit(fork, Some(field(4)).filter(|limit| *limit != u32::MAX));
        let chunks = field(5);
        if chunks > CHUNKS_MAX {
            return Err(SummaryError::Claim("more blocks than a relation can have"));
        }
        let mut sizes = vec![0; chunks as usize * 2];
        reader.fill(&mut sizes)?;
        for (chunk, size) in (0..chunks).zip(sizes.as_chunks::<2>().0) {
            let size = u16::from_le_bytes(*size);
            if size > BITMAP_WORDS {
                return Err(SummaryError::Claim("a chunk that is larger than a bitmap"));
            }
            reader.words(size, &mut words)?;
            sink.chunk(fork, chunk, &words)?;
        }
    }
}

/// Reads and sums up.
struct Summed<R> {
    source: R,
    crc: crc_fast::Digest,
}

impl<R: Read> Summed<R> {
    fn fill(&mut self, into: &mut [u8]) -> Result<(), SummaryError> {
        self.source.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SummaryError::Short,
            _ => SummaryError::Read(error),
        })?;
        self.crc.update(into);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SummaryError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn words(&mut self, count: u16, into: &mut Vec<u16>) -> Result<(), SummaryError> {
        let mut bytes = [0; BITMAP_WORDS as usize * 2];
        let bytes = &mut bytes[..usize::from(count) * 2];
        self.fill(bytes)?;
        into.clear();
        into.extend(bytes.as_chunks::<2>().0.iter().map(|word| u16::from_le_bytes(*word)));
        Ok(())
    }

    fn finish(mut self) -> Result<(), SummaryError> {
        let computed = self.crc.finalize() as u32;
        let mut bytes = [0; 5];
        let mut have = 0;
        // One byte more than there should be, to see that nothing follows.
        while have < bytes.len() {
            match self.source.read(&mut bytes[have..]) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SummaryError::Read(error)),
            }
        }
        if have < 4 {
            return Err(SummaryError::Short);
        }
        if have > 4 {
            return Err(SummaryError::Claim("to go on after its end"));
        }
        let stored = array(&bytes, 0).map(u32::from_le_bytes).unwrap_or_default();
        if stored != computed {
            return Err(SummaryError::Checksum { stored, computed });
        }
        Ok(())
    }
}
