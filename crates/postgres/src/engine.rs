//! [`PostgresEngine`]: what lifeboat's jobs ask of PostgreSQL without a running server.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use lifeboat_engine::{
    Ancestry, ClusterIdentity, Engine, EngineError, GeneratedFile, Landing, LogFacts, LogFile,
    LogFollower, LogPart, Lsn, PageFormat, RecoveryMark, RecoveryMode, RecoverySettings,
    SegmentName, SegmentSize, StartRequest, SystemId, Tablespace, TargetState, TimelineId,
    Transform,
};
use lifeboat_units::{Progress, Timestamp};

use crate::control::{CONTROL_FILE, ControlFile};
use crate::live::backup::read_control;
use crate::live::cluster::{
    Account, Binaries, Cluster, ClusterError, Places, StopMode, running_postmaster,
};
use crate::live::recover::Recovery;
use crate::wal::SegmentHeader;
use crate::{facts, history, log_transform, page, recovery_conf, tablespace_map, transform};

/// Lies in a directory while a restore writes it, and is removed at the very end.
pub const RESTORING_MARK: &str = "lifeboat.restoring";

/// Tells the server to recover to its target. Source: `RECOVERY_SIGNAL_FILE` in
/// src/include/access/xlog.h.
const RECOVERY_SIGNAL: &str = "recovery.signal";
/// Tells the server to recover for ever (`STANDBY_SIGNAL_FILE`).
const STANDBY_SIGNAL: &str = "standby.signal";
/// `XLOGDIR` in `src/include/access/xlog_internal.h`.
const LOG_DIRECTORY: &str = "pg_wal";

/// Where the server notes what is to be archived (`StatusFilePath` in `xlog_internal.h`).
const ARCHIVE_STATUS: &str = "pg_wal/archive_status";

/// How long a server may take to write its last checkpoint.
const STOP_PATIENCE: Duration = Duration::from_secs(600);

/// PostgreSQL 14 to 18, as a job sees it.
#[derive(Debug, Clone, Default)]
pub struct PostgresEngine {
    places: Places,
    role: Option<String>,
}

impl PostgresEngine {
    /// An engine that looks for binaries in these places.
    pub fn new(places: Places) -> Self {
        Self { places, role: None }
    }

    /// Names the role to ask restored servers with; `postgres` and the owner of the directory
    /// are tried anyway.
    #[must_use]
    pub fn with_role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }
}

