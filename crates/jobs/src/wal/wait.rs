//! Waits until a segment has arrived.

use std::time::Duration;

use lifeboat_engine::{LogFile, SegmentName, SystemId};
use lifeboat_repo::RepoError;
use lifeboat_units::{Explain, Retry, pause_after};

use super::place::place;
use crate::ports::Ports;

/// Shortest and longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(2));

/// Waits until a segment is in the repository; false when it is not there after `timeout`, or
/// when the job is cancelled.
///
/// Looks at least once. A store that cannot be reached is asked again; when it still cannot be
/// reached at the end of the time, that is the error.
pub fn wait_for(
    ports: &Ports<'_>,
    system: SystemId,
    segment: SegmentName,
    timeout: Duration,
) -> Result<bool, RepoError> {
    let place = place(system, LogFile::Segment(segment));
    let began = ports.clock.monotonic();
    let end = began.saturating_add(timeout);
    loop {
        let answer = match ports.cluster.log_head(&place) {
            Ok(_) => return Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) if error.retry() == Retry::Never => return Err(error),
            Err(error) => Err(error),
        };
        let now = ports.clock.monotonic();
        if now >= end || ports.cancel.is_cancelled() {
            return answer;
        }
        ports.clock.sleep(pause_after(now.saturating_sub(began), PAUSES).min(end - now));
    }
}
