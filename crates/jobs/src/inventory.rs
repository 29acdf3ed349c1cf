//! What is there: backups, ranges of WAL, gaps, and what can be reached from them.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_engine::{
    Ancestry, Engine, EngineError, LogFile, Lsn, SegmentName, SegmentNo, SegmentSize, SystemId,
    TimelineId,
};
use lifeboat_repo::{
    ArchivedLog, BackupId, Cluster, LogPlace, Manifest, Readings, RepoError, TailPlace,
};
use lifeboat_store::StoreError;
use lifeboat_units::Timestamp;
use serde::{Deserialize, Serialize};

use crate::facts::{ArchivedFacts, BackupFacts};
use crate::wal::place::place as place_of;
use crate::wal::tail::{self, Tail};

/// A backup and its facts.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Its manifest.
    pub manifest: Manifest,
    /// The facts in it.
    pub facts: BackupFacts,
}

impl Backup {
    /// Its identifier.
    pub fn id(&self) -> BackupId {
        self.manifest.id
    }

    /// First and last segment that are needed to make it consistent, both inclusive.
    pub fn segments(&self) -> (SegmentNo, SegmentNo) {
        let size = self.facts.identity.log_segment;
        (self.facts.start_lsn.segment(size), self.facts.stop_lsn.segment_before(size))
    }
}

/// Consecutive segments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRange {
    /// First segment.
    pub first: SegmentName,
    /// Last segment, inclusive.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// Their size on storage, in bytes.
    pub stored_bytes: u64,
}

/// The archived WAL of one timeline of one system.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: TimelineId,
    /// Size of its segments.
    pub segment_size: SegmentSize,
    /// Whole segments that are there, in order, with their stored sizes in bytes.
    pub segments: BTreeMap<SegmentNo, u64>,
    /// Partial segments that are there.
    pub partials: BTreeSet<SegmentNo>,
    /// Segments that are not finished, of which there are pieces from the first byte on.
    pub tails: BTreeMap<SegmentNo, Tail>,
    /// Its past; `None` when the history file is missing although there must be one.
    pub ancestry: Option<Ancestry>,
}

impl Timeline {
    /// The name of one of its segments.
    pub fn name(&self, number: SegmentNo) -> SegmentName {
        SegmentName::new(self.timeline, number, self.segment_size)
    }

    /// Whether a segment is there, finished or not: the first of its bytes are.
    pub fn has(&self, number: SegmentNo) -> bool {
        self.segments.contains_key(&number) || self.tails.contains_key(&number)
    }

    /// The last segment of which anything is there.
    pub fn last(&self) -> Option<SegmentNo> {
        self.segments.keys().chain(self.tails.keys()).max().copied()
    }

    /// How far it is stored: the end of the last segment of which anything is there.
    pub fn end(&self) -> Option<Lsn> {
        let whole = self.segments.last_key_value().map(|(n, _)| n.end(self.segment_size));
        let tail = self.tails.iter().map(|(n, tail)| tail.end(*n, self.segment_size)).max();
        whole.max(tail)
    }

    /// Its segments as ranges; between two ranges is a gap.
    pub fn ranges(&self) -> Vec<SegmentRange> {
        let mut ranges: Vec<SegmentRange> = Vec::new();
        let mut next = None;
        for (number, stored) in &self.segments {
            let name = self.name(*number);
            match ranges.last_mut() {
                Some(range) if next == Some(*number) => {
                    range.last = name;
                    range.segments += 1;
                    range.stored_bytes += stored;
                }
                _ => ranges.push(SegmentRange {
                    first: name,
                    last: name,
                    segments: 1,
                    stored_bytes: *stored,
                }),
            }
            next = Some(number.next());
        }
        ranges
    }

    /// The last segment that is reached from `from` without a gap; `None` when `from` itself is
    /// missing.
    pub fn reaches(&self, from: SegmentNo) -> Option<SegmentNo> {
        let mut last = None;
        let mut expected = from;
        for number in self.segments.range(from..).map(|(number, _)| *number) {
            if number != expected {
                break;
            }
            last = Some(number);
            expected = number.next();
        }
        last
    }
}

