//! Names of objects.

use std::fmt;

use crate::error::StoreError;

/// Name of an object: parts of `[A-Za-z0-9._-]`, separated by `/`.
///
/// No part is empty or begins with a dot, so that no key can leave its root or meet a temporary
/// file; at most 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Longest key, in bytes.
    pub const BYTES_MAX: usize = 512;

    /// Checks a key.
    pub fn new(text: impl Into<String>) -> Result<Self, StoreError> {
        let text = text.into();
        let part_ok = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if text.len() <= Self::BYTES_MAX && text.split('/').all(part_ok) {
            Ok(Self(text))
        } else {
            Err(StoreError::BadKey { text })
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part of the key.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

/// Checks the prefix of a listing: empty, or a key and a `/`.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let bad = || StoreError::BadKey { text: prefix.to_owned() };
    match prefix.strip_suffix('/') {
        Some(directory) => Key::new(directory).map(|_| ()).map_err(|_| bad()),
        None if prefix.is_empty() => Ok(()),
        None => Err(bad()),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn a_key_cannot_leave_its_root() {
        for text in
            ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".a", "a/.b", "a b", "a\0", "\u{e9}"]
        {
            assert!(Key::new(text).is_err(), "{text:?}");
        }
        for text in ["a", "a/b", "clusters/main/data/20261122T231501Z-ab12/000017", "A_b-c.d"] {
            assert_eq!(Key::new(text).unwrap().as_str(), text);
        }
    }
}
