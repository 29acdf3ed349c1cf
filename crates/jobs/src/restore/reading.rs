//! Says in the repository that a restore reads, for as long as it does.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_repo::{BackupId, ReadPurpose, Reading};
use lifeboat_units::Note;

use crate::inventory::chain;
use crate::ports::Ports;

/// A note that could not be renewed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(60);

/// Leaves a note. A repository that cannot be written to is restored from all the same, and it is
/// said what that means.
pub(super) fn begin(ports: &Ports<'_>, purpose: ReadPurpose, backup: BackupId) -> Option<Reading> {
    match Reading::begin(ports.cluster, purpose, &[backup], ports.clock) {
        Ok(reading) => Some(reading),
        Err(error) => {
            ports.progress.warn(&Note::new(format!(
                "this host cannot note in the repository that it reads {backup} ({}): `expire` must \
                 not remove it before {} is over",
                chain(&error),
                purpose.words()
            )));
            None
        }
    }
}

/// Does something, and renews the note until it is done.
pub(super) fn kept<T>(
    ports: &Ports<'_>,
    reading: &mut Option<Reading>,
    work: impl FnOnce() -> T,
) -> T {
    let Some(reading) = reading else { return work() };
    let over = Over::default();
    std::thread::scope(|scope| {
        scope.spawn(|| renew(ports, reading, &over));
        let _told = Told(&over); // also when the work panics
        work()
    })
}

fn renew(ports: &Ports<'_>, reading: &mut Reading, over: &Over) {
    let every = ReadPurpose::Restore.renewed_every();
    let mut pause = every;
    while !over.within(pause) {
        pause = match reading.renew(ports.clock) {
            Ok(()) => every,
            Err(error) => {
                let what = "the note that this restore reads could not be renewed";
                ports.progress.warn(&Note::new(format!("{what}: {}", chain(&error))));
                AGAIN
            }
        };
    }
}

/// Whether the work is done. Real time, also in simulations: it wakes up long after they ended.
#[derive(Default)]
struct Over {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Over {
    /// Waits, at most so long, until it is done.
    fn within(&self, pause: Duration) -> bool {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(done, pause, |done| !*done);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

struct Told<'a>(&'a Over);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        *self.0.done.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}
