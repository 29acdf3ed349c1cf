//! Log files, restore targets, recovery settings, and starting what was restored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_units::{Progress, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::history::Ancestry;
use crate::identity::{ClusterIdentity, SystemId};
use crate::listing::Tablespace;
use crate::log::{LogFile, Lsn, SegmentName, SegmentSize, TimelineId};
use crate::origin::GeneratedFile;
use crate::pages::PageFormat;
use crate::transform::Transform;

/// What an engine knows without a running server.
pub trait Engine: Send + Sync {
    /// The engine's name in manifests, such as `postgresql`.
    fn name(&self) -> &'static str;
    /// Checks pages of a cluster.
    fn page_format(&self, identity: &ClusterIdentity) -> Box<dyn PageFormat>;
    /// Every transform that a repository may hold for pages of this size, newest first; the
    /// first is the one to write.
    fn page_transforms(&self, page_bytes: u32) -> Vec<Box<dyn Transform>>;
    /// The same for files of the log. An engine whose log is stored as it is has none.
    fn log_transforms(&self) -> Vec<Box<dyn Transform>> {
        Vec::new()
    }
    /// Reads a timeline's history file (`00000002.history`).
    fn parse_history(&self, timeline: TimelineId, bytes: &[u8]) -> Result<Ancestry, EngineError>;
    /// The identity that a segment's first page tells: system identifier and segment size.
    /// Errors when the file is no segment, its name and content disagree, or it is cut short.
    /// Needs no more of it than that page.
    fn segment_origin(
        &self,
        name: SegmentName,
        segment: LogPart<'_>,
    ) -> Result<(SystemId, SegmentSize), EngineError>;
    /// What can be read from a segment for planning a restore. Reads what it can: a record that
    /// begins or ends in another segment is said in `cut_off`, not an error.
    fn log_facts(&self, name: SegmentName, segment: &[u8]) -> LogFacts;
    /// Reads the same from a segment while it is being received, without reading all of it again
    /// each time.
    fn follow_log<'a>(&'a self, name: SegmentName) -> Box<dyn LogFollower + 'a> {
        Box::new(ReadAnew { engine: self, name, facts: LogFacts::default() })
    }
    /// Where the end of transaction `xid` lies in a segment, if it ends there: end of its commit
    /// or abort record, and when it ended. An engine without transaction numbers finds none.
    fn find_transaction(
        &self,
        _name: SegmentName,
        _segment: &[u8],
        _xid: u32,
    ) -> Option<(Lsn, Timestamp)> {
        None
    }
    /// The whole number of the transaction whose lower 32 bits are `xid`, near the time at which a
    /// control file was written. `None` when there is no such one, or the engine's numbers are
    /// no longer than that.
    fn transaction_near(&self, _control_file: &[u8], _xid: u32) -> Option<u64> {
        None
    }
    /// Where the last record begins that begins in a segment and before `lsn`, whether it ends there
    /// or goes on in the next one. `None` when none does, and from an engine whose recovery ends at
    /// the end of a backup without a look at what follows.
    fn record_before(&self, _name: SegmentName, _segment: &[u8], _lsn: Lsn) -> Option<Lsn> {
        None
    }
    /// Rewrites a generated file for tablespaces that lie elsewhere now. An engine whose files
    /// name no places gives them back as they are.
    fn relocate(&self, file: GeneratedFile, _tablespaces: &[Tablespace]) -> GeneratedFile {
        file
    }
    /// Path of the link to a tablespace, relative to the data directory.
    fn tablespace_link(&self, tablespace: &Tablespace) -> String {
        format!("pg_tblspc/{}", tablespace.oid)
    }
    /// Whose data lie in a data directory, from its control file; no server is asked.
    fn directory_identity(&self, directory: &Path) -> Result<ClusterIdentity, EngineError>;
    /// What lies at a place into which a restore is to write.
    fn inspect_target(&self, directory: &Path) -> Result<TargetState, EngineError>;
    /// How the server of a data directory recovers, or is about to; `None` when recovery is over
    /// or was never asked for. Cheap: looks for files.
    fn recovery_mark(&self, _directory: &Path) -> Option<RecoveryMark> {
        None
    }
    /// Whether something in a data directory says that its server runs. Cheap: looks for a file,
    /// which a killed server leaves behind.
    fn has_server(&self, _directory: &Path) -> bool {
        false
    }
    /// Path of the file that is removed first and written last, relative to the data directory.
    fn control_file_path(&self) -> &'static str;
    /// Files of the log that the server of this directory wants archived, in no order; empty when
    /// it wants none. Errors when the directory is none (any more).
    fn waiting_logs(&self, directory: &Path) -> Result<Vec<LogFile>, EngineError>;
    /// Whether this is one of [`Engine::waiting_logs`]; cheaper where many wait.
    fn is_waiting_log(&self, directory: &Path, file: LogFile) -> Result<bool, EngineError> {
        Ok(self.waiting_logs(directory)?.contains(&file))
    }
    /// Where a file is made when the server wants one of its log archived, relative to the data
    /// directory.
    fn waiting_directory(&self) -> &'static str;
    /// Where the files of the log lie, relative to the data directory.
    fn log_directory(&self) -> &'static str;
    /// Writes what makes the server recover when it starts. Files are synced.
    fn configure_recovery(
        &self,
        directory: &Path,
        settings: &RecoverySettings,
    ) -> Result<(), EngineError>;
    /// Starts a restored server, waits until recovery is over, and says where it landed.
    fn start_and_recover(
        &self,
        request: &StartRequest,
        progress: &dyn Progress,
    ) -> Result<Landing, EngineError>;
    /// Stops the server that runs in `directory`.
    fn stop(&self, directory: &Path, major: u32) -> Result<(), EngineError>;
}

