//! `lifeboat wal get`

use std::path::{Path, PathBuf};

use lifeboat_engine::{LogFile, SegmentName};
use lifeboat_jobs::wal::{self, GetOutcome, RecoveryState};
use lifeboat_postgres::engine::PostgresEngine;

use super::wal_prefetch;
use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report};

/// Fetch one WAL file for recovery
///
/// For `restore_command`. Ends with 1 only when the file is certainly not there and recovery can
/// be complete without it: PostgreSQL takes that for the end of the archive. Whatever could not
/// be found out ends with 126 or more, and PostgreSQL stops instead of promoting too early. A
/// standby is never stopped: it is told 1, and asks again.
///
/// While a server recovers, the segments that follow are fetched in the background and kept in
/// `lifeboat.prefetch` in its data directory until it asks for them; `wal.prefetch` says how many.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example, in postgresql.conf:\n  \
    restore_command = '/usr/bin/lifeboat --config /etc/lifeboat/lifeboat.toml wal get %f %p'")]
pub(crate) struct Args {
    /// Name of the file, as PostgreSQL gives it in %f
    #[arg(value_name = "NAME")]
    name: String,
    /// Where to put it, as PostgreSQL gives it in %p
    #[arg(value_name = "DEST")]
    destination: PathBuf,
}

/// Servers run their commands in the data directory, where a restore left what it needs.
const DATA_DIRECTORY: &str = ".";

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let directory = Path::new(DATA_DIRECTORY);
    let engine = PostgresEngine::default();
    let (state, unreadable) = match RecoveryState::read(directory) {
        Ok(state) => (state, None),
        Err(error) => (None, Some(error)),
    };
    let keeps_asking = wal::keeps_asking(&engine, directory, state.as_ref());
    let fetched = match unreadable {
        None => fetch(app, args, &engine, state.as_ref()),
        Some(error) => Err(error.into()),
    };
    let outcome = match fetched {
        // A failure would end a standby; told "not there", it asks again.
        Err(error) if keeps_asking => {
            app.ui.warn(&format!("{}; the standby keeps asking", error.0));
            return Ok(Outcome::NotThere);
        }
        fetched => fetched?,
    };
    if app.ui.json {
        app.ui.emit(&outcome)?;
    }
    Ok(match outcome {
        GetOutcome::Fetched { .. } => Outcome::Done,
        GetOutcome::NotThere { .. } => Outcome::NotThere,
    })
}

fn fetch(
    app: &App,
    args: &Args,
    engine: &PostgresEngine,
    state: Option<&RecoveryState>,
) -> Result<GetOutcome, CliError> {
    let directory = Path::new(DATA_DIRECTORY);
    let settings = app.settings()?;
    let prefetches = settings.wal_prefetch > 0;
    if prefetches {
        let origin = wal_prefetch::origin(settings)?;
        let file = (args.name.as_str(), args.destination.as_path());
        if let Some(outcome) = wal::get_ahead(engine, directory, &origin, file, state) {
            return Ok(outcome);
        }
    }
    let opened = app.open(Access::Recovery)?;
    let ports = opened.ports(app);
    let outcome = wal::get(&ports, &args.name, &args.destination, state)?;
    if let (GetOutcome::Fetched { .. }, Ok(file)) = (&outcome, args.name.parse()) {
        wal::read_on(&ports, directory, state, file);
    }
    if prefetches
        && let GetOutcome::Fetched { .. } = &outcome
        && let Some(segment) = segment(&args.name)
        && wal::worth_prefetching(&ports, directory, segment, state)
    {
        wal_prefetch::start(app, segment);
    }
    Ok(outcome)
}

fn segment(name: &str) -> Option<SegmentName> {
    match name.parse() {
        Ok(LogFile::Segment(segment)) => Some(segment),
        _ => None,
    }
}

impl Report for GetOutcome {
    fn text(&self, page: &mut Page) {
        page.line(match self {
            Self::Fetched { file, size_bytes } => format!("{file} fetched ({size_bytes})"),
            Self::NotThere { file } => format!("{file} is not there"),
        });
    }
}
