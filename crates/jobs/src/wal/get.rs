//! Fetches one file of the log.
//!
//! | module | what it does |
//! |---|---|
//! | [`fetcher`] | fetches ahead in the background, and answers who asks |
//! | [`shelf`], [`lookahead`] | decide what is fetched next and what counts; pure |
//! | [`ask`] | asks the fetcher |
//! | [`deliver`] | puts a file where the server wants it |

pub(crate) mod ask;
mod deliver;
mod fetcher;
mod lookahead;
mod shelf;

use std::path::Path;
use std::time::Duration;

use lifeboat_engine::{Engine, LogFile, LogPart, RecoveryMark, SegmentName, SystemId};
use lifeboat_repo::{LogPlace, RepoError};
use lifeboat_units::{ByteCount, Explain, Note, Retry};
use serde::Serialize;

use super::error::GetError;
use super::place::{data_directory, place};
use super::serve;
use super::state::RecoveryState;
use crate::facts::ArchivedFacts;
use crate::inventory::chain;
use crate::ports::Ports;

pub use ask::PREFETCH_DIRECTORY;
pub use fetcher::{PrefetchClaim, prefetch};

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

/// How far to fetch ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Never more segments than this lie fetched ahead.
    pub segments: u32,
    /// Threads that fetch.
    pub jobs: usize,
    /// Ends when recovery asked for nothing new for so long.
    pub idle: Duration,
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
/// - A standby ([`keeps_asking`]) is never stopped: what is missing, damaged or cannot be found
///   out is `NotThere`, with a warning, after the patience; the server asks again by itself.
/// - A partial segment is never served under the whole one's name: it ends where its timeline
///   was left, and what follows it lies on the next timeline.
/// - What is served has the digest it was archived with, the system and size that recovery
///   expects, and appears under its name only when it is whole. It is synced too, unless a server
///   in recovery asked, which does that by itself.
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
    let directory = data_directory(ports.engine, destination);
    match fetch(ports, settings, file, destination, state) {
        Err(error) if keeps_asking(ports.engine, &directory, state) => {
            ports.progress.warn(&Note::new(chain(&error)));
            Ok(GetOutcome::NotThere { file: file.to_string() })
        }
        other => other,
    }
}

/// Whether the server of a data directory keeps asking for what it did not get, as a standby
/// does: for such a one a failure would be the end. Its own marks count before the state, which
/// somebody may have turned into something else since; without marks the state does.
pub fn keeps_asking(engine: &dyn Engine, directory: &Path, state: Option<&RecoveryState>) -> bool {
    match engine.recovery_mark(directory) {
        Some(mark) => mark == RecoveryMark::Standby,
        None => state.is_some_and(|state| state.standby),
    }
}

/// Takes one file from what was fetched ahead, if it is there or on its way: no repository is
/// opened and no key unlocked. `None` says nothing about whether it is archived.
///
/// - `directory` is the data directory of a server that recovers, and must be the current one or
///   have a short path: a socket in it is used.
/// - `origin` names repository and cluster; a fetcher for another one is not believed.
pub fn get_ahead(
    engine: &dyn Engine,
    directory: &Path,
    origin: &str,
    (name, destination): (&str, &Path),
    state: Option<&RecoveryState>,
) -> Option<GetOutcome> {
    let Ok(file @ LogFile::Segment(segment)) = name.parse() else { return None };
    // What ends in the middle of a segment is cut there, and that takes a look at the repository.
    let ends = |state: &RecoveryState| state.hides(file) || state.cuts(file).is_some();
    if state.is_some_and(ends) || engine.recovery_mark(directory).is_none() {
        return None;
    }
    // Nobody listens: not worth a look at the control file.
    if !directory.join(PREFETCH_DIRECTORY).join(ask::SOCKET).exists() {
        return None;
    }
    let system = match state {
        Some(state) => state.system,
        None => engine.directory_identity(directory).ok()?.system_id,
    };
    let binding = ask::binding(directory, origin, system);
    let ahead = ask::ask(directory, segment, binding).ok()??;
    // What cannot be delivered is fetched and delivered again, and then the failure is said.
    deliver::move_whole(&ahead.path, destination).ok()?;
    Some(GetOutcome::Fetched { file: file.to_string(), size_bytes: ByteCount(ahead.size_bytes) })
}

/// Whether it is worth to start a fetcher after `served` was fetched: a server recovers here, and
/// the segment that follows is archived.
pub fn worth_prefetching(
    ports: &Ports<'_>,
    directory: &Path,
    served: SegmentName,
    state: Option<&RecoveryState>,
) -> bool {
    if ports.engine.recovery_mark(directory).is_none() {
        return false;
    }
    let Ok(identity) = ports.engine.directory_identity(directory) else { return false };
    let state = state.cloned();
    let system = state.as_ref().map_or(identity.system_id, |state| state.system);
    let lookahead = lookahead::Lookahead { size: identity.log_segment, segments: 1, state };
    lookahead.after(served).first().is_some_and(|next| {
        let next = place(system, LogFile::Segment(*next));
        ports.cluster.has_log(&next).unwrap_or(false)
    })
}

fn fetch(
    ports: &Ports<'_>,
    settings: &GetSettings,
    file: LogFile,
    destination: &Path,
    state: Option<&RecoveryState>,
) -> Result<GetOutcome, GetError> {
    let system = system(ports, file, destination, state)?;
    let directory = data_directory(ports.engine, destination);
    let whole = || read_patiently(ports, settings, &place(system, file));
    let mut read = whole();
    // Who keeps asking gets the finished segment later.
    if is_missing(&read) && !keeps_asking(ports.engine, &directory, state) {
        let tail = serve::tail(ports, system, file, state);
        if let Ok(Some(content)) = tail {
            return deliver(ports, &directory, file, (&content, destination));
        }
        // Pieces go away when the segment is finished: it may be there now.
        if state.is_some() {
            read = whole();
        }
        if is_missing(&read) {
            tail?;
        }
    }
    let content = match read {
        Ok((facts, content)) => {
            check_content(ports, file, system, facts, &content)?;
            serve::cut(state, file, content)
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
    deliver(ports, &directory, file, (&content, destination))
}

fn is_missing(read: &Result<(serde_json::Value, Vec<u8>), RepoError>) -> bool {
    read.as_ref().is_err_and(RepoError::is_not_found)
}

fn deliver(
    ports: &Ports<'_>,
    directory: &Path,
    file: LogFile,
    (content, destination): (&[u8], &Path),
) -> Result<GetOutcome, GetError> {
    let recovering = ports.engine.recovery_mark(directory);
    deliver::write_whole(destination, content, recovering.is_none())
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
            // Where the repository itself is gone, everything is missing.
            Err(error) if error.is_not_found() => match ports.cluster.repository().confirm() {
                Ok(()) => return Err(error),
                Err(gone) => gone,
            },
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
    let (found, size) = ports
        .engine
        .segment_origin(name, LogPart::whole(content))
        .map_err(|e| damaged(chain(&e)))?;
    let length = content.len() as u64;
    if found != system {
        Err(damaged(format!("it is of system {found}, not {system}")))
    } else if length != size.bytes() || facts.segment.is_some_and(|noted| noted != size) {
        Err(damaged(format!("it has {length} bytes, a segment has {}", size.bytes())))
    } else {
        Ok(())
    }
}
