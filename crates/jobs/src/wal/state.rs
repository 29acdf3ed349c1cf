//! What a restored directory remembers until its recovery is over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use lifeboat_engine::{LogFile, Lsn, SegmentName, SystemId, TimelineId};
use serde::{Deserialize, Serialize};

use super::error::StateError;
use super::reading::READING_FILE;
use crate::inventory::SegmentRange;

/// Lies in the root of a restored data directory until its recovery is over: tells `wal get`
/// what recovery must be able to reach.
pub const RECOVERY_FILE: &str = "lifeboat.recovery";
/// Lies beside it, mode 0600: the unlocked keys, so that recovery needs nobody to type.
pub const RECOVERY_KEY_FILE: &str = "lifeboat.recovery.key";
/// Version of [`RecoveryState`] that this program writes, and the newest that it reads.
pub const RECOVERY_VERSION: u32 = 1;

/// What recovery of a restored directory needs, written by a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryState {
    /// Version of this file's format.
    pub version: u32,
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Whose WAL it is.
    pub system: SystemId,
    /// The segments that recovery will ask for before it can be at its end, in order. One of
    /// them that cannot be had is a failure, never the end of the archive.
    pub needed: Vec<SegmentRange>,
    /// Timelines whose history files must be found.
    pub histories: Vec<TimelineId>,
    /// A standby: keeps waiting instead of failing.
    pub standby: bool,
    /// The last segment that recovery may see: what was archived later is not there for it. Set
    /// where the moment that was asked for is the end of the WAL as it was when the restore was
    /// planned, and what came after must not be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<SegmentName>,
    /// How far the last needed segment was there when the restore was planned, where it was not
    /// finished: what is served of it reaches at least so far. With `last` set, no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_to: Option<Lsn>,
    /// Where the way of a recovery that is to end leaves a timeline for the next. A server takes
    /// segments of an older timeline wherever the newer one has none, also beyond the fork.
    /// Source: `XLogFileReadAnyTLI` in PostgreSQL `src/backend/access/transam/xlogrecovery.c`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<LeftTimeline>,
}

/// Where a timeline is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftTimeline {
    /// Its last segment that recovery may see.
    pub last: SegmentName,
    /// From here on recovery must see nothing of that segment; none where it ends there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Lsn>,
}

impl RecoveryState {
    /// Reads the state in a data directory; `None` when there is none, as in a directory that
    /// was not restored by lifeboat or whose recovery is over.
    pub fn read(directory: &Path) -> Result<Option<Self>, StateError> {
        let path = directory.join(RECOVERY_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        // The version first: a newer format may have other fields.
        let value: serde_json::Value = match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(source) => return Err(StateError::Damaged { path, source }),
        };
        let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found > u64::from(RECOVERY_VERSION) {
            return Err(StateError::TooNew { path, found, known: RECOVERY_VERSION });
        }
        serde_json::from_value(value)
            .map(Some)
            .map_err(|source| StateError::Damaged { path, source })
    }

    /// Writes the state into a data directory, mode 0600, owned as the directory is. A reader
    /// sees the old state or the new one.
    pub fn write(&self, directory: &Path) -> Result<(), StateError> {
        let path = directory.join(RECOVERY_FILE);
        let body = serde_json::to_vec_pretty(self).expect("names and numbers always serialise");
        write_private(directory, &path, &body).map_err(|source| StateError::Write { path, source })
    }

    /// Whether recovery must not see this file: it lies after the end that was planned, or after
    /// the fork at which its timeline is left.
    pub fn hides(&self, file: LogFile) -> bool {
        let (LogFile::Segment(name) | LogFile::Partial(name)) = file else { return false };
        self.last.is_some_and(|last| name > last)
            || self.left_in(name.timeline).is_some_and(|left| name > left.last)
    }

    /// The position in this file from which on recovery must see nothing, if there is one.
    pub fn cuts(&self, file: LogFile) -> Option<Lsn> {
        let LogFile::Segment(name) = file else { return None };
        let planned = self.tail_to.filter(|_| Some(name) == self.last);
        let left = self.left_in(name.timeline).filter(|left| left.last == name);
        [planned, left.and_then(|left| left.cut)].into_iter().flatten().min()
    }

    fn left_in(&self, timeline: TimelineId) -> Option<&LeftTimeline> {
        self.left.iter().find(|left| left.last.timeline == timeline)
    }

    /// The timeline on which recovery is to end, as far as it was planned.
    pub fn end_timeline(&self) -> Option<TimelineId> {
        let needed = self.needed.iter().map(|range| range.last.timeline);
        needed.chain(self.histories.iter().copied()).max()
    }

    /// Whether recovery cannot be at its end before it has had this file.
    pub fn needs(&self, file: LogFile) -> bool {
        match file {
            // Names sort by timeline, then by position.
            LogFile::Segment(name) => self.needed.iter().any(|range| {
                range.first.timeline == name.timeline && (range.first..=range.last).contains(&name)
            }),
            LogFile::History(timeline) => self.histories.contains(&timeline),
            LogFile::Partial(_) | LogFile::BackupHistory(..) => false,
        }
    }
}

pub(super) fn write_private(directory: &Path, path: &Path, body: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{RECOVERY_FILE}.tmp"));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let owner = fs::metadata(directory)?;
        let mine = file.metadata()?;
        if (mine.uid(), mine.gid()) != (owner.uid(), owner.gid()) {
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Removes what only recovery needs, the unlocked keys first, and ends the fetcher. For
/// `recovery_end_command`; harmless when there is nothing to remove.
pub fn finish_recovery(directory: &Path) -> Result<(), StateError> {
    for name in [RECOVERY_KEY_FILE, RECOVERY_FILE, READING_FILE] {
        let path = directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::Write { path, source });
            }
            _ => {}
        }
    }
    super::get::ask::end(directory).map_err(|source| StateError::Write {
        path: directory.join(super::get::PREFETCH_DIRECTORY),
        source,
    })?;
    let sync = File::open(directory).and_then(|opened| opened.sync_all());
    sync.map_err(|source| StateError::Write { path: directory.to_owned(), source })
}
