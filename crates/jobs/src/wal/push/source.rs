//! A file of the log that is read piece by piece.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use lifeboat_engine::LogPart;
use lifeboat_repo::LOG_PIECE_BYTES;
use lifeboat_units::Timestamp;

use super::ack::FileStamp;
use crate::wal::error::PushError;

/// No file of the log is longer, in bytes: the largest segment.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A file that is being read.
///
/// One piece is in memory, and what is still wanted of those before it: so each finds room that is
/// in the processor's cache, and a segment of 1 GiB takes no more memory than a small one.
pub(super) struct Source<'a> {
    path: &'a Path,
    file: File,
    /// The file that was opened.
    pub(super) stamp: FileStamp,
    /// When it was written last.
    pub(super) written_at: Option<Timestamp>,
    /// Its length, in bytes.
    size: usize,
    memory: &'a mut Vec<u8>,
    /// Offset in the file of what is in memory.
    from: usize,
    /// So many bytes of the memory are the file's.
    filled: usize,
    /// Where the last piece begins in memory.
    piece_at: usize,
}

impl<'a> Source<'a> {
    pub(super) fn open(path: &'a Path, memory: &'a mut Vec<u8>) -> Result<Self, PushError> {
        let failed = |source| PushError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        let (stamp, size_bytes) = (FileStamp::of(&data), data.len());
        if size_bytes > FILE_BYTES_MAX {
            return Err(PushError::TooLarge { path: path.to_owned(), size_bytes });
        }
        let written_at = data.modified().ok().and_then(|at| Timestamp::try_from(at).ok());
        let size = size_bytes as usize;
        Ok(Self { path, file, stamp, written_at, size, memory, from: 0, filled: 0, piece_at: 0 })
    }

    /// Reads the next piece; false at the end of the file. What lies before the offset `wanted`
    /// may be forgotten.
    pub(super) fn next_piece(&mut self, wanted: usize) -> Result<bool, PushError> {
        let length = LOG_PIECE_BYTES.min(self.size - self.from - self.filled);
        if length == 0 {
            return Ok(false);
        }
        let forget = wanted.saturating_sub(self.from).min(self.filled);
        // No more is moved than was read.
        if forget >= self.filled - forget {
            self.memory.copy_within(forget..self.filled, 0);
            self.from += forget;
            self.filled -= forget;
        }
        let to = self.filled + length;
        if self.memory.len() < to {
            self.memory.resize(to, 0);
        }
        self.file.read_exact(&mut self.memory[self.filled..to]).map_err(|source| {
            match source.kind() {
                ErrorKind::UnexpectedEof => PushError::Changing { path: self.path.to_owned() },
                _ => PushError::Read { path: self.path.to_owned(), source },
            }
        })?;
        self.piece_at = self.filled;
        self.filled = to;
        Ok(true)
    }

    /// The piece that was read last; empty when there is none.
    pub(super) fn piece(&self) -> &[u8] {
        &self.memory[self.piece_at..self.filled]
    }

    /// What is in memory.
    pub(super) fn part(&self) -> LogPart<'_> {
        LogPart { size: self.size, from: self.from, bytes: &self.memory[..self.filled] }
    }

    /// The file's length, in bytes, when it is still what it was when its reading began.
    pub(super) fn end(&self) -> Result<u64, PushError> {
        let failed = |source| PushError::Read { path: self.path.to_owned(), source };
        let after = FileStamp::of(&self.file.metadata().map_err(failed)?);
        if (after.size_bytes, after.modified) != (self.stamp.size_bytes, self.stamp.modified) {
            return Err(PushError::Changing { path: self.path.to_owned() });
        }
        Ok(after.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = LOG_PIECE_BYTES;

    fn file(length: usize) -> (tempfile::TempDir, std::path::PathBuf, Vec<u8>) {
        let content: Vec<u8> = (0..length).map(|at| (at ^ at >> 7 ^ at >> 15) as u8).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, &content).unwrap();
        (directory, path, content)
    }

    /// Law: the pieces are the file, and what is wanted of those before them is there.
    #[test]
    fn pieces_are_the_file_and_what_is_wanted_is_kept() {
        let wants: [fn(usize) -> usize; 5] =
            [|_| 0, |end| end, |_| usize::MAX, |end| end - end % PIECE, |end| end.min(PIECE / 3)];
        let mut memory = vec![7; 100];
        for length in [0, 1, PIECE - 1, PIECE, 3 * PIECE, 3 * PIECE + 5] {
            let (_directory, path, content) = file(length);
            for wanted in wants {
                let mut source = Source::open(&path, &mut memory).unwrap();
                let (mut read, mut keep) = (Vec::new(), 0);
                while source.next_piece(keep).unwrap() {
                    read.extend_from_slice(source.piece());
                    let part = source.part();
                    assert!(part.from <= keep && part.end() == read.len());
                    assert_eq!((part.bytes, part.size), (&content[part.from..part.end()], length));
                    keep = wanted(part.end());
                }
                assert_eq!(read, content);
                assert_eq!(source.end().unwrap(), length as u64);
            }
        }
    }

    #[test]
    fn little_memory_is_enough_when_little_is_wanted() {
        let (_directory, path, _) = file(8 * PIECE);
        let mut memory = Vec::new();
        let mut source = Source::open(&path, &mut memory).unwrap();
        let mut wanted = 0;
        while source.next_piece(wanted).unwrap() {
            wanted = source.part().end() - 8192;
        }
        assert!(memory.len() <= PIECE + 8192, "{}", memory.len());
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_refused() {
        let change: [fn(&Path); 3] = [
            |path| File::options().write(true).open(path).unwrap().set_len(10).unwrap(),
            |path| File::options().write(true).open(path).unwrap().set_len(1 << 23).unwrap(),
            |path| {
                let hour = std::time::Duration::from_secs(3600);
                let file = File::options().write(true).open(path).unwrap();
                file.set_modified(std::time::SystemTime::now() + hour).unwrap();
            },
        ];
        for change in change {
            let (_directory, path, _) = file(2 * PIECE);
            let mut memory = Vec::new();
            let mut source = Source::open(&path, &mut memory).unwrap();
            assert!(source.next_piece(0).unwrap());
            change(&path);
            let error = loop {
                match source.next_piece(0) {
                    Ok(true) => {}
                    Ok(false) => break source.end().unwrap_err(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, PushError::Changing { .. }), "{error}");
        }
    }
}
