//! Puts a file where the server wants it.
//!
//! Nothing is synced for a server in recovery. It reads what it asked for at once, and what it
//! keeps it syncs by itself: `XLogFileRead` and `readTimeLineHistory` hand every restored file
//! that is used to `KeepFileRestoredFromArchive`, which renames it with `durable_rename`: sync of
//! the file, rename, sync of the directory. A machine that fails before that leaves at most a
//! `RECOVERYXLOG` or `RECOVERYHISTORY` that is damaged; the server removes that before it asks
//! for the file again, and never reads it (`RestoreArchivedFile`). Source: PostgreSQL
//! `src/backend/access/transam/xlogarchive.c`, `xlogrecovery.c`, `timeline.c`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes a file that appears under its name only when it is whole; with `durable` also synced.
pub(super) fn write_whole(destination: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    through_temporary(destination, durable, &mut |file| file.write_all(content))
}

/// Moves a fetched file to its destination. On another file system it is copied, and appears
/// under its name only when it is whole.
pub(super) fn move_whole(from: &Path, destination: &Path) -> io::Result<()> {
    match fs::rename(from, destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        moved => return moved,
    }
    let mut source = File::open(from)?;
    through_temporary(destination, false, &mut |file| io::copy(&mut source, file).map(drop))?;
    let _ = fs::remove_file(from); // the fetcher removes it otherwise
    Ok(())
}

fn through_temporary(
    destination: &Path,
    durable: bool,
    fill: &mut dyn FnMut(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let (directory, temporary) = temporary_beside(destination)?;
    let mut write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        fill(&mut file)?;
        if durable {
            file.sync_data()?;
        }
        fs::rename(&temporary, destination)?;
        if durable { File::open(directory)?.sync_all() } else { Ok(()) }
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// The directory of a file, and the name of a temporary beside it.
fn temporary_beside(destination: &Path) -> io::Result<(&Path, PathBuf)> {
    let Some(name) = destination.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file"));
    };
    let directory = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary: OsString = name.to_owned();
    temporary.push(".lifeboat-tmp");
    Ok((directory, directory.join(temporary)))
}
