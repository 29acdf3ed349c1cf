//! Long data in one direction: base backups out, manifests in.

use super::connection::{Connection, Rows};
use super::error::WireError;
use super::frame::{append, tag};
use super::message::row;
use crate::live::error::LiveError;

/// Rows of one answer, as text.
pub type TextRows = Vec<Vec<Option<String>>>;

/// Most bytes that go into one message to the server.
const CHUNK_BYTES: usize = 64 << 10;

/// Data that the server sends, after some rows and before others.
///
/// `BASE_BACKUP` gives two answers before it (where the backup starts; the tablespaces) and one
/// after it (where it stops). From 15 on there is one stream; 14 sends one per tablespace.
/// Dropped before its end, it leaves a connection that cannot be used on.
#[derive(Debug)]
pub struct CopyOut<'a> {
    connection: &'a mut Connection,
    doing: &'static str,
    before: Vec<TextRows>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Within a stream.
    Data,
    /// Behind a stream.
    Between,
    /// The server takes commands again.
    Over,
}

impl Connection {
    /// Runs a command that the server answers with data, such as `BASE_BACKUP`.
    ///
    /// - Before the first byte the server may be silent for minutes, while it waits for a
    ///   checkpoint: see [`Connection::set_silence_max`].
    pub fn copy_out(
        &mut self,
        doing: &'static str,
        command: &str,
    ) -> Result<CopyOut<'_>, LiveError> {
        let sent = self.send_query(command).and_then(|()| self.answers());
        let (before, has_data) = sent.map_err(|error| self.sort(doing, error))?;
        let before = before.into_iter().map(|rows| text(doing, rows)).collect::<Result<_, _>>()?;
        let state = if has_data { State::Data } else { State::Over };
        Ok(CopyOut { connection: self, doing, before, state })
    }

    /// Runs a command that takes data, such as `UPLOAD_MANIFEST`.
    pub fn copy_in(&mut self, doing: &'static str, command: &str) -> Result<CopyIn<'_>, LiveError> {
        let started = self.send_query(command).and_then(|()| self.start_copy_in());
        started.map_err(|error| self.sort(doing, error))?;
        Ok(CopyIn { connection: self, doing, is_over: false })
    }

    fn start_copy_in(&mut self) -> Result<(), WireError> {
        match self.channel.receive(self.silence_max)? {
            tag::COPY_IN => Ok(()),
            tag::ERROR => Err(self.failure()),
            kind => Err(self.unexpected(kind)),
        }
    }

    /// Reads whole answers until data begins, or the server takes commands again; says which.
    fn answers(&mut self) -> Result<(Vec<Rows>, bool), WireError> {
        let mut answers: Vec<Rows> = Vec::new();
        let mut room = Room::new();
        loop {
            match self.channel.receive(self.silence_max)? {
                tag::ROW_DESCRIPTION => answers.push(Rows::new()),
                tag::DATA_ROW => {
                    room.take(self.channel.body().len())?;
                    let row = row(self.channel.body())?;
                    match answers.last_mut() {
                        Some(rows) => rows.push(row),
                        None => return Err(self.unexpected(tag::DATA_ROW)),
                    }
                }
                tag::COMMAND_COMPLETE | tag::EMPTY_QUERY => {}
                tag::COPY_OUT => return Ok((answers, true)),
                tag::READY => return Ok((answers, false)),
                tag::ERROR => return Err(self.failure()),
                kind => return Err(self.unexpected(kind)),
            }
        }
    }
}

