//! Lists tablespaces: links to places outside the data directory, or directories within it.

use std::fs;
use std::path::{Path, PathBuf};

use super::ScanError;
use super::names::decimal;
use super::walk::{Place, Spot, Walk, join, present, unreadable};

const DIRECTORY: &str = "pg_tblspc";

/// Lists everything below `pg_tblspc`.
pub(super) fn list(walk: &mut Walk<'_>) -> Result<(), ScanError> {
    let directory = walk.root.join(DIRECTORY);
    let Some(entries) = present(&directory, fs::read_dir(&directory))? else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(|e| unreadable(&directory, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(|e| unreadable(&entry.path(), e))?;
        let Some(oid) = decimal(&name) else {
            walk.skip(join(DIRECTORY, &name), "not a tablespace");
            continue;
        };
        if kind.is_symlink() {
            outside(walk, oid, &entry.path())?;
        } else if kind.is_dir() {
            // In place, within the data directory (allow_in_place_tablespaces, 15+).
            content(walk, oid, &entry.path())?;
        } else {
            walk.skip(join(DIRECTORY, &name), "neither a link nor a directory");
        }
    }
    nested(walk)
}

fn outside(walk: &mut Walk<'_>, oid: u32, link: &Path) -> Result<(), ScanError> {
    let Some(location) = present(link, fs::read_link(link))? else { return Ok(()) };
    if !location.is_absolute() {
        return Err(ScanError::Relative { oid, location });
    }
    let metadata = match fs::symlink_metadata(&location) {
        Ok(metadata) => metadata,
        // Either the tablespace was dropped just now, or the link is broken.
        Err(_) if fs::symlink_metadata(link).is_err() => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ScanError::NoDirectory { oid, location });
        }
        Err(error) => return Err(unreadable(&location, error)),
    };
    if metadata.is_symlink() {
        return Err(ScanError::LinkToLink { oid, location });
    }
    if !metadata.is_dir() {
        return Err(ScanError::NoDirectory { oid, location });
    }
    if canonical(&location)?.starts_with(&walk.canonical) {
        return Err(ScanError::InsideData { oid, location });
    }
    walk.push_tablespace(oid, location.clone());
    content(walk, oid, &location)
}

/// Lists a tablespace's content: one directory per database below `PG_<major>_<catalog>`.
/// Another major version may keep its own directory beside it; that is not ours.
fn content(walk: &mut Walk<'_>, oid: u32, location: &Path) -> Result<(), ScanError> {
    let path = format!("{DIRECTORY}/{oid}");
    let version = format!("PG_{}_{}", walk.identity.major, walk.identity.catalog_version);
    let Some(metadata) = present(location, fs::metadata(location))? else { return Ok(()) };
    walk.push_directory(&path, &metadata);
    let disk = location.join(&version);
    let path = join(&path, &version);
    let Some(metadata) = present(&disk, fs::metadata(&disk))? else { return Ok(()) };
    walk.push_directory(&path, &metadata);
    walk.entries(Spot { disk: &disk, path: &path, place: Place::Databases, depth: 3 })
}

/// Refuses tablespaces that lie in one another.
fn nested(walk: &Walk<'_>) -> Result<(), ScanError> {
    let places = walk
        .tablespaces()
        .iter()
        .map(|t| Ok((t.oid, canonical(&t.location)?, &t.location)))
        .collect::<Result<Vec<_>, ScanError>>()?;
    for (inner, place, location) in &places {
        for (outer, around, _) in &places {
            if inner != outer && place.starts_with(around) {
                let (inner, outer, location) = (*inner, *outer, (*location).clone());
                return Err(ScanError::Nested { inner, outer, location });
            }
        }
    }
    Ok(())
}

fn canonical(path: &Path) -> Result<PathBuf, ScanError> {
    fs::canonicalize(path).map_err(|e| unreadable(path, e))
}
