//! Who hears what a job warns of.

use std::sync::Mutex;
use std::time::Duration;

use lifeboat_units::{Clock, Note, Progress, Stage, Work};

/// Keeps every warning with the time since the clock began.
pub struct Warnings<'a> {
    clock: &'a dyn Clock,
    heard: Mutex<Vec<(Duration, String)>>,
}

impl<'a> Warnings<'a> {
    pub fn new(clock: &'a dyn Clock) -> Self {
        Self { clock, heard: Mutex::default() }
    }

    pub fn take(&self) -> Vec<(Duration, String)> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

impl Progress for Warnings<'_> {
    fn stage(&self, _: Stage, _: Option<Work>) {}
    fn advance(&self, _: Work) {}
    fn warn(&self, note: &Note) {
        self.heard.lock().unwrap().push((self.clock.monotonic(), note.message.clone()));
    }
}
