//! Takes a backup.
//!
//! Order: lease, identity, proof that WAL arrives, backup mode, copying, control file, end of
//! backup mode, packs durable, WAL complete, manifest. The manifest is last: until it is there,
//! no backup is.

mod arriving;
mod collect;
mod error;
mod guide;
mod known;
mod offer;
mod table;
mod tasks;
mod way;
mod worker;

use std::time::Duration;

use lifeboat_engine::{
    BackupStart, BackupStop, ClusterIdentity, Directory, GeneratedFile, LeftOut, Listing, LogFile,
    Lsn, Origin, SegmentName, Source, StreamEnd, Streamed, SystemId, Tablespace, TimelineId,
};
use lifeboat_repo::lease::RENEW_EVERY;
use lifeboat_repo::writer::FinishedBackup;
use lifeboat_repo::{
    BackupId, BackupWriter, Compression, Fact, Lease, Manifest, Purpose, RepoError, Totals,
};
use lifeboat_units::{Note, Stage, Timestamp, Work};
use serde::Serialize;

use crate::facts::{BackupFacts, DamagedPage, Reading, StoredFile, Way};
use crate::ports::Ports;
use crate::succession;
use crate::wal;

use arriving::{Arrived, Arriving};
pub use error::BackupError;
use known::KnownPages;
use offer::Offered;
use way::Chosen;

/// So long a segment that arrives may take before something is said of it.
const ARRIVAL_USUAL: Duration = Duration::from_secs(5);

/// How to take a backup.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Threads that read, compare, compress and seal.
    pub jobs: usize,
    /// How to compress.
    pub compression: Compression,
    /// A note by the operator.
    pub note: Option<String>,
    /// How long to wait for a WAL segment to arrive before giving up.
    pub archive_timeout: Duration,
    /// Read everything, whatever the server says of what changed.
    pub full_read: bool,
    /// How many backups it takes until the sweep has read everything of which nothing said that it
    /// changed; at least 1.
    pub sweep_of: u32,
}

/// What was backed up.
#[derive(Debug, Clone, Serialize)]
pub struct BackupReport {
    /// The backup.
    pub id: BackupId,
    /// The backup it was compared with; `None` for a first one.
    pub compared_with: Option<BackupId>,
    /// Timeline of the server.
    pub timeline: TimelineId,
    /// Replay begins here.
    pub start_lsn: Lsn,
    /// Consistent from here on.
    pub stop_lsn: Lsn,
    /// When it began.
    pub began_at: Timestamp,
    /// When all of it was stored.
    pub ended_at: Timestamp,
    /// Sums.
    pub totals: Totals,
    /// How many pages were damaged in the data directory.
    pub damaged_pages: u64,
    /// The damaged pages, at most the first thousand.
    pub damage: Vec<DamagedPage>,
    /// How it found what had changed.
    pub reading: Option<Reading>,
}

/// Takes a backup of the server that `origin` speaks for.
///
/// Errors leave nothing listed, and end the server's backup mode.
pub fn run(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    settings: &BackupSettings,
) -> Result<BackupReport, BackupError> {
    let mut lease = Lease::acquire(ports.cluster, Purpose::Backup, ports.clock)?;
    let report = under_lease(ports, origin, settings, &mut lease);
    if report.is_err() {
        origin.abort();
    }
    let report = report.map_err(|error| told_as_it_is(ports, error))?;
    lease.release()?;
    Ok(report)
}

/// A directory that is not the repository any more fails in ways of its own, and no WAL arrives in it.
fn told_as_it_is(ports: &Ports<'_>, error: BackupError) -> BackupError {
    let (BackupError::Repo(RepoError::Store(_)) | BackupError::NotArchived { .. }) = &error else {
        return error;
    };
    match ports.cluster.repository().confirm() {
        Err(why @ (RepoError::Gone { .. } | RepoError::ForeignKey { .. })) => why.into(),
        _ => error,
    }
}

