//! `lifeboat wal push`

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lifeboat_jobs::wal::push::ack::Kind;
use lifeboat_jobs::wal::push::client::{Answer, Call};
use lifeboat_jobs::wal::push::spool::Spool;
use lifeboat_jobs::wal::{self, PushReport, PushSettings, Pushed};
use lifeboat_units::ByteCount;

use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report};

/// Archive one finished WAL segment
///
/// For `archive_command`. Succeeds only when the file is durable in the repository, or was there
/// before with the same content. Another content under the same name is refused, and so is the
/// WAL of another system.
///
/// The first call starts a background process that pushes what waits in pg_wal in parallel; later
/// calls find their file acknowledged. It ends when there is nothing to do. With `wal.push =
/// "sync"` each call pushes its file by itself.
///
/// Every failure ends with 1 to 125, so that PostgreSQL counts it and tries again.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example, in postgresql.conf:\n  \
    archive_command = '/usr/bin/lifeboat --config /etc/lifeboat/lifeboat.toml wal push %p'")]
pub(crate) struct Args {
    /// The file, as PostgreSQL gives it in %p: relative to the data directory
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    app.as_owner_of_repository()?;
    if app.settings()?.push_in_background && in_background(app, &args.path)? {
        return Ok(Outcome::Done);
    }
    let opened = app.open(Access::Write)?;
    let settings = PushSettings { compression: app.settings()?.compression };
    let report = wal::push(&opened.ports(app), &settings, &args.path)?;
    if app.ui.json {
        app.ui.emit(&report)?; // otherwise silent: the server's log is not ours to fill
    }
    Ok(Outcome::Done)
}

/// Has the background pusher do it; false when it cannot.
fn in_background(app: &App, path: &Path) -> Result<bool, CliError> {
    let engine = app.engine()?;
    let directory = wal::data_directory(&engine, path);
    let call = Call {
        engine: &engine,
        clock: &app.clock,
        cancel: &app.cancel,
        directory: &directory,
        path,
        errand: app.push_errand()?,
        timeout: app.settings()?.push_timeout,
    };
    let ack = match call.run(&mut |lock, spool| start_pusher(app, &directory, lock, spool))? {
        Answer::Acknowledged(ack) => ack,
        Answer::NotAnnounced => return Ok(false),
        Answer::Unusable(why) => {
            app.ui.warn(&format!("{why}; this file is pushed in the foreground"));
            return Ok(false);
        }
    };
    if ack.kind == Kind::GivenUp {
        app.ui.warn(&format!(
            "{} was given up: pg_wal was over wal.backlog-max. A gap is recorded, a new backup is \
             needed",
            ack.file
        ));
    }
    if app.ui.json {
        app.ui.emit(&PushReport {
            file: ack.file,
            outcome: if ack.kind == Kind::GivenUp { Pushed::GivenUp } else { Pushed::Stored },
            size_bytes: ByteCount(ack.stamp.size_bytes),
            stored_bytes: ByteCount(0),
        })?;
    }
    Ok(true)
}

/// Starts this program again as the background pusher: in the data directory, with the lock as
/// its standard input and the spool's log for what it has to say.
fn start_pusher(app: &App, directory: &Path, lock: File, spool: &Spool) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(file) = app.settings().ok().filter(|s| s.found).map(|s| &s.file) {
        command.arg("--config").arg(file);
    }
    app.global.set.iter().for_each(|set| {
        command.arg("--set").arg(set);
    });
    command.args(["wal", "pusher"]).current_dir(directory);
    command.stdin(lock).stdout(Stdio::null());
    command.stderr(spool.open_log().map_or_else(|_| Stdio::null(), Stdio::from));
    // It outlives this process, and is nobody's child then.
    let _ = command.spawn()?;
    Ok(())
}

impl Report for PushReport {
    fn text(&self, page: &mut Page) {
        let how = match self.outcome {
            Pushed::Stored => "archived",
            Pushed::AlreadyThere => "is archived already",
            Pushed::GivenUp => "was given up",
        };
        page.line(format!("{} {how}", self.file));
    }
}
