//! A backup whose files arrive one after the other, from a server that is far away.

use crate::error::EngineError;
use crate::listing::{Directory, SourceFile};
use crate::log::{Lsn, TimelineId};
use crate::origin::{BackupStop, GeneratedFile};

/// The files of a backup as the server sends them, in no certain order.
///
/// The control file and what the server generates for the backup are not among them:
/// [`FileStream::finish`] gives those.
pub trait FileStream: Send {
    /// The next entry; what was not read of the file before is passed over. `None` at the end.
    fn next(&mut self) -> Result<Option<Arriving>, EngineError>;
    /// Fills `buffer` with the next bytes of the current file; fewer come only at its end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, EngineError>;
    /// Takes the end of the backup. Only after `next` gave `None`.
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
    /// Where the backup ended, and the files that the server generated.
    pub stop: BackupStop,
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
