//! Reads all archived WAL back, and looks for what is missing.

use std::sync::Mutex;

use lifeboat_engine::{LogFile, LogPart, SegmentNo, SystemId};
use lifeboat_repo::{ArchivedLog, BackupId, Fact, TailPlace};
use lifeboat_units::Work;

use super::context::{Context, count, is_damage};
use super::error::VerifyError;
use super::report::FindingKind;
use crate::facts::ArchivedFacts;
use crate::inventory::{Backup, Inventory, Timeline, chain};
use crate::wal::list::{HistoryState, gaps, history};
use crate::wal::tail;

/// Checks the WAL: all of it, or only what makes `backups` consistent.
pub(super) fn check(
    context: &Context<'_>,
    inventory: &Inventory,
    backups: &[&Backup],
    only_needed: bool,
    events: &[Fact],
) -> Result<(), VerifyError> {
    let logs: Vec<&ArchivedLog> = inventory
        .logs
        .iter()
        .filter(|log| !only_needed || backups.iter().any(|b| needs(b, log)))
        .collect();
    let foreign: Mutex<Vec<String>> = Mutex::default();
    context.in_parallel(&logs, |log, _| check_file(context, inventory, log, &foreign))?;
    for name in foreign.into_inner().unwrap_or_else(|e| e.into_inner()) {
        context.note(format!("`{name}` is no file of a log; it is left alone"));
    }
    backups.iter().for_each(|backup| check_needed(context, inventory, backup));
    if !only_needed {
        for timeline in inventory.timelines.values() {
            check_timeline(context, inventory, timeline, events);
        }
    }
    Ok(())
}

/// Whether a backup cannot become consistent without this file.
fn needs(backup: &Backup, log: &ArchivedLog) -> bool {
    let facts = &backup.facts;
    let (first, last) = backup.segments();
    let size = facts.identity.log_segment;
    let Ok(LogFile::Segment(name)) = log.place.name.parse() else { return false };
    log.place.system == facts.identity.system_id.to_string()
        && name.timeline == facts.timeline
        && name.number(size).is_some_and(|n| (first..=last).contains(&n))
}

fn check_file(
    context: &Context<'_>,
    inventory: &Inventory,
    log: &ArchivedLog,
    foreign: &Mutex<Vec<String>>,
) -> Result<(), VerifyError> {
    let place = &log.place;
    let object = format!("wal/{}/{:08X}/{}", place.system, place.timeline, place.name);
    if let Some(piece) = TailPlace::parse(place) {
        return check_piece(context, inventory, log, &piece, &object);
    }
    let (Ok(system), Ok(file)) = (place.system.parse::<SystemId>(), place.name.parse::<LogFile>())
    else {
        foreign.lock().unwrap_or_else(|e| e.into_inner()).push(object);
        return Ok(());
    };
    let what = match context.cluster().read_log(place) {
        Ok((head, content)) => {
            count(&context.count.segments, 1);
            count(&context.count.read_bytes, log.stored_bytes);
            wrong_with(context, system, place.timeline, file, head.facts, &content)
        }
        // Expired since it was listed.
        Err(error) if error.is_not_found() && !context.cluster().has_log(place)? => None,
        Err(error) if is_damage(&error) => Some(chain(&error)),
        Err(error) => return Err(error.into()),
    };
    context.progress().advance(Work::Bytes(log.stored_bytes));
    if let Some(what) = what {
        let broken: Vec<BackupId> =
            inventory.backups.iter().filter(|b| needs(b, log)).map(Backup::id).collect();
        let reach = beyond(inventory, system, file);
        context.findings.add_reach((FindingKind::Wal, &object, &what), broken, reach);
    }
    Ok(())
}

/// Checks a piece of an unfinished segment; the one that reaches furthest checks how all pieces fit
/// together.
fn check_piece(
    context: &Context<'_>,
    inventory: &Inventory,
    log: &ArchivedLog,
    piece: &TailPlace,
    object: &str,
) -> Result<(), VerifyError> {
    let (Ok(system), Ok(file)) = (piece.of.system.parse::<SystemId>(), piece.of.name.parse())
    else {
        context.note(format!("`{object}` is no file of a log; it is left alone"));
        return Ok(());
    };
    let timeline = inventory.timelines.get(&(system, LogFile::timeline(file)));
    let is_last = timeline.is_some_and(|t| t.tails.values().any(|tail| tail.last == *piece));
    let read = match is_last {
        true => tail::read(context.cluster(), &piece.of).map(drop),
        false => context.cluster().read_tail(piece).map(drop),
    };
    let what = match read {
        Ok(()) => {
            count(&context.count.read_bytes, log.stored_bytes);
            None
        }
        // Joined with others, or the segment was finished, since it was listed.
        Err(error) if error.is_not_found() => None,
        Err(error) if is_damage(&error) => Some(chain(&error)),
        Err(error) => return Err(error.into()),
    };
    context.progress().advance(Work::Bytes(log.stored_bytes));
    if let Some(what) = what {
        let reach = beyond(inventory, system, file);
        context.findings.add_reach((FindingKind::Wal, object, &what), [], reach);
    }
    Ok(())
}

/// What is wrong with a file whose seal and digest hold.
fn wrong_with(
    context: &Context<'_>,
    system: SystemId,
    timeline: u32,
    file: LogFile,
    facts: serde_json::Value,
    content: &[u8],
) -> Option<String> {
    if file.timeline().0 != timeline {
        return Some(format!("its name is not one of timeline {timeline}"));
    }
    let facts: ArchivedFacts = match serde_json::from_value(facts) {
        Ok(facts) => facts,
        Err(error) => return Some(format!("what is noted beside it cannot be read: {error}")),
    };
    match file {
        LogFile::Segment(name) | LogFile::Partial(name) => {
            match context.ports.engine.segment_origin(name, LogPart::whole(content)) {
                Err(error) => Some(chain(&error)),
                Ok((found, _)) if found != system => Some(format!("it is of system {found}")),
                Ok((_, size)) if facts.segment.is_some_and(|noted| noted != size) => {
                    Some(format!("it is a segment of {} bytes", size.bytes()))
                }
                Ok(_) => None,
            }
        }
        LogFile::History(id) => {
            context.ports.engine.parse_history(id, content).err().map(|error| chain(&error))
        }
        LogFile::BackupHistory(..) => None,
    }
}

