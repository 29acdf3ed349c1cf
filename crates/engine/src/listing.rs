//! What a backup copies.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything under one data directory that a backup copies, decided after the whole listing
/// was complete. The control file is not in it: [`crate::Origin::control_file`] gives it, last.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The data directory; every path below is relative to it.
    pub root: PathBuf,
    /// Directories to be made, parents before children, the root itself (path "") first.
    pub directories: Vec<Directory>,
    /// Files, sorted by path (bytewise), no path twice.
    pub files: Vec<SourceFile>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// What is not copied although nobody would expect it, sorted by path.
    pub left_out: Vec<LeftOut>,
}

/// An entry of the data directory that no backup can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Relative to the data directory; what is not UTF-8 is replaced.
    pub path: String,
    /// Why, such as "neither a file nor a directory".
    pub why: &'static str,
}

/// A directory that a restore makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Relative to the data directory; tablespace contents are below `pg_tblspc/<oid>`.
    pub path: String,
    /// Permission bits, such as 0o700.
    pub mode: u32,
}

/// A file that a backup copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Relative to the data directory, `/` between parts.
    pub path: String,
    /// Size when it was listed, in bytes. A file that grows is copied up to here.
    pub size_bytes: u64,
    /// Permission bits, such as 0o600.
    pub mode: u32,
    /// How to read it.
    pub content: Content,
}

/// How a file's bytes are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Pages of a relation, to be checked and reshaped.
    Pages {
        /// Number of the file's first page within its relation fork: segment files other than
        /// the first do not begin at 0. A page's checksum depends on it.
        first_page: u32,
    },
    /// Anything else; copied as it is.
    Bytes,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link leads, absolute.
    pub location: PathBuf,
}
