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
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lifeboat_engine::{
    Engine, EngineError, LogFile, LogFollower, SegmentName, SegmentNo, SegmentSize, SystemId,
};
use lifeboat_repo::{Compression, EncodedLog, LOG_PIECE_BYTES, LogPlace, LogWriter, PushOutcome};
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
    let mut writer = ports.cluster.log_writer(settings.compression);
    let (offer, object) = offer(ports, path, &Admitted::default(), &mut content, &mut writer)?;
    let name = offer.file.to_string();
    let outcome = match object {
        Object::New(encoded) => ports.cluster.put_log(&encoded),
        Object::There(digest) => ports.cluster.compare_log(&offer.place, &digest),
    };
    let outcome = outcome.map_err(|source| PushError::Repo { file: name.clone(), source })?;
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

/// A file that was read and may be stored.
struct Offer {
    file: LogFile,
    system: SystemId,
    place: LogPlace,
    stamp: FileStamp,
}

/// What a file that was read is to the repository.
enum Object<'a> {
    /// Nothing lies at its place yet: this is to be put there.
    New(EncodedLog<'a>),
    /// Something does: this is the digest to compare it with.
    There(String),
}

/// Reads a file into `content`, looks whether it may be stored, and encodes it.
///
/// Piece by piece: what one step did is in the processor's cache for the next.
fn offer<'a>(
    ports: &Ports<'a>,
    path: &Path,
    admitted: &Admitted,
    content: &mut Vec<u8>,
    writer: &'a mut LogWriter,
) -> Result<(Offer, Object<'a>), PushError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file: LogFile =
        name.parse().map_err(|source| PushError::Name { name: name.clone(), source })?;
    let mut source = Source::open(path, content)?;
    source.read_to(LOG_PIECE_BYTES, content)?;
    let local = local_system(ports, path);
    let (system, segment) = origin(ports, file, content, local)?;
    if !admitted.covers(system, ports.clock.monotonic()) {
        check_system(ports, file, system, segment)?;
        admitted.note(system, ports.clock.monotonic());
    }
    let failed = |source| PushError::Repo { file: name.clone(), source };
    let (cluster, place) = (ports.cluster, place(system, file));
    let object = if cluster.has_log(&place).map_err(failed)? {
        source.read_to(content.len(), content)?;
        source.end()?;
        Object::There(cluster.log_digest(content))
    } else {
        let mut encoding = cluster.encode_log(&place, writer);
        let mut facts = FactsReader::new(ports.engine, file);
        for from in (0..content.len()).step_by(LOG_PIECE_BYTES) {
            let to = content.len().min(from + LOG_PIECE_BYTES);
            source.read_to(to, content)?;
            facts.read(content, to);
            encoding.add(&content[from..to]);
        }
        source.end()?;
        let facts = ArchivedFacts {
            system: segment.map(|_| system),
            segment,
            written_at: source.written_at,
            ..facts.end(content)
        };
        let facts = serde_json::to_value(&facts).expect("facts always serialise");
        Object::New(encoding.finish(ports.clock.now(), facts).map_err(failed)?)
    };
    Ok((Offer { file, system, place, stamp: source.stamp }, object))
}

/// A file that is being read.
struct Source<'p> {
    path: &'p Path,
    file: File,
    stamp: FileStamp,
    written_at: Option<Timestamp>,
    read_bytes: usize,
}

impl<'p> Source<'p> {
    /// Makes `content` as long as the file is; what is in it is not the file's yet.
    fn open(path: &'p Path, content: &mut Vec<u8>) -> Result<Self, PushError> {
        let failed = |source| PushError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        let (stamp, size_bytes) = (FileStamp::of(&data), data.len());
        if size_bytes > FILE_BYTES_MAX {
            return Err(PushError::TooLarge { path: path.to_owned(), size_bytes });
        }
        let written_at = data.modified().ok().and_then(|at| Timestamp::try_from(at).ok());
        content.resize(size_bytes as usize, 0);
        Ok(Self { path, file, stamp, written_at, read_bytes: 0 })
    }

    /// Reads on until the first `to` bytes are there, or all.
    fn read_to(&mut self, to: usize, content: &mut [u8]) -> Result<(), PushError> {
        let to = to.min(content.len());
        if let Some(missing) = content.get_mut(self.read_bytes..to) {
            self.file.read_exact(missing).map_err(|source| match source.kind() {
                ErrorKind::UnexpectedEof => PushError::Changing { path: self.path.to_owned() },
                _ => PushError::Read { path: self.path.to_owned(), source },
            })?;
            self.read_bytes = to;
        }
        Ok(())
    }

    /// That the file is still what it was when its reading began.
    fn end(&self) -> Result<(), PushError> {
        let failed = |source| PushError::Read { path: self.path.to_owned(), source };
        let after = FileStamp::of(&self.file.metadata().map_err(failed)?);
        if (after.size_bytes, after.modified) != (self.stamp.size_bytes, self.stamp.modified) {
            return Err(PushError::Changing { path: self.path.to_owned() });
        }
        Ok(())
    }
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

/// What a planner wants to know of a file, read piece by piece.
struct FactsReader<'a> {
    engine: &'a dyn Engine,
    file: LogFile,
    log: Option<Box<dyn LogFollower + 'a>>,
}

impl<'a> FactsReader<'a> {
    fn new(engine: &'a dyn Engine, file: LogFile) -> Self {
        let log = match file {
            LogFile::Segment(name) | LogFile::Partial(name) => Some(engine.follow_log(name)),
            LogFile::BackupHistory(..) | LogFile::History(_) => None,
        };
        Self { engine, file, log }
    }

    fn read(&mut self, content: &[u8], filled: usize) {
        if let Some(log) = &mut self.log {
            log.facts(content, filled);
        }
    }

    fn end(mut self, content: &[u8]) -> ArchivedFacts {
        let log = self.log.as_mut().map(|log| {
            let mut facts = log.facts(content, content.len()).clone();
            facts.restore_points.truncate(RESTORE_POINTS_MAX);
            facts
        });
        let ancestry = match self.file {
            // A history that cannot be understood is archived all the same: the server wants it kept.
            LogFile::History(timeline) => self.engine.parse_history(timeline, content).ok(),
            _ => None,
        };
        ArchivedFacts { system: None, segment: None, log, written_at: None, ancestry }
    }
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
