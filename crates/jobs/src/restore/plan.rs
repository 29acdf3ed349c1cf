//! Decides what a restore will do, and refuses what cannot be reached before a byte is written.

mod cut;
mod time;

use lifeboat_engine::{Lsn, RecoveryMode, RecoveryTarget, SegmentName, SystemId, TargetState};
use lifeboat_units::{ByteCount, Timestamp};

use self::cut::{cut, needed_for_consistency};
use super::delta;
use super::error::{DATA_DIRECTORY, RUNNING_SERVER, RestoreError};
use super::mark::state_of_directory;
use super::path::Way;
use super::place::free_bytes;
use super::target::Finder;
use super::{RestorePlan, RestoreRequest, Target, TimelineChoice, mode_note};
use crate::inventory::{Backup, Inventory};
use crate::ports::Ports;

/// Plans a restore: which backup, which WAL, which timelines, where it will land.
pub fn plan(ports: &Ports<'_>, request: &RestoreRequest) -> Result<RestorePlan, RestoreError> {
    let state = check_place(ports, request)?;
    let inventory = Inventory::load(ports.cluster, ports.engine)?;
    if inventory.backups.is_empty() {
        let listed = match &request.target {
            Target::Backup(id) => Some(*id),
            _ => ports.cluster.backups()?.pop(),
        };
        listed.map(|id| ports.cluster.manifest(id)).transpose()?; // it may be there, and damaged
        return Err(RestoreError::NoBackup { cluster: ports.cluster.name().to_string() });
    }
    let (mut planner, chosen) = choose_in_systems(ports, request, &inventory)?;
    let tablespaces = super::tablespaces::map_tablespaces(ports, request, &chosen.backup.facts)?;
    planner.note_state(&chosen);
    planner.note_forks(&chosen);
    planner.note_space(&chosen);
    let described = (&chosen.backup.manifest, &chosen.backup.facts);
    let delta = match request.delta {
        true => delta::plan(ports, &request.into, &state, &inventory, described, &tablespaces)?,
        false => None,
    };
    let facts = &chosen.backup.facts;
    let totals = &chosen.backup.manifest.totals;
    Ok(RestorePlan {
        backup: chosen.backup.id(),
        because: chosen.because,
        into: request.into.clone(),
        target: request.target.clone(),
        timelines: chosen.way.timelines(chosen.backup),
        wal: chosen.way.ranges(&chosen.segments, facts.identity.log_segment),
        tail_to: chosen
            .segments
            .last()
            .and_then(|last| chosen.way.tail_of(*last, facts.identity.log_segment)),
        left: chosen.way.left(chosen.backup, facts.identity.log_segment),
        landing: chosen.landing,
        landing_lsn: chosen.landing_lsn,
        last_commit: chosen.last_commit,
        size_bytes: totals.size_bytes,
        files: totals.files,
        tablespaces: tablespaces.into_iter().map(|t| (t.was, t.location)).collect(),
        notes: planner.notes,
        delta,
        ends_with_wal: matches!(request.target, Target::Time(_))
            && chosen.recover_to == RecoveryTarget::Latest,
        recover_to: chosen.recover_to,
    })
}

/// Refuses a place that holds anything, but for a data directory when there is to be a delta.
fn check_place(ports: &Ports<'_>, request: &RestoreRequest) -> Result<TargetState, RestoreError> {
    let occupied = |what: String| RestoreError::Occupied { path: request.into.clone(), what };
    ports.cluster.refuse_within(&request.into)?;
    let state = state_of_directory(ports, &request.into)?;
    match state {
        TargetState::Missing | TargetState::Empty | TargetState::Unfinished => Ok(state),
        TargetState::DataDirectory if request.delta => Ok(state),
        TargetState::DataDirectory => Err(occupied(DATA_DIRECTORY.to_owned())),
        TargetState::Running { pid } => Err(occupied(format!("{RUNNING_SERVER} (process {pid})"))),
        TargetState::Other(what) => Err(occupied(what.to_owned())),
    }
}

