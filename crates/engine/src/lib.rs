//! The seam: what a database engine offers to a job, in small traits and plain data.
//!
//! | module | what it holds |
//! |---|---|
//! | [`changes`] | [`Changes`]: what changed since an earlier backup, where a server knows |
//! | [`log`] | positions, timelines, segments and names of the write-ahead log |
//! | [`history`] | [`Ancestry`]: which timeline descends from which, and where |
//! | [`identity`] | [`ClusterIdentity`]: whose data these are and how they are laid out |
//! | [`listing`] | what a backup copies: [`Listing`], [`SourceFile`] |
//! | [`pages`] | [`PageFormat`]: check a page |
//! | [`transform`] | [`Transform`]: reshape pages or log for compression |
//! | [`origin`] | [`Origin`]: a running server, as a backup sees it |
//! | [`stream`] | a backup that arrives file by file: [`FileStream`] |
//! | [`source`] | [`LogSource`]: a server that streams its log to a receiver |
//! | [`recovery`] | [`Engine`]: log files, restore targets, recovery settings, start |
//! | [`error`] | [`EngineError`]: any engine's error that explains itself |

pub mod changes;
pub mod error;
pub mod history;
pub mod identity;
pub mod listing;
pub mod log;
pub mod origin;
pub mod pages;
pub mod recovery;
pub mod source;
pub mod stream;
pub mod transform;

pub use changes::{ChangeMap, Changed, Changes, Since};
pub use error::EngineError;
pub use history::{Ancestor, Ancestry};
pub use identity::{ClusterIdentity, SystemId};
pub use listing::{Content, Directory, LeftOut, Listing, SourceFile, Tablespace};
pub use log::{LogFile, LogNameError, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
pub use origin::{BackupStart, BackupStop, GeneratedFile, Origin, SegmentSwitch, Source};
pub use pages::{PageFormat, PageVerdict};
pub use recovery::{
    Engine, Landing, LogFacts, LogFollower, LogPart, RecoveryMark, RecoveryMode, RecoverySettings,
    RecoveryTarget, RestorePoint, StartRequest, TargetState,
};
pub use source::{LogSource, SlotState, SourceError, SourceEvent, SourceIdentity};
pub use stream::{Arriving, Earlier, EarlierFile, FileStream, Sent, StreamEnd, Streamed};
pub use transform::{Transform, TransformError};
