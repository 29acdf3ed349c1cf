//! Backup mode of a running server, and reading its data directory.

mod control;
mod here;
mod origin;
pub(in crate::live) mod segment;
pub(in crate::live) mod standby;

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::{
    BackupStart, BackupStop, ClusterIdentity, GeneratedFile, Lsn, SegmentName, SegmentSwitch,
    SystemId, TimelineId,
};
use lifeboat_units::Cancel;

pub use control::read_control;

use super::conninfo::Conninfo;
use super::error::LiveError;
use super::privileges::{Privileges, grants};
use super::server::{lsn, position};
use super::session::Session;
use crate::control::ControlFile;
use standby::{Replayed, Standby};

/// How a backup treats its server.
#[derive(Debug, Clone)]
pub struct OriginOptions {
    /// The data directory, when it is not at the place that the server names (a container's
    /// volume); the server's own `data_directory` otherwise.
    pub data_directory: Option<PathBuf>,
    /// Do the checkpoint at the start at once instead of spreading it over minutes.
    pub fast_checkpoint: bool,
    /// Whether a standby will do.
    pub standby: bool,
    /// How a standby's primary can be reached, when it is neither among the hosts of the
    /// connection nor where the standby receives WAL from.
    pub primary: Option<Conninfo>,
    /// How long a standby may take to replay what its primary has written.
    pub patience: Duration,
    /// Ends waiting.
    pub cancel: Cancel,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self {
            data_directory: None,
            fast_checkpoint: true,
            standby: false,
            primary: None,
            patience: Duration::from_secs(60),
            cancel: Cancel::default(),
        }
    }
}

/// A running server, primary or standby, whose data directory is on this machine.
///
/// Backup mode belongs to the session that started it: the session is kept open throughout,
/// and when it ends for whatever reason the server leaves backup mode by itself.
pub struct PostgresOrigin {
    conninfo: Conninfo,
    session: Option<Session>,
    directory: PathBuf,
    fast_checkpoint: bool,
    standby: Option<Standby>,
    running: Option<Running>,
}

/// Backup mode, while it lasts.
struct Running {
    backend: i32,
    timeline: TimelineId,
    start: Lsn,
    /// Where the backup of a standby is consistent: known when its control file is copied.
    consistent: Option<Lsn>,
}

impl PostgresOrigin {
    /// Connects. Refuses standbys unless they will do, unknown versions, and roles that may not
    /// see where the data directory is.
    pub fn connect(conninfo: Conninfo, options: OriginOptions) -> Result<Self, LiveError> {
        let mut session = Session::open(&conninfo)?;
        let row = session.ask(
            "reading where the data directory is",
            "SELECT pg_is_in_recovery(), \
             (SELECT setting FROM pg_settings WHERE name = 'data_directory')",
            &[],
        )?;
        let in_recovery: bool = row.get(0);
        if in_recovery && !options.standby {
            return Err(LiveError::Standby);
        }
        let directory = match (options.data_directory.clone(), row.get::<_, Option<String>>(1)) {
            (Some(directory), _) => directory,
            (None, Some(directory)) => directory.into(),
            (None, None) => {
                return Err(LiveError::Privilege {
                    role: session.role().to_owned(),
                    doing: "reading where the data directory is",
                    grants: grants(session.major(), session.role()),
                });
            }
        };
        let standby = in_recovery.then(|| {
            let OriginOptions { primary, patience, cancel, .. } = options;
            Standby::new(&mut session, &conninfo, primary, patience, cancel)
        });
        Ok(Self {
            conninfo,
            session: Some(session),
            directory,
            fast_checkpoint: options.fast_checkpoint,
            standby,
            running: None,
        })
    }

    /// The session, for further questions. Opened again if it was given up.
    pub fn session(&mut self) -> Result<&mut Session, LiveError> {
        if self.session.is_none() {
            if self.running.is_some() {
                return Err(LiveError::Order("the session of this backup is gone"));
            }
            self.session = Some(Session::open(&self.conninfo)?);
        }
        self.session.as_mut().ok_or(LiveError::Order("there is no session"))
    }

    /// Whether the server is a standby.
    pub fn is_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// Why a standby's primary cannot be asked to finish segments; `None` when it can, and for a
    /// primary.
    pub fn primary_trouble(&self) -> Option<&str> {
        self.standby.as_ref().and_then(Standby::trouble)
    }

    fn read_identity(&mut self) -> Result<ClusterIdentity, LiveError> {
        let directory = self.directory.clone();
        let (_, control) = read_control(&directory)?;
        let row = self.session()?.ask(
            "reading the system identifier",
            "SELECT system_identifier FROM pg_control_system()",
            &[],
        )?;
        let server = SystemId(row.get::<_, i64>(0) as u64);
        if control.system_id != server {
            let on_disk = control.system_id;
            return Err(LiveError::ForeignDirectory { path: directory, on_disk, server });
        }
        Ok(control.identity())
    }

