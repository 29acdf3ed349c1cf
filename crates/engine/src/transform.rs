//! Reshaping bytes so that they compress well.

/// A reversible reordering of the bytes of whole pages, or of a piece of the log.
///
/// Law: `join(split(x)) == x` for every `x`, damaged and random bytes included. `split` may
/// decline by returning false where it would not help.
pub trait Transform: Send + Sync {
    /// Number of this transform in the repository format; never re-used for another.
    fn id(&self) -> u8;
    /// Appends the reordered form of `raw` to `out`; false (and `out` unchanged) to decline.
    ///
    /// - Shape: `raw` is what is compressed together: at most 1 MiB, at least one byte.
    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool;
    /// Replaces the content of `out` by the original bytes.
    ///
    /// - Shape: `out` is as long as what was split; what it holds before does not matter. After an
    ///   error it holds anything.
    /// - Errors when `split` is no output of [`Transform::split`]; never panics, and never
    ///   allocates more than a small multiple of the length of `out`.
    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), TransformError>;
}

/// The bytes are not what [`Transform::split`] writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reordered bytes cannot be put back in order: {0}")]
pub struct TransformError(pub &'static str);