/// An object that could not be read while the inventory was made.
#[derive(Debug, Clone, Serialize)]
pub struct Unreadable {
    /// What it is, such as a backup's identifier.
    pub object: String,
    /// Why, with all causes.
    pub why: String,
}

impl Unreadable {
    /// The backup that could not be read; `None` when it is something else.
    pub fn backup(&self) -> Option<BackupId> {
        self.object.parse().ok()
    }
}

/// What is noted beside the newest whole segment of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestLog {
    /// When it was archived, by lifeboat's clock.
    pub archived_at: Timestamp,
    /// The last commit that begins in it, by the server's clock.
    pub last_commit: Option<Timestamp>,
}

/// Everything about one cluster, read from the repository.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Backups, oldest first.
    pub backups: Vec<Backup>,
    /// Backups that are listed and cannot be read, and history files likewise.
    pub unreadable: Vec<Unreadable>,
    /// WAL by system and timeline.
    pub timelines: BTreeMap<(SystemId, TimelineId), Timeline>,
    /// What is noted beside the newest segment of each timeline that has one.
    pub newest_logs: BTreeMap<(SystemId, TimelineId), NewestLog>,
    /// Everything that is archived, as listed.
    pub logs: Vec<ArchivedLog>,
    /// Who reads; only after [`Inventory::note_readings`].
    pub readings: Readings,
}

impl Inventory {
    /// Reads what is there. A backup or history file that cannot be read is noted, not an error:
    /// the others can still be restored.
    pub fn load(cluster: &Cluster, engine: &dyn Engine) -> Result<Self, InventoryError> {
        let mut inventory = Self::default();
        for id in cluster.backups()? {
            let backup = cluster.manifest(id).and_then(|manifest| {
                let facts = BackupFacts::of(&manifest)?;
                Ok(Backup { manifest, facts })
            });
            match backup {
                Ok(backup) => inventory.backups.push(backup),
                Err(RepoError::NoSuchBackup { .. }) => {} // expired since it was listed
                Err(error) if is_about_one_object(&error) => {
                    let why = chain(&error);
                    inventory.unreadable.push(Unreadable { object: id.to_string(), why });
                }
                Err(other) => return Err(other.into()),
            }
        }
        inventory.logs = cluster.logs()?;
        inventory.sort_logs(cluster, engine)?;
        inventory.read_newest(cluster)?;
        Ok(inventory)
    }

    /// Reads who reads, for whoever is about to remove something.
    pub fn note_readings(&mut self, cluster: &Cluster, now: Timestamp) -> Result<(), RepoError> {
        self.readings = cluster.readings(now)?;
        Ok(())
    }

