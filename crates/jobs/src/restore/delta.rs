//! A restore over a directory that is nearly right: whose it must be, what it would lose, and
//! what is kept of it.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use lifeboat_engine::{LogFile, LogPart, SystemId, TargetState};
use lifeboat_repo::{LogPlace, Manifest};
use serde::Serialize;

use super::error::RestoreError;
use super::mark::Mark;
use super::place::{Owner, SET_ASIDE, WAL, failed};
use super::sweep::{Differences, Sweep};
use super::tablespaces::MappedTablespace;
use crate::facts::BackupFacts;
use crate::inventory::Inventory;
use crate::ports::Ports;

/// The part of a segment that tells whose it is and where it belongs, in bytes.
const FIRST_PAGE_BYTES: usize = 8192;

/// What a restore over a directory will do to it, as far as it is known before pages are
/// compared.
#[derive(Debug, Clone, Serialize)]
pub struct DeltaPlan {
    /// The directory is what an earlier restore left when it was cut short.
    pub unfinished: bool,
    /// How it differs from the backup by names and sizes.
    #[serde(flatten)]
    pub differences: Differences,
    /// WAL files in the directory that the repository does not have, or has with other content.
    /// They are moved to `lifeboat.set-aside`, never removed.
    pub set_aside: Vec<String>,
    /// Directories of tablespaces that the restored cluster does not use any more. They are left
    /// as they are.
    pub left_alone: Vec<PathBuf>,
}

/// Plans the delta; `None` when nothing lies there, so that everything is written.
pub fn plan(
    ports: &Ports<'_>,
    into: &Path,
    state: &TargetState,
    inventory: &Inventory,
    backup: (&Manifest, &BackupFacts),
    tablespaces: &[MappedTablespace],
) -> Result<Option<DeltaPlan>, RestoreError> {
    let unfinished = match state {
        TargetState::DataDirectory => false,
        TargetState::Unfinished => true,
        _ => return Ok(None),
    };
    let expected = backup.1.identity.system_id;
    let found = whose(ports, into)?;
    // What an unfinished restore left may tell nothing: it is nobody's, then.
    if found.is_none() && !unfinished {
        return Err(RestoreError::Nobodys { path: into.to_owned() });
    }
    if let Some(found) = found.filter(|found| *found != expected) {
        return Err(RestoreError::Foreign { path: into.to_owned(), found, expected });
    }
    let set_aside = not_archived(ports, into, inventory, expected)?;
    let mut differences = Sweep::look(ports, into, backup, tablespaces)?;
    differences.keep_of_wal(&set_aside);
    Ok(Some(DeltaPlan {
        unfinished,
        differences,
        set_aside,
        left_alone: left_alone(into, tablespaces)?,
    }))
}

/// Whose data lie in a directory: by its control file, by the mark of a restore, or by its WAL.
fn whose(ports: &Ports<'_>, into: &Path) -> Result<Option<SystemId>, RestoreError> {
    if let Ok(identity) = ports.engine.directory_identity(into) {
        return Ok(Some(identity.system_id));
    }
    if let Some(mark) = Mark::read(into)? {
        return Ok(Some(mark.system));
    }
    let mut systems = wal_files(into)?.into_iter().filter_map(|name| origin(ports, into, &name));
    Ok(systems.next())
}

/// The system that wrote a segment, if the file is that segment: one that was only made ready
/// for use still holds what it was before.
fn origin(ports: &Ports<'_>, into: &Path, name: &str) -> Option<SystemId> {
    let segment = match name.parse() {
        Ok(LogFile::Segment(segment) | LogFile::Partial(segment)) => segment,
        _ => return None,
    };
    let mut file = File::open(into.join(WAL).join(name)).ok()?;
    let length = usize::try_from(file.metadata().ok()?.len()).ok().filter(|n| *n <= 1 << 30)?;
    let mut bytes = [0; FIRST_PAGE_BYTES];
    file.read_exact(&mut bytes).ok()?;
    let part = LogPart { size: length, from: 0, bytes: &bytes };
    ports.engine.segment_origin(segment, part).ok().map(|(system, _)| system)
}