impl Engine for PostgresEngine {
    fn name(&self) -> &'static str {
        "postgresql"
    }

    fn page_format(&self, identity: &ClusterIdentity) -> Box<dyn PageFormat> {
        Box::new(page::PgPageFormat::of(identity))
    }

    fn page_transforms(&self, page_bytes: u32) -> Vec<Box<dyn Transform>> {
        vec![Box::new(transform::SplitPages::new(page_bytes))]
    }

    fn log_transforms(&self) -> Vec<Box<dyn Transform>> {
        vec![Box::new(log_transform::SplitRecords)]
    }

    fn parse_history(&self, timeline: TimelineId, bytes: &[u8]) -> Result<Ancestry, EngineError> {
        history::parse_history(timeline, bytes).map_err(EngineError::new)
    }

    fn segment_origin(
        &self,
        name: SegmentName,
        segment: LogPart<'_>,
    ) -> Result<(SystemId, SegmentSize), EngineError> {
        let header = SegmentHeader::parse(name, segment).map_err(EngineError::new)?;
        Ok((header.system_id, header.size))
    }

    fn log_facts(&self, name: SegmentName, segment: &[u8]) -> LogFacts {
        facts::log_facts(name, segment)
    }

    fn follow_log<'a>(&'a self, name: SegmentName) -> Box<dyn LogFollower + 'a> {
        Box::new(facts::Follower::new(name))
    }

    fn find_transaction(
        &self,
        name: SegmentName,
        segment: &[u8],
        xid: u32,
    ) -> Option<(Lsn, Timestamp)> {
        facts::find_transaction(name, segment, xid)
    }

    fn transaction_near(&self, control_file: &[u8], xid: u32) -> Option<u64> {
        ControlFile::parse(control_file).ok()?.transaction_near(xid)
    }

    fn record_before(&self, name: SegmentName, segment: &[u8], lsn: Lsn) -> Option<Lsn> {
        facts::record_before(name, segment, lsn)
    }

    fn relocate(&self, file: GeneratedFile, tablespaces: &[Tablespace]) -> GeneratedFile {
        if file.path == tablespace_map::TABLESPACE_MAP {
            GeneratedFile { bytes: tablespace_map::content(tablespaces), ..file }
        } else {
            file
        }
    }

    fn directory_identity(&self, directory: &Path) -> Result<ClusterIdentity, EngineError> {
        Ok(read_control(directory)?.1.identity())
    }

    fn inspect_target(&self, directory: &Path) -> Result<TargetState, EngineError> {
        Ok(inspect(directory)?)
    }

    fn recovery_mark(&self, directory: &Path) -> Option<RecoveryMark> {
        // Where both lie, the server is a standby. Source: readRecoverySignalFile in
        // src/backend/access/transam/xlogrecovery.c; both are removed at promotion.
        let marked = |name: &str| directory.join(name).exists();
        match (marked(STANDBY_SIGNAL), marked(RECOVERY_SIGNAL)) {
            (true, _) => Some(RecoveryMark::Standby),
            (_, true) => Some(RecoveryMark::Once),
            _ => None,
        }
    }

    fn has_server(&self, directory: &Path) -> bool {
        directory.join("postmaster.pid").exists()
    }

    fn control_file_path(&self) -> &'static str {
        CONTROL_FILE
    }

    /// Source: `pgarch_readyXlog` in `src/backend/postmaster/pgarch.c`, `XLogArchiveNotify` in
    /// `src/backend/access/transam/xlogarchive.c`.
    fn waiting_logs(&self, directory: &Path) -> Result<Vec<LogFile>, EngineError> {
        Ok(waiting(&directory.join(ARCHIVE_STATUS))?)
    }

    fn is_waiting_log(&self, directory: &Path, file: LogFile) -> Result<bool, EngineError> {
        let note = directory.join(ARCHIVE_STATUS).join(format!("{file}{READY}"));
        let unreadable = |source| ClusterError::Read { path: note.clone(), source };
        Ok(note.try_exists().map_err(unreadable)?)
    }

    fn waiting_directory(&self) -> &'static str {
        ARCHIVE_STATUS
    }

    fn log_directory(&self) -> &'static str {
        LOG_DIRECTORY
    }

    fn configure_recovery(
        &self,
        directory: &Path,
        settings: &RecoverySettings,
    ) -> Result<(), EngineError> {
        Ok(configure(directory, settings)?)
    }

    fn start_and_recover(
        &self,
        request: &StartRequest,
        progress: &dyn Progress,
    ) -> Result<Landing, EngineError> {
        Ok(Recovery::prepare(request, &self.places, self.role.as_deref())?.run(progress)?)
    }

    fn stop(&self, directory: &Path, major: u32) -> Result<(), EngineError> {
        if running_postmaster(directory)?.is_none() {
            return Ok(());
        }
        let binaries = Binaries::find(major, &self.places)?;
        let cluster = Cluster { binaries, directory: directory.to_owned() };
        Ok(cluster.stop(StopMode::Fast, STOP_PATIENCE)?)
    }
}

/// What the name of a note of a file that waits ends in.
const READY: &str = ".ready";

/// Files of which a note lies in the directory of notes.
fn waiting(status: &Path) -> Result<Vec<LogFile>, ClusterError> {
    let unreadable = |source| ClusterError::Read { path: status.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(status).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(READY));
        files.extend(stem.and_then(|stem| stem.parse::<LogFile>().ok()));
    }
    Ok(files)
}

/// Says what lies at a place, looking through links.
fn inspect(directory: &Path) -> Result<TargetState, ClusterError> {
    let unreadable = |source| ClusterError::Read { path: directory.to_owned(), source };
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dangling = fs::symlink_metadata(directory).is_ok();
            let nowhere = TargetState::Other("a link that leads nowhere");
            return Ok(if dangling { nowhere } else { TargetState::Missing });
        }
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) if metadata.is_file() => return Ok(TargetState::Other("a file")),
        Ok(metadata) if !metadata.is_dir() => {
            return Ok(TargetState::Other("neither a file nor a directory"));
        }
        Ok(_) => {}
    }
    if let Some(server) = running_postmaster(directory)? {
        return Ok(TargetState::Running { pid: server.pid });
    }
    if directory.join(RESTORING_MARK).exists() {
        return Ok(TargetState::Unfinished);
    }
    if fs::read_dir(directory).map_err(unreadable)?.next().is_none() {
        return Ok(TargetState::Empty);
    }
    let has = |name: &str| directory.join(name).exists();
    if has("PG_VERSION") && has("base") && has("global") {
        return Ok(TargetState::DataDirectory);
    }
    Ok(TargetState::Other("a directory with other files"))
}

