//! Backup mode of a running server, and reading its data directory.

mod control;
mod segment;

use std::path::{Path, PathBuf};

use lifeboat_engine::{
    BackupStart, BackupStop, ClusterIdentity, EngineError, GeneratedFile, Listing, Lsn, Origin,
    SegmentSwitch, SystemId, TimelineId,
};
use lifeboat_units::Timestamp;

pub use control::read_control;

use super::conninfo::Conninfo;
use super::error::LiveError;
use super::privileges::{Privileges, grants};
use super::server::{lsn, position};
use super::session::Session;
use crate::control::CONTROL_FILE;
use crate::scan::{self, Skipped};

/// How a backup treats its server.
#[derive(Debug, Clone)]
pub struct OriginOptions {
    /// The data directory, when it is not at the place that the server names (a container's
    /// volume); the server's own `data_directory` otherwise.
    pub data_directory: Option<PathBuf>,
    /// Do the checkpoint at the start at once instead of spreading it over minutes.
    pub fast_checkpoint: bool,
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self { data_directory: None, fast_checkpoint: true }
    }
}

/// A running primary whose data directory is on this machine.
///
/// Backup mode belongs to the session that started it: the session is kept open throughout,
/// and when it ends for whatever reason the server leaves backup mode by itself.
pub struct PostgresOrigin {
    conninfo: Conninfo,
    session: Option<Session>,
    directory: PathBuf,
    fast_checkpoint: bool,
    running: Option<Running>,
    skipped: Vec<Skipped>,
}

/// Backup mode, while it lasts.
struct Running {
    backend: i32,
    timeline: TimelineId,
    start: Lsn,
}

impl PostgresOrigin {
    /// Connects. Refuses standbys, unknown versions, and roles that may not see where the data
    /// directory is.
    pub fn connect(conninfo: Conninfo, options: OriginOptions) -> Result<Self, LiveError> {
        let mut session = Session::open(&conninfo)?;
        let row = session.ask(
            "reading where the data directory is",
            "SELECT pg_is_in_recovery(), \
             (SELECT setting FROM pg_settings WHERE name = 'data_directory')",
            &[],
        )?;
        if row.get(0) {
            return Err(LiveError::Standby);
        }
        let directory = match (options.data_directory, row.get::<_, Option<String>>(1)) {
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
        Ok(Self {
            conninfo,
            session: Some(session),
            directory,
            fast_checkpoint: options.fast_checkpoint,
            running: None,
            skipped: Vec::new(),
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

    /// What the last listing left out although nobody would expect it.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
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
    /// a later one. Gives the control file.
    fn prove_directory(&self, start: Lsn) -> Result<Vec<u8>, LiveError> {
        let (bytes, control) = read_control(&self.directory)?;
        if control.checkpoint < start {
            let (path, on_disk) = (self.directory.clone(), control.checkpoint);
            return Err(LiveError::StaleDirectory { path, on_disk, start });
        }
        Ok(bytes)
    }

    fn begin(&mut self, label: &str) -> Result<BackupStart, LiveError> {
        if self.running.is_some() {
            return Err(LiveError::Order("a backup is already running in this session"));
        }
        self.read_identity()?;
        let fast = self.fast_checkpoint;
        let session = self.session()?;
        let sql = if session.major() >= 15 {
            "SELECT pg_backup_start($1, $2)::text, pg_backend_pid()"
        } else {
            "SELECT pg_start_backup($1, $2, false)::text, pg_backend_pid()"
        };
        let row = session.ask("starting backup mode", sql, &[&label, &fast])?;
        let at = session.time()?;
        let start = lsn(&row.get::<_, String>(0))?;
        let (timeline, _) = position(session, false)?;
        self.running = Some(Running { backend: row.get(1), timeline, start });
        if let Err(error) = self.prove_directory(start) {
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
        let (now, _) = position(session, false)?;
        if now != timeline {
            return Err(LiveError::TimelineChanged { before: timeline, now });
        }
        Ok(())
    }

    fn end(&mut self) -> Result<BackupStop, LiveError> {
        self.still_running()?;
        let Some(Running { timeline, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running"));
        };
        let session = self.session()?;
        let sql = if session.major() >= 15 {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)"
        } else {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        };
        let row = session.ask("leaving backup mode", sql, &[])?;
        let at = session.time()?;
        self.running = None;
        let mut files = Vec::new();
        for (path, column) in [("backup_label", 1), ("tablespace_map", 2)] {
            let text: Option<String> = row.get(column);
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                files.push(GeneratedFile { path: path.into(), bytes: text.into_bytes() });
            }
        }
        Ok(BackupStop { lsn: lsn(&row.get::<_, String>(0))?, timeline, at, files })
    }

    fn switch(&mut self) -> Result<SegmentSwitch, LiveError> {
        let size = self.read_identity()?.log_segment;
        segment::finish(self.session()?, size)
    }

    /// Gives the session up; the server leaves backup mode when it ends.
    fn leave(&mut self) {
        if self.running.take().is_some() {
            self.session = None;
        }
    }
}

impl Origin for PostgresOrigin {
    fn identity(&mut self) -> Result<ClusterIdentity, EngineError> {
        Ok(self.read_identity()?)
    }

    fn version(&mut self) -> Result<String, EngineError> {
        let sql = "SELECT current_setting('server_version')";
        Ok(self.session()?.ask("reading the server's version", sql, &[])?.get(0))
    }

    fn data_directory(&self) -> &Path {
        &self.directory
    }

    fn server_time(&mut self) -> Result<Timestamp, EngineError> {
        Ok(self.session()?.time()?)
    }

    fn switch_segment(&mut self) -> Result<SegmentSwitch, EngineError> {
        Ok(self.switch()?)
    }

    fn archiver_failure(&mut self) -> Result<Option<String>, EngineError> {
        Ok(segment::archiver_failure(self.session()?)?)
    }

    fn start(&mut self, label: &str) -> Result<BackupStart, EngineError> {
        Ok(self.begin(label)?)
    }

    fn listing(&mut self) -> Result<Listing, EngineError> {
        self.still_running()?;
        let identity = self.read_identity()?;
        let scan = scan::list(&self.directory, &identity).map_err(EngineError::new)?;
        self.skipped = scan.skipped;
        Ok(scan.listing)
    }

    fn changes(&mut self, since: &Since) -> Result<Changes, EngineError> {
        self.still_running()?;
        let identity = self.read_identity()?;
        let Some(Running { start, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running").into());
        };
        let directory = self.directory.clone();
        let session = self.session()?;
        Ok(changes::since(session, &directory, &identity, since, start)?)
    }

    fn keep_alive(&mut self) -> Result<(), EngineError> {
        Ok(self.still_running()?)
    }

    fn control_file(&mut self) -> Result<GeneratedFile, EngineError> {
        self.still_running()?;
        let Some(Running { start, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running").into());
        };
        let bytes = self.prove_directory(start)?;
        Ok(GeneratedFile { path: CONTROL_FILE.into(), bytes })
    }

    fn stop(&mut self) -> Result<BackupStop, EngineError> {
        let result = self.end();
        if result.is_err() {
            self.leave();
        }
        Ok(result?)
    }

    fn abort(&mut self) {
        self.leave();
    }
}

impl PostgresOrigin {
    /// What the session's role may do.
    pub fn privileges(&mut self) -> Result<Privileges, LiveError> {
        Privileges::of(self.session()?)
    }
}