/// Plain files in `pg_wal`, sorted. None when that is a link: what it leads to is left alone.
pub fn wal_files(into: &Path) -> Result<Vec<String>, RestoreError> {
    let wal = into.join(WAL);
    if !fs::symlink_metadata(&wal).is_ok_and(|data| data.is_dir()) {
        return Ok(Vec::new());
    }
    let fail = |source| failed("list", &wal, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(&wal).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_type().map_err(fail)?.is_file() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// WAL files of this system that are in the directory and not in the repository. One that another
/// server archived with other content is not in the repository either.
fn not_archived(
    ports: &Ports<'_>,
    into: &Path,
    inventory: &Inventory,
    system: SystemId,
) -> Result<Vec<String>, RestoreError> {
    let archived: HashMap<&str, &LogPlace> = inventory
        .logs
        .iter()
        .filter(|log| log.place.system.parse() == Ok(system))
        .map(|log| (log.place.name.as_str(), &log.place))
        .collect();
    let mut names = wal_files(into)?;
    names.retain(|name| {
        let ours = match name.parse() {
            Ok(LogFile::Segment(_) | LogFile::Partial(_)) => {
                origin(ports, into, name) == Some(system)
            }
            Ok(LogFile::History(_)) => true,
            _ => false,
        };
        ours && archived.get(name.as_str()).is_none_or(|place| !is_archived(ports, into, place))
    });
    Ok(names)
}

/// Whether the repository has a file of the directory as it is. What cannot be compared is not.
fn is_archived(ports: &Ports<'_>, into: &Path, place: &LogPlace) -> bool {
    let Ok(head) = ports.cluster.log_head(place) else { return false };
    let digest = || -> io::Result<String> {
        let mut file = File::open(into.join(WAL).join(&place.name))?;
        let (mut digest, mut piece) = (ports.cluster.digest_log(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(digest.finish()),
                length => digest.add(&piece[..length]),
            }
        }
    };
    digest().is_ok_and(|digest| digest == head.digest)
}

/// Places of tablespaces to which the directory has links and the restored cluster has none.
fn left_alone(into: &Path, tablespaces: &[MappedTablespace]) -> Result<Vec<PathBuf>, RestoreError> {
    let mut places = tablespace_places(into)?;
    places.retain(|place| !tablespaces.iter().any(|t| same_place(&t.location, place)));
    places.sort_unstable();
    Ok(places)
}

/// Where the links in `pg_tblspc` lead.
fn tablespace_places(into: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let directory = into.join("pg_tblspc");
    if !fs::symlink_metadata(&directory).is_ok_and(|data| data.is_dir()) {
        return Ok(Vec::new());
    }
    let fail = |source| failed("list", &directory, source);
    let mut places = Vec::new();
    for entry in fs::read_dir(&directory).map_err(fail)? {
        places.extend(fs::read_link(entry.map_err(fail)?.path()));
    }
    Ok(places)
}

fn same_place(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(a), Ok(b)) if a == b)
}

/// Whether a directory is a tablespace of the data directory: one of its links leads there.
pub fn is_own_tablespace(into: &Path, location: &Path) -> Result<bool, RestoreError> {
    Ok(tablespace_places(into)?.iter().any(|place| same_place(place, location)))
}

/// Takes the control file away, so that no server starts on what is being changed, and does `first`
/// before that cannot be undone. A server that was started since the plan was made keeps it.
pub fn disarm(
    ports: &Ports<'_>,
    into: &Path,
    first: impl FnOnce() -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let control = into.join(ports.engine.control_file_path());
    if let Some(parent) = control.parent()
        && fs::symlink_metadata(parent).is_ok_and(|data| data.file_type().is_symlink())
    {
        // Not through a link: without it the file is out of the server's sight as well.
        first()?;
        fs::remove_file(parent).map_err(|source| failed("remove", parent, source))?;
        return super::place::sync_directory(into);
    }
    let aside = control.with_extension("lifeboat.tmp");
    match fs::rename(&control, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return first(),
        Err(source) => return Err(failed("remove", &control, source)),
    }
    let done = match ports.engine.inspect_target(into) {
        Ok(TargetState::Running { pid }) => {
            let what = format!("the data directory of a running server (process {pid})");
            Err(RestoreError::Occupied { path: into.to_owned(), what })
        }
        Ok(_) => first(),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = done {
        fs::rename(&aside, &control).map_err(|source| failed("put back", &control, source))?;
        return Err(error);
    }
    fs::remove_file(&aside).map_err(|source| failed("remove", &aside, source))?;
    super::place::sync_directory(control.parent().unwrap_or(into))
}

/// Moves WAL that is nowhere else out of the server's sight.
pub fn set_aside(into: &Path, names: &[String], owner: Owner) -> Result<(), RestoreError> {
    if names.is_empty() {
        return Ok(());
    }
    let place = into.join(SET_ASIDE);
    match DirBuilder::new().mode(0o700).create(&place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make directory", &place, error));
        }
        _ => {}
    }
    if !fs::symlink_metadata(&place).is_ok_and(|data| data.is_dir()) {
        let source = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(failed("use", &place, source));
    }
    owner.give_path(&place).map_err(|source| failed("give away", &place, source))?;
    for name in names {
        let from = into.join(WAL).join(name);
        // What an earlier one kept under this name stays.
        let free = |n: u32| match n {
            0 => place.join(name),
            n => place.join(format!("{name}.{n}")),
        };
        let to = (0..).map(free).find(|to| fs::symlink_metadata(to).is_err());
        let moved = move_file(&from, &to.unwrap_or_else(|| place.join(name)));
        moved.map_err(|source| failed("set aside", &from, source))?;
    }
    super::place::sync_directory(&place)?;
    super::place::sync_directory(into)
}

/// Moves a file that may be gone, also to another file system: there the copy is durable before the
/// original goes.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let mut temporary = to.as_os_str().to_owned();
            temporary.push(".tmp");
            fs::copy(from, &temporary)?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, to)?;
            to.parent().map_or(Ok(()), |place| File::open(place)?.sync_all())?;
            fs::remove_file(from)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}
