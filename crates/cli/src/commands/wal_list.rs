//! `lifeboat wal list`

use lifeboat_jobs::wal::{self, GivenUp, HistoryState, TimelineWal, WalReport, Window};

use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report, counted};

/// List archived WAL: ranges, gaps, and the moments that can be reached
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  lifeboat wal list")]
pub(crate) struct Args {}

pub(crate) fn run(app: &App, _args: &Args) -> Result<Outcome, CliError> {
    let opened = app.open(Access::Write)?;
    app.ui.emit(&wal::list(&opened.ports(app))?)?;
    Ok(Outcome::Done)
}

impl Report for WalReport {
    fn text(&self, page: &mut Page) {
        if self.systems.is_empty() {
            page.line("no WAL is archived yet");
        }
        for system in &self.systems {
            for timeline in &system.timelines {
                page.line(format!("system {}, timeline {}", system.system, timeline.timeline));
                page.table(&["from", "to", "segments", "stored"], &[2, 3], ranges(timeline));
                notes(page, timeline);
                page.line("");
            }
        }
        given_up(page, &self.given_up);
        windows(page, &self.windows);
        for object in &self.unreadable {
            let mark = page.cross();
            page.line(format!("{mark} {} cannot be read: {}", object.object, object.why));
        }
    }
}

fn ranges(timeline: &TimelineWal) -> Vec<Vec<String>> {
    let row = |range: &lifeboat_jobs::inventory::SegmentRange| {
        let stored = lifeboat_units::ByteCount(range.stored_bytes);
        vec![
            range.first.to_string(),
            range.last.to_string(),
            range.segments.to_string(),
            stored.to_string(),
        ]
    };
    timeline.ranges.iter().map(row).collect()
}

fn notes(page: &mut Page, timeline: &TimelineWal) {
    let (cross, note) = (page.cross(), page.note());
    for gap in &timeline.gaps {
        page.line(format!(
            "{cross} gap: {} to {} ({})",
            gap.first,
            gap.last,
            counted(gap.segments, "segment")
        ));
    }
    for partial in &timeline.partials {
        page.line(format!("{note} {partial}: the timeline was left there"));
    }
    for tail in &timeline.tails {
        page.line(format!(
            "{note} {} is there up to {} (not finished; {}, {})",
            tail.segment,
            tail.to,
            counted(tail.pieces, "piece"),
            tail.stored_bytes
        ));
    }
    if timeline.history == HistoryState::Missing {
        page.line(format!(
            "{cross} its history file is missing: recovery would end on an older timeline"
        ));
    }
    if let Some(at) = timeline.last_commit {
        let at = page.time(at);
        page.line(format!("last commit in the newest segment: {at}"));
    }
}

/// What was given up, one line each: an alarm until there is a backup after it.
pub(crate) fn given_up(page: &mut Page, gaps: &[GivenUp]) {
    for gap in gaps {
        let (mark, at) = (page.cross(), page.time(gap.at));
        let mark = if gap.backup_needed { mark } else { page.note() };
        let next = if gap.backup_needed { "take a backup now" } else { "a backup was taken since" };
        page.line(format!(
            "{mark} given up: {} to {} at {at} ({}); {next}",
            gap.first, gap.last, gap.reason
        ));
    }
}

/// What can be reached, one line each.
pub(crate) fn windows(page: &mut Page, windows: &[Window]) {
    if windows.is_empty() {
        let cross = page.cross();
        page.line(format!("{cross} nothing can be reached yet: take a backup"));
    }
    for window in windows {
        let from = page.time(window.from_at);
        let to = match window.to_at {
            Some(at) => format!("{} ({})", page.time(at), window.to),
            None => window.to.to_string(),
        };
        let tick = page.tick();
        page.line(format!(
            "{tick} any moment from {from} to {to}, timeline {}, {}",
            window.timeline,
            counted(window.backups, "backup")
        ));
    }
}
