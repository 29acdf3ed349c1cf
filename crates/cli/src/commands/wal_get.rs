//! `lifeboat wal get`

use std::path::{Path, PathBuf};

use lifeboat_jobs::wal::{self, GetOutcome, RecoveryState};

use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report};

/// Fetch one WAL file for recovery
///
/// For `restore_command`. Ends with 1 only when the file is certainly not there and recovery can
/// be complete without it: PostgreSQL takes that for the end of the archive. Whatever could not
/// be found out ends with 126 or more, and PostgreSQL stops instead of promoting too early.
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

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    // Servers run their commands in the data directory, where a restore left what it needs.
    let state = RecoveryState::read(Path::new("."))?;
    let opened = match app.open(Access::Recovery) {
        Ok(opened) => opened,
        // A failure would end a standby; told "not there", it asks again.
        Err(error) if state.as_ref().is_some_and(|state| state.standby) => {
            app.ui.warn(&format!("{}; the standby keeps asking", error.0));
            return Ok(Outcome::NotThere);
        }
        Err(error) => return Err(error),
    };
    let outcome = wal::get(&opened.ports(app), &args.name, &args.destination, state.as_ref())?;
    if app.ui.json {
        app.ui.emit(&outcome)?;
    }
    Ok(match outcome {
        GetOutcome::Fetched { .. } => Outcome::Done,
        GetOutcome::NotThere { .. } => Outcome::NotThere,
    })
}

impl Report for GetOutcome {
    fn text(&self, page: &mut Page) {
        page.line(match self {
            Self::Fetched { file, size_bytes } => format!("{file} fetched ({size_bytes})"),
            Self::NotThere { file } => format!("{file} is not there"),
        });
    }
}
