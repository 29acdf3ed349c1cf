//! `lifeboat check`

use serde::Serialize;

use super::check_points;
use crate::app::App;
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report};

/// Prove now that backups and WAL archiving work
///
/// Looks at the connection, the role's privileges, the server's settings, clocks and disk space,
/// and then at the whole loop: finishes a WAL segment and waits until it is in the repository. Of
/// a server that is reached only through the network, looks at what it needs to send backups.
/// Ends with 3 when a point fails.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  lifeboat check")]
pub(crate) struct Args {}

pub(crate) fn run(app: &App, _args: &Args) -> Result<Outcome, CliError> {
    app.settings()?.url()?; // without a configuration there is nothing to check
    let checked = Checked { points: check_points::all(app) };
    app.ui.emit(&checked)?;
    let failed = checked.points.iter().any(|point| point.state == State::Failed);
    if app.cancel.is_cancelled() {
        return Err(crate::error::Trouble::Interrupted.into());
    }
    Ok(if failed { Outcome::Findings } else { Outcome::Done })
}

/// How a point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// As it should be.
    Good,
    /// Works, but somebody should know.
    Note,
    /// Backups, archiving or recovery would not work, or not be safe.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Point {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do.
    pub help: Option<String>,
}

impl Point {
    /// A point that is as it should be.
    pub fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Good, found: found.into(), help: None }
    }

    /// A point that somebody should know of.
    pub fn note(name: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name, state: State::Note, found: found.into(), help: Some(help.into()) }
    }

    /// A point that must be repaired.
    pub fn failed(name: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { name, state: State::Failed, found: found.into(), help: Some(help.into()) }
    }

    /// A point that failed with an error.
    pub fn error(name: &'static str, error: impl Into<CliError>) -> Self {
        let error = error.into().0;
        let found = lifeboat_jobs::inventory::chain(error.as_ref());
        Self { name, state: State::Failed, found, help: error.help() }
    }
}

/// All that was looked at.
#[derive(Debug, Serialize)]
struct Checked {
    points: Vec<Point>,
}

impl Report for Checked {
    fn text(&self, page: &mut Page) {
        let width = self.points.iter().map(|point| point.name.len()).max().unwrap_or(0);
        let indent = |text: &str| text.trim_end().replace('\n', &format!("\n{:1$}", "", width + 4));
        for point in &self.points {
            let mark = match point.state {
                State::Good => page.tick(),
                State::Note => page.note(),
                State::Failed => page.cross(),
            };
            page.line(format!("{mark} {:width$}  {}", point.name, indent(&point.found)));
            if let Some(help) = &point.help {
                page.line(format!("{:1$}{2}", "", width + 4, indent(help)));
            }
        }
    }
}