fn under_lease(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    settings: &BackupSettings,
    lease: &mut Lease,
) -> Result<BackupReport, BackupError> {
    let began_at = ports.clock.now();
    let identity = origin.identity()?;
    let server_version = origin.version()?;
    let previous = previous_backup(ports, &identity)?;
    prove_archiving(ports, origin, &identity, settings)?;
    let newest = ports.cluster.backups()?.last().copied();
    let id = BackupId::new(began_at, newest, ports.cluster.repository().entropy());
    ports.progress.stage(Stage::ServerBackupMode, None);
    let trust = (settings.full_read, settings.sweep_of.max(1));
    let offered = offer::make(ports, origin, previous.as_ref(), &identity, trust)?;
    let start = origin.start(&format!("lifeboat {id}"))?;
    warn_of_a_newer_timeline(ports, identity.system_id, start.timeline)?;
    let earlier = previous.as_ref().map(BackupFacts::of).transpose()?;
    let proven_before = earlier.as_ref().is_some_and(|earlier| earlier.proves(&identity));
    let known = earlier.as_ref().map(|earlier| KnownPages::of(earlier, identity.checksums));
    let known = known.unwrap_or_default();
    let what = Copy {
        id,
        identity: &identity,
        previous: previous.as_ref(),
        guide: None,
        proven_before,
        known: &known,
    };
    let taken = match origin.source()? {
        Source::Directory(listing) => {
            take_files(ports, origin, settings, lease, what, (&start, listing))?
        }
        Source::Stream(streamed) => {
            take_stream(ports, origin, settings, lease, what, (&start, streamed, offered))?
        }
    };
    let Taken { finished, table, directories, tablespaces, control, stop, way } = taken;
    wait_for_wal(ports, origin, &identity, (&start, &stop), settings)?;
    let all_right = table.is_proven();
    let reading = way.reading(table.swept, &table.usage.sessions, (id, stop.lsn));
    // What the server gave hints of was in part taken over unread.
    let proven = all_right && (reading.way != Way::Hints || proven_before);
    let facts = BackupFacts {
        engine: ports.engine.name().to_owned(),
        server_version,
        timeline: stop.timeline,
        start_lsn: start.lsn,
        stop_lsn: stop.lsn,
        started_at: start.at,
        stopped_at: stop.at,
        note: settings.note.clone(),
        directories,
        tablespaces,
        generated: stop.files.iter().map(|f| StoredFile::new(&f.path, &f.bytes)).collect(),
        control_file: StoredFile::new(&control.path, &control.bytes),
        proven,
        damage: table.damage,
        damaged_pages: table.damaged_pages,
        identity,
        reading: Some(reading),
    };
    let manifest = Manifest {
        id,
        cluster: ports.cluster.name().to_string(),
        compared_with: previous.as_ref().map(|p| p.id),
        began_at,
        ended_at: ports.clock.now(),
        page_bytes: facts.identity.page_bytes,
        chunks: table.chunks,
        data_keys: Default::default(),
        packs: Default::default(),
        totals: table.totals,
        facts: serde_json::to_value(&facts).expect("facts always serialise"),
    };
    lease.check()?;
    let manifest = finished.commit(manifest, &table.usage, previous.as_ref())?;
    ports.cluster.record(ports.clock.now(), Fact::BackupAdded { id })?;
    Ok(report(&manifest, facts))
}

/// A backup of a server whose place another one took is no backup of the latest state.
fn warn_of_a_newer_timeline(
    ports: &Ports<'_>,
    system: SystemId,
    ours: TimelineId,
) -> Result<(), BackupError> {
    let next = TimelineId(ours.0.saturating_add(1));
    if ports.cluster.has_log(&wal::place::place(system, LogFile::History(next)))? {
        ports.progress.warn(&Note::new(format!(
            "the server writes timeline {ours}, and another one archived timeline {next}: is this \
             still the primary? `lifeboat check` says more"
        )));
    }
    Ok(())
}

fn report(manifest: &Manifest, facts: BackupFacts) -> BackupReport {
    BackupReport {
        id: manifest.id,
        compared_with: manifest.compared_with,
        timeline: facts.timeline,
        start_lsn: facts.start_lsn,
        stop_lsn: facts.stop_lsn,
        began_at: manifest.began_at,
        ended_at: manifest.ended_at,
        totals: manifest.totals,
        damaged_pages: facts.damaged_pages,
        damage: facts.damage,
        reading: facts.reading,
    }
}

/// The newest readable backup of the same cluster: what to compare with. Hashes decide, so that
/// a system which continues another is compared with that one's.
fn previous_backup(
    ports: &Ports<'_>,
    identity: &ClusterIdentity,
) -> Result<Option<Manifest>, BackupError> {
    for id in ports.cluster.backups()?.into_iter().rev() {
        let manifest = match ports.cluster.manifest(id) {
            Ok(manifest) => manifest,
            Err(error @ lifeboat_repo::RepoError::Damaged { .. }) => {
                let why = crate::inventory::chain(&error);
                ports.progress.warn(&Note::new(format!("not compared with backup {id}: {why}")));
                continue;
            }
            Err(other) => return Err(other.into()),
        };
        let facts = BackupFacts::of(&manifest)?;
        let theirs = &facts.identity;
        let current = succession::follow(ports.cluster, id, theirs.system_id)?.system;
        let other_major = theirs.major != identity.major;
        if current != identity.system_id || (theirs.system_id == current && other_major) {
            return Err(BackupError::ForeignCluster {
                cluster: ports.cluster.name().to_string(),
                ours: (theirs.system_id, theirs.major),
                theirs: (identity.system_id, identity.major),
            });
        }
        return Ok((theirs.page_bytes == identity.page_bytes).then_some(manifest));
    }
    Ok(None)
}

