//! Streamed WAL.
//!
//! Source: PostgreSQL documentation, "Streaming Replication Protocol", `START_REPLICATION`.

use std::time::Duration;

use lifeboat_engine::{Lsn, TimelineId};
use lifeboat_units::Timestamp;

use super::channel::SILENCE_MAX;
use super::commands::slot_name;
use super::connection::Connection;
use super::error::WireError;
use super::frame::{append, tag};
use super::message::{Fields, row};
use crate::live::error::LiveError;

const DOING: &str = "streaming WAL";

/// Between the Unix epoch and PostgreSQL's (2000-01-01), in microseconds.
/// Source: `POSTGRES_EPOCH_JDATE` in `src/include/datatype/timestamp.h`.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What comes out of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum WalEvent<'a> {
    /// WAL. Stretches come without a gap, from where the stream was asked to start; one may
    /// begin and end anywhere.
    Wal {
        /// Position of the first byte.
        start: Lsn,
        /// End of the WAL on the server when it sent this.
        server_end: Lsn,
        /// When the server sent this, by its clock.
        sent_at: Timestamp,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The server is alive.
    KeepAlive {
        /// End of the WAL that was sent.
        server_end: Lsn,
        /// When the server sent this, by its clock.
        sent_at: Timestamp,
        /// Whether it wants a status now, before its patience (`wal_sender_timeout`) ends.
        reply_wanted: bool,
    },
    /// Nothing within the given time.
    Quiet,
    /// The server went on to another timeline, and all WAL of this one was sent. The stream is
    /// over; the connection takes commands again ([`WalStream::into_connection`]).
    TimelineEnded {
        /// The timeline that begins where this one ends.
        next: TimelineId,
        /// Where that is.
        at: Lsn,
    },
    /// The server shuts down, and all its WAL was sent. The connection is over.
    ServerStopped,
}

/// How far the received WAL has come, by the receiver's account. Positions are the first byte
/// that is not yet there; each goes forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Written.
    pub written: Lsn,
    /// Durable; a slot keeps WAL from here on, and synchronous commits wait for it.
    pub flushed: Lsn,
    /// Replayed; receivers that do not replay say what is durable.
    pub applied: Lsn,
    /// Now, by the receiver's clock; shown in `pg_stat_replication`.
    pub sent_at: Timestamp,
    /// Whether the server is to answer with a keepalive.
    pub reply_wanted: bool,
}

/// A running stream of WAL. Dropping it closes the connection.
#[derive(Debug)]
pub struct WalStream {
    connection: Connection,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Streaming,
    Ended(TimelineId, Lsn),
    Stopped,
}

impl Connection {
    /// Streams the WAL of `timeline` from `from` on, through a slot or without one.
    ///
    /// - `from` should be the start of a segment: the server does not care, files do.
    /// - Errors, by SQLSTATE: 42704 no such slot, 55006 the slot is in use, 55000 the slot lost
    ///   WAL that it should have kept (or is not usable otherwise), 58P01 the segment was removed
    ///   already. A timeline or position that the server does not have is `XX000`.
    /// - They come with the first event or here, as the server finds them.
    pub fn start_physical(
        mut self,
        slot: Option<&str>,
        from: Lsn,
        timeline: TimelineId,
    ) -> Result<WalStream, LiveError> {
        const STARTING: &str = "starting to stream WAL";
        let slot = match slot {
            Some(name) => format!("SLOT {} ", slot_name(name)?),
            None => String::new(),
        };
        let command = format!("START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}");
        let started = self.start_stream(&command);
        let state = started.map_err(|error| self.sort(STARTING, error))?;
        Ok(WalStream { connection: self, state })
    }

    fn start_stream(&mut self, command: &str) -> Result<State, WireError> {
        self.send_query(command)?;
        match self.channel.receive(self.silence_max)? {
            tag::COPY_BOTH => Ok(State::Streaming),
            tag::ERROR => Err(self.failure()),
            // Nothing to stream: the timeline ends right where we wanted to start.
            tag::ROW_DESCRIPTION => self.next_timeline(),
            kind => Err(self.unexpected(kind)),
        }
    }

