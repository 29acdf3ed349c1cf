//! Time that tests set.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_units::{Clock, Timestamp};

/// A clock that stands still until it is told otherwise. Clones show the same time.
#[derive(Debug, Clone)]
pub struct SimClock(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    now: Timestamp,
    monotonic: Duration,
}

impl SimClock {
    /// A clock that shows `now`; its monotonic time begins at zero.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(State { now, monotonic: Duration::ZERO })))
    }

    /// Sets the wall clock, as an operator does: monotonic time does not notice.
    pub fn set(&self, now: Timestamp) {
        self.state().now = now;
    }

    /// Steps the wall clock by so many seconds, back when negative: monotonic time does not notice.
    /// Stops at the ends of what a timestamp can show.
    pub fn step(&self, seconds: i64) {
        let mut state = self.state();
        let end = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let stepped = Timestamp::new(state.now.as_second().saturating_add(seconds), 0);
        // Fractions are added apart: a second and its nanoseconds must have one sign.
        let fraction = Duration::from_nanos(state.now.subsec_nanosecond().unsigned_abs().into());
        let before_1970 = state.now.subsec_nanosecond() < 0;
        state.now =
            stepped
                .and_then(|at| {
                    if before_1970 { at.checked_sub(fraction) } else { at.checked_add(fraction) }
                })
                .unwrap_or(end);
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.state();
        state.now = state.now.checked_add(duration).unwrap_or(Timestamp::MAX);
        state.monotonic = state.monotonic.saturating_add(duration);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SimClock {
    /// Shows 2026-01-01T00:00:00Z.
    fn default() -> Self {
        Self::new(Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.state().now
    }

    fn monotonic(&self) -> Duration {
        self.state().monotonic
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lifeboat_units::{Clock, Timestamp};

    use super::SimClock;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn sleep_passes_time_and_a_step_only_turns_the_hands() {
        let clock = SimClock::default();
        assert_eq!(clock.now(), at("2026-01-01T00:00:00Z"));
        clock.clone().sleep(Duration::from_millis(1500));
        assert_eq!(clock.now(), at("2026-01-01T00:00:01.5Z"));
        clock.step(-3600);
        assert_eq!(clock.now(), at("2025-12-31T23:00:01.5Z"));
        clock.set(at("1969-12-31T23:59:58.5Z"));
        clock.step(1);
        assert_eq!(clock.now(), at("1969-12-31T23:59:59.5Z"));
        clock.step(1);
        assert_eq!(clock.now(), at("1970-01-01T00:00:00.5Z"));
        assert_eq!(clock.monotonic(), Duration::from_millis(1500));
        clock.step(i64::MAX);
        clock.advance(Duration::MAX);
        assert_eq!(clock.now(), Timestamp::MAX);
        clock.step(i64::MIN);
        assert_eq!(clock.now(), Timestamp::MIN);
    }
}
