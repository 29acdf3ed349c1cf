//! One call of `archive_command` when a background pusher does the work.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use lifeboat_engine::{Engine, LogFile};
use lifeboat_units::{Cancel, Clock};

use super::ack::{Ack, Errand};
use super::spool::Spool;
use crate::wal::error::{PushError, Said};

/// First pause between two looks; each is half as long again as the one before.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How often it is looked whether the server still waits for the file.
const ASK: Duration = Duration::from_millis(250);
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(25);
/// A call starts so many pushers; when they all end without an answer, it does the work itself.
const STARTS_MAX: u32 = 2;

/// One call.
pub struct Call<'a> {
    /// What knows the database.
    pub engine: &'a dyn Engine,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Set when the call is to end.
    pub cancel: &'a Cancel,
    /// The data directory.
    pub directory: &'a Path,
    /// The file, as the server gives it.
    pub path: &'a Path,
    /// Where to, and with which settings.
    pub errand: Errand,
    /// How long to wait for the pusher.
    pub timeout: Duration,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The server may be told that the file is archived.
    Acknowledged(Ack),
    /// The server did not announce this file as ready, so no pusher looks for it.
    NotAnnounced,
    /// The spool or the pusher cannot be used, for this reason: the caller pushes by itself.
    Unusable(String),
}

impl Call<'_> {
    /// Answers from the spool, or has the file pushed and waits for it.
    ///
    /// `start` starts a pusher in the background, and passes the lock on to it as its standard
    /// input.
    pub fn run(
        &self,
        start: &mut dyn FnMut(File, &Spool) -> io::Result<()>,
    ) -> Result<Answer, PushError> {
        let spool = Spool::of(self.directory);
        if let Some(ack) = spool.answer(self.path, self.errand.target) {
            return Ok(Answer::Acknowledged(ack));
        }
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let file: LogFile =
            name.parse().map_err(|source| PushError::Name { name: name.clone(), source })?;
        if !self.is_announced(file) {
            return Ok(Answer::NotAnnounced);
        }
        if let Err(error) = spool.create() {
            return Ok(unusable(&spool, &error));
        }
        // What was said speaks of an earlier try, or of another file of this name.
        spool.forget_void(self.path, file, self.errand.target);
        spool.forgive(file);
        self.wait(&spool, file, start)
    }

    fn is_announced(&self, file: LogFile) -> bool {
        self.engine.is_waiting_log(self.directory, file).unwrap_or(false)
    }

    fn wait(
        &self,
        spool: &Spool,
        file: LogFile,
        start: &mut dyn FnMut(File, &Spool) -> io::Result<()>,
    ) -> Result<Answer, PushError> {
        let now = self.clock.monotonic();
        let (end, mut ask_at) = (now.saturating_add(self.timeout), now.saturating_add(ASK));
        let (mut pause, mut starts) = (PAUSE_MIN, 0);
        loop {
            if let Some(ack) = spool.answer(self.path, self.errand.target) {
                return Ok(Answer::Acknowledged(ack));
            }
            if let Some(note) = spool.note(file) {
                let source = Said(note.causes.join(": "));
                return Err(PushError::Background { note, source });
            }
            match spool.try_lock() {
                Ok(Some(_)) if starts == STARTS_MAX => {
                    let log = spool.directory().join("log");
                    return Ok(Answer::Unusable(format!(
                        "the background pusher ends without an answer; see `{}`",
                        log.display()
                    )));
                }
                Ok(Some(lock)) => {
                    let started = spool
                        .probe()
                        .and_then(|()| spool.sign(&lock, self.errand))
                        .and_then(|()| start(lock, spool));
                    if let Err(error) = started {
                        return Ok(unusable(spool, &error));
                    }
                    starts += 1;
                    pause = PAUSE_MIN;
                }
                // One that works for another repository or cluster would never answer, and one
                // that began with other words not as this call wants it.
                Ok(None) => {
                    if spool.signed().is_some_and(|(errand, _)| errand != self.errand) {
                        spool.dismiss();
                    }
                }
                Err(error) => return Ok(unusable(spool, &error)),
            }
            let now = self.clock.monotonic();
            if now >= ask_at {
                // The server took its note back: no pusher will find the file.
                if !self.is_announced(file) {
                    return Ok(Answer::NotAnnounced);
                }
                ask_at = now.saturating_add(ASK);
            }
            if now >= end || self.cancel.is_cancelled() {
                return Err(PushError::NoAnswer { file: file.to_string(), waited: self.timeout });
            }
            self.clock.sleep(pause.min(end - now));
            pause = (pause * 3 / 2).min(PAUSE_MAX);
        }
    }
}

fn unusable(spool: &Spool, error: &io::Error) -> Answer {
    Answer::Unusable(format!("`{}` cannot be used: {error}", spool.directory().display()))
}
