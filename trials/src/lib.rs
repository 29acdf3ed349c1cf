//! Trials on real servers; see `tests/`.
