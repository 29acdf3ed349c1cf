//! A running server whose WAL is received.

use std::time::Duration;

use lifeboat_engine::{
    EngineError, LogSource, Lsn, SlotState, SourceError, SourceEvent, SourceIdentity, TimelineId,
};
use lifeboat_units::{Clock, Code, Explain, Retry, SystemClock};

use super::conninfo::{Conninfo, Wanted};
use super::error::LiveError;
use super::replication::{Connection, Status, WalEvent, WalStream};

/// First version that tells what a slot keeps without a database (`READ_REPLICATION_SLOT`).
const READS_SLOTS_SINCE: u32 = 15;

/// SQLSTATE `undefined_object`: no such slot.
const UNDEFINED_OBJECT: &str = "42704";
/// SQLSTATE `undefined_file`: the segment was removed.
const UNDEFINED_FILE: &str = "58P01";
/// SQLSTATE `object_not_in_prerequisite_state`: the slot lost its WAL.
const NOT_IN_STATE: &str = "55000";
/// SQLSTATE `duplicate_object`: the slot is there already.
const DUPLICATE_OBJECT: &str = "42710";

/// The servers of a connection string, of which the primary's WAL is received through a slot.
#[derive(Debug)]
pub struct ServerSource {
    conninfo: Conninfo,
    clock: SystemClock,
    line: Line,
    /// Whether anything came since the last report.
    heard: bool,
}

#[derive(Debug)]
enum Line {
    Closed,
    Commands(Box<Connection>),
    Stream(Box<WalStream>),
}

/// Why there is no stream, when the server gave no error.
#[derive(Debug, thiserror::Error)]
enum NoStream {
    #[error("the server was shut down")]
    Stopped,
    #[error("there is no connection to the server")]
    Closed,
}

impl Explain for NoStream {
    fn code(&self) -> Code {
        match self {
            Self::Stopped => Code("LB-PG-090"),
            Self::Closed => Code("LB-PG-091"),
        }
    }
    fn retry(&self) -> Retry {
        Retry::Later
    }
    fn help(&self) -> Option<String> {
        None // it is tried again by itself
    }
}

impl ServerSource {
    /// Connects to nothing yet.
    ///
    /// - `name` is what `synchronous_standby_names` calls the receiver (`application_name`).
    /// - Of several servers the primary is wanted, unless the connection string says otherwise.
    pub fn new(mut conninfo: Conninfo, name: &str, clock: SystemClock) -> Self {
        name.clone_into(&mut conninfo.application_name);
        if conninfo.hosts.len() > 1 && conninfo.wanted == Wanted::Any {
            conninfo.wanted = Wanted::Primary;
        }
        Self { conninfo, clock, line: Line::Closed, heard: false }
    }

    fn commands(&mut self) -> Result<&mut Connection, SourceError> {
        match &mut self.line {
            Line::Commands(connection) => Ok(connection),
            _ => Err(SourceError::Failed(EngineError::new(NoStream::Closed))),
        }
    }
}

fn failed(error: LiveError) -> SourceError {
    SourceError::Failed(EngineError::new(error))
}

/// Tells apart what a receiver must know.
fn sorted(error: LiveError) -> SourceError {
    let state = error.sqlstate().map(str::to_owned);
    let error = EngineError::new(error);
    match state.as_deref() {
        Some(UNDEFINED_OBJECT) => SourceError::SlotMissing(error),
        Some(UNDEFINED_FILE) => SourceError::Removed(error),
        Some(NOT_IN_STATE) => SourceError::SlotLost(error),
        _ => SourceError::Failed(error),
    }
}

impl LogSource for ServerSource {
    fn connect(&mut self) -> Result<SourceIdentity, SourceError> {
        self.line = Line::Closed;
        let mut connection = Connection::open(&self.conninfo).map_err(failed)?;
        let system = connection.identify_system().map_err(failed)?;
        let segment = connection.segment_size().map_err(failed)?;
        self.line = Line::Commands(Box::new(connection));
        Ok(SourceIdentity {
            server: self.conninfo.to_string(),
            system: system.system,
            timeline: system.timeline,
            end: system.flushed,
            segment,
        })
    }

    fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, SourceError> {
        self.commands()?.timeline_history(timeline).map(|(_, bytes)| bytes).map_err(failed)
    }

    fn slot(&mut self, name: &str) -> Result<SlotState, SourceError> {
        let connection = self.commands()?;
        if connection.major() < READS_SLOTS_SINCE {
            return Ok(SlotState::Untold);
        }
        let Some(slot) = connection.read_slot(name).map_err(failed)? else {
            return Ok(SlotState::Missing);
        };
        let keeps_bytes_max = connection.slots_keep_max().map_err(failed)?;
        Ok(SlotState::Present { keeps_from: slot.restart_lsn, keeps_bytes_max })
    }

    fn create_slot(&mut self, name: &str) -> Result<(), SourceError> {
        match self.commands()?.create_physical_slot(name, true) {
            Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => Ok(()),
            other => other.map_err(failed),
        }
    }

    fn drop_slot(&mut self, name: &str) -> Result<(), SourceError> {
        self.commands()?.drop_slot(name).map_err(failed)
    }

    fn start(&mut self, slot: &str, timeline: TimelineId, from: Lsn) -> Result<(), SourceError> {
        let Line::Commands(connection) = std::mem::replace(&mut self.line, Line::Closed) else {
            return Err(SourceError::Failed(EngineError::new(NoStream::Closed)));
        };
        let stream = connection.start_physical(Some(slot), from, timeline).map_err(sorted)?;
        self.line = Line::Stream(Box::new(stream));
        self.heard = true;
        Ok(())
    }

    fn next(&mut self, wait: Duration) -> Result<SourceEvent, SourceError> {
        let Line::Stream(stream) = &mut self.line else {
            return Err(SourceError::Failed(EngineError::new(NoStream::Closed)));
        };
        let event = match stream.next(wait).map_err(sorted)? {
            WalEvent::Quiet => return Ok(SourceEvent::Quiet),
            WalEvent::Wal { start, server_end, sent_at, bytes } if !bytes.is_empty() => {
                let bytes = bytes.to_vec();
                SourceEvent::Log { at: start, bytes, server_end, server_time: sent_at }
            }
            WalEvent::Wal { server_end, sent_at, .. } => {
                SourceEvent::Alive { server_end, server_time: sent_at, reply: false }
            }
            WalEvent::KeepAlive { server_end, sent_at, reply_wanted } => {
                SourceEvent::Alive { server_end, server_time: sent_at, reply: reply_wanted }
            }
            WalEvent::TimelineEnded { next, at } => SourceEvent::TimelineEnded { next, at },
            WalEvent::ServerStopped => {
                return Err(SourceError::Failed(EngineError::new(NoStream::Stopped)));
            }
        };
        self.heard = true;
        Ok(event)
    }

    fn report(&mut self, _received: Lsn, durable: Option<Lsn>) -> Result<(), SourceError> {
        let Line::Stream(stream) = &mut self.line else { return Ok(()) };
        // Zero is `InvalidXLogRecPtr`: nothing is known, and the slot stays where it is. Written
        // counts for `synchronous_commit = remote_write`, applied for `remote_apply`: there is
        // nothing to apply, and what is not durable is not written.
        let durable = durable.unwrap_or_default();
        let reply_wanted = !std::mem::replace(&mut self.heard, false);
        stream
            .status(&Status {
                written: durable,
                flushed: durable,
                applied: durable,
                sent_at: self.clock.now(),
                reply_wanted,
            })
            .map_err(failed)
    }
}
