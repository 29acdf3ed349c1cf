//! Tells the pusher at once when the server announces a file, so that nobody waits for its next
//! look.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use lifeboat_engine::Engine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// What comes in a burst is one look.
const SETTLE: Duration = Duration::from_millis(1);

/// Watches where the server leaves its notes (`inotify(7)`).
///
/// Only a hurry: where there is nothing to watch with (a limit of the system, a file system that
/// does not tell), waiting is waiting, and the pusher looks as often as it does anyway.
pub struct Watch {
    notes: Option<OwnedFd>,
}

impl Watch {
    /// Begins to watch.
    pub fn of(engine: &dyn Engine, directory: &Path) -> Self {
        let begin = || {
            let notes = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            // A note that is answered is renamed, which is nothing to hurry for.
            let at = directory.join(engine.waiting_directory());
            add_watch(&notes, at.as_path(), WatchFlags::CREATE)?;
            Ok::<_, rustix::io::Errno>(notes)
        };
        Self { notes: begin().ok() }
    }

    /// Waits so long, or until a note has come.
    pub fn wait(&self, at_most: Duration) {
        let Some(notes) = &self.notes else { return std::thread::sleep(at_most) };
        let mut polled = [PollFd::new(notes, PollFlags::IN)];
        // Longer than any wait of ours does not fit: then without end, which is not asked for.
        let limit = Timespec::try_from(at_most).ok();
        if let Ok(1..) = poll(&mut polled, limit.as_ref()) {
            std::thread::sleep(SETTLE.min(at_most));
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = Reader::new(notes, &mut buffer);
            while events.next().is_ok() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lifeboat_testkit::ToyEngine;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_note_ends_the_wait_and_is_not_told_twice() {
        let home = tempfile::tempdir().unwrap();
        let notes = home.path().join(ToyEngine.waiting_directory());
        std::fs::create_dir_all(&notes).unwrap();
        let watch = Watch::of(&ToyEngine, home.path());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                std::fs::write(notes.join("000000010000000000000001.ready"), "").unwrap();
            });
            let began = Instant::now();
            watch.wait(LONG);
            assert!(began.elapsed() < LONG, "nobody told");
        });
        let began = Instant::now();
        watch.wait(Duration::from_millis(30));
        assert!(began.elapsed() >= Duration::from_millis(30), "told twice");
    }

    #[test]
    fn without_a_directory_to_watch_it_only_waits() {
        let home = tempfile::tempdir().unwrap();
        let began = Instant::now();
        Watch::of(&ToyEngine, home.path()).wait(Duration::from_millis(10));
        assert!(began.elapsed() >= Duration::from_millis(10));
    }
}
