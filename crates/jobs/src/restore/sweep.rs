//! Goes through a directory beside the list of a backup's files: what is missing, what has
//! another size, what does not belong.
//!
//! Both sides come in the order of their paths' bytes, so a million files need no memory. Links
//! are never followed, but for the tablespaces' own.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::Tablespace;
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{ChunkRef, FileEntry, Manifest};
use serde::Serialize;

use super::error::RestoreError;
use super::place::{WAL, failed, is_kept};
use super::tablespaces::MappedTablespace;
use crate::facts::BackupFacts;
use crate::ports::Ports;
use crate::wal::{READING_FILE, RECOVERY_FILE, RECOVERY_KEY_FILE};

/// Names that a plan lists, at most; the rest is counted.
const NAMED_MAX: usize = 12;

/// So often a directory is removed again in which something appeared meanwhile.
const REMOVALS: u32 = 3;

/// How a directory differs from a backup, by names and sizes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Files that are there and in the backup.
    pub files_present: u64,
    /// Files of the backup that are not there.
    pub files_missing: u64,
    /// Files that are there with another size.
    pub files_resized: u64,
    /// Files and links that do not belong and are removed. Those in `pg_wal` count here too, but
    /// for those that are set aside.
    pub files_removed: u64,
    /// Directories that do not belong and are removed.
    pub directories_removed: u64,
    /// Some of what is removed, by path.
    pub removed: Vec<String>,
    /// Links that give way to a plain file or directory: what they lead to is left alone.
    pub links_replaced: Vec<String>,
}

impl Differences {
    /// These files of `pg_wal` are moved away before anything is removed.
    pub(super) fn keep_of_wal(&mut self, names: &[String]) {
        self.files_removed = self.files_removed.saturating_sub(names.len() as u64);
        self.removed.retain(|path| {
            let name = path.strip_prefix(WAL).and_then(|rest| rest.strip_prefix('/'));
            !name.is_some_and(|name| names.iter().any(|kept| kept == name))
        });
    }
}

/// What a directory is compared with.
pub struct Sweep<'a> {
    ports: &'a Ports<'a>,
    /// Directories of the backup, by path.
    directories: HashSet<&'a [u8]>,
    /// Files that the restore writes by itself, after the sweep.
    own: HashSet<&'a [u8]>,
    /// Links to tablespaces, by path, with where they are to lead.
    links: Vec<(Vec<u8>, PathBuf)>,
    files: Files<'a>,
    apply: bool,
    found: Differences,
}

impl<'a> Sweep<'a> {
    /// Compares only.
    pub fn look(
        ports: &'a Ports<'a>,
        into: &'a Path,
        backup: (&'a Manifest, &'a BackupFacts),
        tablespaces: &[MappedTablespace],
    ) -> Result<Differences, RestoreError> {
        Self::run(ports, into, backup, tablespaces, false)
    }

    /// Removes what does not belong. The directory must have been marked.
    pub fn clean(
        ports: &'a Ports<'a>,
        into: &'a Path,
        backup: (&'a Manifest, &'a BackupFacts),
        tablespaces: &[MappedTablespace],
    ) -> Result<Differences, RestoreError> {
        Self::run(ports, into, backup, tablespaces, true)
    }

    fn run(
        ports: &'a Ports<'a>,
        into: &'a Path,
        (manifest, facts): (&'a Manifest, &'a BackupFacts),
        tablespaces: &[MappedTablespace],
        apply: bool,
    ) -> Result<Differences, RestoreError> {
        let recovery = [RECOVERY_FILE, RECOVERY_KEY_FILE, READING_FILE].map(str::as_bytes);
        let own = facts.generated.iter().chain([&facts.control_file]);
        let link = |t: &MappedTablespace| {
            let known = Tablespace { oid: t.oid, location: t.location.clone() };
            (ports.engine.tablespace_link(&known).into_bytes(), t.location.clone())
        };
        let mut sweep = Self {
            ports,
            directories: facts.directories.iter().map(|d| d.path.as_bytes()).collect(),
            own: own.map(|file| file.path.as_bytes()).chain(recovery).collect(),
            links: tablespaces.iter().map(link).collect(),
            files: Files::new(ports, manifest),
            apply,
            found: Differences::default(),
        };
        sweep.directory(&[], into, false)?;
        sweep.found.files_missing += sweep.files.skip_all()?;
        Ok(sweep.found)
    }

