//! `restore --start`: starts what was restored, and compares where it landed with the plan.

use std::os::unix::net::UnixStream;
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
use crate::error::{CliError, Trouble, usage};
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
    #[arg(long, value_name = "PORT", requires = "start", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Directory of its socket [default: a new one; with --take-over that of postgres.conninfo]
    #[arg(long, value_name = "DIR", requires = "start")]
    socket_directory: Option<PathBuf>,
}

/// Longest path of a socket: `sun_path` of `sockaddr_un` in unix(7) has 108 bytes, a zero among them.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// No progress for so long is a failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the server is to listen.
struct Place {
    /// Directory of its socket; `None` for one of its own, yet to be made.
    socket_directory: Option<PathBuf>,
    port: u16,
}

fn place(app: &App, args: &StartArgs, mode: RecoveryMode) -> Place {
    let copy = mode == RecoveryMode::Copy;
    let origin = app.conninfo().ok().filter(|_| !copy).and_then(|c| c.hosts.into_iter().next());
    let origin_socket = origin.as_ref().and_then(|host| match &host.endpoint {
        Endpoint::Socket(directory) => Some(directory.clone()),
        Endpoint::Tcp(..) => None,
    });
    let named = args.socket_directory.as_ref();
    let named =
        named.map(|directory| std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
    Place {
        socket_directory: named.or(origin_socket),
        port: args.port.or(origin.map(|host| host.port)).unwrap_or(5432),
    }
}

/// What would keep the server from starting, as far as it is seen before anything is written: its
/// programs are missing, or another one listens in its place.
pub(crate) fn refuse_what_cannot_start(
    app: &App,
    opened: &Opened,
    args: &StartArgs,
    backup: BackupId,
    mode: RecoveryMode,
) -> Result<(), CliError> {
    let facts = BackupFacts::of(&opened.cluster.manifest(backup)?)?;
    let places = app::places(app.settings()?.binaries.clone());
    Binaries::find(facts.identity.major, &places)?;
    let Place { socket_directory, port } = place(app, args, mode);
    let Some(directory) = socket_directory else { return Ok(()) };
    // `UNIXSOCK_PATH` in PostgreSQL `src/include/libpq/pqcomm.h`.
    let socket = directory.join(format!(".s.PGSQL.{port}"));
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        return Err(usage(
            format!(
                "the socket's path `{}` has {length} bytes, the system takes {SOCKET_PATH_BYTES_MAX}",
                socket.display()
            ),
            "name a directory with a shorter path: --socket-directory DIR",
        )
        .into());
    }
    match UnixStream::connect(&socket) {
        Err(_) => Ok(()),
        Ok(_) => Err(usage(
            format!("a server already listens on `{}`", socket.display()),
            "stop it, or start this one elsewhere: --port PORT, --socket-directory DIR",
        )
        .into()),
    }
}

/// Starts the server and waits.
pub(crate) fn run(
    app: &App,
    opened: &Opened,
    args: &StartArgs,
    request: &RestoreRequest,
    plan: &RestorePlan,
) -> Result<Landing, CliError> {
    let Place { socket_directory, port } = place(app, args, request.mode);
    let start = StartRequest {
        directory: request.into.clone(),
        major: major_of(&request.into)?,
        socket_directory: match socket_directory {
            Some(directory) => directory,
            None => own_directory(&request.into)?,
        },
        port,
        isolated: request.mode == RecoveryMode::Copy,
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
