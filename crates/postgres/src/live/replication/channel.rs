//! Messages both ways over one socket, with time limits.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::error::WireError;
use super::frame::{FrameReader, append, tag};
use super::message::{Fields, ServerReport};
use super::socket::Socket;

/// How long the server may be silent where nothing else is said, and how long it may leave what
/// we send unread.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long a broken connection is listened to for the reason.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Most notices that are kept until somebody asks for them.
const NOTICES_MAX: usize = 64;

/// A socket, its reader, and what the server says besides.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    frames: FrameReader,
    /// The socket's time limit for reads, as last set.
    read_limit: Option<Duration>,
    /// Set when the connection is in the middle of something that nobody will finish.
    broken: bool,
    pub(super) notices: Vec<ServerReport>,
    pub(super) server_version: Option<String>,
    pub(super) in_hot_standby: bool,
}

impl Channel {
    pub(super) fn new(socket: Socket) -> Result<Self, WireError> {
        socket.set_write_limit(Some(SILENCE_MAX)).map_err(|source| WireError::Io { source })?;
        Ok(Self {
            socket,
            frames: FrameReader::new(),
            read_limit: None,
            broken: false,
            notices: Vec::new(),
            server_version: None,
            in_hot_standby: false,
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Marks the connection as unusable.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }

    /// Sends messages, whole.
    pub(super) fn send(&mut self, messages: &[u8]) -> Result<(), WireError> {
        if self.broken {
            return Err(WireError::Broken);
        }
        let sent = self.socket.write_all(messages).and_then(|()| self.socket.flush());
        sent.map_err(|source| {
            let error = WireError::of_socket(source);
            if error.is_pause() {
                self.broken = true;
                return WireError::Silent { limit: SILENCE_MAX };
            }
            // A server that ends a session says why before it hangs up.
            let last_words = self.receive_within(Some(LAST_WORDS));
            self.broken = true;
            if let Ok(Some(tag::ERROR)) = last_words { self.report() } else { error }
        })
    }

    /// The next message, whichever it is: its type. Its body is then at [`Channel::body`].
    /// Notices and changed parameters are kept, not given. A pause longer than `limit` is an
    /// error, after which the connection is unusable.
    pub(super) fn receive(&mut self, limit: Option<Duration>) -> Result<u8, WireError> {
        match self.receive_within(limit)? {
            Some(kind) => Ok(kind),
            None => {
                self.broken = true;
                Err(WireError::Silent { limit: limit.unwrap_or_default() })
            }
        }
    }

    /// The same; `None` when no whole message came within the time (or twice that, when parts
    /// of one came). Nothing is lost then.
    pub(super) fn receive_within(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<Option<u8>, WireError> {
        if self.broken {
            return Err(WireError::Broken);
        }
        let deadline = limit.map(|limit| (limit, Instant::now() + limit));
        loop {
            let (socket, set) = (&mut self.socket, &mut self.read_limit);
            let next = self.frames.next(&mut Timed { socket, set, deadline });
            let done = match next {
                Ok(tag::NOTICE) => self.note_notice(),
                Ok(tag::PARAMETER) => self.note_parameter(),
                Ok(tag::NOTIFICATION) => Ok(()),
                Ok(kind) => return Ok(Some(kind)),
                Err(error) if error.is_pause() => return Ok(None),
                Err(error) => Err(error),
            };
            done.inspect_err(|_| self.broken = true)?;
        }
    }

    pub(super) fn body(&self) -> &[u8] {
        self.frames.body()
    }

    /// Reads an ErrorResponse, which is the current message.
    pub(super) fn report(&self) -> WireError {
        match ServerReport::parse(self.body()) {
            Ok(report) => WireError::Server(Box::new(report)),
            Err(error) => error,
        }
    }

    fn note_notice(&mut self) -> Result<(), WireError> {
        let notice = ServerReport::parse(self.frames.body())?;
        if self.notices.len() < NOTICES_MAX {
            self.notices.push(notice);
        }
        Ok(())
    }

    fn note_parameter(&mut self) -> Result<(), WireError> {
        let mut fields = Fields(self.frames.body());
        let (name, value) = (fields.text()?, fields.text()?);
        match name.as_str() {
            "server_version" => self.server_version = Some(value),
            "in_hot_standby" => self.in_hot_standby = value == "on",
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Channel {
    /// Says goodbye, so that the server's log has nothing to complain of.
    fn drop(&mut self) {
        if !self.broken {
            let _ = self.socket.set_write_limit(Some(LAST_WORDS));
            let mut message = Vec::new();
            append(&mut message, tag::TERMINATE, |_| {});
            let _ = self.socket.write_all(&message);
        }
        // A stopper may hold the socket for longer.
        self.socket.shut_down();
    }
}

/// Reads from the socket until a deadline. The socket's own limit is set only when it changes.
struct Timed<'a> {
    socket: &'a mut Socket,
    set: &'a mut Option<Duration>,
    /// The limit, and when it will have passed.
    deadline: Option<(Duration, Instant)>,
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.deadline.is_some_and(|(_, until)| Instant::now() >= until) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let limit = self.deadline.map(|(limit, _)| limit);
        if *self.set != limit {
            self.socket.set_read_limit(limit)?;
            *self.set = limit;
        }
        self.socket.read(into)
    }
}