/// Some bytes of a segment, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct LogPart<'a> {
    /// Length of the segment, in bytes.
    pub size: usize,
    /// Offset of the part in the segment.
    pub from: usize,
    /// The part.
    pub bytes: &'a [u8],
}

impl<'a> LogPart<'a> {
    /// A segment that is all there.
    pub fn whole(segment: &'a [u8]) -> Self {
        Self { size: segment.len(), from: 0, bytes: segment }
    }

    /// Where the part ends.
    pub fn end(&self) -> usize {
        self.from + self.bytes.len()
    }
}

/// Reads what a planner wants to know from a segment that comes part by part.
pub trait LogFollower: Send {
    /// What the segment tells as far as it is known.
    ///
    /// - Shape: begins at 0, or where [`LogFollower::wants_from`] said, or before; ends no earlier
    ///   than the part before it. Where they overlap, they are the same.
    fn facts(&mut self, part: LogPart<'_>) -> &LogFacts;
    /// What lies before this offset need not be in the next part.
    fn wants_from(&self) -> usize;
}

/// Follows a segment by reading it from its beginning each time.
struct ReadAnew<'a, E: ?Sized> {
    engine: &'a E,
    name: SegmentName,
    facts: LogFacts,
}

impl<E: Engine + ?Sized> LogFollower for ReadAnew<'_, E> {
    fn facts(&mut self, part: LogPart<'_>) -> &LogFacts {
        let mut padded = part.bytes.to_vec();
        padded.resize(part.size, 0);
        self.facts = self.engine.log_facts(self.name, &padded);
        &self.facts
    }

    fn wants_from(&self) -> usize {
        0
    }
}

/// What one segment tells a planner. Stored beside the segment when it is pushed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFacts {
    /// Time of the first commit or abort that begins in this segment.
    pub first_commit: Option<Timestamp>,
    /// Time of the last one (the greatest time: commit times may step back a little).
    pub last_commit: Option<Timestamp>,
    /// Commits and aborts that begin in this segment.
    pub commits: u64,
    /// Smallest and greatest transaction ID (full 32 bit, as numbers) that ended here.
    pub xids: Option<(u32, u32)>,
    /// Named restore points.
    pub restore_points: Vec<RestorePoint>,
    /// End of the last whole record in this segment.
    pub end: Option<Lsn>,
    /// A commit or restore point lies across the end and could not be read.
    pub cut_off: bool,
}

/// A restore point (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// Where its record ends.
    pub lsn: Lsn,
    /// When it was made, by the server's clock.
    pub at: Timestamp,
}

/// What lies at a place into which a restore is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing there.
    Missing,
    /// A directory without entries.
    Empty,
    /// A data directory, its server not running.
    DataDirectory,
    /// A directory that a restore was writing when it was cut short.
    Unfinished,
    /// A data directory whose server runs.
    Running {
        /// Its process.
        pid: u32,
    },
    /// Something else; the text says what, such as "a file" or "a directory with other files".
    Other(&'static str),
}

/// Where recovery should end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// The end of the WAL.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// The last commit at or before this moment.
    Time(Timestamp),
    /// This position, inclusive.
    Lsn(Lsn),
    /// The end of this transaction, inclusive.
    Xid(u32),
    /// A named restore point.
    Name(String),
}

/// What a restored directory becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMode {
    /// A copy: recovers, promotes, and archives nothing.
    Copy,
    /// The successor: recovers, promotes, and archives on as the same cluster.
    Successor,
    /// A standby: keeps recovering.
    Standby,
}

/// How a server recovers, as its data directory tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryMark {
    /// To a target or the end of the archive; then it is promoted.
    Once,
    /// For ever: what is missing now is asked for again.
    Standby,
}

/// What is written for the server to recover by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// Major version of the server that will start.
    pub major: u32,
    /// Where to end.
    pub target: RecoveryTarget,
    /// Timeline to follow; `None` stays on the backup's own.
    pub timeline: Option<TimelineId>,
    /// A copy, the successor or a standby.
    pub mode: RecoveryMode,
    /// Fetches one file of the log; `%f` and `%p` are the server's to fill in.
    pub restore_command: String,
    /// Runs when recovery is over.
    pub recovery_end_command: Option<String>,
    /// Archives one segment, for [`RecoveryMode::Successor`].
    pub archive_command: Option<String>,
}

/// How to start a restored server.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// Its data directory.
    pub directory: PathBuf,
    /// Its major version: the binaries must be of the same.
    pub major: u32,
    /// Directory for its socket; the server listens nowhere else when `isolated`.
    pub socket_directory: PathBuf,
    /// Port, which also names the socket.
    pub port: u16,
    /// No TCP, own socket directory, nothing that reaches the origin.
    pub isolated: bool,
    /// Wait for promotion (not for a standby).
    pub wait_for_promotion: bool,
    /// Where to look for binaries before the usual places.
    pub binaries: Option<PathBuf>,
    /// Give up after this long without progress.
    pub patience: Duration,
}

/// Where a started server landed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landing {
    /// Timeline on which it goes on.
    pub timeline: TimelineId,
    /// End of replay (the end of the last record replayed before promotion).
    pub lsn: Lsn,
    /// Time of the last transaction replayed, if any was.
    pub last_commit: Option<Timestamp>,
    /// Whether it was promoted (otherwise it is still recovering, as a standby does).
    pub promoted: bool,
    /// Connection string of the running server.
    pub conninfo: String,
}