    /// Reads the answer that says which timeline comes next, up to where the server takes
    /// commands again.
    fn next_timeline(&mut self) -> Result<State, WireError> {
        let mut next = None;
        loop {
            match self.channel.receive(self.silence_max)? {
                tag::DATA_ROW => next = Some(switch_point(self.channel.body())?),
                // What was still on its way, and the ends of two commands in one.
                tag::COPY_DATA | tag::COPY_DONE | tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE => {}
                tag::READY => {
                    let (timeline, at) = next.ok_or(NO_SWITCH_POINT)?;
                    return Ok(State::Ended(timeline, at));
                }
                tag::ERROR => return Err(self.failure()),
                kind => return Err(self.unexpected(kind)),
            }
        }
    }
}

const NO_SWITCH_POINT: WireError =
    WireError::Malformed { what: "a timeline ended and no next one was named" };

/// Reads the row `next_tli, next_tli_startpos`.
fn switch_point(body: &[u8]) -> Result<(TimelineId, Lsn), WireError> {
    let row = row(body)?;
    let text = |at: usize| std::str::from_utf8(row.get(at)?.as_deref()?).ok();
    let timeline = text(0).and_then(|text| text.parse().ok()).map(TimelineId);
    timeline.zip(text(1).and_then(|text| text.parse().ok())).ok_or(NO_SWITCH_POINT)
}

impl WalStream {
    /// Waits up to `wait` (up to twice that, when a message comes in parts) for what comes next.
    ///
    /// - A server that hangs shows as [`WalEvent::Quiet`] again and again: the caller decides how
    ///   much silence is too much, and asks for a sign of life by [`Status::reply_wanted`].
    /// - After [`WalEvent::TimelineEnded`] and [`WalEvent::ServerStopped`] it gives the same again.
    pub fn next(&mut self, wait: Duration) -> Result<WalEvent<'_>, LiveError> {
        match self.advance(wait) {
            Err(error) => Err(self.connection.sort(DOING, error)),
            Ok(Advance::Quiet) => Ok(WalEvent::Quiet),
            Ok(Advance::Data) => {
                event(self.connection.channel.body()).map_err(|error| LiveError::wire(DOING, error))
            }
            Ok(Advance::Over) => Ok(match self.state {
                State::Ended(next, at) => WalEvent::TimelineEnded { next, at },
                State::Streaming | State::Stopped => WalEvent::ServerStopped,
            }),
        }
    }

    fn advance(&mut self, wait: Duration) -> Result<Advance, WireError> {
        if !matches!(self.state, State::Streaming) {
            return Ok(Advance::Over);
        }
        let connection = &mut self.connection;
        let Some(kind) = connection.channel.receive_within(Some(wait))? else {
            return Ok(Advance::Quiet);
        };
        self.state = match kind {
            tag::COPY_DATA => return Ok(Advance::Data),
            tag::COPY_DONE => {
                connection.channel.send(&copy_done())?;
                connection.next_timeline()?
            }
            // A server that shuts down ends the command in the middle of the copy.
            tag::COMMAND_COMPLETE => {
                connection.channel.give_up();
                State::Stopped
            }
            tag::ERROR => return Err(connection.failure()),
            kind => return Err(connection.unexpected(kind)),
        };
        Ok(Advance::Over)
    }

    /// Tells the server how far the WAL has come.
    pub fn status(&mut self, status: &Status) -> Result<(), LiveError> {
        if !matches!(self.state, State::Streaming) {
            return Ok(());
        }
        let mut message = Vec::with_capacity(39);
        append(&mut message, tag::COPY_DATA, |body| {
            body.push(b'r');
            for lsn in [status.written, status.flushed, status.applied] {
                body.extend_from_slice(&lsn.0.to_be_bytes());
            }
            let at = status.sent_at.as_microsecond() - EPOCH_MICROSECONDS;
            body.extend_from_slice(&at.to_be_bytes());
            body.push(u8::from(status.reply_wanted));
        });
        let sent = self.connection.channel.send(&message);
        sent.map_err(|error| self.connection.sort("telling the server how far the WAL is", error))
    }

    /// A handle with which another thread can end this stream.
    pub fn stopper(&self) -> Result<super::Stopper, LiveError> {
        self.connection.stopper()
    }

    /// Ends the stream in an orderly way; WAL that is still on its way is dropped.
    pub fn finish(mut self) -> Result<Connection, LiveError> {
        if matches!(self.state, State::Streaming) {
            let ended = self.end();
            ended.map_err(|error| self.connection.sort("ending a stream of WAL", error))?;
        }
        Ok(self.connection)
    }

    fn end(&mut self) -> Result<(), WireError> {
        let channel = &mut self.connection.channel;
        channel.send(&copy_done())?;
        loop {
            match channel.receive(Some(SILENCE_MAX))? {
                tag::READY => return Ok(()),
                tag::ERROR => return Err(self.connection.failure()),
                _ => {}
            }
        }
    }

    /// The connection below, after [`WalEvent::TimelineEnded`]; before, it cannot be used on.
    pub fn into_connection(mut self) -> Connection {
        if matches!(self.state, State::Streaming) {
            self.connection.channel.give_up();
        }
        self.connection
    }
}

