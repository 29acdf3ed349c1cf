//! Archives and fetches WAL, and says what of it is there.
//!
//! | module | what it does |
//! |---|---|
//! | [`push`] | archives files of the log, for `archive_command` |
//! | [`get`] | fetches one, for `restore_command` |
//! | [`given_up`] | gaps that were made on purpose |
//! | [`receive`] | receives WAL while it is written |
//! | [`list`] | ranges, gaps and what can be reached |
//! | [`reading`] | keeps in the repository what a recovery still reads |
//! | [`state`] | what a restored directory remembers until its recovery is over |
//! | [`tail`] | a segment that is not finished, as far as pieces of it are there |
//! | [`wait`] | waits until a segment has arrived |

pub mod error;
pub mod get;
pub mod given_up;
pub mod list;
pub mod push;
pub mod reading;
pub mod receive;
pub mod state;
pub mod tail;
pub mod wait;

pub(crate) mod place;
pub(crate) mod reach;
mod serve;

pub use error::{GetError, PushError, StateError};
pub use get::{
    GetOutcome, GetSettings, PREFETCH_DIRECTORY, Prefetch, PrefetchClaim, get, get_ahead, get_with,
    keeps_asking, prefetch, worth_prefetching,
};
pub use given_up::{GivenUp, given_up};
pub use list::{Gap, HistoryState, SystemWal, TailWal, TimelineWal, WalReport, Window, list};
pub use place::data_directory;
pub use push::{PushReport, PushSettings, Pushed, push};
pub use reading::{NotedReading, READING_FILE, read_on};
pub use receive::{ReceiveError, ReceiveEvent, ReceiveSettings, Told, receive};
pub use state::{LeftTimeline, RECOVERY_FILE, RECOVERY_KEY_FILE, RecoveryState, finish_recovery};
pub use wait::wait_for;
