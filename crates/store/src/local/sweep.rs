//! Removal of temporaries that killed writers left.

use std::time::Duration;

use rustix::fs::{AtFlags, FileType, fstat, statat};

use super::publish::{TEMPORARY_SUFFIX, remove_temporary, temporary_name, write_temporary};
use super::tree::{Root, read_directory};
use crate::error::StoreError;

/// Removes temporaries below `prefix` that were last written longer ago than `older_than`.
///
/// Ages are taken by the clock of the file system, read from a file made for it: a file server's
/// clock need not be ours.
pub(super) fn sweep(root: &Root, prefix: &str, older_than: Duration) -> Result<u64, StoreError> {
    crate::key::check_prefix(prefix)?;
    let now = now_of(root)?;
    let mut removed = 0;
    let mut pending = vec![prefix.to_owned()];
    while let Some(prefix) = pending.pop() {
        let failed = |source| root.failed("sweep", &prefix, source);
        let Some(directory) = root.directory("sweep", &prefix)? else { continue };
        let mut old = Vec::new();
        let visit = |name: &[u8], _kind: FileType| {
            let Ok(name) = std::str::from_utf8(name) else { return Ok(()) };
            let Ok(status) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                return Ok(()); // gone meanwhile
            };
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory if !name.starts_with('.') => {
                    pending.push(format!("{prefix}{name}/"));
                }
                FileType::RegularFile
                    if is_temporary(name)
                        && now.saturating_sub(nanoseconds(&status)) as u128
                            >= older_than.as_nanos() =>
                {
                    old.push(name.to_owned());
                }
                _ => {}
            }
            Ok(())
        };
        read_directory(&directory, visit, failed)?;
        for name in &old {
            remove_temporary(&directory, name);
        }
        removed += old.len() as u64;
    }
    Ok(removed)
}

fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX)
}

/// The file system's idea of now, in nanoseconds since 1970.
fn now_of(root: &Root) -> Result<i128, StoreError> {
    let failed = |source| root.failed("sweep", "", source);
    let directory = root.open()?;
    let temporary = temporary_name("clock");
    let file = write_temporary(&directory, &temporary, None, b"?").map_err(failed)?;
    let status = fstat(&file);
    remove_temporary(&directory, &temporary);
    status.map(|status| nanoseconds(&status)).map_err(|errno| failed(errno.into()))
}

fn nanoseconds(status: &rustix::fs::Stat) -> i128 {
    i128::from(status.st_mtime) * 1_000_000_000 + i128::from(status.st_mtime_nsec)
}
