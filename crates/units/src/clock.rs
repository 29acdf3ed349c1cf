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

/// How long to pause before the next look at something that was waited for so long already: what
/// comes meanwhile is seen an eighth too late at most, with few looks at what takes long.
pub fn pause_after(waited: Duration, (least, most): (Duration, Duration)) -> Duration {
    (waited / 8).clamp(least, most)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_takes_few_looks_and_none_comes_much_too_late() {
        let limits = (Duration::from_millis(2), Duration::from_secs(20));
        let (mut waited, mut looks) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(3600) {
            let pause = pause_after(waited, limits);
            assert!(pause >= limits.0 && pause <= limits.1.min(limits.0.max(waited / 8)));
            (waited, looks) = (waited + pause, looks + 1);
        }
        assert!((200..300).contains(&looks), "{looks}");
    }
}
