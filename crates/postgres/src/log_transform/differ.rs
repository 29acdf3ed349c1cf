//! Which bytes of a record's body differ from those of another, and these alone.

use super::BODY_BYTES_MAX;
use super::columns::{nonzero_bytes, padded};

/// Room that is needed behind what is kept, in bytes: each word is written whole.
pub(super) const SLACK_BYTES: usize = 8;

/// One bit for each byte of a body that differs, in the order of the bytes, the lowest bit first.
pub(super) type Masks = [u8; BODY_BYTES_MAX / 8];

/// Writes those bytes of `new` that are not as in `old` to the front of `kept`, which they are to
/// `masks`, and says how many they are. What follows them has a value that does not matter.
///
/// - Shape: `old` and `new` have the same length, at most [`BODY_BYTES_MAX`]; `kept` is longer by
///   [`SLACK_BYTES`].
/// - Speed: no branch for each byte: which ones differ is hard to foretell.
pub(super) fn differing(old: &[u8], new: &[u8], kept: &mut [u8], masks: &mut Masks) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("ssse3") && std::arch::is_x86_feature_detected!("popcnt")
    {
        // SAFETY: the processor was just asked whether it has the instructions.
        #[expect(unsafe_code, reason = "instructions beyond the baseline are chosen at run time")]
        return unsafe { shuffled::differing(old, new, kept, masks) };
    }
    each_word(old, new, kept, masks, keep)
}

/// Goes through the words of both; `keep` writes those bytes that differ and says which they are.
#[inline(always)]
fn each_word(
    old: &[u8],
    new: &[u8],
    kept: &mut [u8],
    masks: &mut Masks,
    keep: impl Fn(u64, u64, &mut [u8; 8]) -> u8,
) -> usize {
    let last = last_word(old).zip(last_word(new));
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let whole = old.as_chunks().0.iter().zip(new.as_chunks().0);
    let words = whole.map(|(old, new)| (word(old), word(new))).chain(last);
    let mut at = 0;
    for ((old, new), mask) in words.zip(masks) {
        let Some(room) = kept.get_mut(at..).and_then(|room| room.first_chunk_mut()) else { break };
        *mask = keep(old, new, room);
        at += mask.count_ones() as usize;
    }
    at
}

/// What is left behind the whole words, as a word.
#[inline(always)]
fn last_word(bytes: &[u8]) -> Option<u64> {
    let rest = bytes.as_chunks::<8>().1;
    match bytes.last_chunk() {
        _ if rest.is_empty() => None,
        // Faster than to copy so few bytes.
        Some(last) => Some(u64::from_le_bytes(*last) >> (64 - 8 * rest.len())),
        None => Some(padded(rest)),
    }
}

fn keep(old: u64, new: u64, room: &mut [u8; 8]) -> u8 {
    let (mask, ones) = nonzero_bytes(old ^ new);
    if mask != 0 {
        let mut at = 0;
        for byte in 0..8 {
            room[at & 7] = (new >> (8 * byte)) as u8;
            at += (ones >> (8 * byte)) as usize & 1;
        }
    }
    mask
}

/// With the instruction that moves the bytes of a word wherever a second word says.
#[cfg(target_arch = "x86_64")]
mod shuffled {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_movemask_epi8, _mm_shuffle_epi8,
    };

    use super::{Masks, each_word};

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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Law: both ways keep the bytes that differ, and say which they are.
        #[test]
        fn what_differs_is_kept(
            pairs in proptest::collection::vec((any::<u8>(), prop_oneof![Just(0u8), any::<u8>()]), 1..=BODY_BYTES_MAX),
        ) {
            let old: Vec<u8> = pairs.iter().map(|(old, _)| *old).collect();
            let new: Vec<u8> = pairs.iter().map(|(old, change)| old ^ change).collect();
            let expected: Vec<u8> =
                pairs.iter().filter(|(_, change)| *change != 0).map(|(old, change)| old ^ change).collect();
            for chosen in [true, false] {
                let (mut kept, mut masks) = (vec![0; new.len() + SLACK_BYTES], [0; BODY_BYTES_MAX / 8]);
                let length = if chosen {
                    differing(&old, &new, &mut kept, &mut masks)
                } else {
                    each_word(&old, &new, &mut kept, &mut masks, keep)
                };
                prop_assert_eq!(&kept[..length], &expected[..]);
                for (at, (_, change)) in pairs.iter().enumerate() {
                    prop_assert_eq!(masks[at / 8] >> (at % 8) & 1 != 0, *change != 0);
                }
            }
        }
    }
}
