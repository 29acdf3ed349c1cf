//! What changed since an earlier backup, as far as the server can tell without anybody reading
//! the data. A hint: it saves reading, and is looked after by a sweep that compares hashes.

use std::ops::Range;

use crate::listing::SourceFile;
use crate::log::{Lsn, TimelineId};

/// An earlier backup, as far as a server needs to know it. What must hold before a server is
/// asked (same system, same timeline, same state of checksums) is the job's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Timeline of that backup, and of this one.
    pub timeline: TimelineId,
    /// Where that backup began: every change whose log record begins before it is in it.
    pub start: Lsn,
}

/// What a server can tell.
pub enum Changes {
    /// Nothing that could be relied upon.
    Unknown {
        /// Why, as the end of the sentence "everything was read, because …".
        because: String,
    },
    /// All that changed from the start of the earlier backup up to the start of this one.
    Known(Box<dyn ChangeMap>),
}

/// Tells for every file what changed between two positions of the log.
pub trait ChangeMap: Send + Sync {
    /// What of `file` may differ from the earlier backup. `pages` counts within the file.
    fn of(&self, file: &SourceFile) -> Changed;

    /// Whether the server says that what `file` is part of was cut to the length that the file has
    /// now, or shorter: then a file that shrank is no sign against its word.
    fn was_cut(&self, file: &SourceFile) -> bool {
        let _ = file;
        false
    }
}

/// What of a file may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Nobody knows: all of it has to be read.
    Everything,
    /// Only these pages: ascending, not touching, counted from the file's first page. What the
    /// file has grown by is not among them.
    Pages(Vec<Range<u32>>),
}

impl Changed {
    /// No page of the file.
    pub const NOTHING: Self = Self::Pages(Vec::new());
}
