//! What WAL is there, and which moments it reaches.

use lifeboat_engine::{Ancestry, LogFile, Lsn, SegmentName, SegmentNo, SystemId, TimelineId};
use lifeboat_repo::{BackupId, LogPlace};
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use super::given_up::{GivenUp, given_up};
use super::reach::{lies_on, reaches, tail_after};
use super::tail::Tail;
use crate::inventory::{Backup, Inventory, InventoryError, SegmentRange, Timeline, Unreadable};
use crate::ports::Ports;

/// The archived WAL of a cluster, and what it reaches.
#[derive(Debug, Clone, Serialize)]
pub struct WalReport {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// By system; more than one after an upgrade.
    pub systems: Vec<SystemWal>,
    /// What can be restored to: from a backup's end to the last segment that follows without a
    /// gap.
    pub windows: Vec<Window>,
    /// Segments that were given up, so that the server could go on.
    pub given_up: Vec<GivenUp>,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// The archived WAL of one system.
#[derive(Debug, Clone, Serialize)]
pub struct SystemWal {
    /// The system.
    pub system: SystemId,
    /// Its timelines, oldest first.
    pub timelines: Vec<TimelineWal>,
}

/// The archived WAL of one timeline.
#[derive(Debug, Clone, Serialize)]
pub struct TimelineWal {
    /// The timeline.
    pub timeline: TimelineId,
    /// Size of its segments.
    pub segment_bytes: ByteCount,
    /// How many whole segments are there.
    pub segments: u64,
    /// Their size on storage.
    pub stored_bytes: ByteCount,
    /// Consecutive segments.
    pub ranges: Vec<SegmentRange>,
    /// What is missing between two ranges.
    pub gaps: Vec<Gap>,
    /// Partial segments: where a timeline was left.
    pub partials: Vec<String>,
    /// Segments that are not finished: what `wal receive` stored of them.
    pub tails: Vec<TailWal>,
    /// Whether its history file is there.
    pub history: HistoryState,
    /// From which timeline it descends directly, and where it left it.
    pub parent: Option<(TimelineId, Lsn)>,
    /// Last commit that begins in its newest segment, by the server's clock.
    pub last_commit: Option<Timestamp>,
    /// When its newest segment was archived, by lifeboat's clock.
    pub archived_at: Option<Timestamp>,
}

/// What is there of a segment that is not finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TailWal {
    /// The segment.
    pub segment: SegmentName,
    /// The position up to which it is there.
    pub to: Lsn,
    /// In how many pieces.
    pub pieces: u64,
    /// Their size on storage.
    pub stored_bytes: ByteCount,
}

/// Whether the history file of a timeline is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryState {
    /// The first timeline has none.
    NotNeeded,
    /// It is there.
    Present,
    /// It is not: recovery would end on an older timeline.
    Missing,
}

/// Segments that are missing between two that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// First segment that is missing.
    pub first: SegmentName,
    /// Last segment that is missing.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
}

/// A stretch of the past that can be restored to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The system.
    pub system: SystemId,
    /// The timeline along which recovery goes.
    pub timeline: TimelineId,
    /// The oldest backup from which it is reached.
    pub backup: BackupId,
    /// How many backups lie in it.
    pub backups: u64,
    /// Its first position: the backup's consistent end.
    pub from: Lsn,
    /// That moment, by the server's clock.
    pub from_at: Timestamp,
    /// Its last position: the end of the last segment that follows without a gap.
    pub to: Lsn,
    /// Last commit that is known there, by the server's clock.
    pub to_at: Option<Timestamp>,
}

/// Says what WAL of a cluster is there, and which moments it reaches.
pub fn list(ports: &Ports<'_>) -> Result<WalReport, InventoryError> {
    let inventory = Inventory::load(ports.cluster, ports.engine)?;
    let given_up = given_up(ports.cluster, &inventory)?;
    Ok(WalReport { given_up, ..report(ports.cluster.name().as_str(), &inventory) })
}

/// The report of an inventory that was read; without what was given up, which the journal tells.
pub fn report(cluster: &str, inventory: &Inventory) -> WalReport {
    let mut systems: Vec<SystemWal> = Vec::new();
    for timeline in inventory.timelines.values() {
        let wal = describe(inventory, timeline);
        match systems.last_mut() {
            Some(last) if last.system == timeline.system => last.timelines.push(wal),
            _ => systems.push(SystemWal { system: timeline.system, timelines: vec![wal] }),
        }
    }
    WalReport {
        cluster: cluster.to_owned(),
        systems,
        windows: windows(inventory),
        given_up: Vec::new(),
        unreadable: inventory.unreadable.clone(),
    }
}

