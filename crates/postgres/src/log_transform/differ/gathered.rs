//! A vector at a time, with the instructions that gather and spread the bytes that a mask chooses.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    _mm512_cmpneq_epi8_mask, _mm512_mask_expand_epi8, _mm512_mask_storeu_epi8,
    _mm512_maskz_compress_epi8, _mm512_maskz_loadu_epi8, _mm512_storeu_epi8,
};

use lifeboat_engine::TransformError;

use super::super::columns::Taker;
use super::Masks;

/// Bytes of a vector.
const WIDTH: usize = 64;

pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("popcnt")
}

#[target_feature(enable = "avx512bw,avx512vbmi2,popcnt")]
pub(super) fn differing(old: &[u8], new: &[u8], kept: &mut [u8], masks: &mut Masks) -> usize {
    let mut at = 0;
    let vectors = old.chunks(WIDTH).zip(new.chunks(WIDTH));
    for ((old, new), mask) in vectors.zip(masks.as_chunks_mut().0) {
        let room = kept.get_mut(at..).and_then(|room| room.first_chunk_mut::<WIDTH>());
        let Some(room) = room else { break };
        let here = u64::MAX >> (WIDTH - old.len().min(new.len()));
        // SAFETY: a byte whose bit is not set is not read, and those that are set lie in both.
        #[expect(unsafe_code, reason = "a vector that is cut short is read by its mask")]
        let (old, new) = unsafe {
            (
                _mm512_maskz_loadu_epi8(here, old.as_ptr().cast()),
                _mm512_maskz_loadu_epi8(here, new.as_ptr().cast()),
            )
        };
        let differs = _mm512_cmpneq_epi8_mask(old, new);
        // SAFETY: the room is as large as a vector.
        #[expect(unsafe_code, reason = "there is no safe way to store a vector")]
        unsafe {
            let gathered = _mm512_maskz_compress_epi8(differs, new);
            _mm512_storeu_epi8(room.as_mut_ptr().cast(), gathered);
        }
        *mask = differs.to_le_bytes();
        at += differs.count_ones() as usize;
    }
    at
}

#[target_feature(enable = "avx512bw,avx512vbmi2,popcnt")]
pub(super) fn merge(
    old: &[u8],
    masks: &[u8],
    kept: &mut Taker<'_>,
    new: &mut [u8],
) -> Result<(), TransformError> {
    let vectors = old.chunks(WIDTH).zip(new.chunks_mut(WIDTH));
    for ((old, new), mask) in vectors.zip(masks.chunks(WIDTH / 8)) {
        let differs = u64::from_le_bytes(std::array::from_fn(|at| *mask.get(at).unwrap_or(&0)));
        let bytes = kept.take(differs.count_ones() as usize)?;
        let here = u64::MAX >> (WIDTH - old.len().min(new.len()));
        let taken = u64::MAX.checked_shr((WIDTH - bytes.len()) as u32).unwrap_or(0);
        // SAFETY: a byte whose bit is not set is neither read nor written; those that are set lie
        // in the slices.
        #[expect(unsafe_code, reason = "vectors that are cut short are read and written by masks")]
        unsafe {
            let old = _mm512_maskz_loadu_epi8(here, old.as_ptr().cast());
            let bytes = _mm512_maskz_loadu_epi8(taken, bytes.as_ptr().cast());
            let merged = _mm512_mask_expand_epi8(old, differs, bytes);
            _mm512_mask_storeu_epi8(new.as_mut_ptr().cast(), here, merged);
        }
    }
    Ok(())
}
