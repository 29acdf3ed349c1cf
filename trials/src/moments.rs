//! A program that is killed, again and again, at moments spread over all that it does.

use std::process::Child;
use std::time::{Duration, Instant};

/// The moments at which a program is killed. How long it takes is learnt: a machine that was busy
/// when it was measured would put every moment behind its end.
#[derive(Debug)]
pub struct Moments {
    whole: Duration,
    parts: u32,
    made: u32,
}

/// So often as many moments are made where the first ones were not enough.
const ROUNDS_MAX: u32 = 4;

impl Moments {
    /// `parts` moments (at least) spread evenly over `whole`, as long as one run took.
    #[must_use]
    pub fn over(whole: Duration, parts: u32) -> Self {
        assert!(parts > 0);
        Self { whole, parts, made: 0 }
    }

    /// Whether there are more: until each part had its moment, and then while it is not `enough`.
    #[must_use]
    pub fn go_on(&self, enough: bool) -> bool {
        let all = self.made >= self.parts;
        !all || (!enough && self.made < ROUNDS_MAX * self.parts)
    }

    /// How many moments there have been.
    #[must_use]
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Kills with SIGKILL at the next moment. True when it was killed, false when it had ended by
    /// itself, well or not; then it is known to take no longer.
    #[track_caller]
    pub fn kill(&mut self, mut child: Child) -> bool {
        let part = self.made % self.parts + 1;
        self.made += 1;
        let begun = Instant::now();
        let moment = self.whole.mul_f64(f64::from(part) / f64::from(self.parts + 1));
        loop {
            if child.try_wait().expect("it can be asked").is_some() {
                self.whole = begun.elapsed().clamp(self.whole / 2, self.whole);
                return false;
            }
            let left = moment.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(Duration::from_millis(2)));
        }
        child.kill().expect("it can be killed"); // SIGKILL
        let status = child.wait().expect("it ends");
        status.code().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_measurement_on_a_busy_machine_is_forgotten() {
        let mut moments = Moments::over(Duration::from_secs(4), 10);
        let mut killed = 0;
        while moments.go_on(killed >= 5) {
            let child = Command::new("sleep").arg("0.05").spawn().expect("it starts");
            killed += u32::from(moments.kill(child));
        }
        assert!(killed >= 5, "{killed} of {moments:?}");
    }
}
