//! The bytes of one archive, undone from what compressed them on the way.

use std::io::{self, BufRead, BufReader, Read};

use lz4_flex::frame::FrameDecoder;

use super::error::RemoteError;
use super::pump::{Event, Pump};

/// What comes out of the pump, as bytes up to the end of the archive.
pub struct Payload {
    pump: Pump,
    piece: Vec<u8>,
    at: usize,
    /// What came behind the archive.
    next: Option<Event>,
}

impl Payload {
    /// At the beginning.
    pub fn new(pump: Pump) -> Self {
        Self { pump, piece: Vec::new(), at: 0, next: None }
    }

    /// What comes behind the archive; drops what is left of it.
    pub fn next(&mut self) -> Event {
        loop {
            match self.next.take().unwrap_or_else(|| self.pump.next()) {
                Event::Data(_) => {}
                event => {
                    (self.at, self.piece) = (0, Vec::new());
                    return event;
                }
            }
        }
    }

    /// Why reading failed, if the server or the connection is to blame.
    pub fn failure(&mut self) -> Option<RemoteError> {
        match self.next.take() {
            Some(Event::Failed(error)) => Some(error),
            other => {
                self.next = other;
                None
            }
        }
    }
}

impl BufRead for Payload {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.len() && self.next.is_none() {
            match self.pump.next() {
                Event::Data(piece) => {
                    let done = std::mem::replace(&mut self.piece, piece);
                    self.pump.give_back(done);
                    self.at = 0;
                }
                event => self.next = Some(event),
            }
        }
        if self.at == self.piece.len() && matches!(self.next, Some(Event::Failed(_))) {
            return Err(io::Error::other("the server stopped sending"));
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Read for Payload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut piece = self.fill_buf()?;
        let count = piece.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// How an archive is compressed on the way.
pub enum Archive {
    /// Not at all.
    Plain(Box<Payload>),
    /// LZ4 frames.
    Lz4(Box<BufReader<FrameDecoder<Payload>>>),
    /// Zstandard.
    Zstd(Box<BufReader<zstd::Decoder<'static, Payload>>>),
}

/// Undone bytes that wait to be read, in bytes: a tar header costs no call of the decoder.
const UNDONE_BYTES: usize = 256 << 10;

impl Archive {
    /// An archive of this name: its ending says how it is compressed.
    pub fn open(name: &str, payload: Payload) -> Result<Self, RemoteError> {
        if name.ends_with(".tar") {
            return Ok(Self::Plain(Box::new(payload)));
        }
        if name.ends_with(".tar.lz4") {
            let decoder = FrameDecoder::new(payload);
            return Ok(Self::Lz4(Box::new(BufReader::with_capacity(UNDONE_BYTES, decoder))));
        }
        if name.ends_with(".tar.zst") {
            let failed = |e: io::Error| RemoteError::Order { what: e.to_string() };
            let decoder = zstd::Decoder::with_buffer(payload).map_err(failed)?;
            return Ok(Self::Zstd(Box::new(BufReader::with_capacity(UNDONE_BYTES, decoder))));
        }
        Err(RemoteError::Order { what: format!("an archive `{name}` of unknown kind") })
    }

    /// What the archive is read from.
    pub fn payload(&mut self) -> &mut Payload {
        match self {
            Self::Plain(payload) => payload,
            Self::Lz4(decoder) => decoder.get_mut().get_mut(),
            Self::Zstd(decoder) => decoder.get_mut().get_mut(),
        }
    }

    /// The same, for what comes behind the archive.
    pub fn into_payload(self) -> Payload {
        match self {
            Self::Plain(payload) => *payload,
            Self::Lz4(decoder) => decoder.into_inner().into_inner(),
            Self::Zstd(decoder) => decoder.into_inner().finish(),
        }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(payload) => payload.read(buffer),
            Self::Lz4(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
