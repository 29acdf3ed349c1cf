//! The lifeboat command.
//!
//! | module | what it holds |
//! |---|---|
//! | [`args`] | the command line as a whole |
//! | [`commands`] | one file per command |
//! | [`config`] | `lifeboat.toml` |
//! | [`fast`] | `wal push` of what is acknowledged, before all else |
//! | [`app`] | what commands share: settings, repository, keys, engine |
//! | [`reference`] | the reference pages, generated |
//! | [`ui`], [`progress`] | output |
//! | [`moment`] | times as people write them |
//! | [`secrets`] | where the passphrase comes from |
//! | [`server_commands`] | what PostgreSQL is told to run |
//! | `mathematics` | one shared library less to load |
//! | [`files`] | small files that commands write |
//! | [`error`], [`exit`] | errors, and how they are told |

mod app;
mod args;
mod commands;
mod config;
mod error;
mod exit;
mod fast;
mod files;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod mathematics;
mod moment;
mod origin;
mod progress;
mod reference;
mod secrets;
mod server_commands;
mod ui;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use lifeboat_units::Cancel;

use crate::app::App;
use crate::args::Cli;
use crate::exit::{Ending, Outcome, guarded};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if fast::is_acknowledged(&arguments) {
        return ExitCode::SUCCESS;
    }
    let cancel = Cancel::default();
    stop_on_signals(&cancel);
    ExitCode::from(guarded(&arguments, &cancel, || run(&arguments, &cancel)))
}

fn run(arguments: &[OsString], cancel: &Cancel) -> Result<Outcome, Ending> {
    let cli = Cli::try_parse_from(arguments).map_err(Ending::Arguments)?;
    let app = App::new(cli.global, cancel.clone());
    let json = app.ui.json;
    cli.command.run(&app).map_err(|error| Ending::Error { error, json })
}

/// The first signal asks the job to stop at the next safe point, a second one stops at once.
fn stop_on_signals(cancel: &Cancel) {
    let cancel = cancel.clone();
    // Without a handler a signal ends the process, which harms nothing either.
    let _ = ctrlc::set_handler(move || {
        if cancel.is_cancelled() {
            std::process::exit(130);
        }
        cancel.cancel();
    });
}
