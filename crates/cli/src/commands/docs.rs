//! `lifeboat docs`

use std::path::PathBuf;

use clap::CommandFactory;

use crate::app::App;
use crate::args::Cli;
use crate::error::CliError;
use crate::exit::Outcome;
use crate::files;
use crate::reference;

/// Write the reference pages and man pages, generated from the program itself
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  lifeboat docs --into docs/reference")]
pub(crate) struct Args {
    /// Where to write them
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let mut cli = Cli::command().disable_help_flag(false);
    cli.build();
    for (name, text) in reference::pages(&cli) {
        files::write(&args.into.join(&name), &text, 0o644)?;
        app.ui.say(&name)?;
    }
    Ok(Outcome::Done)
}
