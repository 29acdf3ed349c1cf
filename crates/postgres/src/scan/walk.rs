//! Goes through a data directory.

use std::collections::HashSet;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lifeboat_engine::{
    ClusterIdentity, Content, Directory, LeftOut, Listing, SourceFile, Tablespace,
};

use super::ScanError;
use super::names::{Fork, RelationFile, decimal};
use crate::control::CONTROL_FILE;

/// Directories of the root that are kept but not what is in them: their content means nothing
/// to another server. Source: `excludeDirContents` in basebackup.c; `pg_wal` comes from the
/// archive.
const EMPTIED: &[&str] = &[
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// Files and directories of the root that are not copied. Source: `excludeFiles` in basebackup.c, and the marks
/// of unfinished or finished restores, which say nothing about the copy.
const LEFT_OUT: &[&str] = &[
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "backup_manifest.tmp",
    "current_logfiles.tmp",
    "lifeboat.prefetch",
    "lifeboat.reading",
    "lifeboat.recovery",
    "lifeboat.recovery.key",
    "lifeboat.restoring",
    "lifeboat.set-aside",
    "lifeboat.spool",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "tablespace_map",
    "tablespace_map.old",
];

/// No data directory is nested anywhere near this deep.
const DEPTH_MAX: u32 = 40;

/// What a directory is, which decides how its entries are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The data directory itself.
    Root,
    /// Holds one directory per database: `base`, and `PG_<major>_<catalog>` of a tablespace.
    Databases,
    /// Holds relation files: `global`, and the directory of a database.
    Relations,
    /// Anything else.
    Plain,
}

impl Place {
    /// What a directory of this name in it is.
    pub(crate) fn of_child(self, name: &str) -> Self {
        match self {
            Self::Root if name == "base" => Self::Databases,
            Self::Root if name == "global" => Self::Relations,
            Self::Databases if decimal(name).is_some() => Self::Relations,
            _ => Self::Plain,
        }
    }
}

/// A directory on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot<'a> {
    /// Where it is on disk.
    pub disk: &'a Path,
    /// Its path in the listing.
    pub path: &'a str,
    pub place: Place,
    pub depth: u32,
}