    /// Proves that the directory follows the server: its last checkpoint is the backup's own, or
    /// a later one; of a standby also that replay has got as far in it as the server says. Gives
    /// the control file.
    fn prove_directory(&mut self, start: Lsn) -> Result<(Vec<u8>, ControlFile), LiveError> {
        let minimum = match self.standby {
            Some(_) => Some(standby::servers_minimum(self.session()?)?),
            None => None,
        };
        let (bytes, control) = read_control(&self.directory)?;
        let behind = minimum.is_some_and(|minimum| control.min_recovery < minimum);
        if control.checkpoint < start || behind {
            let (path, on_disk) = (self.directory.clone(), control.checkpoint);
            return Err(LiveError::StaleDirectory { path, on_disk, start });
        }
        Ok((bytes, control))
    }

    fn begin(&mut self, label: &str) -> Result<BackupStart, LiveError> {
        if self.running.is_some() {
            return Err(LiveError::Order("a backup is already running in this session"));
        }
        self.read_identity()?;
        let fast = self.fast_checkpoint;
        if let Some(standby) = self.standby.take() {
            let replayed = self.session().and_then(|session| standby.wait_for_replay(session));
            self.standby = Some(standby);
            replayed?;
        }
        let is_standby = self.standby.is_some();
        let session = self.session()?;
        let sql = if session.major() >= 15 {
            "SELECT pg_backup_start($1, $2)::text, pg_backend_pid()"
        } else {
            "SELECT pg_start_backup($1, $2, false)::text, pg_backend_pid()"
        };
        let row = session.ask("starting backup mode", sql, &[&label, &fast])?;
        let at = session.time()?;
        let start = lsn(&row.get::<_, String>(0))?;
        // A standby's start is its last restart point: the timeline is that of the checkpoint.
        let (timeline, _) = position(session, is_standby)?;
        self.running = Some(Running { backend: row.get(1), timeline, start, consistent: None });
        if let Err(error) = self.prove_directory(start).and_then(|_| self.still_running()) {
            self.leave();
            return Err(error);
        }
        Ok(BackupStart { lsn: start, timeline, at })
    }

    /// Proves that the same server process answers, on the same timeline.
    fn still_running(&mut self) -> Result<(), LiveError> {
        let Some(Running { backend, timeline, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running"));
        };
        let session = self.session()?;
        let row =
            session.ask("keeping the backup's session alive", "SELECT pg_backend_pid()", &[])?;
        if row.get::<_, i32>(0) != backend {
            return Err(LiveError::SessionSwapped);
        }
        let now = match self.standby {
            Some(_) => self.replayed_timeline()?,
            None => position(self.session()?, false)?.0,
        };
        if now != timeline {
            return Err(LiveError::TimelineChanged { before: timeline, now });
        }
        Ok(())
    }

    /// The timeline that a standby replays; an error when it is none any more.
    fn replayed_timeline(&mut self) -> Result<TimelineId, LiveError> {
        let sql = "SELECT pg_is_in_recovery()";
        let row = self.session()?.ask("asking for the server's kind", sql, &[])?;
        if !row.get::<_, bool>(0) {
            return Err(LiveError::Promoted);
        }
        Ok(standby::replayed_timeline(&read_control(&self.directory)?.1))
    }

    fn end(&mut self) -> Result<BackupStop, LiveError> {
        self.still_running()?;
        let Some(Running { timeline, consistent, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running"));
        };
        let session = self.session()?;
        let sql = if session.major() >= 15 {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)"
        } else {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        };
        let row = session.ask("leaving backup mode", sql, &[])?;
        let mut at = session.time()?;
        let mut stop = lsn(&row.get::<_, String>(0))?;
        self.running = None;
        if let Some(standby) = &mut self.standby {
            stop = consistent.unwrap_or(stop);
            let session = self.session.as_mut().ok_or(LiveError::Order("there is no session"))?;
            at = standby::time_at(session, stop)?;
            let (_, control) = read_control(&self.directory)?;
            standby.finish_last(stop, Replayed { timeline, ..Replayed::of(&control) });
        }
        let mut files = Vec::new();
        for (path, column) in [("backup_label", 1), ("tablespace_map", 2)] {
            let text: Option<String> = row.get(column);
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                files.push(GeneratedFile { path: path.into(), bytes: text.into_bytes() });
            }
        }
        Ok(BackupStop { lsn: stop, timeline, at, files })
    }

    fn switch(&mut self) -> Result<SegmentSwitch, LiveError> {
        let size = self.read_identity()?.log_segment;
        let Some(mut standby) = self.standby.take() else {
            return segment::finish(self.session()?, size);
        };
        let switched = read_control(&self.directory).and_then(|(_, control)| {
            standby.finish_segment(self.session()?, Replayed::of(&control))
        });
        self.standby = Some(standby);
        switched
    }

    fn archiver_trouble(&mut self, awaited: SegmentName) -> Result<Option<String>, LiveError> {
        let Some(mut standby) = self.standby.take() else {
            return segment::archiver_failure(self.session()?, awaited);
        };
        let trouble = self.session().and_then(|session| standby.archiver_failure(session, awaited));
        self.standby = Some(standby);
        trouble
    }

    /// Gives the session up; the server leaves backup mode when it ends.
    fn leave(&mut self) {
        if self.running.take().is_some() {
            self.session = None;
        }
    }

    /// What the session's role may do.
    pub fn privileges(&mut self) -> Result<Privileges, LiveError> {
        Privileges::of(self.session()?)
    }
}
