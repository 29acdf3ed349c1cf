//! Asks the fetcher of a data directory for a file: one line there, one line back, over a socket
//! in its directory.
//!
//! Only the word of a fetcher that lives makes a file count. What a killed one, an earlier
//! recovery or a crash of the machine left behind is served to nobody, and the next fetcher
//! removes it; so the files need neither notes nor syncs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::{SegmentName, SystemId};
use serde::{Deserialize, Serialize};

use super::super::state::RECOVERY_FILE;

/// Where segments lie that were fetched ahead, and the fetcher's socket: in the data directory.
/// Not in the log directory, from which `pg_rewind` and others would take them for the server's;
/// on the same file system, as a rule, so that a file is delivered by a rename.
pub const PREFETCH_DIRECTORY: &str = "lifeboat.prefetch";
/// The fetcher listens here.
pub(super) const SOCKET: &str = "socket";
/// Longest line of either side, in bytes.
pub(super) const LINE_BYTES_MAX: u64 = 8 << 10;
/// How long a file that is on its way is waited for, before the caller fetches it by itself.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// One segment.
    Get {
        file: SegmentName,
        /// What both sides must agree on: see [`binding`].
        binding: String,
    },
    /// Recovery is over: remove everything and end.
    End,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// This file is the segment, whole and checked. It belongs to whoever asked.
    Take { name: String, size_bytes: u64 },
    /// Not from here; says nothing about whether it is archived.
    No,
}

/// What a fetcher and whoever asks it must agree on, or nothing is served: version of the
/// program, repository and cluster (`origin`), system, and the very state file of this restore.
pub(super) fn binding(directory: &Path, origin: &str, system: SystemId) -> String {
    let state = match std::fs::metadata(directory.join(RECOVERY_FILE)) {
        Ok(data) => format!("{}:{}:{}.{}", data.dev(), data.ino(), data.mtime(), data.mtime_nsec()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "none".to_owned(),
        Err(error) => format!("unknown: {error}"),
    };
    format!("{} {origin} {system} {state}", env!("CARGO_PKG_VERSION"))
}

/// A fetched file and its size.
pub(super) struct Ahead {
    pub path: PathBuf,
    pub size_bytes: u64,
}

/// Asks for a segment. An error when there is no fetcher, or it does not answer.
pub(super) fn ask(
    directory: &Path,
    file: SegmentName,
    binding: String,
) -> io::Result<Option<Ahead>> {
    let place = directory.join(PREFETCH_DIRECTORY);
    match exchange(&place, &Request::Get { file, binding })? {
        Reply::No => Ok(None),
        Reply::Take { name, size_bytes } => {
            let path = place.join(&name);
            let ours = name.starts_with(&format!("{file}.")) && !name.contains('/');
            let found = path.symlink_metadata()?;
            if ours && found.is_file() && found.len() == size_bytes {
                Ok(Some(Ahead { path, size_bytes }))
            } else {
                Ok(None)
            }
        }
    }
}

/// Ends the fetcher of a data directory, if there is one, and removes what it fetched.
pub(crate) fn end(directory: &Path) -> io::Result<()> {
    let place = directory.join(PREFETCH_DIRECTORY);
    let _ = exchange(&place, &Request::End);
    let mut tries_left = 50;
    loop {
        match std::fs::remove_dir_all(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The fetcher may just have begun another file, or be removing them too.
            Err(_) if tries_left > 0 => {
                tries_left -= 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            removed => return removed,
        }
    }
}

fn exchange(place: &Path, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(place.join(SOCKET))?;
    stream.set_read_timeout(Some(WAIT_MAX + Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    send(&mut stream, request)?;
    receive(&stream)
}

/// Writes one line.
pub(super) fn send<T: Serialize>(stream: &mut UnixStream, what: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line.
pub(super) fn receive<T: for<'de> Deserialize<'de>>(stream: &UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