fn describe(inventory: &Inventory, timeline: &Timeline) -> TimelineWal {
    let ranges = timeline.ranges();
    let newest = inventory.newest_logs.get(&(timeline.system, timeline.timeline));
    let ancestry = timeline.ancestry.as_ref();
    TimelineWal {
        timeline: timeline.timeline,
        segment_bytes: ByteCount(timeline.segment_size.bytes()),
        segments: timeline.segments.len() as u64,
        stored_bytes: timeline.segments.values().copied().map(ByteCount).sum(),
        gaps: gaps(timeline),
        ranges,
        partials: timeline
            .partials
            .iter()
            .map(|n| format!("{}.partial", timeline.name(*n)))
            .collect(),
        tails: timeline
            .tails
            .iter()
            .map(|(number, tail)| describe_tail(timeline, *number, tail))
            .collect(),
        history: history(inventory, timeline),
        parent: ancestry.and_then(|a| a.ancestors.last()).map(|a| (a.timeline, a.left_at)),
        last_commit: newest.and_then(|n| n.last_commit),
        archived_at: newest.map(|n| n.archived_at),
    }
}

fn describe_tail(timeline: &Timeline, number: SegmentNo, tail: &Tail) -> TailWal {
    TailWal {
        segment: timeline.name(number),
        to: tail.end(number, timeline.segment_size),
        pieces: tail.pieces,
        stored_bytes: ByteCount(tail.stored_bytes),
    }
}

/// What is missing between the segments of a timeline.
pub fn gaps(timeline: &Timeline) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut last: Option<SegmentNo> = None;
    for number in timeline.segments.keys() {
        if let Some(last) = last
            && last.next() < *number
        {
            gaps.push(Gap {
                first: timeline.name(last.next()),
                last: timeline.name(SegmentNo(number.0 - 1)),
                segments: number.0 - last.0 - 1,
            });
        }
        last = Some(*number);
    }
    gaps
}

/// Whether the history file is there; told by its name, for a host that cannot read it.
pub(crate) fn history(inventory: &Inventory, timeline: &Timeline) -> HistoryState {
    let id = timeline.timeline;
    let system = timeline.system.to_string();
    let is_it =
        |place: &LogPlace| place.system == system && place.name.parse() == Ok(LogFile::History(id));
    if id.0 <= 1 {
        HistoryState::NotNeeded
    } else if inventory.logs.iter().any(|log| is_it(&log.place)) {
        HistoryState::Present
    } else {
        HistoryState::Missing
    }
}

/// Stretches that can be restored to: one for every run of backups between which no WAL is
/// missing, along every timeline.
fn windows(inventory: &Inventory) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for timeline in inventory.timelines.values() {
        let Some(ancestry) = &timeline.ancestry else { continue };
        let mut here: Vec<Window> = Vec::new();
        for backup in inventory.backups.iter().filter(|b| lies_on(b, timeline, ancestry)) {
            let Some(window) = window(inventory, timeline, ancestry, backup) else { continue };
            match here.iter_mut().find(|w| w.to == window.to) {
                // What reaches the same end is one stretch: it begins at the earliest backup.
                Some(known) => {
                    known.backups += 1;
                    if window.from < known.from {
                        *known = Window { backups: known.backups, ..window };
                    }
                }
                None => here.push(window),
            }
        }
        windows.extend(here);
    }
    windows
}

fn window(
    inventory: &Inventory,
    timeline: &Timeline,
    ancestry: &Ancestry,
    backup: &Backup,
) -> Option<Window> {
    let last = reaches(inventory, backup, ancestry)?;
    let size = backup.facts.identity.log_segment;
    let tail = tail_after(inventory, backup, ancestry, last);
    let (last, to) = tail.unwrap_or_else(|| (last, last.end(size)));
    // A stretch that ends before this timeline begins is shown with the ancestor.
    let begins = ancestry.ancestors.last().map(|a| a.left_at);
    if begins.is_some_and(|begins| to <= begins) {
        return None;
    }
    let newest = timeline.last();
    let noted = inventory.newest_logs.get(&(timeline.system, timeline.timeline));
    Some(Window {
        system: timeline.system,
        timeline: timeline.timeline,
        backup: backup.id(),
        backups: 1,
        from: backup.facts.stop_lsn,
        from_at: backup.facts.stopped_at,
        to,
        to_at: noted.filter(|_| newest == Some(last)).and_then(|n| n.last_commit),
    })
}
