//! Archives files of the log: one in this process, or many in the background.
//!
//! | module | what it holds |
//! |---|---|
//! | [`client`] | one call of `archive_command`: answers from the spool, or waits for it |
//! | [`pusher`] | the background pusher |
//! | [`spool`], [`ack`], [`note`] | what passes from one to the other |
//! | [`order`] | what to push next, what is stale |
//! | [`shed`] | giving WAL up, where the operator set a limit |
//! | [`watch`] | wakes the pusher when the server announces a file |
//! | [`batch`] | many files behind one barrier |

pub mod ack;
pub mod client;
pub mod note;
pub mod order;
pub mod pusher;
pub mod shed;
pub mod spool;
pub mod watch;

mod batch;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lifeboat_engine::{EngineError, LogFile, SegmentName, SegmentNo, SegmentSize, SystemId};
use lifeboat_repo::{Compression, LogPlace, PushOutcome};
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use self::ack::FileStamp;
use super::error::PushError;
use super::place::{data_directory, place};
use crate::facts::ArchivedFacts;
use crate::ports::Ports;
use crate::succession;

/// No file of the log is longer, in bytes: the largest segment.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// How to archive.
#[derive(Debug, Clone, Copy, Default)]
pub struct PushSettings {
    /// How to compress.
    pub compression: Compression,
}

/// What became of a file that was to be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pushed {
    /// It is stored now.
    Stored,
    /// It was stored before, with the same content.
    AlreadyThere,
    /// It was given up, because the backlog was over the limit that the operator set.
    GivenUp,
}

/// What was archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PushReport {
    /// The file's name.
    pub file: String,
    /// What became of it.
    pub outcome: Pushed,
    /// Its size.
    pub size_bytes: ByteCount,
    /// What was added to the repository; 0 when it was there.
    pub stored_bytes: ByteCount,
}

/// Archives one file of the log, for `archive_command`, in this process.
///
/// - `path` as the server gives it in `%p`: relative to the data directory, which is the current
///   one, or absolute.
/// - Success is told only when the file is durable in the repository, or was so before with the
///   same content.
/// - Refused: what is no file of the log; a segment whose content is not what its name says, or
///   of another system than the data directory's; other content under a name that is taken; a
///   system that is not this cluster's ([`check_system`]).
/// - Of a whole or partial segment the content tells the system, so that the data directory need
///   not be readable; any other file needs it.
pub fn push(
    ports: &Ports<'_>,
    settings: &PushSettings,
    path: &Path,
) -> Result<PushReport, PushError> {
    let mut content = Vec::new();
    let offer = offer(ports, path, &Admitted::default(), &mut content)?;
    let name = offer.file.to_string();
    let outcome = ports
        .cluster
        .push_log(
            &offer.place,
            &content,
            settings.compression,
            ports.clock.now(),
            offer.facts_as_json(),
        )
        .map_err(|source| PushError::Repo { file: name.clone(), source })?;
    let size_bytes = ByteCount(content.len() as u64);
    let (outcome, stored) = settle(&name, outcome)?;
    Ok(PushReport { file: name, outcome, size_bytes, stored_bytes: ByteCount(stored) })
}

/// What the repository's outcome means to a server, and how much it added.
fn settle(file: &str, outcome: PushOutcome) -> Result<(Pushed, u64), PushError> {
    match outcome {
        PushOutcome::Stored { stored_bytes } => Ok((Pushed::Stored, stored_bytes)),
        PushOutcome::AlreadyThere => Ok((Pushed::AlreadyThere, 0)),
        PushOutcome::Different { archived, offered } => {
            Err(PushError::Diverged { file: file.to_owned(), archived, offered })
        }
    }
}

/// A file that was read and may be stored; its content lies beside it.
struct Offer {
    file: LogFile,
    system: SystemId,
    place: LogPlace,
    stamp: FileStamp,
    facts: ArchivedFacts,
}

impl Offer {
    fn facts_as_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.facts).expect("facts always serialise")
    }
}

/// Reads a file into `content` and looks whether it may be stored.
fn offer(
    ports: &Ports<'_>,
    path: &Path,
    admitted: &Admitted,
    content: &mut Vec<u8>,
) -> Result<Offer, PushError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file: LogFile =
        name.parse().map_err(|source| PushError::Name { name: name.clone(), source })?;
    let (stamp, written_at) = read_file(path, content)?;
    let local = local_system(ports, path);
    let (system, segment) = origin(ports, file, content, local)?;
    if !admitted.covers(system, ports.clock.monotonic()) {
        check_system(ports, file, system, segment)?;
        admitted.note(system, ports.clock.monotonic());
    }
    let facts = ArchivedFacts { written_at, ..facts(ports, file, system, segment, content) };
    Ok(Offer { file, system, place: place(system, file), stamp, facts })
}

