//! Reads tar archives as servers write them.
//!
//! Source: `tarCreateHeader` in PostgreSQL `src/port/tar.c` and `src/include/pgtar.h`: POSIX
//! headers, names of at most 99 bytes, no prefix, numbers in octal or, when they are too large
//! for that, in base 256.

use std::io::{self, Read};

use lifeboat_units::{Code, Explain, Retry};

/// Everything in an archive begins at a multiple of this, in bytes.
pub const BLOCK_BYTES: usize = 512;
/// No file of a server comes near this size, in bytes.
const SIZE_BYTES_MAX: u64 = 1 << 50;

/// What an archive says of its next entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Relative path, without a slash at its end; leads nowhere outside.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Size in bytes; 0 unless it is a file.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file; its bytes follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Link(String),
}

/// An archive that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The connection failed, or what compressed the archive.
    #[error("the archive ends too early")]
    Read {
        /// Why.
        source: io::Error,
    },
    /// What is there is no archive, or not one that a server would write.
    #[error("the archive is not one that a server writes: {what}")]
    Format {
        /// What is wrong.
        what: String,
    },
}

impl TarError {
    fn format(what: impl Into<String>) -> Self {
        Self::Format { what: what.into() }
    }
}

impl Explain for TarError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Read { .. } => "LB-TAR-001",
            Self::Format { .. } => "LB-TAR-002",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Read { .. } => Retry::Later,
            Self::Format { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("run the backup again; nothing was listed".to_owned()),
            Self::Format { .. } => Some("does the connection lead to a PostgreSQL server?".into()),
        }
    }
}

/// Reads one archive from its beginning to its end.
pub struct TarReader<R> {
    inner: R,
    /// Bytes of the current entry that were not read yet.
    left: u64,
    /// Zeros between them and the next header.
    padding: u64,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    /// A reader at the beginning of an archive.
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, ended: false }
    }

    /// The next entry; what was not read of the one before is passed over. `None` at the end of
    /// the archive, which must be one: two blocks of zeros, and then nothing.
    ///
    /// Errors: as [`TarError`] says. Never panics, whatever the bytes are.
    pub fn entry(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.pass(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK_BYTES];
        self.fill(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            self.end()?;
            return Ok(None);
        }
        let header = parse(&block)?;
        self.left = header.size_bytes;
        self.padding = header.size_bytes.next_multiple_of(BLOCK_BYTES as u64) - header.size_bytes;
        Ok(Some(header))
    }

    /// Fills `buffer` with the next bytes of the current entry; fewer come only at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = self.left.min(buffer.len() as u64) as usize;
        self.fill(&mut buffer[..wanted])?;
        self.left -= wanted as u64;
        Ok(wanted)
    }

    /// Bytes of the current entry that were not read yet.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// What the archive is read from.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.inner.read_exact(buffer).map_err(|source| TarError::Read { source })
    }

    fn pass(&mut self, mut bytes: u64) -> Result<(), TarError> {
        let mut buffer = [0; 8 * BLOCK_BYTES];
        while bytes > 0 {
            let now = bytes.min(buffer.len() as u64) as usize;
            self.fill(&mut buffer[..now])?;
            bytes -= now as u64;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), TarError> {
        let mut rest = [0xff; BLOCK_BYTES];
        self.fill(&mut rest)?;
        let more = self.inner.read(&mut [0]).map_err(|source| TarError::Read { source })?;
        if more > 0 || rest.iter().any(|byte| *byte != 0) {
            return Err(TarError::format("something follows its end"));
        }
        self.ended = true;
        Ok(())
    }
}

/// Reads one header block.
fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Header, TarError> {
    if &block[257..262] != b"ustar" {
        return Err(TarError::format("a header is none"));
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let stored = &block[148..156];
    let own: u64 = stored.iter().map(|byte| u64::from(*byte)).sum();
    if number(stored) != Some(sum - own + 8 * u64::from(b' ')) {
        return Err(TarError::format("the checksum of a header does not hold"));
    }
    if block[345] != 0 {
        return Err(TarError::format("a name is in two pieces"));
    }
    let path = path(text(&block[..100])?)?;
    let kind = match block[156] {
        b'0' | 0 => Kind::File,
        b'5' => Kind::Directory,
        b'2' => Kind::Link(text(&block[157..257])?.to_owned()),
        other => return Err(TarError::format(format!("`{path}` is of unknown kind {other}"))),
    };
    let impossible = |what: &str| TarError::format(format!("the {what} of `{path}` is impossible"));
    let mode = number(&block[100..108]).filter(|mode| *mode <= 0o7777);
    let mode = mode.ok_or_else(|| impossible("mode"))? as u32;
    let size_bytes = number(&block[124..136])
        .filter(|size| *size <= if kind == Kind::File { SIZE_BYTES_MAX } else { 0 })
        .ok_or_else(|| impossible("size"))?;
    Ok(Header { path, kind, size_bytes, mode })
}

/// Text up to the first NUL.
fn text(field: &[u8]) -> Result<&str, TarError> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).map_err(|_| TarError::format("a name in it is not UTF-8"))
}

