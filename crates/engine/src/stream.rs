//! A backup whose files arrive one after the other, from a server that is far away.

use crate::error::EngineError;
use crate::listing::{Directory, SourceFile, Tablespace};
use crate::log::{Lsn, TimelineId};
use crate::origin::GeneratedFile;

/// A backup that the server is sending.
pub struct Streamed {
    /// Its files.
    pub files: Box<dyn FileStream>,
    /// Ends the stream from another thread: what waits for the server fails at once.
    pub stop: Box<dyn Fn() + Send + Sync>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// About how much will come, in bytes before any compression on the way, when the server says.
    pub total_bytes: Option<u64>,
    /// Whether only differences from the backup that was offered come.
    pub differences: bool,
    /// Why it is so, in words.
    pub why: String,
}

/// The files of a backup as the server sends them, in no certain order.
///
/// The control file and what the server generates for the backup are not among them:
/// [`FileStream::finish`] gives those.
pub trait FileStream: Send {
    /// The next entry; what was not read of the file before is passed over. `None` at the end.
    fn arrive(&mut self) -> Result<Option<Arriving>, EngineError>;
    /// Fills `buffer` with the next bytes of the current file; fewer come only at its end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, EngineError>;
    /// Takes the end of the backup. Only after `arrive` gave `None`.
    fn finish(self: Box<Self>) -> Result<StreamEnd, EngineError>;
}

/// One entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arriving {
    /// A directory.
    Directory(Directory),
    /// A file, whose bytes follow.
    File {
        /// The file; its size is that of the whole file.
        file: SourceFile,
        /// What follows of it.
        sent: Sent,
    },
}

/// What a stream holds of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// All its bytes.
    Whole,
    /// Only these pages, in ascending order; all others are as they were in the backup that was
    /// offered, and zero where the file was shorter then.
    Pages(Vec<u32>),
}

/// What comes at the end of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEnd {
    /// The control file's bytes, checked.
    pub control: GeneratedFile,
    /// The backup is consistent once replay has reached this position.
    pub stop: Lsn,
    /// Timeline of the server; the same as at the start.
    pub timeline: TimelineId,
    /// Files that the server generated for the backup.
    pub generated: Vec<GeneratedFile>,
}

/// An earlier backup that a server may send the differences to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// Replay of it begins here.
    pub start: Lsn,
    /// It is consistent from here on.
    pub stop: Lsn,
    /// Timeline on which it was taken.
    pub timeline: TimelineId,
}

/// A file of an earlier backup: path and size in bytes.
pub type EarlierFile = (String, u64);