    /// Reads the head of the newest segment of each timeline.
    fn read_newest(&mut self, cluster: &Cluster) -> Result<(), InventoryError> {
        for (key, timeline) in &self.timelines {
            let Some(number) = timeline.last() else { continue };
            let place = place_of(key.0, LogFile::Segment(timeline.name(number)));
            let head = match tail::head(cluster, &place) {
                Ok(head) => head,
                Err(error) if is_about_one_object(&error) => {
                    let why = chain(&error);
                    self.unreadable.push(Unreadable { object: place.name, why });
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let facts: Option<ArchivedFacts> = serde_json::from_value(head.facts).ok();
            let mut last_commit = facts.and_then(|f| f.log).and_then(|log| log.last_commit);
            let whole = timeline.segments.last_key_value().map(|(number, _)| *number);
            if let Some(whole) = whole.filter(|whole| last_commit.is_none() && *whole < number) {
                // A segment that has just begun: the one before tells.
                let place = place_of(key.0, LogFile::Segment(timeline.name(whole)));
                let facts = cluster.log_head(&place).ok().map(|head| head.facts);
                let facts: Option<ArchivedFacts> =
                    facts.and_then(|facts| serde_json::from_value(facts).ok());
                last_commit = facts.and_then(|f| f.log).and_then(|log| log.last_commit);
            }
            let newest = NewestLog { archived_at: head.archived_at, last_commit };
            self.newest_logs.insert(*key, newest);
        }
        Ok(())
    }

    fn sort_logs(&mut self, cluster: &Cluster, engine: &dyn Engine) -> Result<(), InventoryError> {
        let mut sizes: BTreeMap<SystemId, SegmentSize> = BTreeMap::new();
        for backup in &self.backups {
            sizes.insert(backup.facts.identity.system_id, backup.facts.identity.log_segment);
        }
        let logs = std::mem::take(&mut self.logs);
        let mut pieces: BTreeMap<LogPlace, Vec<(TailPlace, u64)>> = BTreeMap::new();
        for log in &logs {
            if let Some(piece) = TailPlace::parse(&log.place) {
                let of = pieces.entry(piece.of.clone()).or_default();
                of.push((piece, log.stored_bytes));
                continue;
            }
            let (Ok(system), Ok(file)) = (log.place.system.parse(), log.place.name.parse()) else {
                continue; // not ours; `verify` reports it
            };
            self.place_log(cluster, engine, log, system, file, &mut sizes)?;
        }
        self.logs = logs;
        for (segment, pieces) in pieces {
            self.place_tail(cluster, &segment, &pieces, &mut sizes)?;
        }
        Ok(())
    }

    /// Sorts the pieces of one segment in, unless the segment is there as a whole.
    fn place_tail(
        &mut self,
        cluster: &Cluster,
        segment: &LogPlace,
        pieces: &[(TailPlace, u64)],
        sizes: &mut BTreeMap<SystemId, SegmentSize>,
    ) -> Result<(), InventoryError> {
        let (Ok(system), Ok(LogFile::Segment(name))) =
            (segment.system.parse(), segment.name.parse())
        else {
            return Ok(());
        };
        let Some(tail) = Tail::of(pieces) else { return Ok(()) };
        let size = match sizes.get(&system) {
            Some(size) => *size,
            None => match segment_size(cluster, &tail.last.object())? {
                Some(size) => *sizes.entry(system).or_insert(size),
                None => SegmentSize::DEFAULT,
            },
        };
        let timeline = self.timeline_entry(system, name.timeline, size);
        if let Some(number) = name.number(size).filter(|n| !timeline.segments.contains_key(n)) {
            timeline.tails.insert(number, tail);
        }
        Ok(())
    }

    fn timeline_entry(
        &mut self,
        system: SystemId,
        id: TimelineId,
        segment_size: SegmentSize,
    ) -> &mut Timeline {
        let timeline = self.timelines.entry((system, id)).or_insert_with(|| Timeline {
            system,
            timeline: id,
            segment_size,
            segments: BTreeMap::new(),
            partials: BTreeSet::new(),
            tails: BTreeMap::new(),
            ancestry: (id.0 == 1).then(|| Ancestry::root(id)),
        });
        timeline.segment_size = segment_size;
        timeline
    }

    fn place_log(
        &mut self,
        cluster: &Cluster,
        engine: &dyn Engine,
        log: &ArchivedLog,
        system: SystemId,
        file: LogFile,
        sizes: &mut BTreeMap<SystemId, SegmentSize>,
    ) -> Result<(), InventoryError> {
        let id = file.timeline();
        let segment_size = match sizes.get(&system) {
            Some(size) => *size,
            None => match segment_size(cluster, &log.place)? {
                Some(size) => *sizes.entry(system).or_insert(size),
                None => SegmentSize::DEFAULT,
            },
        };
        let timeline = self.timeline_entry(system, id, segment_size);
        match file {
            LogFile::Segment(name) => {
                if let Some(number) = name.number(segment_size) {
                    timeline.segments.insert(number, log.stored_bytes);
                }
            }
            LogFile::Partial(name) => timeline.partials.extend(name.number(segment_size)),
            LogFile::History(_) => {
                // Without the private key the content cannot be read; what it tells is noted in the
                // head, which needs the index key only.
                let may_read = cluster.repository().keyring().identity.is_some();
                let noted = || noted_history(cluster, id, &log.place);
                let read = || read_history(cluster, engine, id, &log.place).map(Some);
                let history = if may_read { read() } else { noted() };
                if let Some(history) = history.transpose() {
                    match history {
                        Ok(ancestry) => timeline.ancestry = Some(ancestry),
                        Err(InventoryError::Repo(error)) if !is_about_one_object(&error) => {
                            return Err(error.into());
                        }
                        Err(error) => self.unreadable.push(Unreadable {
                            object: log.place.name.clone(),
                            why: chain(&error),
                        }),
                    }
                }
            }
            LogFile::BackupHistory(..) => {}
        }
        Ok(())
    }

    /// The newest backup.
    pub fn newest(&self) -> Option<&Backup> {
        self.backups.last()
    }

    /// The newest timeline of a system of which there is WAL, or a history that can be read.
    pub fn newest_timeline(&self, system: SystemId) -> Option<TimelineId> {
        let known = |t: &&Timeline| t.ancestry.is_some() || t.last().is_some();
        let of_system = self.timelines.values().filter(|t| t.system == system);
        of_system.filter(known).map(|t| t.timeline).max()
    }

    /// One backup.
    pub fn backup(&self, id: BackupId) -> Option<&Backup> {
        self.backups.iter().find(|b| b.id() == id)
    }
}

/// Whether a failure says something about one object, and nothing about the others.
pub(crate) fn is_about_one_object(error: &RepoError) -> bool {
    match error {
        RepoError::Damaged { .. } | RepoError::TooNew { .. } => true,
        RepoError::Store(error) => matches!(
            error,
            StoreError::NotFound { .. }
                | StoreError::Truncated { .. }
                | StoreError::TooLarge { .. }
        ),
        _ => false,
    }
}

/// What is noted of a timeline's past beside its history file.
fn noted_history(
    cluster: &Cluster,
    timeline: TimelineId,
    place: &LogPlace,
) -> Result<Option<Ancestry>, InventoryError> {
    let head = cluster.log_head(place)?;
    let facts: Option<ArchivedFacts> = serde_json::from_value(head.facts).ok();
    Ok(facts.and_then(|facts| facts.ancestry).filter(|past| past.timeline == timeline))
}

fn read_history(
    cluster: &Cluster,
    engine: &dyn Engine,
    timeline: TimelineId,
    place: &LogPlace,
) -> Result<Ancestry, InventoryError> {
    let (_, bytes) = cluster.read_log(place)?;
    Ok(engine.parse_history(timeline, &bytes)?)
}

/// The segment size that is noted beside an archived segment; `None` when it cannot be told.
fn segment_size(cluster: &Cluster, place: &LogPlace) -> Result<Option<SegmentSize>, RepoError> {
    let head = match cluster.log_head(place) {
        Ok(head) => head,
        Err(error) if is_about_one_object(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let facts: Option<ArchivedFacts> = serde_json::from_value(head.facts).ok();
    Ok(facts.and_then(|facts| facts.segment))
}

/// An error with all its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The inventory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The repository failed.
    #[error(transparent)]
    Repo(RepoError),
    /// A history file cannot be understood.
    #[error(transparent)]
    Engine(EngineError),
}

impl From<RepoError> for InventoryError {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

impl From<EngineError> for InventoryError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl lifeboat_units::Explain for InventoryError {
    fn code(&self) -> lifeboat_units::Code {
        match self {
            Self::Repo(error) => error.code(),
            Self::Engine(error) => error.code(),
        }
    }
    fn retry(&self) -> lifeboat_units::Retry {
        match self {
            Self::Repo(error) => error.retry(),
            Self::Engine(error) => error.retry(),
        }
    }
    fn help(&self) -> Option<String> {
        match self {
            Self::Repo(error) => error.help(),
            Self::Engine(error) => error.help(),
        }
    }
}