/// A listing under construction.
pub(super) struct Walk<'a> {
    pub root: &'a Path,
    /// The root without links, to see what leads back into it.
    pub canonical: PathBuf,
    pub identity: &'a ClusterIdentity,
    listing: Listing,
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a Path, identity: &'a ClusterIdentity) -> Result<Self, ScanError> {
        let canonical = fs::canonicalize(root).map_err(|e| unreadable(root, e))?;
        let listing = Listing { root: root.to_owned(), ..Listing::default() };
        Ok(Self { root, canonical, identity, listing })
    }

    pub fn root(&mut self) -> Result<(), ScanError> {
        let metadata = fs::metadata(self.root).map_err(|e| unreadable(self.root, e))?;
        self.push_directory("", &metadata);
        self.entries(Spot { disk: self.root, path: "", place: Place::Root, depth: 0 })
    }

    pub fn finish(mut self) -> Listing {
        self.listing.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.listing.directories.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.listing.tablespaces.sort_unstable_by_key(|t| t.oid);
        self.listing.left_out.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.listing
    }

    pub fn push_directory(&mut self, path: &str, metadata: &Metadata) {
        self.listing.directories.push(Directory { path: path.to_owned(), mode: mode(metadata) });
    }

    pub fn push_tablespace(&mut self, oid: u32, location: PathBuf) {
        self.listing.tablespaces.push(Tablespace { oid, location });
    }

    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.listing.tablespaces
    }

    pub fn skip(&mut self, path: String, why: &'static str) {
        self.listing.left_out.push(LeftOut { path, why });
    }

    /// Lists what is in a directory; that it vanished is no error.
    pub fn entries(&mut self, spot: Spot<'_>) -> Result<(), ScanError> {
        if spot.depth > DEPTH_MAX {
            return Err(ScanError::TooDeep { path: spot.disk.to_owned() });
        }
        let Some(entries) = present(spot.disk, fs::read_dir(spot.disk))? else { return Ok(()) };
        let mut relations = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| unreadable(spot.disk, e))?;
            match entry.file_name().to_str() {
                Some(name) => self.entry(spot, name, &entry, &mut relations)?,
                None => {
                    let path = join(spot.path, &entry.file_name().to_string_lossy());
                    self.skip(path, "its name is not UTF-8");
                }
            }
        }
        self.push_relations(relations);
        Ok(())
    }

    fn entry(
        &mut self,
        spot: Spot<'_>,
        name: &str,
        entry: &DirEntry,
        relations: &mut Vec<(RelationFile, SourceFile)>,
    ) -> Result<(), ScanError> {
        if is_left_out(spot.place, spot.path, name) {
            return Ok(());
        }
        let relation = match spot.place {
            Place::Relations => RelationFile::parse(name),
            _ => None,
        };
        if relation.is_some_and(|r| r.temporary) {
            return Ok(());
        }
        let path = join(spot.path, name);
        let kind = entry.file_type().map_err(|e| unreadable(&entry.path(), e))?;
        if kind.is_symlink() {
            return self.link(spot, name, &entry.path(), path);
        }
        if kind.is_dir() {
            return self.child(spot, name, &entry.path(), path);
        }
        if kind.is_socket() {
            return Ok(()); // of the server that runs, such as `.s.PGSQL.5432`
        }
        if !kind.is_file() {
            self.skip(path, "neither a file nor a directory");
            return Ok(());
        }
        // One system call relative to the open directory: no path is walked again.
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(&entry.path(), error)),
        };
        let file = source_file(path, &metadata);
        match relation {
            Some(relation) => relations.push((relation, file)),
            None => self.listing.files.push(file),
        }
        Ok(())
    }

    /// Lists a directory that was found in another.
    fn child(
        &mut self,
        spot: Spot<'_>,
        name: &str,
        disk: &Path,
        path: String,
    ) -> Result<(), ScanError> {
        let Some(metadata) = present(disk, fs::metadata(disk))? else { return Ok(()) };
        self.push_directory(&path, &metadata);
        let root = spot.place == Place::Root;
        if root && name == "pg_tblspc" {
            return Ok(()); // listed on its own
        }
        if root && EMPTIED.contains(&name) {
            if name == "pg_wal" {
                self.kept_inside_wal(disk, &metadata);
            }
            return Ok(());
        }
        let place = spot.place.of_child(name);
        self.entries(Spot { disk, path: &path, place, depth: spot.depth + 1 })
    }

    /// The server expects these below `pg_wal`; they are kept, emptied.
    fn kept_inside_wal(&mut self, disk: &Path, wal: &Metadata) {
        let wanted: &[&str] = if self.identity.major >= 17 {
            &["archive_status", "summaries"]
        } else {
            &["archive_status"]
        };
        for name in wanted {
            let metadata = fs::metadata(disk.join(name)).ok();
            self.push_directory(&format!("pg_wal/{name}"), metadata.as_ref().unwrap_or(wal));
        }
    }

    /// Reads through a link: a restore makes a plain file or directory of it.
    fn link(
        &mut self,
        spot: Spot<'_>,
        name: &str,
        disk: &Path,
        path: String,
    ) -> Result<(), ScanError> {
        let Some(metadata) = present(disk, fs::metadata(disk))? else {
            self.skip(path, "a link that leads nowhere");
            return Ok(());
        };
        if metadata.is_file() {
            self.listing.files.push(source_file(path, &metadata));
            return Ok(());
        }
        if !metadata.is_dir() {
            self.skip(path, "a link to neither a file nor a directory");
            return Ok(());
        }
        let Some(target) = present(disk, fs::canonicalize(disk))? else { return Ok(()) };
        if target.starts_with(&self.canonical) || self.canonical.starts_with(&target) {
            self.skip(path, "a link to a directory that is, or holds, part of the data directory");
            return Ok(());
        }
        self.child(spot, name, disk, path)
    }

    /// Of an unlogged relation only the `init` fork survives a restart, so only that is copied.
    /// Decided when the whole directory is known.
    fn push_relations(&mut self, relations: Vec<(RelationFile, SourceFile)>) {
        let unlogged: HashSet<u32> = relations
            .iter()
            .filter(|(relation, _)| relation.fork == Fork::Init)
            .map(|(relation, _)| relation.number)
            .collect();
        for (relation, mut file) in relations {
            if relation.fork != Fork::Init && unlogged.contains(&relation.number) {
                continue;
            }
            if let Some(first_page) = relation.segment.checked_mul(self.identity.pages_per_file) {
                file.content = Content::Pages { first_page };
            }
            self.listing.files.push(file);
        }
    }
}

/// Whether an entry is nothing that a backup copies, by name and place alone.
pub(crate) fn is_left_out(place: Place, directory: &str, name: &str) -> bool {
    // Temporary files and relation caches lie in several places. Source: PG_TEMP_FILE_PREFIX in
    // fd.h, RELCACHE_INIT_FILENAME in relcache.h.
    name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || (directory == "global" && CONTROL_FILE.strip_prefix("global/") == Some(name))
        || (place == Place::Root
            && (LEFT_OUT.contains(&name)
                || name.ends_with(".signal")
                || name.starts_with(".s.PGSQL.")))
}

fn source_file(path: String, metadata: &Metadata) -> SourceFile {
    SourceFile { path, size_bytes: metadata.len(), mode: mode(metadata), content: Content::Bytes }
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o7777
}

/// Joins two parts of a listing's path.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// What is there, or `None` when it has vanished.
pub(super) fn present<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, ScanError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

pub(super) fn unreadable(path: &Path, source: io::Error) -> ScanError {
    ScanError::Read { path: path.to_owned(), source }
}