/// Replaces `content` by the file's, and says by what the file is known and when it was last
/// written. A file that is written to meanwhile is refused: what was read may be neither the old
/// nor the new.
fn read_file(
    path: &Path,
    content: &mut Vec<u8>,
) -> Result<(FileStamp, Option<Timestamp>), PushError> {
    let failed = |source| PushError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let data = file.metadata().map_err(failed)?;
    let size_bytes = data.len();
    let written_at = data.modified().ok().and_then(|at| Timestamp::try_from(at).ok());
    let too_large = |size_bytes| PushError::TooLarge { path: path.to_owned(), size_bytes };
    if size_bytes > FILE_BYTES_MAX {
        return Err(too_large(size_bytes));
    }
    content.clear();
    content.reserve(size_bytes as usize + 1);
    (&mut file).take(FILE_BYTES_MAX + 1).read_to_end(content).map_err(failed)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(too_large(content.len() as u64));
    }
    let stamp = FileStamp::of(&data);
    let after = FileStamp::of(&file.metadata().map_err(failed)?);
    if after.size_bytes != content.len() as u64 || after.modified != stamp.modified {
        return Err(PushError::Changing { path: path.to_owned() });
    }
    Ok((stamp, written_at))
}

/// Systems that were let in a short while ago, so that a process that pushes many files need not
/// look at the backups for each.
#[derive(Debug, Default)]
struct Admitted(Mutex<Option<(SystemId, Duration)>>);

impl Admitted {
    /// How long a look holds.
    const HOLDS: Duration = Duration::from_secs(30);

    fn covers(&self, system: SystemId, now: Duration) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|(known, at)| known == system && now.saturating_sub(at) < Self::HOLDS)
    }

    fn note(&self, system: SystemId, now: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((system, now));
    }
}

fn local_system(ports: &Ports<'_>, path: &Path) -> Result<SystemId, EngineError> {
    let directory = data_directory(ports.engine, path);
    ports.engine.directory_identity(&directory).map(|identity| identity.system_id)
}

/// Whose file it is, and the segment size if it is one.
fn origin(
    ports: &Ports<'_>,
    file: LogFile,
    content: &[u8],
    local: Result<SystemId, EngineError>,
) -> Result<(SystemId, Option<SegmentSize>), PushError> {
    let (LogFile::Segment(name) | LogFile::Partial(name)) = file else {
        return match local {
            Ok(system) => Ok((system, None)),
            Err(source) => Err(PushError::Identity { file: file.to_string(), source }),
        };
    };
    let (found, size) = ports
        .engine
        .segment_origin(name, content)
        .map_err(|source| PushError::NoSegment { file: file.to_string(), source })?;
    match local {
        Ok(expected) if expected != found => {
            Err(PushError::Foreign { file: file.to_string(), found, expected })
        }
        _ => Ok((found, Some(size))),
    }
}

fn facts(
    ports: &Ports<'_>,
    file: LogFile,
    system: SystemId,
    segment: Option<SegmentSize>,
    content: &[u8],
) -> ArchivedFacts {
    let log = match file {
        LogFile::Segment(name) | LogFile::Partial(name) => {
            let mut log = ports.engine.log_facts(name, content);
            log.restore_points.truncate(RESTORE_POINTS_MAX);
            Some(log)
        }
        LogFile::BackupHistory(..) | LogFile::History(_) => None,
    };
    let ancestry = match file {
        // A history that cannot be understood is archived all the same: the server wants it kept.
        LogFile::History(timeline) => ports.engine.parse_history(timeline, content).ok(),
        _ => None,
    };
    ArchivedFacts { system: segment.map(|_| system), segment, log, written_at: None, ancestry }
}

/// Restore points that are noted beside one segment. More are still in the segment, but a restore
/// by their names does not find them: the head of an archived file has a bound.
pub(crate) const RESTORE_POINTS_MAX: usize = 1000;

/// Refuses a system that is not the cluster's ([`succession::current`]): two servers pointed at one name
/// would make each other's backups worthless.
///
/// A segment whose predecessor is archived was let in with it, so that in the steady state this
/// costs one look at a name. Anything else (the first of a system or timeline, after a gap, a
/// history file) costs a listing of the backups and one manifest. Without a backup all may
/// archive.
fn check_system(
    ports: &Ports<'_>,
    file: LogFile,
    system: SystemId,
    segment: Option<SegmentSize>,
) -> Result<(), PushError> {
    let failed = |source| PushError::Repo { file: file.to_string(), source };
    if let (LogFile::Segment(name), Some(size)) = (file, segment)
        && let Some(before) = predecessor(name, size)
        && ports.cluster.has_log(&place(system, LogFile::Segment(before))).map_err(failed)?
    {
        return Ok(());
    }
    match succession::current(ports.cluster).map_err(failed)? {
        Some(current) if current.system != system => Err(PushError::OtherSystem {
            cluster: ports.cluster.name().to_string(),
            found: system,
            expected: current.system,
            since: current.continues.filter(|(from, _)| *from == system).map(|(_, at)| at),
        }),
        _ => Ok(()),
    }
}

fn predecessor(name: SegmentName, size: SegmentSize) -> Option<SegmentName> {
    let number = name.number(size)?.0.checked_sub(1)?;
    Some(SegmentName::new(name.timeline, SegmentNo(number), size))
}