    /// One directory. Of the root of a tablespace, only what the backup has is looked at: the
    /// rest may be another server's.
    fn directory(
        &mut self,
        relative: &[u8],
        disk: &Path,
        shared: bool,
    ) -> Result<(), RestoreError> {
        if self.ports.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled);
        }
        for entry in self.entries(relative, disk)? {
            let path = join(relative, &entry.name);
            if relative.is_empty() && is_kept(&entry.name) {
                continue;
            }
            if let Some(location) = self.tablespace(&path) {
                self.tablespace_link(&entry, &path, &location)?;
                if location.is_dir() {
                    self.directory(&path, &location, true)?;
                }
                continue;
            }
            let Some(data) = &entry.data else { continue };
            if data.is_dir() {
                if self.directories.contains(path.as_slice()) {
                    self.directory(&path, &entry.disk, false)?;
                } else if !shared {
                    self.remove_tree(&path, &entry.disk)?;
                }
            } else if data.file_type().is_symlink() {
                self.link(&path, &entry.disk, shared)?;
            } else {
                self.file(&path, &entry.disk, data, shared)?;
            }
        }
        Ok(())
    }

    /// What is in a directory, in the order in which a list of files has it: a directory as if
    /// its name ended in `/`.
    fn entries(&self, relative: &[u8], disk: &Path) -> Result<Vec<Entry>, RestoreError> {
        let fail = |source| failed("list", disk, source);
        let mut entries = Vec::new();
        for entry in fs::read_dir(disk).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let data = match entry.metadata() {
                Ok(data) => data, // of a link itself
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(failed("look at", &entry.path(), source)),
            };
            let (name, disk) = (entry.file_name().into_vec(), entry.path());
            entries.push(Entry { name, disk, data: Some(data) });
        }
        for (path, _) in &self.links {
            let Some((parent, name)) = split(path) else { continue };
            if parent == relative && !entries.iter().any(|e| e.name == name) {
                let disk = disk.join(OsString::from_vec(name.to_vec()));
                entries.push(Entry { name: name.to_vec(), disk, data: None });
            }
        }
        entries.sort_by_cached_key(|entry| {
            let mut key = entry.name.clone();
            let holds = entry.data.as_ref().is_none_or(Metadata::is_dir)
                || self.tablespace(&join(relative, &entry.name)).is_some();
            if holds {
                key.push(b'/');
            }
            key
        });
        Ok(entries)
    }

    fn tablespace(&self, path: &[u8]) -> Option<PathBuf> {
        self.links.iter().find(|(link, _)| link == path).map(|(_, location)| location.clone())
    }

    /// What lies where the link to a tablespace is to be.
    fn tablespace_link(
        &mut self,
        entry: &Entry,
        path: &[u8],
        location: &Path,
    ) -> Result<(), RestoreError> {
        let Some(data) = &entry.data else { return Ok(()) };
        if data.is_dir() {
            return self.remove_tree(path, &entry.disk);
        }
        let right = fs::read_link(&entry.disk).is_ok_and(|there| there == location);
        if right {
            return Ok(());
        }
        if data.file_type().is_symlink() {
            self.found.links_replaced.push(text(path));
        }
        self.remove_file(&entry.disk)
    }

    /// A link is removed, and what it leads to is left alone.
    fn link(&mut self, path: &[u8], disk: &Path, shared: bool) -> Result<(), RestoreError> {
        let wanted = self.directories.contains(path) || self.is_listed(path)?;
        if wanted {
            self.found.links_replaced.push(text(path));
        } else if shared {
            return Ok(());
        } else {
            self.note_removed(path);
            self.found.files_removed += 1;
        }
        self.remove_file(disk)
    }

    fn file(
        &mut self,
        path: &[u8],
        disk: &Path,
        data: &Metadata,
        shared: bool,
    ) -> Result<(), RestoreError> {
        self.found.files_missing += self.files.skip_to(path)?;
        let listed = self.files.take(path)?;
        match listed {
            Some(size_bytes) => {
                self.found.files_present += 1;
                self.found.files_resized += u64::from(size_bytes != data.len());
                // Under another name the same bytes are somebody else's, as after
                // `pg_upgrade --link` or `cp -l`: they must not be written to.
                if !data.is_file() || data.nlink() > 1 {
                    self.remove_file(disk)?;
                }
                Ok(())
            }
            None if self.own.contains(path) => self.remove_file(disk),
            None if shared => Ok(()),
            None => {
                self.note_removed(path);
                self.found.files_removed += 1;
                self.remove_file(disk)
            }
        }
    }

    /// Whether the backup has a file of this path; counts it as missing, for what lies there is
    /// none.
    fn is_listed(&mut self, path: &[u8]) -> Result<bool, RestoreError> {
        self.found.files_missing += self.files.skip_to(path)?;
        let listed = self.files.take(path)?.is_some();
        self.found.files_missing += u64::from(listed);
        Ok(listed || self.own.contains(path))
    }

    fn remove_file(&self, disk: &Path) -> Result<(), RestoreError> {
        if !self.apply {
            return Ok(());
        }
        fs::remove_file(disk).map_err(|source| failed("remove", disk, source))
    }

    fn remove_tree(&mut self, path: &[u8], disk: &Path) -> Result<(), RestoreError> {
        self.note_removed(path);
        let (files, directories) = count(disk)?;
        self.found.files_removed += files;
        self.found.directories_removed += directories + 1;
        if !self.apply {
            return Ok(());
        }
        // Follows no links. What a process of the earlier server still puts there goes too.
        let mut removed = fs::remove_dir_all(disk);
        for _ in 0..REMOVALS {
            match &removed {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    removed = fs::remove_dir_all(disk);
                }
                _ => break,
            }
        }
        removed.map_err(|source| failed("remove", disk, source))
    }

    fn note_removed(&mut self, path: &[u8]) {
        if self.found.removed.len() < NAMED_MAX {
            self.found.removed.push(text(path));
        }
    }
}