/// Writes `postgresql.auto.conf` and the signal file. Whatever happens in between, the directory
/// has either the old settings or all of the new ones: the signal file comes last.
fn configure(directory: &Path, settings: &RecoverySettings) -> Result<(), ClusterError> {
    let old = text_or_empty(&directory.join("postgresql.auto.conf"))?;
    let main = text_or_empty(&directory.join("postgresql.conf"))?;
    let text = recovery_conf::edit(&old, &main, settings)?;
    let (wanted, other) = match settings.mode {
        RecoveryMode::Standby => (STANDBY_SIGNAL, RECOVERY_SIGNAL),
        RecoveryMode::Copy | RecoveryMode::Successor => (RECOVERY_SIGNAL, STANDBY_SIGNAL),
    };
    replace(directory, "postgresql.auto.conf", &text)?;
    replace(directory, wanted, "")?;
    let other = directory.join(other);
    match fs::remove_file(&other) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ClusterError::Write { path: other, source: error });
        }
        _ => {}
    }
    sync(directory)
}

fn text_or_empty(path: &Path) -> Result<String, ClusterError> {
    match fs::read(path) {
        // Comments may be in any encoding; what is not UTF-8 there is not worth failing for.
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(ClusterError::Read { path: path.to_owned(), source }),
    }
}

/// Replaces a file as a whole: temporary name, sync, rename, sync the directory. Owner and mode
/// are the directory's own, without execute bits.
fn replace(directory: &Path, name: &str, text: &str) -> Result<(), ClusterError> {
    let path = directory.join(name);
    // A base backup leaves this name out, should one come across it.
    let temporary = directory.join("postgresql.auto.conf.tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        let mode = fs::metadata(directory)?.permissions().mode() & 0o640;
        file.set_permissions(Permissions::from_mode(mode))?;
        give_as(directory, &temporary)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|source| ClusterError::Write { path: path.clone(), source })?;
    sync(directory)
}

fn give_as(directory: &Path, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(directory)?;
    Account { uid: owner.uid(), gid: owner.gid() }.give(path)
}

fn sync(directory: &Path) -> Result<(), ClusterError> {
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .map_err(|source| ClusterError::Write { path: directory.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::RecoveryTarget;

    use super::*;

    fn state(directory: &Path) -> TargetState {
        PostgresEngine::default().inspect_target(directory).unwrap()
    }

    #[test]
    fn a_target_is_recognised_by_what_lies_there() {
        let above = tempfile::tempdir().unwrap();
        let place = above.path().join("data");
        assert_eq!(state(&place), TargetState::Missing);
        fs::create_dir(&place).unwrap();
        assert_eq!(state(&place), TargetState::Empty);
        fs::write(place.join("notes"), "x").unwrap();
        assert_eq!(state(&place), TargetState::Other("a directory with other files"));
        fs::write(place.join("PG_VERSION"), "18\n").unwrap();
        fs::create_dir(place.join("base")).unwrap();
        fs::create_dir(place.join("global")).unwrap();
        assert_eq!(state(&place), TargetState::DataDirectory);
        fs::write(place.join(RESTORING_MARK), "").unwrap();
        assert_eq!(state(&place), TargetState::Unfinished);
        assert_eq!(state(&place.join("notes")), TargetState::Other("a file"));
    }

    #[test]
    fn recovery_is_configured_by_settings_and_one_signal() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("standby.signal"), "").unwrap();
        let settings = RecoverySettings {
            major: 18,
            target: RecoveryTarget::Latest,
            timeline: None,
            mode: RecoveryMode::Copy,
            restore_command: "get %f %p".into(),
            recovery_end_command: None,
            archive_command: None,
        };
        let engine = PostgresEngine::default();
        engine.configure_recovery(place.path(), &settings).unwrap();
        engine.configure_recovery(place.path(), &settings).unwrap();
        let text = fs::read_to_string(place.path().join("postgresql.auto.conf")).unwrap();
        let active = text.lines().filter(|l| l.starts_with("restore_command")).count();
        assert_eq!(active, 1, "{text}");
        assert!(place.path().join("recovery.signal").exists());
        assert!(!place.path().join("standby.signal").exists());
        assert!(!place.path().join("postgresql.auto.conf.tmp").exists());
    }
}
