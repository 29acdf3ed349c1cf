//! A running server, as a backup sees it.

use std::path::Path;

use lifeboat_units::Timestamp;

use crate::changes::{Changes, Since};
use crate::error::EngineError;
use crate::identity::ClusterIdentity;
use crate::listing::Listing;
use crate::log::{Lsn, SegmentName, TimelineId};
use crate::stream::{Earlier, EarlierFile, Streamed};

/// A running server, whose data directory this process can read, or that sends its files.
///
/// Calls come in this order: any number of `identity`, `switch_segment`; `offer`; then `start`,
/// `source`, `changes`, `keep_alive` as often as wanted, `control_file`, `stop`. A backup that
/// arrives as a stream has its own end, instead of the last two. Dropping it, or `abort`, ends a
/// backup that was started and not stopped.
pub trait Origin: Send {
    /// Whose data these are. Reads the control file on disk and asks the server; an error when
    /// the two do not belong together.
    fn identity(&mut self) -> Result<ClusterIdentity, EngineError>;
    /// Version in the server's words, such as `18.4`.
    fn version(&mut self) -> Result<String, EngineError>;
    /// The data directory.
    fn data_directory(&self) -> &Path;
    /// Time by the server's clock.
    fn server_time(&mut self) -> Result<Timestamp, EngineError>;
    /// Makes sure that the current segment gets finished and handed to the archiver, and says
    /// which it was. Used to prove that archiving works.
    fn switch_segment(&mut self) -> Result<SegmentSwitch, EngineError>;
    /// Why a segment that is awaited may not arrive, as far as the server knows: how its archiver failed
    /// last, or that it counts the segment as archived.
    fn archiver_failure(&mut self, awaited: SegmentName) -> Result<Option<String>, EngineError>;
    /// Enters backup mode; returns when the data directory may be copied.
    fn start(&mut self, label: &str) -> Result<BackupStart, EngineError>;
    /// Lists what to copy. Only after `start`.
    fn listing(&mut self) -> Result<Listing, EngineError>;
    /// What changed since an earlier backup of the same system on the same timeline, if the server
    /// can tell. Only after `start`, and before anything is read; may wait, in bounds. An engine
    /// that cannot tell says so.
    fn changes(&mut self, since: &Since) -> Result<Changes, EngineError> {
        let _ = since;
        Ok(Changes::Unknown { because: "this kind of server does not tell what changed".into() })
    }
    /// Where the files come from. Only after `start`.
    fn source(&mut self) -> Result<Source, EngineError> {
        self.listing().map(Source::Directory)
    }
    /// Offers an earlier backup, of which the server may then send only the differences. Only
    /// before `start`; what came of it, [`Source::Stream`] says.
    fn offer(
        &mut self,
        _earlier: &Earlier,
        _files: &mut dyn Iterator<Item = EarlierFile>,
    ) -> Result<(), EngineError> {
        Ok(())
    }
    /// Whether `offer` could be of use.
    fn takes_offers(&self) -> bool {
        false
    }
    /// Why the current segment cannot be finished from here, if it cannot: a role without that
    /// privilege.
    fn cannot_switch(&mut self) -> Result<Option<String>, EngineError> {
        Ok(None)
    }
    /// A backup that came as a stream has ended here: sees to it that the segment gets finished,
    /// where that does not happen by itself. What fails here shows when it does not arrive.
    fn stream_ended(&mut self, _stop: Lsn) -> Result<(), EngineError> {
        Ok(())
    }
    /// Reads a file's bytes as they are now, for a second look; `None` where that is not possible,
    /// fewer where the file has become shorter.
    fn look_again(
        &mut self,
        _path: &str,
        _offset: u64,
        _bytes: u32,
    ) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(None)
    }
    /// Keeps the session alive and proves that backup mode still holds, on the same timeline.
    fn keep_alive(&mut self) -> Result<(), EngineError>;
    /// The control file's bytes, checked. Called after all else is copied.
    fn control_file(&mut self) -> Result<GeneratedFile, EngineError>;
    /// Leaves backup mode. Does not wait for the archive.
    fn stop(&mut self) -> Result<BackupStop, EngineError>;
    /// Leaves backup mode without a result; harmless when not in it.
    fn abort(&mut self);
}

/// Where the files of a backup come from.
pub enum Source {
    /// From a directory that can be read here.
    Directory(Listing),
    /// From the server.
    Stream(Streamed),
}

/// A segment that was finished so that it gets archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSwitch {
    /// The segment to wait for.
    pub segment: SegmentName,
}

/// Where a backup began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStart {
    /// Replay of the backup begins here.
    pub lsn: Lsn,
    /// Timeline of the server.
    pub timeline: TimelineId,
    /// By the server's clock.
    pub at: Timestamp,
}

/// Where a backup ended, and what the server gives along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// The backup is consistent once replay has reached this position.
    pub lsn: Lsn,
    /// Timeline of the server; the same as at the start.
    pub timeline: TimelineId,
    /// By the server's clock.
    pub at: Timestamp,
    /// Files that belong into the backup and never into the live directory.
    pub files: Vec<GeneratedFile>,
}

/// A file of the backup that is not copied from the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Relative to the data directory.
    pub path: String,
    /// The whole content.
    pub bytes: Vec<u8>,
}
