//! `lifeboat wal pusher`

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lifeboat_jobs::wal::PushSettings;
use lifeboat_jobs::wal::push::ack::FileStamp;
use lifeboat_jobs::wal::push::note::ErrorNote;
use lifeboat_jobs::wal::push::pusher::{Pusher, PusherSettings, Work};
use lifeboat_jobs::wal::push::spool::Spool;
use lifeboat_jobs::wal::push::watch::Watch;
use lifeboat_repo::Cluster;
use lifeboat_units::{Clock, Timestamp};

use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::files;

/// The pusher ends when it had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(30);

/// Push WAL in the background
///
/// Started by `wal push`, in the data directory, with the spool's lock as its standard input.
/// Started by hand it takes the lock itself, and ends at once when another pusher has it.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

pub(crate) fn run(app: &App, _args: &Args) -> Result<Outcome, CliError> {
    // Signals for the server's processes are not for this one. By hand it may lead its group.
    let _ = rustix::process::setsid();
    let directory = Path::new(".");
    let spool = Spool::of(directory);
    let Some(lock) = lock(&spool)? else { return Ok(Outcome::Done) };
    let settings = app.settings()?;
    let errand = app.push_errand()?;
    spool.sign(&lock, errand).map_err(files::failed("write to", spool.directory()))?;
    let engine = app.engine()?;
    let (global, cancel, clock) = (app.global.clone(), app.cancel.clone(), app.clock);
    let connect = || -> Result<Cluster, ErrorNote> {
        let app = App::new(global.clone(), cancel.clone());
        app.open(Access::Write)
            .map(|opened| opened.cluster)
            .map_err(|error| ErrorNote::of(error.0.as_ref()))
    };
    let watch = Watch::of(&engine, directory);
    let pusher = Pusher {
        directory,
        engine: &engine,
        clock: &app.clock,
        cancel: &app.cancel,
        connect: &connect,
        wait: &|at_most| watch.wait(at_most),
        log: &|line| say(clock.now(), line),
        settings: PusherSettings {
            push: PushSettings { compression: settings.compression },
            jobs: settings.push_jobs,
            idle: IDLE,
            target: errand.target,
            backlog_max: settings.backlog_max,
        },
    };
    let config = settings.file.clone();
    let began_with = stamp(&config);
    let wanted = || stamp(&config) == began_with && is_installed();
    let backup = || start_backup(app);
    Work::new(pusher)
        .run(&lock, &wanted, &backup)
        .map_err(files::failed("work in", spool.directory()))?;
    Ok(Outcome::Done)
}

/// Starts this program again to take a backup; what it says goes to the pusher's log.
fn start_backup(app: &App) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(file) = app.settings().ok().filter(|s| s.found).map(|s| &s.file) {
        command.arg("--config").arg(file);
    }
    app.global.set.iter().for_each(|set| {
        command.arg("--set").arg(set);
    });
    command.args(["--quiet", "backup"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// The lock that came as standard input, or one that is free; `None` when another pusher lives.
fn lock(spool: &Spool) -> Result<Option<File>, CliError> {
    let given = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    if let Some(given) = given.ok().filter(|given| spool.is_lock(given)) {
        return Ok(Some(given));
    }
    spool.create().map_err(files::failed("make", spool.directory()))?;
    Ok(spool.try_lock().map_err(files::failed("lock", spool.directory()))?)
}

fn stamp(path: &Path) -> Option<FileStamp> {
    fs::metadata(path).ok().map(|data| FileStamp::of(&data))
}

/// Whether the program's file is still the one that runs: after an upgrade another one pushes.
fn is_installed() -> bool {
    fs::read_link("/proc/self/exe").is_ok_and(|path| path.exists())
}

fn say(at: Timestamp, line: &str) {
    let _ = writeln!(std::io::stderr(), "{} {line}", at.strftime("%Y-%m-%dT%H:%M:%SZ"));
}
