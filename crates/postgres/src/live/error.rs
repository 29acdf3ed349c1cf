//! What can go wrong between lifeboat and a running server.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::{EngineError, LogNameError, Lsn, SegmentName, SystemId, TimelineId};
use lifeboat_units::{Code, Explain, Retry};
use postgres::error::SqlState;

use super::conninfo::Wanted;
use super::privileges;
use super::replication::WireError;
use super::tls::TlsError;
use crate::control::ControlError;

/// Why a connection failed, by whichever client was used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The SQL client.
    #[error(transparent)]
    Driver(postgres::Error),
    /// The replication client.
    #[error(transparent)]
    Wire(WireError),
}

impl Cause {
    /// The SQLSTATE, when it is the server's own report.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Driver(error) => error.code().map(SqlState::code),
            Self::Wire(error) => error.sqlstate(),
        }
    }
}

/// Trouble with a running server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// No connection.
    #[error("cannot connect to PostgreSQL at {server}")]
    Connect {
        /// The connection string without the password.
        server: String,
        /// Why.
        source: Cause,
    },
    /// The server refused the login.
    #[error("PostgreSQL at {server} refused the login")]
    Login {
        /// The connection string without the password.
        server: String,
        /// Why.
        source: Cause,
    },
    /// No TLS connection.
    #[error("no TLS connection to PostgreSQL at {server}")]
    Tls {
        /// The connection string without the password.
        server: String,
        /// Why.
        source: TlsError,
    },
    /// No server of the kind that is asked for.
    #[error("no {wanted} answers at {server}")]
    NoneWanted {
        /// What was asked for.
        wanted: Wanted,
        /// The connection string without the password.
        server: String,
    },
    /// The session ended while it was needed.
    #[error("the connection to PostgreSQL was lost: {doing}")]
    Lost {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: Cause,
    },
    /// A statement failed.
    #[error("PostgreSQL refused: {doing}")]
    Query {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: Cause,
    },
    /// The role lacks a privilege.
    #[error("role `{role}` may not do this: {doing}")]
    Privilege {
        /// The role of the session.
        role: String,
        /// What was being done.
        doing: &'static str,
        /// The statements that would allow it.
        grants: String,
    },
    /// A version outside 14 to 18.
    #[error("PostgreSQL {version} is not supported: lifeboat knows 14 to 18")]
    Version {
        /// In the server's words.
        version: String,
    },
    /// The server is a standby.
    #[error("the server is a standby, and this needs a primary")]
    Standby,
    /// A standby became a primary while it was backed up.
    #[error("the standby was promoted while the backup ran")]
    Promoted,
    /// A standby has not replayed what its primary wrote.
    #[error(
        "the standby has replayed up to {replayed}, its primary was at {wanted} {} s ago{}{}",
        waited.as_secs(),
        if *paused { "; its replay is paused" } else { "" },
        delay.as_ref().map(|delay| format!("; recovery_min_apply_delay is {delay}")).unwrap_or_default()
    )]
    Behind {
        /// End of replay.
        replayed: Lsn,
        /// Where the primary was.
        wanted: Lsn,
        /// How long it was waited for.
        waited: Duration,
        /// Whether somebody has paused replay.
        paused: bool,
        /// `recovery_min_apply_delay`, when it is set.
        delay: Option<String>,
    },
    /// What is said to be the primary is not what the standby follows.
    #[error(
        "the standby replays system {}, timeline {}; the primary is system {}, timeline {}",
        standby.0, standby.1, primary.0, primary.1
    )]
    OtherPrimary {
        /// System and timeline that the primary writes.
        primary: (SystemId, TimelineId),
        /// System and timeline that the standby replays.
        standby: (SystemId, TimelineId),
    },
    /// A file of the data directory cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The control file is damaged or unknown.
    #[error("the control file `{}` cannot be used", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ControlError,
    },
    /// The directory belongs to another cluster.
    #[error(
        "`{}` is not the data directory of this server: its system identifier is {on_disk}, the server's is {server}",
        path.display()
    )]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// What its control file says.
        on_disk: SystemId,
        /// What the server says.
        server: SystemId,
    },
    /// The directory is a copy that does not follow the server.
    #[error(
        "`{}` is a copy of this server's data directory, not the directory itself: its last checkpoint is {on_disk}, older than the backup's start {start}",
        path.display()
    )]
    StaleDirectory {
        /// The directory.
        path: PathBuf,
        /// Checkpoint in its control file.
        on_disk: Lsn,
        /// Where the backup started.
        start: Lsn,
    },
    /// The server went on to another timeline.
    #[error("the server changed from timeline {before} to {now} while the backup ran")]
    TimelineChanged {
        /// At the start.
        before: TimelineId,
        /// Now.
        now: TimelineId,
    },
    /// Another server process answers than the one in backup mode.
    #[error("another server process answers than the one that started the backup")]
    SessionSwapped,
    /// Calls in the wrong order.
    #[error("{0}")]
    Order(&'static str),
    /// The current segment stays the same.
    #[error("WAL segment {segment} was not finished although the server was asked to switch")]
    NoSwitch {
        /// The segment.
        segment: SegmentName,
    },
    /// An answer that cannot be understood.
    #[error("PostgreSQL gave an unexpected answer: {doing}")]
    Answer {
        /// What was asked.
        doing: &'static str,
    },
    /// A command that this server does not know.
    #[error("PostgreSQL {major} cannot do this, {needed} and later can: {doing}")]
    TooOld {
        /// What was to be done.
        doing: &'static str,
        /// Major version of the server.
        major: u32,
        /// First major version that can.
        needed: u32,
    },
    /// A name that no replication slot can have.
    #[error("`{name}` cannot be the name of a replication slot")]
    SlotName {
        /// As given.
        name: String,
    },
    /// An answer that should be a position or a segment name.
    #[error("PostgreSQL gave an unexpected WAL position")]
    Position {
        /// Why it is none.
        source: LogNameError,
    },
}

