//! The thread that empties the socket, so that the server never waits for what becomes of the
//! data.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use super::error::RemoteError;
use crate::live::error::LiveError;
use crate::live::replication::{Connection, CopyOut, Stopper};

/// Rows of one answer.
pub type Rows = Vec<Vec<Option<String>>>;

/// Data are handed on in pieces of at least this size, in bytes: the server's messages have 32 KiB.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that may wait to be read.
const PIECES_WAITING: usize = 16;
const DOING: &str = "taking a base backup over the network";

/// What the server sends.
pub enum Event {
    /// It took the command of this number, and began: the answers before the data.
    Started(usize, Vec<Rows>),
    /// It refuses to send differences, and is asked for all.
    Refused(LiveError),
    /// A new archive of this name.
    Archive(String),
    /// Bytes of the archive.
    Data(Vec<u8>),
    /// It is over: the answers after the data.
    End(Vec<Rows>),
    /// It cannot go on.
    Failed(RemoteError),
}

/// A command to try.
pub struct Command {
    /// As the server reads it.
    pub text: String,
    /// Whether it asks for differences only.
    pub differences: bool,
}

/// A backup that is coming in.
pub struct Pump {
    events: Receiver<Event>,
    spare: Sender<Vec<u8>>,
    stopper: Arc<Stopper>,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Gives the server the first of `commands` that it takes.
    pub fn start(connection: Connection, commands: Vec<Command>) -> Result<Self, LiveError> {
        let stopper = Arc::new(connection.stopper()?);
        let (sender, events) = sync_channel(PIECES_WAITING);
        let (spare, spares) = channel();
        let pumping = Pumping { connection, events: sender, spares, piece: Vec::new() };
        let thread = std::thread::spawn(move || pumping.run(&commands));
        Ok(Self { events, spare, stopper, thread: Some(thread) })
    }

    /// The next thing that came. After the end, or a failure, there is nothing more.
    pub fn next(&mut self) -> Event {
        let over = || RemoteError::Order { what: "nothing comes any more".to_owned() };
        self.events.recv().unwrap_or_else(|_| Event::Failed(over()))
    }

    /// Gives a buffer back.
    pub fn give_back(&self, buffer: Vec<u8>) {
        let _ = self.spare.send(buffer); // when the thread is gone, so is its need
    }

    /// A handle that ends it from another thread.
    pub fn stopper(&self) -> Arc<Stopper> {
        Arc::clone(&self.stopper)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stopper.stop();
        // The thread may be waiting for room: it gives up once nobody listens.
        let (_, nobody) = sync_channel(0);
        self.events = nobody;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Pumping {
    connection: Connection,
    events: SyncSender<Event>,
    spares: Receiver<Vec<u8>>,
    piece: Vec<u8>,
}

/// Nobody listens any more.
struct Deserted;

impl Pumping {
    fn run(mut self, commands: &[Command]) {
        let Self { connection, events, spares, piece } = &mut self;
        let mut listener = Listener { events, spares, piece };
        let mut differences_refused = false;
        for (number, command) in commands.iter().enumerate() {
            if command.differences && differences_refused {
                continue;
            }
            let error = match connection.copy_out(DOING, &command.text) {
                Ok(copy) => {
                    let _ = listener.copy(number, copy); // nobody listens: nobody to tell
                    return;
                }
                Err(error) => error,
            };
            // 42601: an option that this server does not know, which is compression.
            let unknown = error.sqlstate() == Some("42601") && number + 1 < commands.len();
            differences_refused |= command.differences && !unknown;
            let goes_on =
                matches!(error, LiveError::Query { .. }) && (unknown || command.differences);
            if !goes_on {
                let _ = listener.cut(error);
                return;
            }
            if !unknown && listener.send(Event::Refused(error)).is_err() {
                return;
            }
        }
    }
}

struct Listener<'a> {
    events: &'a SyncSender<Event>,
    spares: &'a Receiver<Vec<u8>>,
    piece: &'a mut Vec<u8>,
}

impl Listener<'_> {
    fn send(&self, event: Event) -> Result<(), Deserted> {
        self.events.send(event).map_err(|_| Deserted)
    }

    fn fail(&self, what: &str) -> Result<(), Deserted> {
        self.send(Event::Failed(RemoteError::Order { what: what.to_owned() }))
    }

    fn copy(&mut self, number: usize, mut copy: CopyOut<'_>) -> Result<(), Deserted> {
        self.send(Event::Started(number, copy.before().to_vec()))?;
        loop {
            let message = match copy.next() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(source) => return self.cut(source),
            };
            // Source: `basebackup_copy.c`, and "BASE_BACKUP" in the documentation.
            match message.split_first() {
                Some((b'd', data)) => self.data(data)?,
                Some((b'n', names)) => {
                    let Some((name, _location)) = two_texts(names) else {
                        return self.fail("an archive without a name");
                    };
                    self.flush()?;
                    self.send(Event::Archive(name))?;
                }
                Some((b'p', _)) => {}
                _ => return self.fail("a message of unknown kind"),
            }
        }
        self.flush()?;
        match copy.after() {
            Ok(Some(after)) => self.send(Event::End(after)),
            Ok(None) => self.fail("a second stream"),
            Err(source) => self.cut(source),
        }
    }

    fn cut(&self, source: LiveError) -> Result<(), Deserted> {
        self.send(Event::Failed(RemoteError::Cut { path: String::new(), source }))
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Deserted> {
        if self.piece.len() + data.len() > PIECE_BYTES {
            self.flush()?;
        }
        if self.piece.capacity() == 0 {
            *self.piece = self.spares.try_recv().unwrap_or_default();
            self.piece.clear();
            self.piece.reserve(PIECE_BYTES.max(data.len()));
        }
        self.piece.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Deserted> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(self.piece);
        self.send(Event::Data(piece))
    }
}

/// Two texts, each ended by a NUL.
fn two_texts(bytes: &[u8]) -> Option<(String, String)> {
    let mut parts = bytes.strip_suffix(&[0])?.split(|byte| *byte == 0);
    let mut text = || String::from_utf8(parts.next()?.to_vec()).ok();
    let both = (text()?, text()?);
    parts.next().is_none().then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_are_two_texts() {
        let two = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(two_texts(b"base.tar\0\0"), two("base.tar", ""));
        assert_eq!(two_texts(b"16385.tar\0/srv/a\0"), two("16385.tar", "/srv/a"));
        for bytes in [&b""[..], b"\0", b"a\0", b"a\0b", b"a\0b\0c\0", b"\xff\0b\0"] {
            assert_eq!(two_texts(bytes), None, "{bytes:?}");
        }
    }
}
