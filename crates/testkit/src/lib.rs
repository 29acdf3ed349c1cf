//! For tests only: what makes whole histories of failure repeatable.
//!
//! | module | what it holds |
//! |---|---|
//! | [`clock`] | [`SimClock`], time that tests set |
//! | [`faulty`] | [`FaultyStore`], a store that fails at a chosen call |
//! | [`recording`] | [`RecordingStore`], a store that remembers the order of calls |
//! | [`toy`] | [`ToyEngine`], an engine without a server, and backups written by hand |
//! | [`scratch`] | [`scratch::ScratchServer`], a throw-away PostgreSQL |

pub mod clock;
pub mod faulty;
pub mod recording;
pub mod scratch;
pub mod toy;

pub use clock::SimClock;
pub use faulty::{Fault, FaultyStore, Schedule};
pub use recording::{Operation, RecordingStore};
pub use toy::ToyEngine;
