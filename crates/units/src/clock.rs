//! The only source of "now".

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Tells the time. Passed explicitly, so that simulations and golden tests can set it.
pub trait Clock: Send + Sync {
    /// Wall-clock time. May step backwards; never used to measure a duration.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary fixed point; never steps backwards.
    fn monotonic(&self) -> Duration;
    /// Waits. A simulated clock advances instead.
    fn sleep(&self, duration: Duration);
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}
