//! `lifeboat completions`

use clap::CommandFactory;
use clap_complete::Shell;

use crate::app::App;
use crate::args::Cli;
use crate::error::CliError;
use crate::exit::Outcome;

/// Print completions for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  \
    lifeboat completions bash > /etc/bash_completion.d/lifeboat")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lifeboat", &mut text);
    app.ui.print(&String::from_utf8_lossy(&text))?;
    Ok(Outcome::Done)
}
