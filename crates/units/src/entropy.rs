//! The only source of random bytes.

/// Gives random bytes. Passed explicitly, so that a simulation replays from its seed; outside of
/// tests it is always the system's cryptographic generator.
pub trait Entropy: Send + Sync {
    /// Fills `into` with random bytes.
    fn fill(&self, into: &mut [u8]);
}