impl CopyOut<'_> {
    /// The answers that came before the data, each with its rows.
    pub fn before(&self) -> &[TextRows] {
        &self.before
    }

    /// The next message's body; `None` at the end of the stream.
    #[expect(clippy::should_implement_trait, reason = "it lends from itself, as no iterator can")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, LiveError> {
        match self.advance() {
            Ok(true) => Ok(Some(self.connection.channel.body())),
            Ok(false) => Ok(None),
            Err(error) => Err(self.connection.sort(self.doing, error)),
        }
    }

    fn advance(&mut self) -> Result<bool, WireError> {
        if self.state != State::Data {
            return Ok(false);
        }
        let connection = &mut *self.connection;
        match connection.channel.receive(connection.silence_max)? {
            tag::COPY_DATA => Ok(true),
            tag::COPY_DONE => {
                self.state = State::Between;
                Ok(false)
            }
            tag::ERROR => {
                self.state = State::Over;
                Err(connection.failure())
            }
            kind => Err(connection.unexpected(kind)),
        }
    }

    /// Goes on behind the end of a stream: `None` when another stream begins, else the answers
    /// that came after the last, and the connection takes commands again.
    pub fn after(&mut self) -> Result<Option<Vec<TextRows>>, LiveError> {
        if self.state != State::Between {
            return Err(LiveError::Order("the data is not read to its end"));
        }
        let answers = self.connection.answers();
        let (after, has_data) = answers.map_err(|error| {
            self.state = State::Over;
            self.connection.sort(self.doing, error)
        })?;
        if has_data {
            self.state = State::Data;
            return Ok(None);
        }
        self.state = State::Over;
        after.into_iter().map(|rows| text(self.doing, rows)).collect::<Result<_, _>>().map(Some)
    }
}

impl Drop for CopyOut<'_> {
    fn drop(&mut self) {
        if self.state != State::Over {
            self.connection.channel.give_up();
        }
    }
}

/// Data that the server takes. Dropped before [`CopyIn::finish`], it leaves a connection that
/// cannot be used on.
#[derive(Debug)]
pub struct CopyIn<'a> {
    connection: &'a mut Connection,
    doing: &'static str,
    is_over: bool,
}

impl CopyIn<'_> {
    /// Sends some of it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LiveError> {
        let mut message = Vec::with_capacity(bytes.len().min(CHUNK_BYTES) + 5);
        for chunk in bytes.chunks(CHUNK_BYTES) {
            message.clear();
            append(&mut message, tag::COPY_DATA, |body| body.extend_from_slice(chunk));
            let sent = self.connection.channel.send(&message);
            sent.map_err(|error| self.connection.sort(self.doing, error))?;
        }
        Ok(())
    }

    /// Says that it was all, and waits until the server has taken it.
    pub fn finish(mut self) -> Result<(), LiveError> {
        let ended = self.end();
        ended.map_err(|error| self.connection.sort(self.doing, error))
    }

    fn end(&mut self) -> Result<(), WireError> {
        let mut message = Vec::new();
        append(&mut message, tag::COPY_DONE, |_| {});
        self.connection.channel.send(&message)?;
        self.is_over = true;
        loop {
            match self.connection.channel.receive(self.connection.silence_max)? {
                tag::COMMAND_COMPLETE => {}
                tag::READY => return Ok(()),
                tag::ERROR => return Err(self.connection.failure()),
                kind => return Err(self.connection.unexpected(kind)),
            }
        }
    }
}

impl Drop for CopyIn<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.channel.give_up();
        }
    }
}

pub(super) fn text(doing: &'static str, rows: Rows) -> Result<TextRows, LiveError> {
    let cell = |cell: Option<Vec<u8>>| match cell.map(String::from_utf8) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(LiveError::Answer { doing }),
    };
    rows.into_iter().map(|row| row.into_iter().map(cell).collect()).collect()
}

/// How much of an answer is kept in memory.
pub(super) struct Room(usize);

impl Room {
    /// Several times the longest answer there is: tablespaces, a timeline's history.
    const BYTES: usize = 64 << 20;

    pub(super) fn new() -> Self {
        Self(Self::BYTES)
    }

    /// Takes `bytes` and a row's own weight.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), WireError> {
        const TOO_LONG: WireError = WireError::Malformed { what: "an answer without an end" };
        self.0 = self.0.checked_sub(bytes + 64).ok_or(TOO_LONG)?;
        Ok(())
    }
}
