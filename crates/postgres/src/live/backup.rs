//! Backup mode of a running server, and reading its data directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::{
    BackupStart, BackupStop, Changes, ClusterIdentity, EngineError, GeneratedFile, Listing, Lsn,
    Origin, SegmentName, SegmentSwitch, Since, SystemId, TimelineId,
};
use lifeboat_units::Timestamp;

use super::changes;
use super::conninfo::Conninfo;
use super::error::LiveError;
use super::privileges::{Privileges, grants};
use super::server::{Archiver, lsn, position};
use super::session::Session;
use crate::control::{CONTROL_FILE, ControlError, ControlFile};
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

    /// Finishes the current segment. When it holds nothing the server would not switch, so
    /// something is written first: a transaction that does nothing but have a number.
    fn switch(&mut self) -> Result<SegmentSwitch, LiveError> {
        const DOING: &str = "finishing the current WAL segment";
        let size = self.read_identity()?.log_segment;
        let session = self.session()?;
        let (mut timeline, mut at) = position(session, false)?;
        for _ in 0..5 {
            session.ask("writing a little WAL", "SELECT txid_current()", &[])?;
            let row = session.ask(DOING, "SELECT pg_switch_wal()::text", &[])?;
            at = lsn(&row.get::<_, String>(0))?;
            (timeline, _) = position(session, false)?;
            // At a boundary nothing was switched: another switch came between.
            if at != at.segment(size).start(size) {
                let segment = SegmentName::new(timeline, at.segment(size), size);
                return Ok(SegmentSwitch { segment });
            }
        }
        Err(LiveError::NoSwitch { segment: SegmentName::new(timeline, at.segment(size), size) })
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
        let session = self.session()?;
        let sql = "SELECT current_setting('archive_mode'), current_setting('archive_command')";
        let row = session.ask("reading how the server archives", sql, &[])?;
        if row.get::<_, &str>(0) == "off" {
            return Ok(Some("the server does not archive: archive_mode is off".into()));
        }
        if row.get::<_, &str>(1).is_empty() && !archives_by_library(session)? {
            return Ok(Some("the server does not archive: archive_command is empty".into()));
        }
        let archiver = Archiver::of(session)?;
        let failed = archiver.last_failed.as_ref().filter(|_| archiver.is_failing());
        Ok(failed.map(|(segment, at)| {
            format!("archiving {segment} failed at {at} ({} failures so far)", archiver.failed)
        }))
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

/// `archive_library` exists since 15.
fn archives_by_library(session: &mut Session) -> Result<bool, LiveError> {
    let sql = "SELECT coalesce(current_setting('archive_library', true), '') <> ''";
    Ok(session.ask("reading how the server archives", sql, &[])?.get(0))
}

/// Reads the control file until its checksum holds: the server rewrites it in place, so that one
/// read may see half of each. The same bytes again with a wrong checksum are damage.
pub fn read_control(directory: &Path) -> Result<(Vec<u8>, ControlFile), LiveError> {
    const ATTEMPTS: u32 = 50;
    let path = directory.join(CONTROL_FILE);
    let mut before = Vec::new();
    for attempt in 1.. {
        let bytes =
            fs::read(&path).map_err(|source| LiveError::Read { path: path.clone(), source })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(ControlError::Checksum { .. }) if bytes != before && attempt < ATTEMPTS => {
                before = bytes;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => return Err(LiveError::Control { path, source }),
        }
    }
    Err(LiveError::Order("unreachable: the loop above returns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_that_stays_wrong_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("global")).unwrap();
        let missing = read_control(directory.path()).unwrap_err();
        assert!(matches!(missing, LiveError::Read { .. }));
        // Control version 1300, catalog 202209061 (PostgreSQL 15), nothing else right.
        let mut bytes = vec![0u8; 8192];
        bytes[8..12].copy_from_slice(&1300u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&202_209_061u32.to_le_bytes());
        fs::write(directory.path().join(CONTROL_FILE), bytes).unwrap();
        let damaged = read_control(directory.path()).unwrap_err();
        assert!(matches!(damaged, LiveError::Control { .. }), "{damaged}");
    }
}
