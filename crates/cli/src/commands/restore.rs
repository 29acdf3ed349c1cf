//! `lifeboat restore`

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::{Landing, Lsn, RecoveryMode, TimelineId};
use lifeboat_jobs::facts::BackupFacts;
use lifeboat_jobs::restore::{
    self, RestorePlan, RestoreReport, RestoreRequest, Target, TimelineChoice,
};
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;
use lifeboat_repo::BackupId;
use lifeboat_units::{Clock, Timestamp};
use serde::Serialize;

use super::restore_start::{self, StartArgs};
use super::show::backup_id;
use crate::app::{Access, App, Opened};
use crate::config::settings::threads;
use crate::error::{CliError, usage};
use crate::exit::Outcome;
use crate::moment;
use crate::server_commands::shell_word;
use crate::ui::{Page, Report, counted, seconds};

/// Restore the cluster to any moment, into an empty directory, or with --delta over an old one
///
/// The plan comes first: which backup, which WAL, where it will land. A target that cannot be
/// reached is refused before anything is written. What is left is a directory on which
/// `pg_ctl start` recovers to the target (inclusive) and promotes; --start does that.
///
/// With --delta the directory may be a data directory of the same cluster, its server stopped:
/// pages that are right stay, the others are written, and what does not belong is removed.
///
/// The restored server is a copy that archives nothing, unless --take-over makes it the
/// successor, which archives on under the same name.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    lifeboat restore --into /srv/restored --to-time '2026-11-22 12:15' --dry-run\n  \
    lifeboat restore --into /srv/restored --to-time 'yesterday 12:15' --start\n  \
    lifeboat restore --delta --into /var/lib/postgresql/18/main --latest --take-over\n  \
    lifeboat restore --into /var/lib/postgresql/18/main --latest --take-over")]
pub(crate) struct Args {
    /// The data directory to be made: missing or empty, unless --delta
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// Write only what differs from the data directory that is there
    #[arg(long)]
    delta: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// Which timeline to follow: latest, current (the backup's own) or a number
    #[arg(long, value_name = "TIMELINE", default_value = "latest", value_parser = timeline)]
    timeline: TimelineChoice,
    /// Put a tablespace elsewhere; may be given more than once
    #[arg(long, value_name = "OLD=NEW", value_parser = mapping)]
    tablespace_map: Vec<(PathBuf, PathBuf)>,
    /// Threads that read and write
    #[arg(long, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
    /// Print the plan and stop
    #[arg(long)]
    dry_run: bool,
    /// Make the successor: it archives on as the same cluster
    #[arg(long)]
    take_over: bool,
    /// Make a standby: it keeps recovering
    #[arg(long, conflicts_with = "take_over")]
    standby: bool,
    #[command(flatten)]
    start: StartArgs,
}

/// So long the server that is to be replaced may take to answer; it should not.
const LIVING_PATIENCE: Duration = Duration::from_secs(3);

/// What is to be said where the server that is to be replaced still runs as a primary.
fn living_primary(
    app: &App,
    opened: &Opened,
    backup: BackupId,
) -> Result<Option<String>, CliError> {
    let Ok(mut conninfo) = app.conninfo() else { return Ok(None) };
    conninfo.connect_timeout = conninfo.connect_timeout.min(LIVING_PATIENCE);
    let facts = Session::open(&conninfo).and_then(|mut session| ServerFacts::read(&mut session));
    let Ok(living) = facts else { return Ok(None) }; // as it should be
    let ours = BackupFacts::of(&opened.cluster.manifest(backup)?)?.identity.system_id;
    let runs = living.system_id == ours && !living.in_recovery;
    Ok(runs.then(|| {
        format!(
            "the primary at {conninfo} still runs: stop it before its successor starts, or both \
             archive under one name, and `--latest` follows the successor only"
        )
    }))
}

/// Which moment; at most one.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
struct TargetArgs {
    /// The last commit at or before this moment, such as '2026-11-22 12:15', '20 minutes ago'
    #[arg(long, value_name = "T")]
    to_time: Option<String>,
    /// This WAL position, such as 0/3000148
    #[arg(long, value_name = "L")]
    to_lsn: Option<Lsn>,
    /// The end of this transaction, as pg_current_xact_id() or xmin tell its number
    #[arg(long, value_name = "X")]
    to_xid: Option<u64>,
    /// A named restore point
    #[arg(long, value_name = "N")]
    to_name: Option<String>,
    /// The consistent end of this backup
    #[arg(long, value_name = "ID", value_parser = backup_id)]
    to_backup: Option<BackupId>,
    /// The end of the archived WAL (the default)
    #[arg(long)]
    latest: bool,
}

fn timeline(text: &str) -> Result<TimelineChoice, String> {
    match text {
        "latest" => Ok(TimelineChoice::Latest),
        "current" => Ok(TimelineChoice::Current),
        _ => match text.parse() {
            Ok(number @ 1..) => Ok(TimelineChoice::Number(TimelineId(number))),
            _ => Err("it is latest, current or a number from 1 on".to_owned()),
        },
    }
}

