//! Writes a planned restore: directories, files on threads, one barrier, recovery settings, and
//! the control file last.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::{
    GeneratedFile, RecoveryMode, RecoverySettings, Tablespace, TargetState, TimelineId,
};
use lifeboat_repo::reader::ContentReader;
use lifeboat_repo::table::check_path;
use lifeboat_repo::{Manifest, RepoError};
use lifeboat_units::{ByteCount, Stage, Work};

use super::error::RestoreError;
use super::{RESTORING_MARK, RestorePlan, RestoreReport, RestoreRequest};
use crate::facts::{BackupFacts, StoredFile};
use crate::ports::Ports;
use crate::wal::state::RECOVERY_VERSION;
use crate::wal::{RECOVERY_KEY_FILE, RecoveryState};

/// A tablespace and where it was.
pub struct MappedTablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it was.
    pub was: PathBuf,
    /// Where it is to be.
    pub location: PathBuf,
}

/// Who is to own what is written: only root can give files away.
#[derive(Debug, Clone, Copy)]
pub struct Owner(Option<(u32, u32)>);

impl Owner {
    /// The owner that the directory has or, where there is none yet, its parent's. No server runs
    /// as root: where that would be the owner, the one that was named for this case.
    fn of(directory: &Path, instead_of_root: Option<(u32, u32)>) -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        let found = directory.ancestors().find_map(|d| fs::metadata(d).ok());
        let owner = found.map(|data| (data.uid(), data.gid()));
        match owner {
            Some((0, _)) | None => Self(instead_of_root.or(owner)),
            owner => Self(owner),
        }
    }

    /// Gives an open file or directory to the owner.
    pub fn give(self, file: &File) -> io::Result<()> {
        match self.0 {
            Some((uid, gid)) => std::os::unix::fs::fchown(file, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    fn give_path(self, path: &Path) -> io::Result<()> {
        match self.0 {
            Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

/// Checks the mapping of tablespaces: each old place must be one of the backup's, each new place
/// absolute, empty or new, and none within another.
pub fn map_tablespaces(
    ports: &Ports<'_>,
    request: &RestoreRequest,
    facts: &BackupFacts,
) -> Result<Vec<MappedTablespace>, RestoreError> {
    let bad = |path: &Path, why: &str| RestoreError::Tablespace {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    for (was, _) in &request.tablespaces {
        if !facts.tablespaces.iter().any(|t| t.location == *was) {
            return Err(bad(was, "is none of the backup's"));
        }
    }
    let mut mapped: Vec<MappedTablespace> = Vec::new();
    for tablespace in &facts.tablespaces {
        let was = tablespace.location.clone();
        let location = request
            .tablespaces
            .iter()
            .find(|(old, _)| *old == was)
            .map_or_else(|| was.clone(), |(_, new)| new.clone());
        if !location.is_absolute() {
            return Err(bad(&location, "must be an absolute path"));
        }
        let into = std::path::absolute(&request.into).unwrap_or_else(|_| request.into.clone());
        if location.starts_with(&into) || into.starts_with(&location) {
            return Err(bad(&location, "and the data directory would lie within each other"));
        }
        let nested = |other: &MappedTablespace| {
            location.starts_with(&other.location) || other.location.starts_with(&location)
        };
        if mapped.iter().any(nested) {
            return Err(bad(&location, "would lie within another tablespace"));
        }
        match ports.engine.inspect_target(&location)? {
            TargetState::Missing | TargetState::Empty | TargetState::Unfinished => {}
            _ => return Err(bad(&location, "is not empty")),
        }
        mapped.push(MappedTablespace { oid: tablespace.oid, was, location });
    }
    Ok(mapped)
}

/// Carries a plan out.
pub fn apply(
    ports: &Ports<'_>,
    plan: &RestorePlan,
    request: &RestoreRequest,
) -> Result<RestoreReport, RestoreError> {
    let began = ports.clock.monotonic();
    let manifest = ports.cluster.manifest(plan.backup)?;
    let facts = BackupFacts::of(&manifest)?;
    check_facts(&manifest, &facts)?;
    let reader = ContentReader::new(ports.cluster, &manifest)?;
    let tablespaces = map_tablespaces(ports, request, &facts)?;
    let mut writing = Writing::begin(ports, request, &facts, &tablespaces)?;
    writing.directories()?;
    ports.progress.stage(Stage::Restoring, Some(Work::Bytes(manifest.totals.size_bytes.0)));
    let written = super::files::write_files(
        ports,
        &writing.into,
        writing.owner,
        super::files::Source { manifest: &manifest, reader: &reader, jobs: request.jobs },
    )?;
    writing.generated()?;
    writing.recovery(plan)?;
    ports.progress.stage(Stage::Syncing, None);
    writing.finish()?;
    let took: Duration = ports.clock.monotonic() - began;
    Ok(RestoreReport {
        plan: plan.clone(),
        written_bytes: ByteCount(written),
        seconds: took.as_secs_f64(),
    })
}

/// What a manifest names must stay within the target.
fn check_facts(manifest: &Manifest, facts: &BackupFacts) -> Result<(), RepoError> {
    let object = format!("manifest {}", manifest.id);
    let names = facts.directories.iter().map(|d| &d.path).filter(|path| !path.is_empty());
    let files = facts.generated.iter().chain([&facts.control_file]).map(|f| &f.path);
    for path in names.chain(files) {
        check_path(path)
            .map_err(|why| RepoError::damaged(object.as_str(), format!("path {path:?} {why}")))?;
    }
    Ok(())
}

struct Writing<'a> {
    ports: &'a Ports<'a>,
    request: &'a RestoreRequest,
    facts: &'a BackupFacts,
    tablespaces: &'a [MappedTablespace],
    into: PathBuf,
    owner: Owner,
}

impl<'a> Writing<'a> {
    fn begin(
        ports: &'a Ports<'a>,
        request: &'a RestoreRequest,
        facts: &'a BackupFacts,
        tablespaces: &'a [MappedTablespace],
    ) -> Result<Self, RestoreError> {
        let into = std::path::absolute(&request.into)
            .map_err(|source| failed("find", &request.into, source))?;
        let owner = Owner::of(&into, request.owner_instead_of_root);
        let writing = Self { ports, request, facts, tablespaces, into, owner };
        let places: Vec<_> = writing.places().map(Path::to_owned).collect();
        for place in &places {
            writing.claim(place)?;
        }
        Ok(writing)
    }

    /// The data directory and all tablespaces.
    fn places(&self) -> impl Iterator<Item = &Path> {
        let tablespaces = self.tablespaces.iter().map(|t| t.location.as_path());
        std::iter::once(self.into.as_path()).chain(tablespaces)
    }

    /// Makes a directory ours: it is marked before anything else is written, and what an earlier
    /// restore left half written is removed.
    fn claim(&self, place: &Path) -> Result<(), RestoreError> {
        let state = self.ports.engine.inspect_target(place)?;
        match state {
            TargetState::Unfinished => clear(place)?,
            TargetState::Missing | TargetState::Empty => {}
            other => {
                let what = format!("no longer empty ({other:?})");
                return Err(RestoreError::Occupied { path: place.to_owned(), what });
            }
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(place)
            .map_err(|source| failed("make directory", place, source))?;
        self.owner.give_path(place).map_err(|source| failed("give away", place, source))?;
        let mark = place.join(RESTORING_MARK);
        let text = b"lifeboat is restoring into this directory, or was cut short doing so.\n";
        self.write_file(&mark, text, 0o600)?;
        sync_directory(place)
    }

    fn directories(&mut self) -> Result<(), RestoreError> {
        for tablespace in self.tablespaces {
            let known = Tablespace { oid: tablespace.oid, location: tablespace.location.clone() };
            let link = self.into.join(self.ports.engine.tablespace_link(&known));
            if let Some(parent) = link.parent() {
                self.make_directory(parent, 0o700)?;
            }
            std::os::unix::fs::symlink(&tablespace.location, &link)
                .and_then(|()| self.owner.give_path(&link))
                .map_err(|source| failed("link", &link, source))?;
        }
        for directory in &self.facts.directories {
            self.make_directory(&self.into.join(&directory.path), directory.mode & 0o7777)?;
        }
        Ok(())
    }

    fn make_directory(&self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("make directory", path, source)),
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .and_then(|()| self.owner.give_path(path))
            .map_err(|source| failed("set the mode of", path, source))
    }

    fn write_file(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), RestoreError> {
        let write = || {
            let mut file = File::create(path)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            self.owner.give(&file)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|source| failed("write", path, source))
    }

    /// Files that the server gave along with the backup.
    fn generated(&self) -> Result<(), RestoreError> {
        let moved: Vec<Tablespace> = self
            .tablespaces
            .iter()
            .map(|t| Tablespace { oid: t.oid, location: t.location.clone() })
            .collect();
        for file in &self.facts.generated {
            let file = GeneratedFile { path: file.path.clone(), bytes: bytes_of(file)? };
            let file = self.ports.engine.relocate(file, &moved);
            self.write_file(&self.into.join(&file.path), &file.bytes, 0o600)?;
        }
        Ok(())
    }

    fn recovery(&self, plan: &RestorePlan) -> Result<(), RestoreError> {
        let standby = self.request.mode == RecoveryMode::Standby;
        let end = plan.timelines.last().copied();
        let state = RecoveryState {
            version: RECOVERY_VERSION,
            cluster: self.ports.cluster.name().to_string(),
            system: self.facts.identity.system_id,
            needed: plan.wal.clone(),
            histories: end.into_iter().filter(|t| *t != self.facts.timeline).collect(),
            standby,
            last: plan.wal.last().map(|range| range.last).filter(|_| plan.ends_with_wal),
        };
        state.write(&self.into)?;
        let key_file = self.into.join(RECOVERY_KEY_FILE);
        self.ports.cluster.repository().keyring().write_file(&key_file, true)?;
        self.owner.give_path(&key_file).map_err(|source| failed("give away", &key_file, source))?;
        let own: Option<TimelineId> = Some(self.facts.timeline);
        self.ports.engine.configure_recovery(
            &self.into,
            &RecoverySettings {
                major: self.facts.identity.major,
                target: plan.recover_to.clone(),
                timeline: if standby { None } else { end.filter(|_| end != own) },
                mode: self.request.mode,
                restore_command: self.request.restore_command.clone(),
                recovery_end_command: self.request.recovery_end_command.clone(),
                archive_command: self.request.archive_command.clone(),
            },
        )?;
        Ok(())
    }

    /// One barrier over all file systems that were written to, then the control file, then the
    /// marks go.
    fn finish(&self) -> Result<(), RestoreError> {
        for place in self.places() {
            File::open(place)
                .and_then(|directory| Ok(rustix::fs::syncfs(&directory)?))
                .map_err(|source| failed("sync", place, source))?;
        }
        let control = self.into.join(&self.facts.control_file.path);
        let temporary = control.with_extension("lifeboat.tmp");
        self.write_file(&temporary, &bytes_of(&self.facts.control_file)?, 0o600)?;
        fs::rename(&temporary, &control).map_err(|source| failed("write", &control, source))?;
        sync_directory(control.parent().unwrap_or(&self.into))?;
        for place in self.places() {
            let mark = place.join(RESTORING_MARK);
            fs::remove_file(&mark).map_err(|source| failed("remove", &mark, source))?;
            sync_directory(place)?;
            if let Some(parent) = place.parent() {
                sync_directory(parent)?;
            }
        }
        Ok(())
    }
}

/// Removes what lies in a directory that an earlier restore left unfinished. The mark goes last,
/// so that a second cut leaves it unfinished still.
fn clear(place: &Path) -> Result<(), RestoreError> {
    let fail = |source| failed("clear", place, source);
    for entry in fs::read_dir(place).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name() == RESTORING_MARK {
            continue;
        }
        // A link is removed, never followed.
        let path = entry.path();
        let removed = match entry.file_type().map_err(fail)?.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(|source| failed("clear", &path, source))?;
    }
    Ok(())
}

fn bytes_of(file: &StoredFile) -> Result<Vec<u8>, RepoError> {
    file.bytes().ok_or_else(|| RepoError::damaged(file.path.as_str(), "its content is none"))
}

fn sync_directory(path: &Path) -> Result<(), RestoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| failed("sync", path, source))
}

/// A failure to write.
pub fn failed(operation: &'static str, path: &Path, source: io::Error) -> RestoreError {
    RestoreError::Write { operation, path: path.to_owned(), source }
}
