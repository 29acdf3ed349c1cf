//! For tests only: what makes whole histories of failure repeatable.
//!
//! | module | what it holds |
//! |---|---|
//! | [`clock`] | [`SimClock`], time that tests set |
//! | [`faulty`] | [`FaultyStore`], a store that fails at a chosen call |
//! | [`recording`] | [`RecordingStore`], a store that remembers the order of calls |
//! | [`toy`] | [`ToyEngine`], an engine without a server, and backups written by hand |
//! | [`toy_log`], [`toy_recovery`] | the records of its log, and their replay |
//! | [`toy_server`] | [`ToyServer`], which writes while [`ToyOrigin`] backs it up |
//! | [`toy_source`] | [`ToyStreamer`], which streams its log, cuts the line and forgets |
//! | [`hooked`] | [`HookedEngine`], at whose answers something happens |
//! | [`scratch`] | [`scratch::ScratchServer`], a throw-away PostgreSQL |

pub mod clock;
pub mod faulty;
pub mod hooked;
pub mod recording;
pub mod scratch;
pub mod toy;
pub mod toy_log;
pub mod toy_recovery;
pub mod toy_server;
pub mod toy_source;

pub use clock::SimClock;
pub use faulty::{Fault, FaultyStore, Schedule};
pub use hooked::HookedEngine;
pub use recording::{Operation, RecordingStore};
pub use toy::ToyEngine;
pub use toy_server::{ToyOrigin, ToyServer};
pub use toy_source::ToyStreamer;
