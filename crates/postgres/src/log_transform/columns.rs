//! How lengths, transactions and bodies of records are told.

use lifeboat_engine::TransformError;

use super::{BODY_BYTES_MAX, SHORT};
use crate::transform::{unzigzag, zigzag};
use crate::wal::RECORD_HEADER_BYTES;

/// In the place of a length or transaction: it follows as a number of four bytes.
const WHOLE: u8 = 255;
/// In the place of a transaction: the record belongs to none.
const NO_XID: u8 = 254;

/// What is left of the header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes after its header.
    pub body_bytes: u32,
    pub xid: u32,
    pub info: u8,
    pub rmid: u8,
}

impl Head {
    /// Appends it; `last_xid` is that of the last record that belonged to a transaction.
    pub fn write(self, last_xid: &mut u32, out: &mut Vec<u8>) {
        let Self { body_bytes, xid, info, rmid } = self;
        let step = zigzag(xid.wrapping_sub(*last_xid));
        let xid_byte = match step {
            _ if xid == 0 => NO_XID,
            step if step < u32::from(NO_XID) => step as u8,
            _ => WHOLE,
        };
        let length_byte = body_bytes.min(u32::from(WHOLE)) as u8;
        if xid != 0 {
            *last_xid = xid;
        }
        if length_byte != WHOLE && xid_byte != WHOLE {
            out.extend_from_slice(&[length_byte, xid_byte, info, rmid]);
            return;
        }
        out.push(length_byte);
        if length_byte == WHOLE {
            out.extend_from_slice(&body_bytes.to_le_bytes());
        }
        out.push(xid_byte);
        if xid_byte == WHOLE {
            out.extend_from_slice(&xid.to_le_bytes());
        }
        out.extend_from_slice(&[info, rmid]);
    }

    /// Takes the next one.
    pub fn read(last_xid: &mut u32, heads: &mut Taker<'_>) -> Result<Self, TransformError> {
        let body_bytes = match heads.byte()? {
            WHOLE => heads.number()?,
            length => u32::from(length),
        };
        let xid = match heads.byte()? {
            WHOLE => heads.number()?,
            NO_XID => 0,
            step => last_xid.wrapping_add(unzigzag(u32::from(step))),
        };
        if xid != 0 {
            *last_xid = xid;
        }
        Ok(Self { body_bytes, xid, info: heads.byte()?, rmid: heads.byte()? })
    }
}

/// Number of places where bodies are remembered.
const SLOTS: usize = 1 << 10;

/// Where the last record of each kind has its body: records of one length, manager and info.
pub(super) struct Templates(Box<[(u32, u32); SLOTS]>);

impl Templates {
    pub fn new() -> Self {
        Self(Box::new([(0, 0); SLOTS]))
    }

    /// Where the body of the last record of this kind begins; this one's begins at `at`.
    ///
    /// - Shape: 1 to [`BODY_BYTES_MAX`] bytes, all on one page; `at` is greater than 0.
    pub fn exchange(&mut self, head: Head, at: usize) -> Option<usize> {
        let key = head.body_bytes << 16 | u32::from(head.info) << 8 | u32::from(head.rmid);
        // The upper bits of a product with 2^32 divided by the golden ratio spread well.
        let slot = &mut self.0[key.wrapping_mul(0x9E37_79B1) as usize >> (32 - SLOTS.ilog2())];
        let (known, before) = std::mem::replace(slot, (key, at as u32));
        (known == key && before != 0).then_some(before as usize)
    }
}

/// Whether the body of a record is told by what differs from the last one of its kind.
///
/// - `offset` is where the record begins on its page.
pub(super) fn is_alike(head: Head, offset: usize, page_bytes: usize) -> bool {
    let body = head.body_bytes as usize;
    (1..=BODY_BYTES_MAX).contains(&body) && offset + RECORD_HEADER_BYTES + body <= page_bytes
}

/// One bit for each byte of the word that is not zero, the lowest first; and the same with the
/// bits at the lowest of each byte.
pub(super) fn nonzero_bytes(word: u64) -> (u8, u64) {
    const LOW: u64 = 0x7F7F_7F7F_7F7F_7F7F;
    const ONES: u64 = 0x0101_0101_0101_0101;
    let ones = ((((word & LOW) + LOW) | word) >> 7) & ONES;
    // Gathers the lowest bit of each byte in the highest byte.
    ((ones.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8, ones)
}

/// Fewer than eight bytes as a word.
pub(super) fn padded(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Takes bytes from the front of a column.
pub(super) struct Taker<'a>(pub &'a [u8]);

impl<'a> Taker<'a> {
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], TransformError> {
        self.0.split_off(..length).ok_or(SHORT)
    }

    pub fn byte(&mut self) -> Result<u8, TransformError> {
        self.0.split_off_first().copied().ok_or(SHORT)
    }

    fn number(&mut self) -> Result<u32, TransformError> {
        let (number, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*number))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Law: heads come back, whatever transactions they are of.
        #[test]
        fn heads_come_back(heads in proptest::collection::vec(
            (any::<u32>(), prop_oneof![Just(0), 700..900u32, any::<u32>()], any::<u8>(), any::<u8>()), 1..50)
        ) {
            let (mut last, mut column) = (0, Vec::new());
            let heads: Vec<Head> = heads.into_iter()
                .map(|(body_bytes, xid, info, rmid)| Head { body_bytes, xid, info, rmid }).collect();
            heads.iter().for_each(|head| head.write(&mut last, &mut column));
            let (mut last, mut taker) = (0, Taker(&column));
            for head in heads {
                prop_assert_eq!(Head::read(&mut last, &mut taker).unwrap(), head);
            }
            prop_assert!(taker.0.is_empty());
        }

        #[test]
        fn each_byte_that_is_not_zero_has_its_bit(word in any::<[u8; 8]>(), blank in any::<u8>()) {
            let mut word = word;
            (0..8).filter(|n| blank & 1 << n != 0).for_each(|n| word[n] = 0);
            let expected = (0..8).filter(|n| word[*n] != 0).map(|n| 1u8 << n).sum::<u8>();
            prop_assert_eq!(nonzero_bytes(u64::from_le_bytes(word)).0, expected);
        }
    }
}