enum Advance {
    Data,
    Quiet,
    Over,
}

fn copy_done() -> Vec<u8> {
    let mut message = Vec::new();
    append(&mut message, tag::COPY_DONE, |_| {});
    message
}

/// Reads an XLogData or a keepalive message.
fn event(body: &[u8]) -> Result<WalEvent<'_>, WireError> {
    let mut fields = Fields(body);
    match fields.byte()? {
        b'w' => {
            let (start, server_end) = (Lsn(fields.u64()?), Lsn(fields.u64()?));
            let sent_at = time(fields.i64()?)?;
            if start.0.checked_add(fields.0.len() as u64).is_none() {
                return Err(WireError::Malformed { what: "WAL beyond the last position" });
            }
            Ok(WalEvent::Wal { start, server_end, sent_at, bytes: fields.0 })
        }
        b'k' => Ok(WalEvent::KeepAlive {
            server_end: Lsn(fields.u64()?),
            sent_at: time(fields.i64()?)?,
            reply_wanted: fields.byte()? != 0,
        }),
        _ => Err(WireError::Malformed { what: "an unknown message within a stream of WAL" }),
    }
}

/// Reads microseconds since PostgreSQL's epoch.
fn time(microseconds: i64) -> Result<Timestamp, WireError> {
    microseconds
        .checked_add(EPOCH_MICROSECONDS)
        .and_then(|since_unix| Timestamp::from_microsecond(since_unix).ok())
        .ok_or(WireError::Malformed { what: "a time that cannot be" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_stream_are_read() {
        let mut body = vec![b'w'];
        body.extend_from_slice(&16u64.to_be_bytes());
        body.extend_from_slice(&32u64.to_be_bytes());
        body.extend_from_slice(&1_000_000i64.to_be_bytes());
        body.extend_from_slice(b"wal");
        let sent_at: Timestamp = "2000-01-01T00:00:01Z".parse().unwrap();
        let expected =
            WalEvent::Wal { start: Lsn(16), server_end: Lsn(32), sent_at, bytes: b"wal" };
        assert_eq!(event(&body).unwrap(), expected);
        for cut in 0..25 {
            assert!(event(&body[..cut]).is_err(), "{cut}");
        }
        body[1..9].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(event(&body).is_err());
        body[17..25].copy_from_slice(&i64::MAX.to_be_bytes());
        assert!(event(&body).is_err());
        assert!(event(b"x").is_err());
    }
}
