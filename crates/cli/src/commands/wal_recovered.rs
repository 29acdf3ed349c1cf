//! `lifeboat wal recovered`

use std::path::Path;

use lifeboat_jobs::wal::{self, NotedReading};

use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;

/// Remove what only recovery needed
///
/// For `recovery_end_command`, which a restore sets: removes the unlocked keys and the notes
/// that it left in the data directory, and the note in the repository that kept what recovery
/// reads.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

pub(crate) fn run(app: &App, _args: &Args) -> Result<Outcome, CliError> {
    let directory = Path::new(".");
    // Needs the keys. A note that stays lapses: no reason to hold the server up.
    if let Some(noted) = NotedReading::read(directory)
        && let Err(error) = end_reading(app, &noted)
    {
        let note = noted.note;
        app.ui.warn(&format!("{note} stays in the repository until it lapses: {}", error.0));
    }
    wal::finish_recovery(directory)?;
    Ok(Outcome::Done)
}

fn end_reading(app: &App, noted: &NotedReading) -> Result<(), CliError> {
    Ok(app.open(Access::Recovery)?.cluster.end_reading(&noted.note)?)
}
