//! Fetches one file of the log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::{LogFile, SystemId};
use lifeboat_repo::{LogPlace, RepoError};
use lifeboat_units::{ByteCount, Explain, Note, Retry};
use serde::Serialize;

use super::error::GetError;
use super::place::{data_directory, place};
use super::state::RecoveryState;
use crate::facts::ArchivedFacts;
use crate::inventory::chain;
use crate::ports::Ports;

/// First pause before a store that failed is asked again; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GetSettings {
    /// How often a store that fails for a passing reason is asked, at least once.
    pub tries_max: u32,
    /// No new try begins later than this.
    pub patience: Duration,
}

impl Default for GetSettings {
    /// 5 tries over about 8 seconds.
    fn default() -> Self {
        Self { tries_max: 5, patience: Duration::from_secs(10) }
    }
}

/// What became of a file that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum GetOutcome {
    /// It is where the server wants it.
    Fetched {
        /// Its name.
        file: String,
        /// Its size.
        size_bytes: ByteCount,
    },
    /// It is not there, and recovery does not need it. Normal: a server probes for the next
    /// segment and the next timeline.
    NotThere {
        /// Its name.
        file: String,
    },
}

/// Fetches one file with the usual patience: [`get_with`] and [`GetSettings::default`].
pub fn get(
    ports: &Ports<'_>,
    name: &str,
    destination: &Path,
    state: Option<&RecoveryState>,
) -> Result<GetOutcome, GetError> {
    get_with(ports, &GetSettings::default(), name, destination, state)
}

/// Fetches one file of the log, for `restore_command`.
///
/// - `name` and `destination` as the server gives them in `%f` and `%p`.
/// - Whose log: the state's system, or the data directory's (the one above the log directory of
///   `destination`, else the current one).
/// - [`GetOutcome::NotThere`] only when the store looked and the file is not there, and recovery
///   can be complete without it. The server takes it for the end of the archive: exit code 1.
/// - Every error is to be told by an exit code of 126 or above: the server stops and says why,
///   instead of promoting on less than there is.
/// - What lies after the planned end of the state is `NotThere` without a look.
/// - A standby is never stopped: what is missing, damaged or cannot be found out is `NotThere`,
///   with a warning, after the patience; the server asks again by itself.
/// - A partial segment is never served under the whole one's name: it ends where its timeline
///   was left, and what follows it lies on the next timeline.
/// - What is served has the digest it was archived with, the system and size that recovery
///   expects, and appears under its name only when it is whole and synced.
pub fn get_with(
    ports: &Ports<'_>,
    settings: &GetSettings,
    name: &str,
    destination: &Path,
    state: Option<&RecoveryState>,
) -> Result<GetOutcome, GetError> {
    let file: LogFile =
        name.parse().map_err(|source| GetError::Name { name: name.to_owned(), source })?;
    if state.is_some_and(|s| s.hides(file)) {
        return Ok(GetOutcome::NotThere { file: file.to_string() });
    }
    match fetch(ports, settings, file, destination, state) {
        Err(error) if state.is_some_and(|s| s.standby) => {
            ports.progress.warn(&Note::new(chain(&error)));
            Ok(GetOutcome::NotThere { file: file.to_string() })
        }
        other => other,
    }
}

fn fetch(
    ports: &Ports<'_>,
    settings: &GetSettings,
    file: LogFile,
    destination: &Path,
    state: Option<&RecoveryState>,
) -> Result<GetOutcome, GetError> {
    let system = system(ports, file, destination, state)?;
    let content = match read_patiently(ports, settings, &place(system, file)) {
        Ok((facts, content)) => {
            check_content(ports, file, system, facts, &content)?;
            content
        }
        Err(error) if error.is_not_found() => {
            return if state.is_some_and(|s| s.needs(file)) {
                Err(GetError::NeededMissing { file: file.to_string() })
            } else {
                Ok(GetOutcome::NotThere { file: file.to_string() })
            };
        }
        Err(source @ RepoError::Damaged { .. }) => {
            return Err(GetError::Damaged { file: file.to_string(), source });
        }
        Err(source) => return Err(GetError::Repo { file: file.to_string(), source }),
    };
    write_whole(destination, &content)
        .map_err(|source| GetError::Write { path: destination.to_owned(), source })?;
    let size_bytes = ByteCount(content.len() as u64);
    Ok(GetOutcome::Fetched { file: file.to_string(), size_bytes })
}

fn system(
    ports: &Ports<'_>,
    file: LogFile,
    destination: &Path,
    state: Option<&RecoveryState>,
) -> Result<SystemId, GetError> {
    if let Some(state) = state {
        return Ok(state.system);
    }
    let directory = data_directory(ports.engine, destination);
    match ports.engine.directory_identity(&directory) {
        Ok(identity) => Ok(identity.system_id),
        Err(source) => Err(GetError::Identity { file: file.to_string(), source }),
    }
}

/// Reads a file, asking again as long as the store fails for a passing reason.
fn read_patiently(
    ports: &Ports<'_>,
    settings: &GetSettings,
    place: &LogPlace,
) -> Result<(serde_json::Value, Vec<u8>), RepoError> {
    let end = ports.clock.monotonic().saturating_add(settings.patience);
    let mut pause = PAUSE_MIN;
    let mut tries_left = settings.tries_max.max(1);
    loop {
        tries_left -= 1;
        let error = match ports.cluster.read_log(place) {
            Ok((head, content)) => return Ok((head.facts, content)),
            Err(error) => error,
        };
        let now = ports.clock.monotonic();
        let give_up = error.retry() == Retry::Never
            || tries_left == 0
            || now.saturating_add(pause) > end
            || ports.cancel.is_cancelled();
        if give_up {
            return Err(error);
        }
        ports.clock.sleep(pause);
        pause *= 2;
    }
}

/// Refuses what cannot be the file that was asked for, although its seal and digest hold.
fn check_content(
    ports: &Ports<'_>,
    file: LogFile,
    system: SystemId,
    facts: serde_json::Value,
    content: &[u8],
) -> Result<(), GetError> {
    let (LogFile::Segment(name) | LogFile::Partial(name)) = file else { return Ok(()) };
    let damaged = |what: String| GetError::Damaged {
        file: file.to_string(),
        source: RepoError::damaged(file.to_string(), what),
    };
    let facts: ArchivedFacts =
        serde_json::from_value(facts).map_err(|e| damaged(format!("its facts: {e}")))?;
    let (found, size) =
        ports.engine.segment_origin(name, content).map_err(|e| damaged(chain(&e)))?;
    let length = content.len() as u64;
    if found != system {
        Err(damaged(format!("it is of system {found}, not {system}")))
    } else if length != size.bytes() || facts.segment.is_some_and(|noted| noted != size) {
        Err(damaged(format!("it has {length} bytes, a segment has {}", size.bytes())))
    } else {
        Ok(())
    }
}

/// Writes a file that appears under its name only when it is whole and synced.
fn write_whole(destination: &Path, content: &[u8]) -> io::Result<()> {
    let Some(name) = destination.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file"));
    };
    let directory = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary_name = name.to_owned();
    temporary_name.push(".lifeboat-tmp");
    let temporary: PathBuf = directory.join(temporary_name);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_data()?;
        fs::rename(&temporary, destination)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}