/// Switches a segment and sees it arrive: fails in seconds and not after hours.
fn prove_archiving(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    identity: &ClusterIdentity,
    settings: &BackupSettings,
) -> Result<(), BackupError> {
    ports.progress.stage(Stage::CheckingArchive, None);
    if let Some(why) = origin.cannot_switch()? {
        let then = "whether WAL arrives is seen only at the end of the backup";
        ports.progress.warn(&Note::new(format!("{why}: {then}")));
        return Ok(());
    }
    let switched = origin.switch_segment()?;
    see_arrive(ports, origin, identity, switched.segment, settings)
}

/// Waits for a segment. When it takes longer than usual, says why, as far as the server knows.
fn see_arrive(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    identity: &ClusterIdentity,
    segment: SegmentName,
    settings: &BackupSettings,
) -> Result<(), BackupError> {
    let arrives = |within| wal::wait_for(ports, identity.system_id, segment, within);
    let patience = settings.archive_timeout.min(ARRIVAL_USUAL);
    if arrives(patience)? {
        return Ok(());
    }
    not_cancelled(ports)?;
    let left = settings.archive_timeout - patience;
    if !left.is_zero() {
        let why = origin.archiver_failure(segment)?.map(|failure| format!(": {failure}"));
        ports.progress.warn(&Note::new(format!(
            "WAL segment {segment} is not in the repository yet{}; it has {} more seconds",
            why.unwrap_or_default(),
            left.as_secs()
        )));
        if arrives(left)? {
            return Ok(());
        }
        not_cancelled(ports)?;
    }
    let waited = settings.archive_timeout;
    let failure = origin.archiver_failure(segment)?;
    Err(BackupError::NotArchived { segment, waited, failure })
}

/// Waiting ends early where the operator stopped it.
fn not_cancelled(ports: &Ports<'_>) -> Result<(), BackupError> {
    if ports.cancel.is_cancelled() { Err(BackupError::Cancelled) } else { Ok(()) }
}

/// Waits until every segment that the backup needs is in the repository.
fn wait_for_wal(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    identity: &ClusterIdentity,
    (start, stop): (&BackupStart, &BackupStop),
    settings: &BackupSettings,
) -> Result<(), BackupError> {
    if start.timeline != stop.timeline {
        return Err(BackupError::TimelineChanged { from: start.timeline, to: stop.timeline });
    }
    let size = identity.log_segment;
    let (first, last) = (start.lsn.segment(size), stop.lsn.segment_before(size));
    ports.progress.stage(Stage::WaitingForWal, Some(Work::Segments(last.0 - first.0 + 1)));
    let mut number = first;
    while number <= last {
        let segment = SegmentName::new(stop.timeline, number, size);
        see_arrive(ports, origin, identity, segment, settings)?;
        ports.progress.advance(Work::Segments(1));
        number = number.next();
    }
    Ok(())
}

/// What is copied, and what it is compared with.
#[derive(Clone, Copy)]
struct Copy<'a> {
    id: BackupId,
    identity: &'a ClusterIdentity,
    previous: Option<&'a Manifest>,
    guide: Option<&'a guide::Guide>,
    /// Pages that are the same as the earlier backup's need no check.
    proven_before: bool,
    /// What the earlier backup found wrong.
    known: &'a KnownPages,
}

/// All that was copied, after backup mode ended.
struct Taken {
    finished: FinishedBackup,
    table: table::Table,
    directories: Vec<Directory>,
    tablespaces: Vec<Tablespace>,
    control: GeneratedFile,
    stop: BackupStop,
    way: Chosen,
}

impl Copy<'_> {
    fn writer(
        &self,
        ports: &Ports<'_>,
        settings: &BackupSettings,
    ) -> Result<BackupWriter, BackupError> {
        let page_bytes = self.identity.page_bytes;
        let transforms = ports.transforms(page_bytes);
        let compression = settings.compression;
        Ok(BackupWriter::begin(ports.cluster, self.id, page_bytes, compression, transforms)?)
    }
}

/// Keeps the server's session and the lease alive, and hears the operator.
fn housekeeping<'a>(
    ports: &'a Ports<'_>,
    origin: &'a mut dyn Origin,
    lease: &'a mut Lease,
) -> impl FnMut() -> Result<(), BackupError> + 'a {
    let mut renewed = ports.clock.monotonic();
    move || {
        not_cancelled(ports)?;
        if ports.clock.monotonic() - renewed >= RENEW_EVERY {
            renewed = ports.clock.monotonic();
            lease.renew(ports.clock)?;
            origin.keep_alive()?;
        }
        Ok(())
    }
}