fn mapping(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
            Ok((old.into(), new.into()))
        }
        _ => Err("it is OLD=NEW, both absolute paths".to_owned()),
    }
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let request = request(app, args)?;
    let opened = app.open(Access::Read)?;
    let ports = opened.ports(app);
    let mut done = Restored { plan: restore::plan(&ports, &request)?, report: None, landing: None };
    if request.mode == RecoveryMode::Successor {
        done.plan.notes.extend(living_primary(app, &opened, done.plan.backup)?);
    }
    if args.dry_run || !app.ui.json {
        app.ui.emit(&done)?; // the plan comes first
    }
    if args.dry_run {
        return Ok(Outcome::Done);
    }
    if args.start.start {
        let (backup, mode) = (done.plan.backup, request.mode);
        restore_start::refuse_what_cannot_start(app, &opened, &args.start, backup, mode)?;
    }
    let report = restore::apply(&ports, &done.plan, &request)?;
    if !app.ui.json {
        app.ui.emit(&Written { report: &report, into: &request.into, starts: args.start.start })?;
    }
    if args.start.start {
        let landing = restore_start::run(app, &opened, &args.start, &request, &done.plan)?;
        if !app.ui.json {
            app.ui.emit(&restore_start::Landed { landing: &landing, plan: &done.plan })?;
        }
        done.landing = Some(landing);
    }
    done.report = Some(report);
    if app.ui.json {
        app.ui.emit(&done)?;
    }
    Ok(Outcome::Done)
}

fn request(app: &App, args: &Args) -> Result<RestoreRequest, CliError> {
    let settings = app.settings()?;
    let commands = app.server_commands()?;
    let mode = match (args.take_over, args.standby) {
        (true, _) => RecoveryMode::Successor,
        (_, true) => RecoveryMode::Standby,
        _ => RecoveryMode::Copy,
    };
    let into = std::path::absolute(&args.into)
        .map_err(|error| usage(format!("--into: {error}"), "name a directory"))?;
    Ok(RestoreRequest {
        into,
        delta: args.delta,
        target: target(app, &args.target)?,
        timeline: args.timeline,
        tablespaces: args.tablespace_map.clone(),
        jobs: args.jobs.unwrap_or(settings.restore_jobs),
        mode,
        restore_command: commands.restore(),
        recovery_end_command: Some(commands.recovered()),
        archive_command: args.take_over.then(|| commands.archive()),
        owner_instead_of_root: app.owner_of_repository()?.map(|owner| (owner.uid, owner.gid)),
    })
}

fn target(app: &App, args: &TargetArgs) -> Result<Target, CliError> {
    let TargetArgs { to_time, to_lsn, to_xid, to_name, to_backup, latest: _ } = args;
    let time = |text: &String| -> Result<Timestamp, CliError> {
        let zone = app.ui.zone().clone();
        let at = moment::parse(text, &app.clock.now().to_zoned(zone))?;
        app.ui.say(&format!("moment    {}", moment::repeated(at, app.ui.zone())))?;
        Ok(at)
    };
    Ok(match (to_time, to_lsn, to_xid, to_name, to_backup) {
        (Some(text), ..) => Target::Time(time(text)?),
        (_, Some(lsn), ..) => Target::Lsn(*lsn),
        (_, _, Some(xid), ..) => Target::Xid(*xid),
        (_, _, _, Some(name), _) => Target::Name(name.clone()),
        (.., Some(id)) => Target::Backup(*id),
        _ => Target::Latest,
    })
}

/// A plan and what became of it.
#[derive(Debug, Serialize)]
struct Restored {
    plan: RestorePlan,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<RestoreReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    landing: Option<Landing>,
}

impl Report for Restored {
    fn text(&self, page: &mut Page) {
        let plan = &self.plan;
        let wal = |range: &lifeboat_jobs::inventory::SegmentRange| {
            format!("{} to {} ({})", range.first, range.last, counted(range.segments, "segment"))
        };
        let timelines: Vec<String> = plan.timelines.iter().map(ToString::to_string).collect();
        page.pairs(&[
            ("backup  ", format!("{}: {}", plan.backup, plan.because)),
            ("into", plan.into.display().to_string()),
            ("size", format!("{} in {} files", plan.size_bytes, plan.files)),
            ("WAL", plan.wal.iter().map(wal).collect::<Vec<_>>().join("\n")),
            ("timeline", timelines.join(" → ")),
            ("landing", plan.landing.clone()),
        ]);
        for (old, new) in &plan.tablespaces {
            page.line(format!("tablespace {} → {}", old.display(), new.display()));
        }
        if let Some(delta) = &plan.delta {
            super::restore_delta::render(delta, page);
        }
        for text in &plan.notes {
            let note = page.note();
            page.line(format!("{note} {text}"));
        }
    }
}

/// What was written, and how to go on.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    report: &'a RestoreReport,
    into: &'a PathBuf,
    starts: bool,
}

impl Report for Written<'_> {
    fn text(&self, page: &mut Page) {
        let tick = page.tick();
        page.line(format!(
            "{tick} restored {} in {}",
            self.report.written_bytes,
            seconds(self.report.seconds)
        ));
        if let Some(delta) = &self.report.delta {
            page.line(super::restore_delta::done(self.report, delta));
        }
        if !self.starts {
            page.line("Start it, and it recovers to the target:");
            let into = shell_word(&self.into.display().to_string());
            page.line(format!("  pg_ctl -D {into} start"));
        }
    }
}
