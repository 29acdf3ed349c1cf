//! `restore --start`: starts what was restored, and compares where it landed with the plan.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::{Engine, Landing, Lsn, RecoveryMode, StartRequest};
use lifeboat_jobs::facts::BackupFacts;
use lifeboat_jobs::restore::{RestorePlan, RestoreRequest, Target};
use lifeboat_postgres::live::cluster::{Account, Binaries, major_of};
use lifeboat_postgres::live::conninfo::Endpoint;
use lifeboat_repo::BackupId;
use serde::Serialize;

use crate::app::{self, App, Opened};
use crate::error::{CliError, Trouble};
use crate::files;
use crate::server_commands::shell_word;
use crate::ui::{Page, Report};

/// How to start what was restored.
#[derive(clap::Args, Debug)]
pub(crate) struct StartArgs {
    /// Start the server, wait until it has recovered, and say where it landed
    ///
    /// A copy keeps to itself: no TCP, a socket in a directory of its own.
    #[arg(long)]
    pub start: bool,
    /// Port of the started server [default: 5432, which also names its socket]
    #[arg(long, value_name = "PORT", requires = "start")]
    port: Option<u16>,
    /// Directory of its socket [default: a new one; with --take-over that of postgres.conninfo]
    #[arg(long, value_name = "DIR", requires = "start")]
    socket_directory: Option<PathBuf>,
}

/// No progress for so long is a failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// Looks for the server's programs before anything is written.
pub(crate) fn refuse_without_binaries(
    app: &App,
    opened: &Opened,
    backup: BackupId,
) -> Result<(), CliError> {
    let facts = BackupFacts::of(&opened.cluster.manifest(backup)?)?;
    let places = app::places(app.settings()?.binaries.clone());
    Ok(Binaries::find(facts.identity.major, &places).map(drop)?)
}

/// Starts the server and waits.
pub(crate) fn run(
    app: &App,
    opened: &Opened,
    args: &StartArgs,
    request: &RestoreRequest,
    plan: &RestorePlan,
) -> Result<Landing, CliError> {
    let copy = request.mode == RecoveryMode::Copy;
    let origin = app.conninfo().ok().filter(|_| !copy).and_then(|c| c.hosts.into_iter().next());
    let origin_socket = origin.as_ref().and_then(|host| match &host.endpoint {
        Endpoint::Socket(directory) => Some(directory.clone()),
        Endpoint::Tcp(..) => None,
    });
    let socket_directory = match args.socket_directory.clone().or(origin_socket) {
        Some(directory) => directory,
        None => own_directory(&request.into)?,
    };
    let start = StartRequest {
        directory: request.into.clone(),
        major: major_of(&request.into)?,
        socket_directory,
        port: args.port.or(origin.map(|host| host.port)).unwrap_or(5432),
        isolated: copy,
        wait_for_promotion: request.mode != RecoveryMode::Standby,
        binaries: app.settings()?.binaries.clone(),
        patience: PATIENCE,
    };
    let landing = opened.engine.start_and_recover(&start, &opened.progress)?;
    match disagreement(plan, &landing, request.mode) {
        Some(problem) => Err(Trouble::Landing(problem).into()),
        None => Ok(landing),
    }
}

/// A directory for the socket that only the server's owner can enter.
fn own_directory(data: &Path) -> Result<PathBuf, CliError> {
    let parent = std::env::temp_dir();
    let directory = tempfile::Builder::new()
        .prefix("lifeboat-")
        .tempdir_in(&parent)
        .map_err(files::failed("make a directory in", &parent))?
        .keep();
    files::give(&directory, Account::owner_of(data)?)?;
    Ok(directory)
}

/// What of the landing contradicts the plan.
fn disagreement(plan: &RestorePlan, landing: &Landing, mode: RecoveryMode) -> Option<String> {
    if mode == RecoveryMode::Standby {
        return None; // it goes on
    }
    if !landing.promoted {
        return Some("the server runs, but was not promoted".to_owned());
    }
    let short = |wanted: Lsn| {
        (landing.lsn < wanted)
            .then(|| format!("recovery ended at {}, before {wanted}", landing.lsn))
    };
    match &plan.target {
        Target::Lsn(wanted) => short(*wanted),
        Target::Time(wanted) => landing
            .last_commit
            .filter(|last| last > wanted)
            .map(|last| format!("recovery went on to a commit at {last}, later than {wanted}")),
        Target::Latest => match (plan.last_commit, landing.last_commit) {
            (Some(planned), Some(landed)) if landed < planned => Some(format!(
                "the last commit is of {landed}, but the archived WAL reaches {planned}"
            )),
            _ => None,
        },
        Target::Backup(_) | Target::Xid(_) | Target::Name(_) => None, // the server fails otherwise
    }
}

/// Where the server landed.
#[derive(Serialize)]
pub(crate) struct Landed<'a> {
    pub landing: &'a Landing,
    pub plan: &'a RestorePlan,
}

impl Report for Landed<'_> {
    fn text(&self, page: &mut Page) {
        let landing = self.landing;
        let tick = page.tick();
        let state = if landing.promoted { "recovered and promoted" } else { "recovering" };
        let last = match landing.last_commit {
            Some(at) => format!(", last commit {}", page.time(at)),
            None => String::new(),
        };
        page.line(format!(
            "{tick} {state}: at {} on timeline {}{last}",
            landing.lsn, landing.timeline
        ));
        let into = shell_word(&self.plan.into.display().to_string());
        page.line(format!("  psql {}", shell_word(&landing.conninfo)));
        page.line(format!("  pg_ctl -D {into} stop"));
    }
}
