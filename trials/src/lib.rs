//! Trials of the program on real PostgreSQL servers; see `tests/`.
//!
//! The program is called as a user calls it: its binary is named by `LIFEBOAT_BIN` (otherwise the
//! development binary of this workspace), it runs as the server's user, in the data directory.

pub mod faketime;
pub mod fetcher;
pub mod hanging;
pub mod lab;
pub mod measure;
pub mod moments;
pub mod proxy;
pub mod receiving;
pub mod refusal;
pub mod restored;
pub mod same;
pub mod standby;
pub mod tls;
pub mod watched;
pub mod writers;

pub use hanging::Hanging;
pub use lab::{Lab, Ran};
pub use moments::Moments;
pub use receiving::Receiving;
pub use restored::Restored;
