//! `lifeboat wal push`

use std::path::PathBuf;

use lifeboat_jobs::wal::{self, PushReport, PushSettings, Pushed};

use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report};

/// Archive one finished WAL segment
///
/// For `archive_command`. Succeeds only when the file is durable in the repository, or was there
/// before with the same content. Another content under the same name is refused, and so is the
/// WAL of another system.
///
/// Every failure ends with 1 to 125, so that PostgreSQL counts it and tries again.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example, in postgresql.conf:\n  \
    archive_command = '/usr/bin/lifeboat --config /etc/lifeboat/lifeboat.toml wal push %p'")]
pub(crate) struct Args {
    /// The file, as PostgreSQL gives it in %p: relative to the data directory
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    app.as_owner_of_repository()?;
    let opened = app.open(Access::Write)?;
    let settings = PushSettings { compression: app.settings()?.compression };
    let report = wal::push(&opened.ports(app), &settings, &args.path)?;
    if app.ui.json {
        app.ui.emit(&report)?; // otherwise silent: the server's log is not ours to fill
    }
    Ok(Outcome::Done)
}

impl Report for PushReport {
    fn text(&self, page: &mut Page) {
        let how = match self.outcome {
            Pushed::Stored => "archived",
            Pushed::AlreadyThere => "is archived already",
        };
        page.line(format!("{} {how}", self.file));
    }
}
