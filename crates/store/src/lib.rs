//! Flat, immutable objects: one contract, its conformance suite, the back ends.
//!
//! | module | what it holds |
//! |---|---|
//! | [`contract`] | [`Store`], [`Batch`]: what everything above relies on |
//! | [`key`] | [`Key`]: names of objects |
//! | [`error`] | [`StoreError`] |

pub mod contract;
pub mod error;
pub mod key;

pub use contract::{Batch, Entry, Store};
pub use error::StoreError;
pub use key::Key;
