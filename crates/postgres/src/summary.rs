//! WAL summaries: which blocks of which relations WAL records touched, as servers from 17 on write
//! it to `pg_wal/summaries`.
//!
//! | module | what it holds |
//! |---|---|
//! | [`file`] | reads one summary file, in bounded memory |
//! | [`table`] | [`table::BlockTable`]: what several files say together |
//! | [`range`] | [`range::SummaryName`], and whether files cover a range without a gap |
//! | [`map`] | [`map::SummaryMap`]: what a table means for the files of a data directory |

pub mod file;
pub mod map;
pub mod range;
pub mod table;

/// Blocks of which one chunk tells. Source: `BLOCKS_PER_CHUNK` in `src/common/blkreftable.c`.
pub const CHUNK_BLOCKS: u32 = 1 << 16;

/// A relation, and a fork of it.
///
/// Source: `RelFileLocator` in `src/include/storage/relfilelocator.h`, `ForkNumber` in
/// `src/include/common/relpath.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fork {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database; 0 for shared relations.
    pub database: u32,
    /// Number in the file's name; 0 stands for all of the database in this tablespace.
    pub relation: u32,
    /// 0 is the main fork.
    pub fork: u32,
}
