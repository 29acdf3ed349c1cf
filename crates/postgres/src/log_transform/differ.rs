//! Which bytes of a record's body differ from those of another, and these alone; and back.

#[cfg(target_arch = "x86_64")]
mod gathered;
#[cfg(target_arch = "x86_64")]
mod shuffled;

use lifeboat_engine::TransformError;

use super::BODY_BYTES_MAX;
use super::columns::{Taker, nonzero_bytes, padded};

/// Room that is needed behind what is kept, in bytes: each word or vector is written whole.
pub(super) const SLACK_BYTES: usize = 64;

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
    if gathered::is_there() {
        // SAFETY: the processor was just asked whether it has the instructions.
        #[expect(unsafe_code, reason = "instructions beyond the baseline are chosen at run time")]
        return unsafe { gathered::differing(old, new, kept, masks) };
    }
    #[cfg(target_arch = "x86_64")]
    if shuffled::is_there() {
        // SAFETY: the processor was just asked whether it has the instructions.
        #[expect(unsafe_code, reason = "instructions beyond the baseline are chosen at run time")]
        return unsafe { shuffled::differing(old, new, kept, masks) };
    }
    each_word(old, new, kept, masks, keep)
}

/// Fills `new` with what is as in `old`, and with the next bytes of `kept` where `masks` has a bit.
///
/// - Shape: `old` and `new` have the same length, at most [`BODY_BYTES_MAX`]; `masks` has a byte
///   for each word of them, begun ones too. Bits and bytes are claims: a bit behind the end takes
///   its byte and is of no further consequence.
/// - Law: gives back what [`differing`] was given.
pub(super) fn merge(
    old: &[u8],
    masks: &[u8],
    kept: &mut Taker<'_>,
    new: &mut [u8],
) -> Result<(), TransformError> {
    #[cfg(target_arch = "x86_64")]
    if gathered::is_there() {
        // SAFETY: the processor was just asked whether it has the instructions.
        #[expect(unsafe_code, reason = "instructions beyond the baseline are chosen at run time")]
        return unsafe { gathered::merge(old, masks, kept, new) };
    }
    merge_words(old, masks, kept, new)
}

fn merge_words(
    old: &[u8],
    masks: &[u8],
    kept: &mut Taker<'_>,
    new: &mut [u8],
) -> Result<(), TransformError> {
    let (old, old_rest) = old.as_chunks::<8>();
    let (new, new_rest) = new.as_chunks_mut::<8>();
    for ((old, new), mask) in old.iter().zip(new).zip(masks) {
        *new = match mask {
            0 => *old,
            mask => merge_word(*old, *mask, kept)?,
        };
    }
    if let Some(mask) = masks.last()
        && !new_rest.is_empty()
    {
        let word = merge_word(padded(old_rest).to_le_bytes(), *mask, kept)?;
        new_rest.copy_from_slice(&word[..new_rest.len()]);
    }
    Ok(())
}

/// A word with the next bytes where the mask has a bit.
fn merge_word(old: [u8; 8], mask: u8, kept: &mut Taker<'_>) -> Result<[u8; 8], TransformError> {
    let new = kept.take(mask.count_ones() as usize)?;
    let mut word = old;
    let mut left = mask;
    for byte in new {
        word[left.trailing_zeros() as usize] = *byte;
        left &= left - 1;
    }
    Ok(word)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Differing = fn(&[u8], &[u8], &mut [u8], &mut Masks) -> usize;

    /// The ways that this processor has.
    fn ways() -> Vec<Differing> {
        let mut ways: Vec<Differing> =
            vec![differing, |old, new, kept, masks| each_word(old, new, kept, masks, keep)];
        #[cfg(target_arch = "x86_64")]
        if shuffled::is_there() {
            // SAFETY: the processor was just asked whether it has the instructions.
            #[expect(unsafe_code, reason = "the processor has the instructions")]
            ways.push(|old, new, kept, masks| unsafe {
                shuffled::differing(old, new, kept, masks)
            });
        }
        ways
    }

    /// A body, and what another one has in its place.
    fn bodies() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let change = prop_oneof![Just(0u8), any::<u8>()];
        proptest::collection::vec((any::<u8>(), change), 1..=BODY_BYTES_MAX).prop_map(|pairs| {
            let old = pairs.iter().map(|(old, _)| *old).collect();
            (old, pairs.iter().map(|(old, change)| old ^ change).collect())
        })
    }

    proptest! {
        /// Law: each way keeps the bytes that differ, says which they are, and they come back.
        #[test]
        fn what_differs_is_kept_and_comes_back((old, new) in bodies()) {
            let both = || old.iter().zip(&new);
            let expected: Vec<u8> =
                both().filter(|(old, new)| old != new).map(|(_, new)| *new).collect();
            for way in ways() {
                let (mut kept, mut masks) = (vec![7; new.len() + SLACK_BYTES], [0; BODY_BYTES_MAX / 8]);
                let length = way(&old, &new, &mut kept, &mut masks);
                prop_assert_eq!(&kept[..length], &expected[..]);
                for (at, (old, new)) in both().enumerate() {
                    prop_assert_eq!(masks[at / 8] >> (at % 8) & 1 != 0, old != new);
                }
                let masks = &masks[..new.len().div_ceil(8)];
                for back in [merge, merge_words] {
                    let (mut text, mut found) = (Taker(&kept[..length]), vec![7; new.len()]);
                    back(&old, masks, &mut text, &mut found).unwrap();
                    prop_assert!(found == new && text.0.is_empty());
                }
            }
        }

        /// Law: whatever masks and bytes claim, both ways back say the same, and none panics.
        #[test]
        fn both_ways_back_take_claims_alike(
            (old, _) in bodies(),
            masks in proptest::collection::vec(any::<u8>(), BODY_BYTES_MAX / 8),
            text in proptest::collection::vec(any::<u8>(), 0..BODY_BYTES_MAX),
        ) {
            let masks = &masks[..old.len().div_ceil(8)];
            let told = [merge, merge_words].map(|back| {
                let (mut text, mut new) = (Taker(&text), vec![7; old.len()]);
                back(&old, masks, &mut text, &mut new).map(|()| (new, text.0.len()))
            });
            prop_assert_eq!(&told[0], &told[1]);
        }
    }
}
