//! `lifeboat expire`

use std::time::Duration;

use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::retention::{self, Plan, Policy, Report as Removal};
use lifeboat_units::{ByteCount, Clock};
use serde::Serialize;

use crate::app::{Access, App};
use crate::config::settings::{count, duration};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report, counted};

/// Remove backups that no rule keeps, and what nobody refers to
///
/// A backup stays when any rule keeps it. The last good one always stays, and so does the WAL
/// that the kept backups need. Without a rule nothing is removed but waste.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  lifeboat expire --dry-run\n  \
    lifeboat expire --keep-backups 14 --keep-window 30d")]
pub(crate) struct Args {
    /// Print the plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Keep at least so many backups [default: retention.keep-backups]
    #[arg(long, value_name = "N", value_parser = count)]
    keep_backups: Option<u32>,
    /// Keep any moment of so long a past reachable [default: retention.keep-window]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    keep_window: Option<Duration>,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    app.as_owner_of_repository()?;
    let settings = app.settings()?;
    let opened = app.open(Access::Write)?;
    let ports = opened.ports(app);
    let policy = Policy {
        keep_count: args.keep_backups.or(settings.keep_backups),
        keep_window: args.keep_window.or(settings.keep_window),
        ..Policy::default()
    };
    let mut inventory = Inventory::load(ports.cluster, ports.engine)?;
    inventory.note_readings(ports.cluster, app.clock.now())?;
    let mut done = Done { plan: retention::plan(&inventory, &policy, app.clock.now()), done: None };
    if args.dry_run {
        app.ui.emit(&done)?;
        return Ok(Outcome::Done);
    }
    if !app.ui.json {
        app.ui.emit(&done)?; // the plan comes first
    }
    done.done = Some(retention::apply(&ports, &done.plan)?);
    drop(opened);
    if app.ui.json {
        app.ui.emit(&done)?;
    } else if let Some(removal) = &done.done {
        app.ui.emit(&Removed(removal))?;
    }
    Ok(Outcome::Done)
}

/// A plan, and what became of it.
#[derive(Debug, Serialize)]
struct Done {
    plan: Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<Removal>,
}

impl Report for Done {
    fn text(&self, page: &mut Page) {
        let plan = &self.plan;
        let keep = plan.keep.iter().map(|kept| {
            let why: Vec<&str> = kept.reasons.iter().map(|reason| reason.words()).collect();
            vec!["keep".to_owned(), kept.backup.to_string(), why.join("; ")]
        });
        let remove = plan.remove.iter().map(|removed| {
            vec!["remove".to_owned(), removed.backup.to_string(), removed.reason.words().to_owned()]
        });
        let mut rows: Vec<Vec<String>> = keep.chain(remove).collect();
        rows.sort_by(|a, b| a[1].cmp(&b[1]));
        if rows.is_empty() {
            page.line("no backup yet");
        } else {
            page.table(&["", "backup", "why"], &[], rows);
        }
        for logs in &plan.logs {
            page.line(format!(
                "remove {} of timeline {} before {} ({})",
                counted(logs.files, "WAL file"),
                logs.timeline,
                logs.before,
                logs.stored_bytes
            ));
        }
        for text in &plan.notes {
            let note = page.note();
            page.line(format!("{note} {text}"));
        }
    }
}

/// What was removed.
#[derive(Serialize)]
#[serde(transparent)]
struct Removed<'a>(&'a Removal);

impl Report for Removed<'_> {
    fn text(&self, page: &mut Page) {
        let removal = self.0;
        let freed: ByteCount = removal.packs_bytes + removal.logs_bytes;
        let tick = page.tick();
        page.line(format!(
            "{tick} removed {}, {} and {}: {freed} freed",
            counted(removal.removed.len() as u64, "backup"),
            counted(removal.packs, "pack"),
            counted(removal.logs, "WAL file")
        ));
        for backup in &removal.skipped {
            let note = page.note();
            page.line(format!(
                "{note} {backup} was left alone: something changed since the plan was made"
            ));
        }
        for text in &removal.notes {
            let note = page.note();
            page.line(format!("{note} {text}"));
        }
    }
}
