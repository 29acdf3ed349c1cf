//! Receives WAL while it is written.
//!
//! The repository is the only state: what it holds says where to go on, so that a receiver may be
//! killed at any moment. What is acknowledged to the server as flushed is durable in the repository.
//!
//! | module | what it holds |
//! |---|---|
//! | [`begin`] | where to begin, from what the repository has |
//! | [`gap`] | what the server no longer has |
//! | [`ship`] | stores segments and pieces in order |
//! | [`stream`] | one connection: receives, ships, acknowledges |
//! | [`event`], [`error`] | what is told |

mod begin;
pub mod error;
pub mod event;
mod gap;
mod session;
pub mod ship;
mod stream;

use std::time::Duration;

use lifeboat_engine::{LogSource, SystemId};
use lifeboat_repo::Compression;
use lifeboat_units::{Explain, Retry};

use crate::inventory::chain;
use crate::ports::Ports;

pub use error::ReceiveError;
pub use event::{ReceiveEvent, Told};

/// Pause before the first new attempt to connect.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How to receive.
#[derive(Debug, Clone)]
pub struct ReceiveSettings {
    /// The replication slot.
    pub slot: String,
    /// Make the slot when it is missing, and replace it when the server gave it up.
    pub create_slot: bool,
    /// Store what came at once: somebody waits for it.
    pub synchronous: bool,
    /// Otherwise, store what came at least so often.
    pub ship_every: Duration,
    /// How to compress.
    pub compression: Compression,
}

/// How a session ended.
enum End {
    /// Somebody asked to stop.
    Stopped,
    /// What was asked for can be asked for again at once: the timeline ended.
    Again,
}

/// Receives until it is cancelled.
///
/// - Connects again, after a pause, when the connection is lost or the server fails; goes on with
///   whichever server the source finds, as long as it is of the same system.
/// - Errors: only what trying again does not help against. What the server cannot be told apart
///   from (a refused connection, say) is tried again once a connection had been there.
pub fn receive(
    ports: &Ports<'_>,
    settings: &ReceiveSettings,
    source: &mut dyn LogSource,
    tell: &mut dyn FnMut(Told),
) -> Result<(), ReceiveError> {
    let mut receiver = Receiver {
        ports,
        settings,
        system: None,
        told_behind: Vec::new(),
        streamed: false,
        made_slot: false,
        missed: None,
    };
    let mut say = |event| tell(Told { at: ports.clock.now(), event });
    let mut pause = PAUSE_MIN;
    while !ports.cancel.is_cancelled() {
        receiver.streamed = false;
        let error = match receiver.session(source, &mut say) {
            Ok(End::Stopped) => break,
            Ok(End::Again) => continue,
            Err(error) => error,
        };
        if ports.cancel.is_cancelled() {
            // Stopped; an error is what was not stored.
            return if matches!(error, ReceiveError::Store { .. }) { Err(error) } else { Ok(()) };
        }
        let from_server = matches!(error, ReceiveError::Source(_)) && receiver.system.is_some();
        if error.retry() == Retry::Never && !from_server {
            return Err(error);
        }
        if receiver.streamed {
            pause = PAUSE_MIN;
        }
        let wait = receiver.jitter(pause);
        let why = chain(&error);
        say(ReceiveEvent::Disconnected { why, retry_seconds: wait.as_secs_f64() });
        receiver.wait(wait);
        receiver.made_slot = false;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}

/// What outlives a connection.
struct Receiver<'a> {
    ports: &'a Ports<'a>,
    settings: &'a ReceiveSettings,
    /// The system that is received, once a server answered.
    system: Option<SystemId>,
    /// Timelines of which it was said that more is stored than was taken over.
    told_behind: Vec<lifeboat_engine::TimelineId>,
    /// Whether WAL came on this connection.
    streamed: bool,
    /// Whether the slot was made or replaced since WAL came, or a pause was made.
    made_slot: bool,
    /// What the server did not have on the last connection.
    missed: Option<gap::Missed>,
}

impl Receiver<'_> {
    /// Half of it to all of it, so that many receivers do not come back at the same moment.
    fn jitter(&self, pause: Duration) -> Duration {
        let mut random = [0];
        self.ports.cluster.repository().entropy().fill(&mut random);
        pause.mul_f64(0.5 + f64::from(random[0]) / 510.0)
    }

    /// Waits, unless somebody asks to stop.
    fn wait(&self, pause: Duration) {
        let end = self.ports.clock.monotonic().saturating_add(pause);
        while !self.ports.cancel.is_cancelled() {
            let now = self.ports.clock.monotonic();
            if now >= end {
                return;
            }
            self.ports.clock.sleep((end - now).min(Duration::from_millis(100)));
        }
    }
}
