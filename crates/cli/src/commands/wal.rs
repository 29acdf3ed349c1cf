//! `lifeboat wal`

use crate::app::App;
use crate::commands::{
    wal_get, wal_list, wal_prefetch, wal_push, wal_pusher, wal_receive, wal_recovered,
};
use crate::error::CliError;
use crate::exit::Outcome;

/// Archive WAL, receive it, fetch it, list it
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: what of the WAL is in the repository:\n  lifeboat wal list")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Push(wal_push::Args),
    Get(wal_get::Args),
    Receive(wal_receive::Args),
    List(wal_list::Args),
    #[command(hide = true)]
    Prefetch(wal_prefetch::Args),
    #[command(hide = true)]
    Pusher(wal_pusher::Args),
    #[command(hide = true)]
    Recovered(wal_recovered::Args),
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    match &args.command {
        Command::Push(args) => wal_push::run(app, args),
        Command::Get(args) => wal_get::run(app, args),
        Command::Receive(args) => wal_receive::run(app, args),
        Command::List(args) => wal_list::run(app, args),
        Command::Prefetch(args) => wal_prefetch::run(app, args),
        Command::Pusher(args) => wal_pusher::run(app, args),
        Command::Recovered(args) => wal_recovered::run(app, args),
    }
}
