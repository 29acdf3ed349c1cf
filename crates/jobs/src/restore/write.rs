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
use lifeboat_repo::{Manifest, ReadPurpose, Reading, RepoError};
use lifeboat_store::local::barrier_device;
use lifeboat_units::{ByteCount, Stage, Work};

use super::error::RestoreError;
use super::files::options;
use super::mark::{Mark, state_of_directory, state_of_tablespace};
use super::place::{Owner, clear, failed, sync_directory};
use super::sweep::Sweep;
use super::tablespaces::{MappedTablespace, map_tablespaces};
use super::{
    DeltaReport, RESTORING_MARK, RestorePlan, RestoreReport, RestoreRequest, delta, reading,
};
use crate::facts::{BackupFacts, StoredFile};
use crate::ports::Ports;
use crate::wal::push::spool::Spool;
use crate::wal::state::RECOVERY_VERSION;
use crate::wal::{NotedReading, READING_FILE, RECOVERY_KEY_FILE, RecoveryState};

/// Carries a plan out.
///
/// A note in the repository keeps the backup and its WAL there meanwhile, and another one until
/// recovery is over.
pub fn apply(
    ports: &Ports<'_>,
    plan: &RestorePlan,
    request: &RestoreRequest,
) -> Result<RestoreReport, RestoreError> {
    let mut reading = reading::begin(ports, ReadPurpose::Restore, plan.backup);
    reading::kept(ports, &mut reading, || write(ports, plan, request))
}

