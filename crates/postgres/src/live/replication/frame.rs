//! Messages out of a byte stream, and into one.
//!
//! A message is a type byte, its length as a big-endian `Int32` that counts itself, and a body.
//! The length is a claim of whoever answers: it is checked against what that type of message may
//! be before room is made for it, and room grows with what arrives, not with what is claimed.
//!
//! Source: PostgreSQL documentation, "Message Flow" and "Message Formats".

use std::io::{self, Read};

use super::error::WireError;

/// First size of the buffer. Large, so that a base backup takes few system calls.
const BUFFER_BYTES: usize = 512 << 10;

/// Longest body of a message that carries data: several times the largest that a server sends
/// (WAL comes in at most `MAX_SEND_SIZE`, 16 pages; archives in 32 KiB).
pub(super) const LONG_BYTES_MAX: usize = 16 << 20;

/// Longest body of any other message. Source: `VALID_LONG_MESSAGE_TYPE` in `fe-protocol3.c`
/// (30,000); rounded up.
pub(super) const SHORT_BYTES_MAX: usize = 32 << 10;

/// Type byte and length.
const HEADER_BYTES: usize = 5;

/// Types of messages from the server.
pub(super) mod tag {
    pub const AUTHENTICATION: u8 = b'R';
    pub const BACKEND_KEY: u8 = b'K';
    pub const COMMAND_COMPLETE: u8 = b'C';
    pub const COPY_BOTH: u8 = b'W';
    pub const COPY_DATA: u8 = b'd';
    pub const COPY_DONE: u8 = b'c';
    pub const COPY_IN: u8 = b'G';
    pub const COPY_OUT: u8 = b'H';
    pub const DATA_ROW: u8 = b'D';
    pub const EMPTY_QUERY: u8 = b'I';
    pub const ERROR: u8 = b'E';
    pub const NEGOTIATE: u8 = b'v';
    pub const NOTICE: u8 = b'N';
    pub const NOTIFICATION: u8 = b'A';
    pub const PARAMETER: u8 = b'S';
    pub const PASSWORD: u8 = b'p';
    pub const QUERY: u8 = b'Q';
    pub const READY: u8 = b'Z';
    pub const ROW_DESCRIPTION: u8 = b'T';
    pub const TERMINATE: u8 = b'X';
}

/// Splits what a server sends into messages. Holds one buffer, which bodies are lent from.
#[derive(Debug)]
pub(super) struct FrameReader {
    buffer: Vec<u8>,
    /// Where the current message's body starts, and its length.
    body: (usize, usize),
    /// First byte after the current message.
    start: usize,
    /// First byte after what was read.
    end: usize,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], body: (0, 0), start: 0, end: 0 }
    }

    /// Goes on to the next message and gives its type; the body of the one before is gone.
    ///
    /// When reading fails (no data within the socket's time limit, say), nothing is lost: the
    /// next call goes on where this one stopped.
    pub(super) fn next(&mut self, source: &mut dyn Read) -> Result<u8, WireError> {
        self.body = (self.start, 0);
        loop {
            let waiting = &self.buffer[self.start..self.end];
            let wanted = match waiting.first_chunk::<HEADER_BYTES>() {
                Some(header) => {
                    let body = body_bytes(header)?;
                    if waiting.len() >= HEADER_BYTES + body {
                        self.body = (self.start + HEADER_BYTES, body);
                        self.start += HEADER_BYTES + body;
                        return Ok(header[0]);
                    }
                    HEADER_BYTES + body
                }
                None => HEADER_BYTES,
            };
            self.make_room(wanted);
            match source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(WireError::Closed),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(WireError::of_socket(error)),
            }
        }
    }

    /// The body of the current message.
    pub(super) fn body(&self) -> &[u8] {
        let (start, length) = self.body;
        &self.buffer[start..start + length]
    }

    /// Makes room behind what is there, for a message of `wanted` bytes of which a part is there.
    fn make_room(&mut self, wanted: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let is_short = self.start + wanted > self.buffer.len() || self.end == self.buffer.len();
        if is_short && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            let larger = (self.buffer.len() * 2).min(HEADER_BYTES + LONG_BYTES_MAX);
            self.buffer.resize(larger.max(self.end + 1), 0);
        }
        self.body = (self.start, 0);
    }
}

/// Checks the length that a header claims; gives that of the body.
fn body_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, WireError> {
    let [kind, length @ ..] = *header;
    let claimed = i32::from_be_bytes(length);
    let most = match kind {
        tag::COPY_DATA | tag::DATA_ROW | tag::ROW_DESCRIPTION => LONG_BYTES_MAX,
        tag::ERROR | tag::NOTICE | tag::NOTIFICATION => LONG_BYTES_MAX,
        _ => SHORT_BYTES_MAX,
    };
    match usize::try_from(claimed).ok().and_then(|length| length.checked_sub(4)) {
        Some(body) if body <= most => Ok(body),
        _ => Err(WireError::Length { kind: char::from(kind), claimed }),
    }
}

/// Appends a message to `into`; `write` appends its body.
pub(super) fn append(into: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    into.push(kind);
    append_untyped(into, write);
}

/// The same without the type byte: the first message of a connection has none.
pub(super) fn append_untyped(into: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = into.len();
    into.extend_from_slice(&[0; 4]);
    write(into);
    let length = u32::try_from(into.len() - at).unwrap_or(u32::MAX);
    into[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests;
