//! The command line as a whole.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::app::App;
use crate::commands;
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::Color;

/// Keeps PostgreSQL alive: backs it up, archives its WAL, brings any moment back
///
/// Each backup is complete by itself and costs only what changed. Everything is encrypted, and
/// checked when it is read.
#[derive(Parser, Debug)]
#[command(name = "lifeboat", version, propagate_version = false, max_term_width = 100)]
#[command(
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "Examples:\n  \
    lifeboat demo                                      see it all on a throw-away server\n  \
    lifeboat init --pg 'host=/run/postgresql user=postgres' --repo file:///srv/lifeboat\n  \
    lifeboat backup\n  \
    lifeboat restore --into /srv/restored --to-time '20 minutes ago' --dry-run")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that all commands have.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "For all commands")]
pub(crate) struct Global {
    /// The configuration [default: LIFEBOAT_CONFIG, ./lifeboat.toml, /etc/lifeboat/lifeboat.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a key of the configuration, such as repository.compression=zstd:3
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only what was asked for, and no progress
    #[arg(long, global = true)]
    pub quiet: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub color: Color,
}

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident => $module:ident,)*) => {
        /// What to do.
        #[derive(Subcommand, Debug)]
        pub(crate) enum Command {
            $($(#[$attribute])* $variant(commands::$module::Args),)*
        }

        impl Command {
            /// Does it.
            pub fn run(&self, app: &App) -> Result<Outcome, CliError> {
                match self {
                    $(Self::$variant(args) => commands::$module::run(app, args),)*
                }
            }
        }
    };
}

commands! {
    Init => init,
    Check => check,
    Backup => backup,
    List => list,
    Show => show,
    Wal => wal,
    Restore => restore,
    Verify => verify,
    Expire => expire,
    Key => key,
    Demo => demo,
    Completions => completions,
    #[command(hide = true)]
    Docs => docs,
}