impl LiveError {
    /// Sorts a failed statement: session lost, or refused.
    pub(crate) fn statement(doing: &'static str, source: postgres::Error) -> Self {
        Self::sorted(doing, Cause::Driver(source))
    }

    /// The same for a replication command.
    pub(crate) fn wire(doing: &'static str, source: WireError) -> Self {
        Self::sorted(doing, Cause::Wire(source))
    }

    fn sorted(doing: &'static str, source: Cause) -> Self {
        let ending = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        match source.sqlstate() {
            Some(code) if ending.iter().all(|e| e.code() != code) => Self::Query { doing, source },
            _ => Self::Lost { doing, source },
        }
    }

    /// A role without the attribute that replication needs.
    pub(crate) fn replication_privilege(role: &str, doing: &'static str) -> Self {
        let grants = privileges::replication_grant(role);
        Self::Privilege { role: role.to_owned(), doing, grants }
    }

    /// The server's SQLSTATE, where it reported an error: 42704 for a missing slot, 55006 for one
    /// in use, 58P01 for WAL that was removed.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Connect { source, .. }
            | Self::Login { source, .. }
            | Self::Lost { source, .. }
            | Self::Query { source, .. } => source.sqlstate(),
            _ => None,
        }
    }
}

impl From<LiveError> for EngineError {
    fn from(error: LiveError) -> Self {
        Self::new(error)
    }
}

/// What to do about a server that runs and refuses a connection, by the SQLSTATE that it gives.
fn refusal_help(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "3D000" => "the server runs and has no such database: which does dbname=… name?",
        "53300" => {
            "all connections of the server are taken: raise max_connections, or for replication \
             max_wal_senders, and restart it"
        }
        "57P03" => "the server starts or stops: wait until it takes connections",
        _ => return None,
    })
}