/// Looks at the newest system of the cluster first; for what lies before it, at those that it
/// continues, newest first.
fn choose_in_systems<'a>(
    ports: &'a Ports<'a>,
    request: &'a RestoreRequest,
    inventory: &'a Inventory,
) -> Result<(Planner<'a>, Chosen<'a>), RestoreError> {
    let mut systems: Vec<SystemId> = Vec::new();
    for backup in inventory.backups.iter().rev() {
        let system = backup.facts.identity.system_id;
        if !systems.contains(&system) {
            systems.push(system);
        }
    }
    let mut first_error = None;
    for system in systems {
        let mut planner = Planner { ports, request, inventory, system, notes: Vec::new() };
        match planner.choose() {
            Ok(chosen) => return Ok((planner, chosen)),
            // Perhaps in the past that an older system has.
            Err(error @ RestoreError::TooEarly { .. }) => first_error = Some(error),
            Err(error @ RestoreError::NotFound { .. }) => {
                first_error = first_error.or(Some(error));
            }
            Err(RestoreError::TooLate { target, last }) => {
                return Err(match first_error {
                    Some(RestoreError::TooEarly { first, .. }) => {
                        RestoreError::BetweenSystems { target, last, first }
                    }
                    _ => RestoreError::TooLate { target, last },
                });
            }
            Err(error) => return Err(error),
        }
    }
    let none = || RestoreError::NoBackup { cluster: ports.cluster.name().to_string() };
    Err(first_error.unwrap_or_else(none))
}

struct Planner<'a> {
    ports: &'a Ports<'a>,
    request: &'a RestoreRequest,
    inventory: &'a Inventory,
    /// The system whose backups are candidates.
    system: SystemId,
    notes: Vec<String>,
}

/// A backup, and the way from it to the target.
struct Chosen<'a> {
    backup: &'a Backup,
    way: Way<'a>,
    segments: Vec<SegmentName>,
    because: String,
    landing: String,
    landing_lsn: Option<Lsn>,
    last_commit: Option<Timestamp>,
    recover_to: RecoveryTarget,
}

