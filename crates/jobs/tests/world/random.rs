//! Random numbers that a seed decides.

use std::sync::{Mutex, PoisonError};

use lifeboat_units::Entropy;

/// SplitMix64: small, fast, good enough to draw histories.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Another generator, so that what it draws does not depend on who draws when.
    pub fn fork(&mut self) -> Self {
        Self(self.draw())
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len() as u64) as usize)
    }
}

/// Random bytes for keys and identifiers, from the same seed.
pub struct SeededEntropy(pub Mutex<Random>);

impl Entropy for SeededEntropy {
    fn fill(&self, into: &mut [u8]) {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for bytes in into.chunks_mut(8) {
            bytes.copy_from_slice(&random.draw().to_le_bytes()[..bytes.len()]);
        }
    }
}
