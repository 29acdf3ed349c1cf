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
//! | [`source`] | a file that is read piece by piece |

pub mod ack;
pub mod client;
pub mod note;
pub mod order;
pub mod pusher;
pub mod shed;
pub mod spool;
pub mod watch;

mod batch;
mod source;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lifeboat_engine::{
    Engine, EngineError, LogFile, LogFollower, LogPart, SegmentName, SegmentNo, SegmentSize,
    SystemId,
};
use lifeboat_repo::{Compression, EncodedLog, LogEncoding, LogPlace, LogWriter, PushOutcome};
use lifeboat_units::ByteCount;
use serde::Serialize;

use self::ack::FileStamp;
use self::source::Source;
use super::error::PushError;
use super::place::{data_directory, place};
use crate::facts::ArchivedFacts;
use crate::ports::Ports;
use crate::succession;

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
    let mut memory = Vec::new();
    let mut writer = ports.cluster.log_writer(settings.compression);
    let (offer, object) = offer(ports, path, &Admitted::default(), &mut memory, &mut writer)?;
    let name = offer.file.to_string();
    let outcome = match object {
        Object::New(encoded) => ports.cluster.put_log(&encoded),
        Object::There(digest) => ports.cluster.compare_log(&offer.place, &digest),
    };
    let outcome = outcome.map_err(|source| PushError::Repo { file: name.clone(), source })?;
    let size_bytes = ByteCount(offer.size_bytes);
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
    size_bytes: u64,
}

/// What a file that was read is to the repository.
enum Object<'a> {
    /// Nothing lies at its place yet: this is to be put there.
    New(EncodedLog<'a>),
    /// Something does: this is the digest to compare it with.
    There(String),
}

/// Reads a file, looks whether it may be stored, and encodes it.
fn offer<'a>(
    ports: &Ports<'a>,
    path: &Path,
    admitted: &Admitted,
    memory: &mut Vec<u8>,
    writer: &'a mut LogWriter,
) -> Result<(Offer, Object<'a>), PushError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file: LogFile =
        name.parse().map_err(|source| PushError::Name { name: name.clone(), source })?;
    let mut source = Source::open(path, memory)?;
    source.next_piece(0)?;
    let local = local_system(ports, path);
    let (system, segment) = origin(ports, file, source.part(), local)?;
    if !admitted.covers(system, ports.clock.monotonic()) {
        check_system(ports, file, system, segment)?;
        admitted.note(system, ports.clock.monotonic());
    }
    let failed = |source| PushError::Repo { file: name.clone(), source };
    let place = place(system, file);
    let object = if ports.cluster.has_log(&place).map_err(failed)? {
        Object::There(digest(ports, &mut source)?)
    } else {
        let mut encoding = ports.cluster.encode_log(&place, writer);
        let facts = read(ports, file, &mut source, &mut encoding)?;
        let facts = ArchivedFacts { system: segment.map(|_| system), segment, ..facts };
        let facts = serde_json::to_value(&facts).expect("facts always serialise");
        Object::New(encoding.finish(ports.clock.now(), facts).map_err(failed)?)
    };
    let size_bytes = source.end()?;
    Ok((Offer { file, system, place, stamp: source.stamp, size_bytes }, object))
}

/// The digest of a file of which the first piece is read.
fn digest(ports: &Ports<'_>, source: &mut Source<'_>) -> Result<String, PushError> {
    let (mut digest, mut more) = (ports.cluster.digest_log(), !source.piece().is_empty());
    while more {
        digest.add(source.piece());
        more = source.next_piece(usize::MAX)?;
    }
    Ok(digest.finish())
}

/// Encodes a file of which the first piece is read; gives what the file tells.
fn read(
    ports: &Ports<'_>,
    file: LogFile,
    source: &mut Source<'_>,
    encoding: &mut LogEncoding<'_>,
) -> Result<ArchivedFacts, PushError> {
    let mut facts = FactsReader::new(ports.engine, file);
    let mut more = !source.piece().is_empty();
    while more {
        facts.read(source.part());
        encoding.add(source.piece());
        more = source.next_piece(facts.wants_from())?;
    }
    Ok(ArchivedFacts { written_at: source.written_at, ..facts.facts })
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
    content: LogPart<'_>,
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

/// Reads what a planner wants to know of a file, part by part.
struct FactsReader<'a> {
    engine: &'a dyn Engine,
    file: LogFile,
    log: Option<Box<dyn LogFollower + 'a>>,
    facts: ArchivedFacts,
}

impl<'a> FactsReader<'a> {
    fn new(engine: &'a dyn Engine, file: LogFile) -> Self {
        let log = match file {
            LogFile::Segment(name) | LogFile::Partial(name) => Some(engine.follow_log(name)),
            LogFile::BackupHistory(..) | LogFile::History(_) => None,
        };
        Self { engine, file, log, facts: ArchivedFacts::default() }
    }

    fn read(&mut self, part: LogPart<'_>) {
        let last = part.end() == part.size;
        match (&mut self.log, self.file) {
            (Some(log), _) => {
                let facts = log.facts(part);
                if last {
                    let mut facts = facts.clone();
                    facts.restore_points.truncate(RESTORE_POINTS_MAX);
                    self.facts.log = Some(facts);
                }
            }
            // A history that cannot be understood is archived all the same: the server wants it kept.
            (None, LogFile::History(timeline)) if last => {
                self.facts.ancestry = self.engine.parse_history(timeline, part.bytes).ok();
            }
            (None, _) => {}
        }
    }

    /// What lies before this offset is not wanted any more.
    fn wants_from(&self) -> usize {
        self.log.as_ref().map_or(0, |log| log.wants_from())
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
