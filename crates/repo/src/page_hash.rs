//! Hashes of pages: one after the other, or as many at once as the processor has lanes for.

use blake3::platform::Platform;
use blake3::{CHUNK_LEN, IncrementCounter};

/// Pages that are hashed together: the lanes of AVX-512, for words of 32 bits. One page of 8 KiB
/// alone fills half of them, with its chunks.
const LANES: usize = 16;

// Source of the flags and of the tree: the BLAKE3 paper, sections 2.1 to 2.4.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// Chaining values of the same node of [`LANES`] trees.
type Node = [[u8; 32]; LANES];

/// Key of the page hashes of a cluster.
#[derive(Clone, Copy)]
pub struct PageHasher {
    key: [u8; 32],
}

impl PageHasher {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The 64-bit hash of one page: the first 8 bytes, little-endian, of keyed BLAKE3.
    pub fn page(&self, page: &[u8]) -> u64 {
        head(blake3::keyed_hash(&self.key, page).as_bytes())
    }

    /// The hashes of pages that lie one after the other; they replace what is in `hashes`.
    ///
    /// - Shape: pages of `page_bytes`, the last one may be shorter.
    /// - Speed: with AVX-512 nearly twice that of [`PageHasher::page`] for each.
    /// - Checked by: `pages_together_have_the_hashes_that_each_has_alone`.
    pub fn pages(&self, pages: &[u8], page_bytes: usize, hashes: &mut Vec<u64>) {
        hashes.clear();
        let platform = Platform::detect();
        // A tree of which every node has two children, and a root that is no chunk.
        let fits = page_bytes.is_power_of_two() && page_bytes > CHUNK_LEN;
        let (together, alone) = if fits && platform.simd_degree() >= LANES {
            pages.split_at(pages.len() - pages.len() % (page_bytes * LANES))
        } else {
            (&pages[..0], pages)
        };
        for pages in together.chunks_exact(page_bytes * LANES) {
            hashes.extend(self.together(platform, pages, page_bytes).iter().map(head));
        }
        hashes.extend(alone.chunks(page_bytes).map(|page| self.page(page)));
    }

    /// The hashes of [`LANES`] pages. Chunks of the same place, then nodes of the same place, are
    /// compressed at once.
    fn together(&self, platform: Platform, pages: &[u8], page_bytes: usize) -> Node {
        let (words, _) = self.key.as_chunks::<4>();
        let key: [u32; 8] = std::array::from_fn(|word| u32::from_le_bytes(words[word]));
        let chunks = page_bytes / CHUNK_LEN;
        // Left siblings that wait for their right ones.
        let mut left: Vec<Node> = Vec::with_capacity(chunks.ilog2() as usize);
        let mut node: Node = [[0; 32]; LANES];
        for chunk in 0..chunks {
            let inputs: [&[u8; CHUNK_LEN]; LANES] = std::array::from_fn(|lane| {
                let from = &pages[lane * page_bytes + chunk * CHUNK_LEN..];
                from.first_chunk().expect("a page is a whole number of chunks")
            });
            platform.hash_many(
                &inputs,
                &key,
                chunk as u64,
                IncrementCounter::No,
                KEYED_HASH,
                CHUNK_START,
                CHUNK_END,
                node.as_flattened_mut(),
            );
            let mut size = 1;
            while (chunk + 1).is_multiple_of(2 * size)
                && let Some(left) = left.pop()
            {
                size *= 2;
                let root = if size == chunks { ROOT } else { 0 };
                node = parents(platform, &key, (&left, &node), KEYED_HASH | PARENT | root);
            }
            left.push(node);
        }
        node
    }

    /// The 256-bit digest of any content.
    pub fn digest(&self, content: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.key, content).as_bytes()
    }

    /// Begins the digest of content that comes in pieces.
    pub(crate) fn digesting(&self) -> Digesting {
        Digesting(Box::new(blake3::Hasher::new_keyed(&self.key)))
    }
}

/// The digest of content that comes in pieces.
pub(crate) struct Digesting(Box<blake3::Hasher>);

impl Digesting {
    pub(crate) fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// As [`PageHasher::digest`] of all pieces.
    pub(crate) fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

fn parents(platform: Platform, key: &[u32; 8], (left, right): (&Node, &Node), flags: u8) -> Node {
    let blocks: [[u8; 64]; LANES] = std::array::from_fn(|lane| {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&left[lane]);
        block[32..].copy_from_slice(&right[lane]);
        block
    });
    let mut nodes: Node = [[0; 32]; LANES];
    let (no, out) = (IncrementCounter::No, nodes.as_flattened_mut());
    platform.hash_many(&blocks.each_ref(), key, 0, no, flags, 0, 0, out);
    nodes
}

fn head(hash: &[u8; 32]) -> u64 {
    let (head, _) = hash.split_first_chunk::<8>().expect("a hash has 32 bytes");
    u64::from_le_bytes(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        let mut bytes = vec![0; length];
        hasher.finalize_xof().fill(&mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        /// Law: how pages lie together changes none of their hashes.
        #[test]
        fn pages_together_have_the_hashes_that_each_has_alone(
            seed in any::<u64>(), power in 10u32..=15, count in 0usize..40, short in 0usize..1024,
        ) {
            let page_bytes = 1 << power;
            let pages = noise(seed, (count * page_bytes).saturating_sub(short));
            let hasher = PageHasher::new(*blake3::hash(&seed.to_le_bytes()).as_bytes());
            let mut hashes = vec![7];
            hasher.pages(&pages, page_bytes, &mut hashes);
            let alone: Vec<u64> = pages.chunks(page_bytes).map(|page| hasher.page(page)).collect();
            prop_assert_eq!(hashes, alone);
        }

        /// Law: the same where the processor has other lanes, or none.
        #[test]
        fn every_platform_gives_the_same_tree(seed in any::<u64>(), power in 11u32..=15) {
            let page_bytes = 1 << power;
            let pages = noise(seed, page_bytes * LANES);
            let hasher = PageHasher::new([9; 32]);
            let alone: Vec<u64> = pages.chunks(page_bytes).map(|page| hasher.page(page)).collect();
            for platform in [Platform::Portable, Platform::detect()] {
                let together = hasher.together(platform, &pages, page_bytes);
                prop_assert_eq!(&together.iter().map(head).collect::<Vec<_>>(), &alone);
            }
        }
    }
}