fn write(
    ports: &Ports<'_>,
    plan: &RestorePlan,
    request: &RestoreRequest,
) -> Result<RestoreReport, RestoreError> {
    let began = ports.clock.monotonic();
    // After the note was left: a backup that is listed now stays.
    let manifest = ports.cluster.manifest(plan.backup)?;
    let facts = BackupFacts::of(&manifest)?;
    check_facts(&manifest, &facts)?;
    let reader = ContentReader::new(ports.cluster, &manifest)?;
    let tablespaces = map_tablespaces(ports, request, &facts)?;
    let mut writing = Writing::begin(ports, request, &facts, &tablespaces, plan)?;
    if let Some(delta) = &plan.delta {
        let into = &writing.into;
        delta::disarm(ports, into, || delta::set_aside(into, &delta.set_aside, writing.owner))?;
    }
    writing.directories()?;
    let removed = match &plan.delta {
        Some(_) => {
            let backup = (&manifest, &facts);
            Some(Sweep::clean(ports, &writing.into, backup, &tablespaces)?)
        }
        None => None,
    };
    ports.progress.stage(Stage::Restoring, Some(Work::Bytes(manifest.totals.size_bytes.0)));
    let written = super::files::write_files(
        ports,
        &writing.into,
        writing.owner,
        super::files::Source {
            manifest: &manifest,
            reader: &reader,
            jobs: request.jobs,
            delta: plan.delta.is_some(),
            barriers: &writing.barriers(),
        },
    )?;
    writing.generated()?;
    writing.recovery(plan)?;
    let recovery = writing.reading(plan)?;
    writing.directory_modes()?;
    ports.progress.stage(Stage::Syncing, None);
    writing.finish()?;
    recovery.map(Reading::leave);
    let took: Duration = ports.clock.monotonic() - began;
    let delta = plan.delta.as_ref().zip(removed).map(|(planned, removed)| DeltaReport {
        pages_compared: written.pages_compared,
        pages_written: written.pages_written,
        files_missing: removed.files_missing,
        files_removed: removed.files_removed,
        directories_removed: removed.directories_removed,
        files_set_aside: planned.set_aside.len() as u64,
    });
    Ok(RestoreReport {
        plan: plan.clone(),
        written_bytes: ByteCount(written.bytes),
        fetched_bytes: ByteCount(written.fetched_bytes),
        delta,
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
    delta: bool,
    mark: String,
    /// The data directory and all tablespaces: locked, and opened before the first write, so that
    /// `syncfs` through them reports all that failed.
    held: Vec<File>,
}

impl<'a> Writing<'a> {
    fn begin(
        ports: &'a Ports<'a>,
        request: &'a RestoreRequest,
        facts: &'a BackupFacts,
        tablespaces: &'a [MappedTablespace],
        plan: &RestorePlan,
    ) -> Result<Self, RestoreError> {
        let into = std::path::absolute(&request.into)
            .map_err(|source| failed("find", &request.into, source))?;
        let owner = Owner::of(&into, request.owner_instead_of_root);
        let delta = plan.delta.is_some();
        let mark = Mark::of(ports, &into, facts, delta).text();
        let held = Vec::new();
        let mut writing =
            Self { ports, request, facts, tablespaces, into, owner, delta, mark, held };
        writing.hold(writing.into.clone())?;
        writing.claim_directory()?;
        for tablespace in tablespaces {
            writing.hold(tablespace.location.clone())?;
            writing.claim_tablespace(tablespace)?;
        }
        Ok(writing)
    }

    /// The data directory and all tablespaces.
    fn places(&self) -> impl Iterator<Item = &Path> {
        let tablespaces = self.tablespaces.iter().map(|t| t.location.as_path());
        std::iter::once(self.into.as_path()).chain(tablespaces)
    }

    /// Makes sure that a directory is there, and keeps other restores out: one that was started again
    /// while the first still runs would take its directory for an unfinished one.
    fn hold(&mut self, place: PathBuf) -> Result<(), RestoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&place)
            .map_err(|source| failed("make directory", &place, source))?;
        self.held.push(super::place::hold(&place)?);
        Ok(())
    }

    fn claim_directory(&self) -> Result<(), RestoreError> {
        match state_of_directory(self.ports, &self.into)? {
            TargetState::DataDirectory | TargetState::Unfinished if self.delta => {}
            TargetState::Unfinished => {
                // WAL that a delta did not come to set aside may be nowhere else.
                if Mark::read(&self.into)?.is_some_and(|mark| mark.delta) {
                    delta::set_aside(&self.into, &delta::wal_files(&self.into)?, self.owner)?;
                }
                clear(&self.into)?;
            }
            TargetState::Missing | TargetState::Empty => {}
            other => return Err(no_longer_empty(&self.into, &other)),
        }
        self.claim(&self.into)
    }

    fn claim_tablespace(&self, tablespace: &MappedTablespace) -> Result<(), RestoreError> {
        let place = &tablespace.location;
        match state_of_tablespace(self.ports, place)? {
            // Checked to be the directory's own when it was mapped.
            TargetState::Other(_) | TargetState::Unfinished if self.delta => {}
            // What a delta left may lie beside another server's.
            TargetState::Unfinished if Mark::read(place)?.is_some_and(|mark| mark.delta) => {
                self.clear_own(tablespace)?;
            }
            TargetState::Unfinished => clear(place)?,
            TargetState::Missing | TargetState::Empty => {}
            other => return Err(no_longer_empty(place, &other)),
        }
        self.claim(place)
    }

    /// Removes those directories of a tablespace that the backup has too.
    fn clear_own(&self, tablespace: &MappedTablespace) -> Result<(), RestoreError> {
        let known = Tablespace { oid: tablespace.oid, location: tablespace.location.clone() };
        let link = self.ports.engine.tablespace_link(&known) + "/";
        let below = self.facts.directories.iter().filter_map(|d| d.path.strip_prefix(&link));
        for name in below.filter(|name| !name.contains('/')) {
            let path = tablespace.location.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("clear", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a directory ours: it is marked before anything in it is changed.
    fn claim(&self, place: &Path) -> Result<(), RestoreError> {
        self.owner.give_path(place).map_err(|source| failed("give away", place, source))?;
        self.write_file(&place.join(RESTORING_MARK), self.mark.as_bytes(), 0o600)?;
        sync_directory(place)
    }

    fn directories(&mut self) -> Result<(), RestoreError> {
        for tablespace in self.tablespaces {
            let known = Tablespace { oid: tablespace.oid, location: tablespace.location.clone() };
            let link = self.into.join(self.ports.engine.tablespace_link(&known));
            if let Some(parent) = link.parent() {
                self.make_directory(parent, 0o700)?;
            }
            if fs::read_link(&link).is_ok_and(|there| there == tablespace.location) {
                continue;
            }
            if self.delta {
                remove_whatever(&link)?;
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

    fn is_tablespace_link(&self, path: &Path) -> bool {
        self.tablespaces.iter().any(|t| {
            let known = Tablespace { oid: t.oid, location: t.location.clone() };
            path == self.into.join(self.ports.engine.tablespace_link(&known))
        })
    }

    fn make_directory(&self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_directory = match self.is_tablespace_link(path) {
                    true => path.is_dir(),
                    false => fs::symlink_metadata(path).is_ok_and(|there| there.is_dir()),
                };
                if !is_directory {
                    // Another link, or a file: what it leads to is left alone.
                    fs::remove_file(path)
                        .and_then(|()| DirBuilder::new().mode(0o700).create(path))
                        .map_err(|source| failed("make directory", path, source))?;
                }
            }
            Err(source) => return Err(failed("make directory", path, source)),
        }
        // Whatever it is to be in the end: now it is written to.
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700))
            .and_then(|()| self.owner.give_path(path))
            .map_err(|source| failed("set the mode of", path, source))
    }

    /// Gives directories that their owner may not write to the modes that they had.
    fn directory_modes(&self) -> Result<(), RestoreError> {
        let closed = |mode: u32| mode & 0o700 != 0o700;
        for directory in self.facts.directories.iter().rev().filter(|d| closed(d.mode)) {
            let path = self.into.join(&directory.path);
            fs::set_permissions(&path, fs::Permissions::from_mode(directory.mode & 0o7777))
                .map_err(|source| failed("set the mode of", &path, source))?;
        }
        Ok(())
    }

    fn write_file(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), RestoreError> {
        let write = || {
            let mut file = options().create(true).truncate(true).open(path)?;
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
        // What was acknowledged of the files that lay here before says nothing of those that will.
        let spool = Spool::of(&self.into);
        spool.clear().map_err(|source| failed("clear", spool.directory(), source))?;
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
            tail_to: plan.tail_to,
            // A standby follows whatever timeline its primary goes over to.
            left: if standby { Vec::new() } else { plan.left.clone() },
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

    /// Leaves a note for the recovery, and its name for `wal get`.
    fn reading(&self, plan: &RestorePlan) -> Result<Option<Reading>, RestoreError> {
        let path = self.into.join(READING_FILE);
        let Some(reading) = reading::begin(self.ports, ReadPurpose::Recovery, plan.backup) else {
            // One of an earlier recovery here says nothing of this one.
            remove_whatever(&path)?;
            return Ok(None);
        };
        let noted = NotedReading { note: reading.name().to_owned(), backup: plan.backup };
        self.write_file(&path, &noted.encode(), 0o600)?;
        Ok(Some(reading))
    }

    /// The file systems on which one `syncfs` makes everything durable.
    fn barriers(&self) -> Vec<u64> {
        self.held.iter().filter_map(barrier_device).collect()
    }

    /// One barrier over all file systems that were written to, then the control file, then the
    /// marks go.
    fn finish(&self) -> Result<(), RestoreError> {
        for (place, directory) in self.places().zip(&self.held) {
            rustix::fs::syncfs(directory).map_err(|errno| failed("sync", place, errno.into()))?;
        }
        // What that does not vouch for. The files there were synced when they were written.
        let barriers = self.barriers();
        for directory in &self.facts.directories {
            let path = self.into.join(&directory.path);
            let data = fs::metadata(&path).map_err(|source| failed("look at", &path, source))?;
            if !barriers.contains(&data.dev()) {
                sync_directory(&path)?;
            }
        }
        for parent in self.places().filter_map(Path::parent) {
            match sync_directory(parent) {
                // One of root's, that we may not list: the directory was there before us, as a rule.
                Err(RestoreError::Write { source, .. })
                    if source.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
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
        }
        Ok(())
    }
}

/// Something came since the plan was made.
fn no_longer_empty(place: &Path, state: &TargetState) -> RestoreError {
    let what = format!("no longer empty ({state:?})");
    RestoreError::Occupied { path: place.to_owned(), what }
}

/// Removes what lies at a path, if anything does; links are not followed.
fn remove_whatever(path: &Path) -> Result<(), RestoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.map_err(|source| failed("remove", path, source))
}

fn bytes_of(file: &StoredFile) -> Result<Vec<u8>, RepoError> {
    file.bytes().ok_or_else(|| RepoError::damaged(file.path.as_str(), "its content is none"))
}
