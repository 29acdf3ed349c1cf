//! A word at a time, with the instruction that moves its bytes wherever a second word says.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    _mm_cmpeq_epi8, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_movemask_epi8, _mm_shuffle_epi8,
};

use super::{Masks, each_word};

pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("popcnt")
}

/// For each mask the places of its bits, the lowest first.
static PLACES: [u64; 256] = places();

const fn places() -> [u64; 256] {
    let mut places = [0; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut found) = (0, 0);
        while bit < 8 {
            if mask >> bit & 1 != 0 {
                places[mask] |= bit << (8 * found);
                found += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    places
}

#[target_feature(enable = "ssse3,popcnt")]
pub(super) fn differing(old: &[u8], new: &[u8], kept: &mut [u8], masks: &mut Masks) -> usize {
    each_word(old, new, kept, masks, |old, new, room| {
        let new = _mm_cvtsi64_si128(new as i64);
        let same = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_cvtsi64_si128(old as i64), new));
        let mask = !same as u8;
        let places = _mm_cvtsi64_si128(PLACES[usize::from(mask)] as i64);
        *room = _mm_cvtsi128_si64(_mm_shuffle_epi8(new, places)).to_le_bytes();
        mask
    })
}
