//! The checksum of a record: CRC-32C, over bytes that are mostly few.

use crc_fast::{CrcAlgorithm, Digest};

/// Up to this length the processor's own instruction, eight bytes at a time, is the fastest.
#[cfg(target_arch = "x86_64")]
const SHORT_BYTES_MAX: usize = 512;

/// The checksum over `first`, then `second`. Source: `INIT_CRC32C` to `FIN_CRC32C` in PostgreSQL
/// `src/include/port/pg_crc32c.h`.
pub(crate) fn crc32c(first: &[u8], second: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if first.len() + second.len() <= SHORT_BYTES_MAX
        && std::arch::is_x86_feature_detected!("sse4.2")
    {
        // SAFETY: the processor was just asked whether it has the instructions.
        #[expect(unsafe_code, reason = "instructions beyond the baseline are chosen at run time")]
        return unsafe { short(first, second) };
    }
    let mut sum = Crc32c::new();
    sum.add(first);
    sum.add(second);
    sum.finish()
}

/// The same over bytes that come piece by piece, for longer input.
pub(crate) struct Crc32c(Digest);

impl Crc32c {
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> u32 {
        self.0.finalize() as u32
    }
}

/// A segment may hold a quarter of a million records of 66 bytes: choosing among ways for long
/// input would take longer than the sum.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short(first: &[u8], second: &[u8]) -> u32 {
    !add(add(u32::MAX, first), second)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
#[inline]
fn add(mut crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        crc = _mm_crc32_u64(u64::from(crc), u64::from_le_bytes(*eight)) as u32;
    }
    let (fours, rest) = rest.as_chunks::<4>();
    for four in fours {
        crc = _mm_crc32_u32(crc, u32::from_le_bytes(*four));
    }
    rest.iter().fold(crc, |crc, byte| _mm_crc32_u8(crc, *byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Law: whichever way is taken, the sum is that of the whole.
        #[test]
        fn both_ways_give_one_sum(
            bytes in proptest::collection::vec(any::<u8>(), 0..1200),
            cut in any::<proptest::sample::Index>(),
        ) {
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let whole = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
            prop_assert_eq!(crc32c(first, second), whole);
        }
    }

    /// The check value of the algorithm, as catalogues of checksums give it.
    #[test]
    fn the_check_value_holds() {
        assert_eq!(crc32c(b"12345", b"6789"), 0xE306_9283);
    }
}