/// Which moments are lost with a file, in words.
fn beyond(inventory: &Inventory, system: SystemId, file: LogFile) -> Option<String> {
    let timeline = inventory.timelines.get(&(system, file.timeline()))?;
    match file {
        LogFile::Segment(name) => {
            let number = name.number(timeline.segment_size)?;
            lost_from(inventory, timeline, number)
        }
        LogFile::History(id) => Some(format!("timeline {id} cannot be followed")),
        LogFile::Partial(_) | LogFile::BackupHistory(..) => None,
    }
}

/// What cannot be reached when recovery stops before a segment; `None` when no backup passes it.
fn lost_from(inventory: &Inventory, timeline: &Timeline, number: SegmentNo) -> Option<String> {
    let passes = |b: &&Backup| {
        let past = timeline.ancestry.as_ref();
        b.facts.identity.system_id == timeline.system
            && b.segments().0 <= number
            && past.is_none_or(|p| p.contains(b.facts.timeline, b.facts.stop_lsn))
    };
    let newest = inventory.backups.iter().filter(passes).map(Backup::id).max()?;
    Some(format!(
        "moments on timeline {} from {} on, from backup {newest} and older ones",
        timeline.timeline,
        number.start(timeline.segment_size)
    ))
}

/// Whether all segments that make a backup consistent are there.
fn check_needed(context: &Context<'_>, inventory: &Inventory, backup: &Backup) {
    let facts = &backup.facts;
    let size = facts.identity.log_segment;
    let (first, last) = backup.segments();
    let there = inventory.timelines.get(&(facts.identity.system_id, facts.timeline));
    let segments = there.map(|t| &t.segments);
    let name = |number| lifeboat_engine::SegmentName::new(facts.timeline, number, size);
    let mut number = first;
    let mut missing = Vec::new();
    // A backup spans as many segments as were written in its course; what is listed is bounded.
    while number <= last && missing.len() < 4 {
        if segments.is_none_or(|s| !s.contains_key(&number)) {
            missing.push(name(number).to_string());
        }
        number = number.next();
    }
    if let [first_missing, ..] = &missing[..] {
        let what = "it is missing; the backup cannot become consistent without it";
        let reach =
            Some(format!("backup {}, missing among others: {}", backup.id(), missing.join(", ")));
        context.findings.add_reach(
            (FindingKind::WalMissing, first_missing, what),
            [backup.id()],
            reach,
        );
    }
}

/// Gaps, and a history file that is missing.
fn check_timeline(
    context: &Context<'_>,
    inventory: &Inventory,
    timeline: &Timeline,
    events: &[Fact],
) {
    for gap in gaps(timeline) {
        let text = format!("{} to {} ({} segments) are missing", gap.first, gap.last, gap.segments);
        let Some(number) = gap.first.number(timeline.segment_size) else { continue };
        let recorded = events.iter().any(|fact| match fact {
            Fact::LogGap { system, timeline: t, first, last, .. } => {
                *system == timeline.system.to_string()
                    && *t == timeline.timeline.0
                    && *first <= gap.first.to_string()
                    && *last >= gap.last.to_string()
            }
            _ => false,
        });
        match lost_from(inventory, timeline, number) {
            Some(reach) if !recorded => context.findings.add_reach(
                (FindingKind::WalMissing, &gap.first.to_string(), &text),
                [],
                Some(reach),
            ),
            Some(_) => context.note(format!("{text}: a gap that was recorded")),
            None => context.note(format!("{text}; no backup needs them")),
        }
    }
    check_seam(context, inventory, timeline);
    if history(inventory, timeline) == HistoryState::Missing && !timeline.segments.is_empty() {
        let object = LogFile::History(timeline.timeline).to_string();
        let what = "it is missing: recovery would end on an older timeline";
        let reach = Some(format!("everything on timeline {}", timeline.timeline));
        context.findings.add_reach((FindingKind::WalMissing, &object, what), [], reach);
    }
}

/// Whether the timeline goes on where its parent was left: what is missing there is a gap of
/// neither of the two.
fn check_seam(context: &Context<'_>, inventory: &Inventory, timeline: &Timeline) {
    let Some(left) = timeline.ancestry.as_ref().and_then(|past| past.ancestors.last()) else {
        return;
    };
    let Some(parent) = inventory.timelines.get(&(timeline.system, left.timeline)) else { return };
    let join = left.left_at.segment(timeline.segment_size);
    let before = parent.segments.range(..join).next_back().map(|(number, _)| number.next());
    let after = timeline.segments.keys().next();
    let (Some(from), Some(to)) = (before, after) else { return };
    let on_parent = (from < join).then(|| (parent.name(from), join.0 - from.0, from));
    let on_child = (join < *to).then(|| (timeline.name(join), to.0 - join.0, join));
    for (first, count, number) in [on_parent, on_child].into_iter().flatten() {
        let Some(reach) = lost_from(inventory, timeline, number) else { continue };
        let text = format!(
            "{count} segments from it on are missing where timeline {} follows {}",
            timeline.timeline, left.timeline
        );
        let object = first.to_string();
        context.findings.add_reach((FindingKind::WalMissing, &object, &text), [], Some(reach));
    }
}
