//! Words that everyone shares. No I/O but the clock, and no knowledge of any database.
//!
//! | module | what it holds |
//! |---|---|
//! | [`bytes`] | [`ByteCount`], sizes as people read them |
//! | [`clock`] | [`Clock`], the only source of "now" |
//! | [`entropy`] | [`Entropy`], the only source of random bytes |
//! | [`explain`] | [`Explain`]: code, retry class and help of every error |
//! | [`progress`] | [`Progress`], where a job says how far it is; [`Cancel`] |
//! | [`secret`] | [`Secret`], text that is never printed |

pub mod bytes;
pub mod clock;
pub mod entropy;
pub mod explain;
pub mod progress;
pub mod secret;

pub use bytes::ByteCount;
pub use clock::{Clock, SystemClock, pause_after};
pub use entropy::Entropy;
pub use explain::{Code, Explain, Retry};
pub use jiff::Timestamp;
pub use progress::{Cancel, Note, Progress, Silent, Stage, Work};
pub use secret::Secret;
