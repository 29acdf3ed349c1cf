//! `lifeboat wal recovered`

use std::path::Path;

use lifeboat_jobs::wal;

use crate::app::App;
use crate::error::CliError;
use crate::exit::Outcome;

/// Remove what only recovery needed
///
/// For `recovery_end_command`, which a restore sets: removes the unlocked keys and the notes
/// that it left in the data directory.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

pub(crate) fn run(_app: &App, _args: &Args) -> Result<Outcome, CliError> {
    wal::finish_recovery(Path::new("."))?;
    Ok(Outcome::Done)
}
