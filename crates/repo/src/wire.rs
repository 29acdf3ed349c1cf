//! Numbers and texts in binary objects: little-endian base-128 varints, bounded reads.
//!
//! Encoding: docs/format/README.md, "Numbers".

use crate::error::RepoError;

/// Appends `value` as a varint: 7 bits a byte, low bits first, high bit set on all but the last.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number, zigzag coded, as a varint.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a binary object from front to back. Every length is checked against what is left before
/// anything is allocated.
pub struct Reader<'a> {
    object: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; `object` names them in errors.
    pub fn new(object: &'a str, bytes: &'a [u8]) -> Self {
        Self { object, rest: bytes }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// An error that names this object.
    pub fn damaged(&self, what: impl Into<String>) -> RepoError {
        RepoError::damaged(self.object, what)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, RepoError> {
        let Some((first, rest)) = self.rest.split_first() else {
            return Err(self.damaged("it ends too early"));
        };
        self.rest = rest;
        Ok(*first)
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], RepoError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.damaged("it ends too early")),
        }
    }

    /// The next varint.
    pub fn varint(&mut self) -> Result<u64, RepoError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte == 0 && shift > 0 {
                return Err(self.damaged("a number is longer than it need be"));
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number is too long"))
    }

    /// The next varint, at most `max`.
    pub fn bounded(&mut self, max: u64, what: &str) -> Result<u64, RepoError> {
        let value = self.varint()?;
        if value <= max {
            Ok(value)
        } else {
            Err(self.damaged(format!("{what} is {value}, the most possible is {max}")))
        }
    }

    /// A count of items that take at least `bytes_each` bytes each, so that a lie about the
    /// count is found before space for it is reserved.
    pub fn count(&mut self, bytes_each: usize, what: &str) -> Result<usize, RepoError> {
        let most = self.rest.len() / bytes_each.max(1);
        self.bounded(most as u64, what).map(|n| n as usize)
    }

    /// The next signed number.
    pub fn signed(&mut self) -> Result<i64, RepoError> {
        let raw = self.varint()?;
        Ok(((raw >> 1) as i64) ^ -((raw & 1) as i64))
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], RepoError> {
        let length = self.count(1, "a length")?;
        self.take(length)
    }

    /// A length and that many bytes of UTF-8.
    pub fn text(&mut self) -> Result<&'a str, RepoError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), RepoError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.damaged(format!("{} bytes too many at its end", self.rest.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new("x", &out);
            assert_eq!(reader.varint().unwrap(), value);
            reader.finish().unwrap();
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            assert_eq!(Reader::new("x", &out).signed().unwrap(), value);
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        let too_long = [0xff; 11];
        assert!(Reader::new("x", &too_long).varint().is_err());
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert!(Reader::new("x", &too_large).varint().is_err());
        assert!(Reader::new("x", &[0x80]).varint().is_err());
        assert!(Reader::new("x", &[0x81, 0x00]).varint().is_err(), "one number, one form");
    }

    #[test]
    fn a_lie_about_a_count_is_found_before_space_is_reserved() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX / 16);
        assert!(Reader::new("x", &out).count(8, "a count").is_err());
    }
}
