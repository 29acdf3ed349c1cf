//! `lifeboat wal prefetch`: what `wal get` starts in the background.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lifeboat_engine::SegmentName;
use lifeboat_jobs::wal::{self, Prefetch, PrefetchClaim};

use crate::app::{Access, App};
use crate::config::{ConfigError, Settings};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::files;

/// Recovery that took nothing for so long has stopped, waits for new segments, or replays at a
/// pace at which fetching ahead brings nothing.
const IDLE: Duration = Duration::from_secs(60);

/// Fetch ahead of a recovering server
///
/// Started by `wal get` in the data directory, in a session of its own. Ends by itself when
/// recovery is over, stops, or asks for nothing new for a minute.
///
/// Never fails: in a container the server may be process 1 and inherit this one, and takes
/// whatever ends with another code than 0 or 1 for a crash of its own.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The segment that the server was given just now
    #[arg(value_name = "NAME")]
    served: SegmentName,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    if let Err(error) = fetch(app, args) {
        app.ui.warn(&error.0.to_string());
    }
    Ok(Outcome::Done)
}

fn fetch(app: &App, args: &Args) -> Result<(), CliError> {
    // Whoever leads a group already, as when started by hand, goes on where it is.
    let _ = rustix::process::setsid();
    let directory = Path::new(".");
    let failed = || files::failed("prefetch into", &directory.join(wal::PREFETCH_DIRECTORY));
    // Before the keys are unlocked: where another one works, nothing is to be done.
    let Some(claim) = PrefetchClaim::take(directory).map_err(failed())? else {
        return Ok(());
    };
    let settings = app.settings()?;
    let origin = origin(settings)?;
    let opened = app.open(Access::Recovery)?;
    let prefetch =
        Prefetch { segments: settings.wal_prefetch, jobs: settings.wal_prefetch_jobs, idle: IDLE };
    wal::prefetch(&opened.ports(app), &prefetch, &claim, args.served, &origin).map_err(failed())?;
    Ok(())
}

/// What must be the same for a fetcher and whoever asks it.
pub(crate) fn origin(settings: &Settings) -> Result<String, ConfigError> {
    Ok(format!("{} {}", settings.url()?, settings.cluster.as_str()))
}

/// Starts it. That it cannot be started is no failure: every file is fetched when it is asked
/// for.
pub(crate) fn start(app: &App, served: SegmentName) {
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = Command::new(program);
    if let Some(config) = &app.global.config {
        command.arg("--config").arg(config);
    }
    for set in &app.global.set {
        command.args(["--set", set]);
    }
    command.args(["wal", "prefetch", &served.to_string()]);
    // Nothing of the server's may be kept open: its log's collector waits for all who write to it.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = command.spawn();
}
