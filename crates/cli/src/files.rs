//! Small files that commands write, and whom they belong to.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lifeboat_postgres::live::cluster::Account;

use crate::error::Trouble;

/// A failure of the file system in this program's words.
pub(crate) fn failed(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> Trouble + use<> {
    let path = path.to_owned();
    move |source| Trouble::File { operation, path, source }
}

/// Writes a file: whole or not at all. Makes its directory when that is missing.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Trouble> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let body = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()
    };
    body().map_err(failed("write", path))
}

/// Gives a file, or a directory with all that is in it, to an account; links are not followed.
/// Only root can, for others it does nothing.
pub(crate) fn give(path: &Path, account: Account) -> Result<(), Trouble> {
    if Account::own().uid != 0 {
        return Ok(());
    }
    let body = || -> std::io::Result<()> {
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            let metadata = fs::symlink_metadata(&path)?;
            std::os::unix::fs::lchown(&path, Some(account.uid), Some(account.gid))?;
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
            }
        }
        Ok(())
    };
    body().map_err(failed("change the owner of", path))
}
