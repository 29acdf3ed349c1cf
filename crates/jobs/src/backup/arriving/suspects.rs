//! Pages that look damaged on arrival.
//!
//! The server may have been writing a page just when it was read, so that half of it is old. Such
//! a page is no damage: whatever changed since the backup began, replay restores from a full image
//! in the WAL. Nobody can read it again on the way, so it is decided at the end:
//!
//! 1. Its header says that it changed after the backup's start, and not after its stop: accepted.
//! 2. The server lets us look at the file again, and the page is another now: accepted.
//! 3. Otherwise it is damage.

use lifeboat_engine::{Lsn, Origin, PageFormat};

use crate::backup::error::BackupError;
use crate::facts::DamagedPage;

/// So many pages are looked at again; with more, the disk is in trouble and nothing else.
pub const LOOKS_MAX: u64 = 1000;

/// A page that looks damaged.
pub struct Suspect {
    /// Its file, relative to the data directory.
    pub path: String,
    /// Number of the page within the file.
    pub page: u32,
    /// Number of the page within its relation fork.
    pub number: u32,
    /// The page itself; `None` when there are too many of them.
    pub bytes: Option<Box<[u8]>>,
    /// Where its last change ends in the WAL, as its header says.
    pub changed_at: Option<Lsn>,
    /// What is wrong, in words.
    pub what: String,
}

/// Tells torn pages from damage.
pub fn judge(
    origin: &mut dyn Origin,
    format: &dyn PageFormat,
    backup: std::ops::RangeInclusive<Lsn>,
    mut suspects: Vec<Suspect>,
) -> Result<Vec<DamagedPage>, BackupError> {
    suspects.retain(|page| !page.changed_at.is_some_and(|lsn| backup.contains(&lsn)));
    suspects.sort_unstable_by(|a, b| (&a.path, a.page).cmp(&(&b.path, b.page)));
    let mut damage = Vec::new();
    for suspect in suspects {
        let Suspect { path, page, number, bytes, changed_at: _, mut what } = suspect;
        if let Some(first) = bytes {
            let offset = u64::from(page) * first.len() as u64;
            match origin.look_again(&path, offset, first.len() as u32)? {
                Some(now) if now.len() < first.len() || now[..] != first[..] => continue,
                Some(now) if !format.check(number, &now).is_damage() => continue,
                Some(_) => {}
                None => what.push_str(" (seen once: the role may not read it again)"),
            }
        }
        damage.push(DamagedPage { path, page, what });
    }
    Ok(damage)
}