/// One entry of a directory; `data` is of the entry itself, `None` when only the backup has it.
struct Entry {
    name: Vec<u8>,
    disk: PathBuf,
    data: Option<Metadata>,
}

/// Files and directories below a directory, links counted as files.
fn count(disk: &Path) -> Result<(u64, u64), RestoreError> {
    let fail = |source| failed("list", disk, source);
    let (mut files, mut directories) = (0, 0);
    for entry in fs::read_dir(disk).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_dir() {
            let below = count(&entry.path())?;
            files += below.0;
            directories += below.1 + 1;
        } else {
            files += 1;
        }
    }
    Ok((files, directories))
}

fn join(relative: &[u8], name: &[u8]) -> Vec<u8> {
    match relative {
        [] => name.to_vec(),
        _ => [relative, b"/", name].concat(),
    }
}

/// The directory and the name of a path.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = path.iter().rposition(|byte| *byte == b'/')?;
    Some((&path[..at], &path[at + 1..]))
}

fn text(path: &[u8]) -> String {
    std::ffi::OsStr::from_bytes(path).to_string_lossy().into_owned()
}

/// A backup's files, one after the other; one chunk of the list is in memory at a time.
struct Files<'a> {
    index: IndexReader,
    chunks: std::slice::Iter<'a, ChunkRef>,
    now: std::iter::Peekable<std::vec::IntoIter<FileEntry>>,
}

impl<'a> Files<'a> {
    fn new(ports: &Ports<'_>, manifest: &'a Manifest) -> Self {
        Self {
            index: IndexReader::new(ports.cluster, manifest.page_bytes),
            chunks: manifest.chunks.iter(),
            now: Vec::new().into_iter().peekable(),
        }
    }

    fn peek(&mut self) -> Result<Option<&FileEntry>, RestoreError> {
        while self.now.peek().is_none() {
            let Some(chunk) = self.chunks.next() else { return Ok(None) };
            self.now = self.index.chunk(chunk)?.into_iter().peekable();
        }
        Ok(self.now.peek())
    }

    /// Passes over all that comes before `path`; gives how many there were.
    fn skip_to(&mut self, path: &[u8]) -> Result<u64, RestoreError> {
        let mut skipped = 0;
        while self.peek()?.is_some_and(|file| file.path.as_bytes() < path) {
            self.now.next();
            skipped += 1;
        }
        Ok(skipped)
    }

    fn skip_all(&mut self) -> Result<u64, RestoreError> {
        let mut skipped = 0;
        while self.peek()?.is_some() {
            self.now.next();
            skipped += 1;
        }
        Ok(skipped)
    }

    /// The size of the file of this path, if it is the next one.
    fn take(&mut self, path: &[u8]) -> Result<Option<u64>, RestoreError> {
        let is_it = self.peek()?.is_some_and(|file| file.path.as_bytes() == path);
        Ok(if is_it { self.now.next().map(|file| file.size_bytes) } else { None })
    }
}
