//! What several summary files say together.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::file::{BITMAP_WORDS, Sink, SummaryError};
use super::{CHUNK_BLOCKS, Fork};

/// Most memory that the blocks of a table may take, in bytes: eight terabytes of which every part
/// changed take as much. Beyond it, everything is read.
const BYTES_MAX: usize = 128 << 20;
/// What a chunk takes at least, in bytes.
const CHUNK_BYTES: usize = 64;
/// Words of a bitmap.
const WORDS: usize = CHUNK_BLOCKS as usize / 64;
/// A list that is longer becomes a bitmap: 4096 numbers take as much.
const LIST_MAX: usize = CHUNK_BLOCKS as usize / 16;

/// What is known of one fork.
#[derive(Debug, Default)]
struct Entry {
    /// From this block on everything may have changed.
    limit: Option<u32>,
    chunks: BTreeMap<u32, Chunk>,
}

/// The touched blocks among [`CHUNK_BLOCKS`].
#[derive(Debug)]
enum Chunk {
    List(Vec<u16>),
    Bitmap(Box<[u64; WORDS]>),
}

/// Which blocks of which forks were touched, and how far they were cut.
///
/// Files are added in any order: blocks add up and the lowest limit counts. A block that one file
/// names and another cuts off stays named; from a limit on everything counts as changed anyway.
#[derive(Debug, Default)]
pub struct BlockTable {
    forks: HashMap<Fork, Entry>,
    bytes: usize,
}

impl Sink for BlockTable {
    fn limit(&mut self, fork: Fork, limit: Option<u32>) {
        let entry = self.forks.entry(fork).or_default();
        entry.limit = match (entry.limit, limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn chunk(&mut self, fork: Fork, chunk: u32, words: &[u16]) -> Result<(), SummaryError> {
        if words.is_empty() {
            return Ok(());
        }
        let entry = self.forks.entry(fork).or_default();
        let mut grown = 0;
        let known = entry.chunks.entry(chunk).or_insert_with(|| {
            grown += CHUNK_BYTES;
            Chunk::List(Vec::new())
        });
        grown += known.add(words);
        self.bytes += grown;
        if self.bytes > BYTES_MAX {
            return Err(SummaryError::Claim("more blocks than are worth keeping in memory"));
        }
        Ok(())
    }
}

impl Chunk {
    /// Adds blocks; gives by how many bytes it grew.
    fn add(&mut self, words: &[u16]) -> usize {
        let bitmap = words.len() == usize::from(BITMAP_WORDS);
        if let Self::List(list) = self {
            if !bitmap && list.len() + words.len() <= LIST_MAX {
                list.extend_from_slice(words);
                // Several files name the same blocks again and again.
                if list.len() > LIST_MAX / 2 {
                    list.sort_unstable();
                    list.dedup();
                }
                return words.len() * 2;
            }
            let mut bits = Box::new([0; WORDS]);
            list.iter().for_each(|block| set(&mut bits, *block));
            *self = Self::Bitmap(bits);
            return self.add(words) + WORDS * 8;
        }
        if let Self::Bitmap(bits) = self {
            if bitmap {
                let (quads, _) = words.as_chunks::<4>();
                for (into, [a, b, c, d]) in bits.iter_mut().zip(quads) {
                    *into |= u64::from(*a)
                        | u64::from(*b) << 16
                        | u64::from(*c) << 32
                        | u64::from(*d) << 48;
                }
            } else {
                words.iter().for_each(|block| set(bits, *block));
            }
        }
        0
    }

    /// Calls `each` for the touched blocks, ascending.
    fn each(&self, mut each: impl FnMut(u32)) {
        match self {
            Self::List(list) => {
                let mut list = list.clone();
                list.sort_unstable();
                list.dedup();
                list.into_iter().for_each(|block| each(block.into()));
            }
            Self::Bitmap(bits) => {
                for (at, word) in bits.iter().enumerate() {
                    let mut left = *word;
                    while left != 0 {
                        each(at as u32 * 64 + left.trailing_zeros());
                        left &= left - 1;
                    }
                }
            }
        }
    }
}

fn set(bits: &mut [u64; WORDS], block: u16) {
    bits[usize::from(block) / 64] |= 1 << (block % 64);
}

impl BlockTable {
    /// Whether anything is said of a fork.
    pub fn names(&self, fork: Fork) -> bool {
        self.forks.contains_key(&fork)
    }

    /// From which block on everything of a fork may have changed.
    pub fn limit_of(&self, fork: Fork) -> Option<u32> {
        self.forks.get(&fork).and_then(|entry| entry.limit)
    }

    /// Forks of which something is said.
    pub fn forks(&self) -> impl Iterator<Item = Fork> + '_ {
        self.forks.keys().copied()
    }

    /// The blocks in `within` that may have changed: ascending, not touching, from the limit on all
    /// of them.
    pub fn changed(&self, fork: Fork, within: Range<u32>) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        let Some(entry) = self.forks.get(&fork) else { return ranges };
        let end = entry.limit.map_or(within.end, |limit| within.end.min(limit));
        let mut add = |range: Range<u32>| match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        };
        if within.start < end {
            let chunks = within.start / CHUNK_BLOCKS..=(end - 1) / CHUNK_BLOCKS;
            for (number, chunk) in entry.chunks.range(chunks) {
                chunk.each(|offset| {
                    let block = number * CHUNK_BLOCKS + offset;
                    if (within.start..end).contains(&block) {
                        add(block..block + 1);
                    }
                });
            }
        }
        let cut = end.max(within.start);
        if cut < within.end {
            add(cut..within.end);
        }
        ranges
    }
}