/// Copies what changed in a data directory, on threads, and leaves backup mode.
fn take_files(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    settings: &BackupSettings,
    lease: &mut Lease,
    what: Copy<'_>,
    (start, listing): (&BackupStart, Listing),
) -> Result<Taken, BackupError> {
    let trust = (settings.full_read, settings.sweep_of.max(1));
    let mut way = way::choose(origin, what.identity, start, what.previous, trust)?;
    let total: u64 = listing.files.iter().map(|f| f.size_bytes).sum();
    ports.progress.stage(Stage::Copying, Some(Work::Bytes(total)));
    say_left_out(ports, &listing.left_out);
    let writer = what.writer(ports, settings)?;
    let guided = Copy { guide: way.guide.as_ref(), ..what };
    let mut table = {
        let housekeeping = housekeeping(ports, origin, lease);
        collect::collect(ports, &writer, (&guided, &listing), settings.jobs, housekeeping)?
    };
    if way.guide.is_some() && table.swept.faulty > 0 {
        // What was not read may be as wrong: this backup trusts nothing after all. What the first
        // reading stored and nobody refers to is collected some day.
        let found = std::mem::take(&mut table.swept);
        ports.progress.warn(&Note::new(format!(
            "{} pages had changed of which the server said nothing: everything is read again",
            found.faulty
        )));
        way.distrust();
        ports.progress.stage(Stage::Copying, Some(Work::Bytes(total)));
        let housekeeping = housekeeping(ports, origin, lease);
        table = collect::collect(ports, &writer, (&what, &listing), settings.jobs, housekeeping)?;
        table.swept = found;
    }
    ports.progress.stage(Stage::Syncing, None);
    let finished = writer.finish_packs()?;
    origin.keep_alive()?;
    let control = origin.control_file()?;
    ports.progress.stage(Stage::ServerBackupMode, None);
    let stop = origin.stop()?;
    let Listing { directories, tablespaces, .. } = listing;
    Ok(Taken { finished, table, directories, tablespaces, control, stop, way })
}

/// Names what no backup can hold, a few of it at least.
fn say_left_out(ports: &Ports<'_>, left_out: &[LeftOut]) {
    const NAMED: usize = 5;
    if left_out.is_empty() {
        return;
    }
    let named = left_out.iter().take(NAMED);
    let named: Vec<_> = named.map(|entry| format!("`{}` ({})", entry.path, entry.why)).collect();
    let more = match left_out.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    ports.progress.warn(&Note::new(format!(
        "not in the backup, and not in what is restored from it: {}{more}",
        named.join(", ")
    )));
}

/// Takes what the server sends, on threads.
fn take_stream(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    settings: &BackupSettings,
    lease: &mut Lease,
    what: Copy<'_>,
    (start, streamed, offered): (&BackupStart, Streamed, Offered),
) -> Result<Taken, BackupError> {
    ports.progress.stage(Stage::Copying, streamed.total_bytes.map(Work::Bytes));
    let writer = what.writer(ports, settings)?;
    let Streamed { files: stream, stop, tablespaces, total_bytes, differences, why } = streamed;
    let way = match what.previous {
        None => Chosen::nothing_earlier(),
        Some(previous) => {
            let because = offered.err().unwrap_or(why);
            let range = differences.then_some(start.lsn);
            Chosen::streamed(&BackupFacts::of(previous)?, range, because)
        }
    };
    let arriving = Arriving {
        stream,
        stop: &*stop,
        identity: what.identity,
        previous: what.previous,
        proven_before: what.proven_before,
        known: what.known,
        total_bytes,
    };
    let arrived = {
        let housekeeping = housekeeping(ports, origin, lease);
        arriving::collect(ports, &writer, arriving, settings.jobs, housekeeping)?
    };
    let Arrived { mut table, directories, suspects, end } = arrived;
    table.unproven += suspects.len() as u64;
    let format = ports.engine.page_format(what.identity);
    let backup = start.lsn..=end.stop;
    table.add_damage(&arriving::judge(origin, format.as_ref(), backup, suspects)?);
    ports.progress.stage(Stage::Syncing, None);
    let finished = writer.finish_packs()?;
    let StreamEnd { control, stop: lsn, timeline, generated: files } = end;
    origin.stream_ended(lsn)?;
    let stop = BackupStop { lsn, timeline, at: origin.server_time()?, files };
    Ok(Taken { finished, table, directories, tablespaces, control, stop, way })
}
