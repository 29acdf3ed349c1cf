//! The toy engine, at whose answers something happens.

use std::path::Path;
use std::sync::Arc;

use lifeboat_engine::{
    Ancestry, ClusterIdentity, Engine, EngineError, Landing, LogFacts, LogFile, LogPart, Lsn,
    PageFormat, PageVerdict, RecoverySettings, SegmentName, SegmentSize, StartRequest, SystemId,
    TargetState, TimelineId, Transform,
};
use lifeboat_units::{Progress, Timestamp};

use crate::toy::ToyEngine;

/// What happens when a page is checked; `None` leaves the verdict to the toy engine.
pub type Hook = Arc<dyn Fn(u32, &[u8]) -> Option<PageVerdict> + Send + Sync>;

/// What happens when it is asked which files of the log wait, or whether one does.
pub type WaitingHook = Arc<dyn Fn() + Send + Sync>;

/// The toy engine, at whose answers something happens: the server writes while its files are
/// read, a page is damaged, or the pusher is through at this very moment.
#[derive(Clone)]
pub struct HookedEngine {
    page: Hook,
    waiting: WaitingHook,
}

impl HookedEngine {
    /// Something happens when a page is checked.
    pub fn at_pages(page: Hook) -> Self {
        Self { page, waiting: Arc::new(|| ()) }
    }

    /// Something happens when it is asked what waits.
    pub fn at_waiting(waiting: WaitingHook) -> Self {
        Self { page: Arc::new(|_, _| None), waiting }
    }
}

struct HookedPages {
    toy: Box<dyn PageFormat>,
    hook: Hook,
}

impl PageFormat for HookedPages {
    fn check(&self, number: u32, page: &[u8]) -> PageVerdict {
        (self.hook)(number, page).unwrap_or_else(|| self.toy.check(number, page))
    }

    fn changed_at(&self, page: &[u8]) -> Option<Lsn> {
        self.toy.changed_at(page)
    }
}

impl Engine for HookedEngine {
    fn name(&self) -> &'static str {
        ToyEngine.name()
    }

    fn page_format(&self, identity: &ClusterIdentity) -> Box<dyn PageFormat> {
        Box::new(HookedPages { toy: ToyEngine.page_format(identity), hook: Arc::clone(&self.page) })
    }

    fn page_transforms(&self, page_bytes: u32) -> Vec<Box<dyn Transform>> {
        ToyEngine.page_transforms(page_bytes)
    }

    fn parse_history(&self, timeline: TimelineId, bytes: &[u8]) -> Result<Ancestry, EngineError> {
        ToyEngine.parse_history(timeline, bytes)
    }

    fn segment_origin(
        &self,
        name: SegmentName,
        segment: LogPart<'_>,
    ) -> Result<(SystemId, SegmentSize), EngineError> {
        ToyEngine.segment_origin(name, segment)
    }

    fn log_facts(&self, name: SegmentName, segment: &[u8]) -> LogFacts {
        ToyEngine.log_facts(name, segment)
    }

    fn find_transaction(
        &self,
        name: SegmentName,
        segment: &[u8],
        xid: u32,
    ) -> Option<(Lsn, Timestamp)> {
        ToyEngine.find_transaction(name, segment, xid)
    }

    fn directory_identity(&self, directory: &Path) -> Result<ClusterIdentity, EngineError> {
        ToyEngine.directory_identity(directory)
    }

    fn inspect_target(&self, directory: &Path) -> Result<TargetState, EngineError> {
        ToyEngine.inspect_target(directory)
    }

    fn control_file_path(&self) -> &'static str {
        ToyEngine.control_file_path()
    }

    fn waiting_logs(&self, directory: &Path) -> Result<Vec<LogFile>, EngineError> {
        (self.waiting)();
        ToyEngine.waiting_logs(directory)
    }

    fn waiting_directory(&self) -> &'static str {
        ToyEngine.waiting_directory()
    }

    fn log_directory(&self) -> &'static str {
        ToyEngine.log_directory()
    }

    fn configure_recovery(
        &self,
        directory: &Path,
        settings: &RecoverySettings,
    ) -> Result<(), EngineError> {
        ToyEngine.configure_recovery(directory, settings)
    }

    fn start_and_recover(
        &self,
        request: &StartRequest,
        progress: &dyn Progress,
    ) -> Result<Landing, EngineError> {
        ToyEngine.start_and_recover(request, progress)
    }

    fn stop(&self, directory: &Path, major: u32) -> Result<(), EngineError> {
        ToyEngine.stop(directory, major)
    }
}