impl<'a> Planner<'a> {
    fn choose(&mut self) -> Result<Chosen<'a>, RestoreError> {
        match &self.request.target {
            Target::Backup(id) => self.reach_backup(*id),
            Target::Latest => self.reach_latest(),
            Target::Time(at) => self.reach_time(*at),
            Target::Lsn(lsn) => self.reach_lsn(*lsn),
            Target::Xid(number) => {
                let words = format!("transaction {number}");
                let xid = *number as u32; // what the WAL and the server's setting know of it
                self.reach_found(&words, RecoveryTarget::Xid(xid), |finder, segments, backup| {
                    match finder.may_meet(backup, *number) {
                        true => finder.transaction(segments, xid),
                        false => Ok(None),
                    }
                })
            }
            Target::Name(name) => {
                let words = format!("restore point `{name}`");
                let target = RecoveryTarget::Name(name.clone());
                self.reach_found(&words, target, |finder, segments, backup| {
                    finder.restore_point(segments, name, backup.facts.start_lsn)
                })
            }
        }
    }

    /// Backups on the way of the chosen timeline, newest first. With `latest`, the way is that of
    /// the newest backup's system and the newest timeline that descends from any backup of it.
    fn candidates(&self) -> Result<Vec<(&'a Backup, Way<'a>)>, RestoreError> {
        let of_system = || {
            let all = self.inventory.backups.iter().rev();
            all.filter(|b| b.facts.identity.system_id == self.system)
        };
        let mut candidates = Vec::new();
        let mut refused = None;
        for backup in of_system() {
            match Way::choose(self.inventory, backup, self.request.timeline) {
                Ok(way) => candidates.push((backup, way)),
                Err(error) => refused = Some(error),
            }
        }
        // One past for all: the newest timeline that any backup leads to, or that of the newest.
        let ends = candidates.iter().map(|(_, way)| way.past.timeline);
        let end = match self.request.timeline {
            TimelineChoice::Latest => ends.max(),
            _ => ends.into_iter().next(),
        };
        candidates.retain(|(_, way)| Some(way.past.timeline) == end);
        match (candidates.is_empty(), refused) {
            (true, Some(error)) => Err(error),
            _ => Ok(candidates),
        }
    }

    fn reach_backup(&self, id: lifeboat_repo::BackupId) -> Result<Chosen<'a>, RestoreError> {
        let backup = self.inventory.backup(id).ok_or_else(|| {
            let cluster = self.ports.cluster.name().to_string();
            // A backup that is there and cannot be read says why.
            match self.ports.cluster.manifest(id) {
                Err(error) => RestoreError::Repo(error),
                Ok(_) => RestoreError::NoBackup { cluster },
            }
        })?;
        let way = Way::choose(self.inventory, backup, TimelineChoice::Current)?;
        let reach = way.reach(backup);
        let needed = needed_for_consistency(backup);
        let segments = cut(backup, reach, Some(needed))?;
        let stop = backup.facts.stop_lsn;
        let recover_to = match self.request.mode {
            RecoveryMode::Standby => RecoveryTarget::Latest,
            RecoveryMode::Copy | RecoveryMode::Successor => {
                let finder = Finder::new(self.ports, backup.facts.identity.system_id);
                finder.end_of_backup(&segments, stop)?
            }
        };
        Ok(Chosen {
            backup,
            way,
            segments,
            because: "it was asked for".to_owned(),
            landing: format!("{stop}, the end of the backup ({})", utc(backup.facts.stopped_at)),
            landing_lsn: Some(stop),
            last_commit: None,
            recover_to,
        })
    }

    fn reach_latest(&self) -> Result<Chosen<'a>, RestoreError> {
        let (backup, way) = self.newest(|_| true).map_err(|error| match error {
            NoneFits::TooEarly(_) => {
                RestoreError::NoBackup { cluster: self.ports.cluster.name().to_string() }
            }
            NoneFits::Failed(error) => error,
        })?;
        let segments = cut(backup, way.reach(backup), None)?;
        let (last_commit, landing_lsn) = self.end_of(backup, &segments)?;
        let end = landing_lsn.map_or_else(|| "the end of the WAL".to_owned(), |l| l.to_string());
        let commit =
            last_commit.map_or_else(String::new, |at| format!(", last commit {}", utc(at)));
        let because = match self.inventory.newest().is_some_and(|b| b.id() == backup.id()) {
            true => "it is the newest".to_owned(),
            false => format!("it is the newest on the way to timeline {}", way.past.timeline),
        };
        Ok(Chosen {
            backup,
            way,
            segments,
            because,
            landing: format!("{end}, the end of the WAL{commit}"),
            landing_lsn,
            last_commit,
            recover_to: RecoveryTarget::Latest,
        })
    }

    fn reach_lsn(&self, lsn: Lsn) -> Result<Chosen<'a>, RestoreError> {
        let words = format!("position {lsn}");
        let (backup, way) = self.newest(|b| b.facts.stop_lsn <= lsn).map_err(|e| e.with(&words))?;
        let size = backup.facts.identity.log_segment;
        let target = lsn.segment(size).0.max(needed_for_consistency(backup).0);
        let reach = way.reach(backup);
        let all = reach.segments.clone();
        let segments = cut(backup, reach, Some(lifeboat_engine::SegmentNo(target)))
            .map_err(|error| self.too_late(error, &words, backup, &all))?;
        let (last_commit, end) = self.end_of(backup, &all)?;
        if end.is_some_and(|end| lsn >= end) {
            let last = end.map_or_else(String::new, |e| e.to_string());
            return Err(RestoreError::TooLate { target: words, last });
        }
        Ok(Chosen {
            backup,
            way,
            segments,
            because: format!("it is the newest that ended before {lsn}"),
            landing: format!("the first record at or after {lsn}"),
            landing_lsn: Some(lsn),
            last_commit,
            recover_to: RecoveryTarget::Lsn(lsn),
        })
    }

    /// A missing segment at the end of all WAL means that the target lies beyond it.
    fn too_late(
        &self,
        error: RestoreError,
        words: &str,
        backup: &Backup,
        segments: &[SegmentName],
    ) -> RestoreError {
        match error {
            RestoreError::Gap { count: 0, .. } => {
                let size = backup.facts.identity.log_segment;
                let end = segments.last().and_then(|s| s.number(size)).map(|n| n.end(size));
                let last = end.map_or_else(|| "nothing".to_owned(), |e| e.to_string());
                RestoreError::TooLate { target: words.to_owned(), last }
            }
            other => other,
        }
    }

    /// Targets that have to be looked for: from the newest backup back.
    fn reach_found(
        &self,
        words: &str,
        recover_to: RecoveryTarget,
        find: impl Fn(
            &Finder<'_>,
            &[SegmentName],
            &Backup,
        ) -> Result<Option<super::target::Found>, RestoreError>,
    ) -> Result<Chosen<'a>, RestoreError> {
        for (backup, way) in self.candidates()? {
            let reach = way.reach(backup);
            let finder = Finder::new(self.ports, backup.facts.identity.system_id);
            let Some(found) = find(&finder, &reach.segments, backup)? else {
                continue;
            };
            if found.lsn <= backup.facts.stop_lsn {
                continue; // an older backup ends before it
            }
            let size = backup.facts.identity.log_segment;
            let last = found.lsn.segment_before(size).max(needed_for_consistency(backup));
            let segments = cut(backup, reach, Some(last))?;
            return Ok(Chosen {
                backup,
                way,
                segments,
                because: format!("it is the newest that ended before {words} at {}", found.lsn),
                landing: format!("{}, the end of {words} ({})", found.lsn, utc(found.at)),
                landing_lsn: Some(found.lsn),
                last_commit: None,
                recover_to,
            });
        }
        Err(RestoreError::NotFound { target: words.to_owned() })
    }

    /// The newest candidate that fits.
    fn newest(&self, fits: impl Fn(&Backup) -> bool) -> Result<(&'a Backup, Way<'a>), NoneFits> {
        let candidates = self.candidates().map_err(NoneFits::Failed)?;
        let first = candidates
            .last()
            .map(|(b, _)| format!("{}, {}, {}", b.id(), b.facts.stop_lsn, utc(b.facts.stopped_at)));
        candidates
            .into_iter()
            .find(|(backup, _)| fits(backup))
            .ok_or_else(|| NoneFits::TooEarly(first.unwrap_or_else(|| "none".to_owned())))
    }

    /// Last commit and end of the last whole record in these segments.
    fn end_of(
        &self,
        backup: &Backup,
        segments: &[SegmentName],
    ) -> Result<(Option<Timestamp>, Option<Lsn>), RestoreError> {
        let finder = Finder::new(self.ports, backup.facts.identity.system_id);
        let mut end = None;
        for segment in segments.iter().rev() {
            end = finder.facts(*segment)?.1.and_then(|f| f.end);
            if end.is_some() {
                break;
            }
        }
        Ok((finder.last_commit(segments)?, end))
    }

    /// Holes and tablespaces elsewhere may make it fit all the same.
    fn note_space(&mut self, chosen: &Chosen<'_>) {
        let size_bytes = chosen.backup.manifest.totals.size_bytes;
        let free = free_bytes(&self.request.into).map(ByteCount);
        if let Some(free) = free.filter(|free| !self.request.delta && *free < size_bytes) {
            self.notes.push(format!(
                "{free} are free at {}, and the data are {size_bytes}: it may not fit",
                self.request.into.display()
            ));
        }
    }

    /// Says what the latest state is not the latest of.
    fn note_forks(&mut self, chosen: &Chosen<'_>) {
        if self.request.target != Target::Latest {
            return;
        }
        let size = chosen.backup.facts.identity.log_segment;
        for left in chosen.way.left(chosen.backup, size) {
            let timeline = left.last.timeline;
            let fork = chosen.way.fork(timeline, size);
            let Some(fork) = fork.filter(|fork| fork.old_last > left.last) else { continue };
            self.notes.push(format!(
                "timeline {timeline} went on to {} after timeline {} left it in {}: none of that \
                 is reached, --timeline {timeline} reaches it",
                fork.old_last, chosen.way.past.timeline, left.last
            ));
        }
        let newer = self.inventory.backups.iter().rev().take_while(|b| b.id() > chosen.backup.id());
        if let Some(newest) = newer.into_iter().next() {
            self.notes.push(format!(
                "backup {} on timeline {} is newer, and timeline {} does not descend from it",
                newest.id(),
                newest.facts.timeline,
                chosen.way.past.timeline
            ));
        }
    }

    fn note_state(&mut self, chosen: &Chosen<'_>) {
        let facts = &chosen.backup.facts;
        let newest = self.inventory.newest().map(|b| &b.facts.identity);
        if let Some(newest) = newest.filter(|n| n.system_id != facts.identity.system_id) {
            self.notes.push(format!(
                "this is the past of system {}, PostgreSQL {}; the newest backup is of system {}, \
                 PostgreSQL {}",
                facts.identity.system_id, facts.identity.major, newest.system_id, newest.major
            ));
        }
        if facts.damaged_pages > 0 {
            self.notes.push(format!(
                "{} pages of this backup were damaged when they were read; `lifeboat show {}` \
                 lists them",
                facts.damaged_pages,
                chosen.backup.id()
            ));
        }
        let lost = facts.lost_pages();
        if lost > 0 {
            self.notes.push(format!(
                "pages of this backup that were lost although nothing in the WAL says so: {lost}; \
                 `lifeboat show {}` lists them, and an earlier backup may have them as they were",
                chosen.backup.id()
            ));
        }
        for unreadable in &self.inventory.unreadable {
            self.notes.push(format!("{} cannot be used: {}", unreadable.object, unreadable.why));
        }
        self.notes.extend(mode_note(self.request.mode).map(str::to_owned));
    }
}

/// No candidate fits.
enum NoneFits {
    TooEarly(String),
    Failed(RestoreError),
}

impl NoneFits {
    fn with(self, target: &str) -> RestoreError {
        match self {
            Self::TooEarly(first) => RestoreError::TooEarly { target: target.to_owned(), first },
            Self::Failed(error) => error,
        }
    }
}

/// A moment in UTC, to the microsecond.
fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.f UTC").to_string()
}