impl Explain for LiveError {
    fn code(&self) -> Code {
        match self {
            Self::Connect { .. } => Code("LB-PG-020"),
            Self::Login { .. } => Code("LB-PG-021"),
            Self::Lost { .. } => Code("LB-PG-022"),
            Self::Query { .. } => Code("LB-PG-023"),
            Self::Privilege { .. } => Code("LB-PG-024"),
            Self::Version { .. } => Code("LB-PG-025"),
            Self::Standby => Code("LB-PG-026"),
            Self::Read { .. } => Code("LB-PG-027"),
            Self::Control { .. } => Code("LB-PG-028"),
            Self::ForeignDirectory { .. } => Code("LB-PG-029"),
            Self::StaleDirectory { .. } => Code("LB-PG-030"),
            Self::TimelineChanged { .. } => Code("LB-PG-031"),
            Self::SessionSwapped => Code("LB-PG-032"),
            Self::Order(_) => Code("LB-PG-033"),
            Self::NoSwitch { .. } => Code("LB-PG-034"),
            Self::Answer { .. } | Self::Position { .. } => Code("LB-PG-035"),
            Self::NoneWanted { .. } => Code("LB-PG-036"),
            Self::Promoted => Code("LB-PG-040"),
            Self::Behind { .. } => Code("LB-PG-041"),
            Self::OtherPrimary { .. } => Code("LB-PG-042"),
            Self::TooOld { .. } => Code("LB-PG-037"),
            Self::SlotName { .. } => Code("LB-PG-038"),
            Self::Tls { .. } => Code("LB-PG-039"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Connect { .. }
            | Self::NoneWanted { .. }
            | Self::Lost { .. }
            | Self::NoSwitch { .. } => Retry::Later,
            Self::Control { source, .. } => source.retry(),
            Self::Tls { source, .. } if source.may_pass() => Retry::Later,
            Self::TimelineChanged { .. } | Self::Promoted | Self::Behind { .. } => Retry::Later,
            Self::Login { .. }
            | Self::Query { .. }
            | Self::Privilege { .. }
            | Self::Version { .. }
            | Self::Standby
            | Self::OtherPrimary { .. }
            | Self::Read { .. }
            | Self::ForeignDirectory { .. }
            | Self::StaleDirectory { .. }
            | Self::SessionSwapped
            | Self::Order(_)
            | Self::Answer { .. }
            | Self::TooOld { .. }
            | Self::SlotName { .. }
            | Self::Tls { .. }
            | Self::Position { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Connect { .. } if let Some(help) = self.sqlstate().and_then(refusal_help) => help,
            Self::Connect { .. } => {
                "is the server running, and are host (a socket's directory) and port right?"
            }
            Self::NoneWanted { .. } => {
                "target_session_attrs or --from asks for it: is it among the hosts, and running? (a standby is backed up with --from standby)"
            }
            Self::Login { .. } => {
                "the server's pg_hba.conf (for replication: a line for the database `replication`) and the password (PGPASSWORD, password file of mode 0600) decide; with `peer` only the system user of the role's name may be it"
            }
            Self::Lost { .. } => {
                "the server's log says why the session ended; a backup must be started anew"
            }
            Self::Privilege { grants, .. } => {
                return Some(format!("a superuser can run:\n{grants}"));
            }
            Self::Standby => {
                "connect to the primary; `lifeboat backup --from standby` takes a backup here"
            }
            Self::Promoted => "take the backup again: of a primary now",
            Self::Behind { paused: true, .. } => "SELECT pg_wal_replay_resume() on the standby",
            Self::Behind { .. } => {
                "does it receive WAL? A standby that is behind on purpose needs a longer \
                 backup.archive-timeout, or the backup is taken from another server"
            }
            Self::OtherPrimary { .. } => {
                "`postgres.primary` (or the connection's other host) must be what the standby \
                 follows; after a failover, the standby must follow the new primary first"
            }
            Self::Read { .. } => {
                "run lifeboat as the owner of the data directory, on the server's own machine"
            }
            Self::Control { source, .. } => return source.help(),
            Self::Tls { source, .. } => return source.help().map(str::to_owned),
            Self::ForeignDirectory { .. } | Self::StaleDirectory { .. } => {
                "do the connection and the data directory name the same server, on this machine?"
            }
            Self::TimelineChanged { .. } => "take the backup again",
            Self::SessionSwapped => {
                "connect to the server itself: a pooler that shares sessions cannot hold backup mode"
            }
            Self::SlotName { .. } => {
                "lower-case letters, digits and underscores, at most 63 of them"
            }
            Self::NoSwitch { .. } => "try again; if it stays, the server's log says more",
            Self::Query { .. }
            | Self::Version { .. }
            | Self::Order(_)
            | Self::Answer { .. }
            | Self::TooOld { .. }
            | Self::Position { .. } => return None,
        };
        Some(text.to_owned())
    }
}
