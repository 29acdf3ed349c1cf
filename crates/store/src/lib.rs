//! Flat, immutable objects: one contract, its conformance suite, the back ends.
//!
//! | module | what it holds |
//! |---|---|
//! | [`contract`] | [`Store`], [`Batch`]: what everything above relies on |
//! | [`conformance`] | one check per promise of the contract, for every back end |
//! | [`error`] | [`StoreError`] |
//! | [`key`] | [`Key`]: names of objects |
//! | [`local`] | [`LocalStore`]: files below a directory |
//! | [`memory`] | [`MemoryStore`]: for tests and simulations |
//! | [`url`] | from an address to a store |

pub mod conformance;
pub mod contract;
pub mod error;
pub mod key;
pub mod local;
pub mod memory;
pub mod url;

pub use contract::{Batch, Entry, Store};
pub use error::StoreError;
pub use key::Key;
pub use local::LocalStore;
pub use memory::MemoryStore;