/// A path without `./` before and a slash behind; refuses what could lead outside.
fn path(name: &str) -> Result<String, TarError> {
    let plain = name.strip_prefix("./").unwrap_or(name);
    let plain = plain.strip_suffix('/').unwrap_or(plain);
    if plain.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(TarError::format(format!("the path {name:?} leads out of it")));
    }
    Ok(plain.to_owned())
}

/// Octal digits up to a blank or NUL, or base 256 after a first byte of 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        return field[1..]
            .iter()
            .try_fold(0u64, |value, byte| Some(value.checked_mul(256)? + u64::from(*byte)));
    }
    let end = field.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(field.len());
    let digits = std::str::from_utf8(&field[..end]).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    if plain { u64::from_str_radix(digits, 8).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as `tarCreateHeader` writes it.
    fn header(name: &str, kind: u8, size: &[u8; 12]) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000600 ");
        block[124..136].copy_from_slice(size);
        block[156] = kind;
        block[157..161].copy_from_slice(b"/srv");
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:07o} ").as_bytes());
        block
    }

    fn octal(size: u64) -> [u8; 12] {
        format!("{size:011o} ").into_bytes().try_into().unwrap()
    }

    fn archive() -> Vec<u8> {
        let mut bytes = header("base/", b'5', &octal(0)).to_vec();
        bytes.extend(header("base/1259", b'0', &octal(700)));
        bytes.extend([7; 700]);
        bytes.extend([0; 324]);
        bytes.extend(header("./pg_wal/archive_status/", b'5', &octal(0)));
        bytes.extend(header("pg_tblspc/16385/", b'2', &octal(0)));
        bytes.extend(header("empty", b'0', &octal(0)));
        bytes.extend([0; 1024]);
        bytes
    }

    #[test]
    fn entries_come_in_order_with_their_bytes() {
        let bytes = archive();
        let mut reader = TarReader::new(&bytes[..]);
        let next = |reader: &mut TarReader<&[u8]>| reader.entry().unwrap().unwrap();
        let base = next(&mut reader);
        assert_eq!((base.path.as_str(), base.kind, base.mode), ("base", Kind::Directory, 0o600));
        assert_eq!(next(&mut reader).path, "base/1259");
        let mut buffer = [0; 600];
        assert_eq!(reader.read(&mut buffer).unwrap(), 600);
        assert_eq!((reader.read(&mut buffer).unwrap(), buffer[99]), (100, 7));
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        assert_eq!(next(&mut reader).path, "pg_wal/archive_status");
        assert_eq!(next(&mut reader).kind, Kind::Link("/srv".into()));
        assert_eq!(next(&mut reader).size_bytes, 0);
        assert_eq!(reader.entry().unwrap(), None);
        assert_eq!(reader.entry().unwrap(), None);
    }

    #[test]
    fn what_is_not_read_is_passed_over() {
        let bytes = archive();
        let mut reader = TarReader::new(&bytes[..]);
        let mut names = Vec::new();
        while let Some(header) = reader.entry().unwrap() {
            names.push(header.path);
        }
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn a_large_size_comes_in_base_256() {
        let mut size = [0; 12];
        size[0] = 0x80;
        size[4..].copy_from_slice(&(9u64 << 30).to_be_bytes());
        let block = header("big", b'0', &size);
        assert_eq!(parse(&block).unwrap().size_bytes, 9 << 30);
        size[4..].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(parse(&header("big", b'0', &size)).is_err());
    }

    #[test]
    fn names_that_leave_the_target_and_unknown_kinds_are_refused() {
        for name in ["/etc/passwd", "../x", "a/../b", "a//b", "a/./b", ".", "./", "", "a/.."] {
            let result = parse(&header(name, b'0', &octal(0)));
            assert!(result.is_err(), "{name:?}: {result:?}");
        }
        assert!(parse(&header("x", b'1', &octal(0))).is_err());
        assert!(parse(&header("x", b'5', &octal(1))).is_err());
        assert!(parse(&header("x", b'0', b"zzzzzzzzzzzz")).is_err());
    }

    #[test]
    fn an_archive_that_ends_early_or_goes_on_is_refused() {
        let bytes = archive();
        let all = |bytes: &[u8]| {
            let mut reader = TarReader::new(bytes);
            loop {
                match reader.entry() {
                    Ok(Some(_)) => {}
                    other => return other,
                }
            }
        };
        assert!(all(&bytes).is_ok());
        for end in 0..bytes.len() {
            assert!(matches!(all(&bytes[..end]), Err(TarError::Read { .. })), "{end}");
        }
        let more = [&bytes[..], &[0]].concat();
        assert!(matches!(all(&more), Err(TarError::Format { .. })));
    }

    proptest! {
        /// Law: no bytes make the reader panic, and no path leads outside.
        #[test]
        fn damage_does_no_harm(at in 0usize..4096, with in any::<u8>()) {
            let mut bytes = archive();
            let at = at % bytes.len();
            bytes[at] = with;
            let mut reader = TarReader::new(&bytes[..]);
            while let Ok(Some(header)) = reader.entry() {
                prop_assert!(!header.path.starts_with('/'));
                prop_assert!(header.path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }
}
