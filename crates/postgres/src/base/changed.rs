//! Files of which a server sent only the blocks that changed.
//!
//! Source: `sendFile` and `GetIncrementalHeaderSize` in PostgreSQL `src/backend/backup/` (17 and
//! later); what they stand for: `reconstruct.c` in `src/bin/pg_combinebackup`.

use lifeboat_units::{Code, Explain, Retry};

/// What stands before the name of such a file. Source: `INCREMENTAL_PREFIX` in
/// `basebackup_incremental.h`.
pub const PREFIX: &str = "INCREMENTAL.";
/// `INCREMENTAL_MAGIC` in `basebackup_incremental.h`.
const MAGIC: u32 = 0xd3ae_1f0d;
/// Magic, number of blocks, truncation length: bytes before the block numbers.
pub const FIXED_BYTES: usize = 12;

/// The beginning of such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Numbers of the blocks that follow, within the file, ascending.
    pub blocks: Vec<u32>,
    /// How many blocks the whole file has.
    pub length: u32,
    /// Bytes from the beginning of the file to the first block.
    pub header_bytes: u64,
}

/// A beginning that does not fit the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server sent changed blocks that do not fit together: {0}")]
pub struct ChangedError(pub &'static str);

impl Explain for ChangedError {
    fn code(&self) -> Code {
        Code("LB-TAR-003")
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn help(&self) -> Option<String> {
        Some("take this backup with --full-read: the server then sends whole files".to_owned())
    }
}

/// Sizes that a file must fit.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The file as it was sent, in bytes.
    pub file_bytes: u64,
    /// A block, in bytes.
    pub page_bytes: u32,
    /// Blocks that one file of a relation can have.
    pub pages_per_file: u32,
}

/// Reads the fixed part: how many block numbers follow it, and the length below which all other
/// blocks are those of the earlier backup.
pub fn fixed(bytes: &[u8; FIXED_BYTES], sizes: Sizes) -> Result<(u32, u32), ChangedError> {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    if word(0) != MAGIC {
        return Err(ChangedError("their file does not begin as one"));
    }
    let (count, truncation) = (word(4), word(8));
    if count > sizes.pages_per_file || truncation > sizes.pages_per_file {
        return Err(ChangedError("more blocks than a file can have"));
    }
    let header = header_bytes(count, sizes.page_bytes);
    if header + u64::from(count) * u64::from(sizes.page_bytes) != sizes.file_bytes {
        return Err(ChangedError("the size of their file is not that of its blocks"));
    }
    Ok((count, truncation))
}

/// Bytes before the first block: rounded to whole blocks, unless there is none.
fn header_bytes(count: u32, page_bytes: u32) -> u64 {
    let plain = FIXED_BYTES as u64 + u64::from(count) * 4;
    if count == 0 { plain } else { plain.next_multiple_of(u64::from(page_bytes)) }
}

/// Reads the block numbers, which follow the fixed part.
pub fn blocks(numbers: &[u8], truncation: u32, sizes: Sizes) -> Result<Changed, ChangedError> {
    let blocks: Vec<u32> =
        numbers.as_chunks::<4>().0.iter().map(|raw| u32::from_le_bytes(*raw)).collect();
    if !blocks.is_sorted_by(|a, b| a < b) {
        return Err(ChangedError("their numbers are not in order"));
    }
    let end = blocks.last().map_or(0, |last| last.saturating_add(1));
    if end > sizes.pages_per_file {
        return Err(ChangedError("a block lies beyond the end of any file"));
    }
    let header_bytes = header_bytes(blocks.len() as u32, sizes.page_bytes);
    Ok(Changed { blocks, length: truncation.max(end), header_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(magic: u32, truncation: u32, numbers: &[u32]) -> Vec<u8> {
        let words = [&[magic, numbers.len() as u32, truncation], numbers].concat();
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn read(bytes: &[u8], file_bytes: u64) -> Result<Changed, ChangedError> {
        let sizes = Sizes { file_bytes, page_bytes: 8192, pages_per_file: 131_072 };
        let (count, truncation) = fixed(bytes.first_chunk().unwrap(), sizes)?;
        blocks(&bytes[FIXED_BYTES..FIXED_BYTES + count as usize * 4], truncation, sizes)
    }

    #[test]
    fn blocks_and_length_are_as_the_server_means_them() {
        let none = read(&file(MAGIC, 7, &[]), 12).unwrap();
        assert_eq!(none, Changed { blocks: vec![], length: 7, header_bytes: 12 });
        // A block beyond the truncation length makes the file longer.
        let some = read(&file(MAGIC, 3, &[0, 9]), 3 * 8192).unwrap();
        assert_eq!(some, Changed { blocks: vec![0, 9], length: 10, header_bytes: 8192 });
        // 12 + 4 * 2045 is a whole block: nothing is added.
        let full: Vec<u32> = (0..2045).collect();
        assert_eq!(read(&file(MAGIC, 1, &full), 2046 * 8192).unwrap().header_bytes, 8192);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let bad = |bytes: Vec<u8>, size| read(&bytes, size).unwrap_err();
        bad(file(MAGIC + 1, 7, &[]), 12);
        bad(file(MAGIC, 131_073, &[]), 12);
        bad(file(MAGIC, 7, &[]), 13);
        bad(file(MAGIC, 7, &[1]), 8192);
        bad(file(MAGIC, 7, &[2, 1]), 3 * 8192);
        bad(file(MAGIC, 7, &[1, 1]), 3 * 8192);
        bad(file(MAGIC, 7, &[131_072]), 2 * 8192);
        bad(file(MAGIC, 7, &[u32::MAX]), 2 * 8192);
    }
}
