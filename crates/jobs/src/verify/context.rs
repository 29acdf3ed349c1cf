//! What every part of a verification is given, and shares.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lifeboat_repo::{Cluster, RepoError};
use lifeboat_store::StoreError;
use lifeboat_units::Progress;

use super::error::VerifyError;
use super::findings::Findings;
use super::report::Counts;
use crate::inventory::is_about_one_object;
use crate::ports::Ports;

/// What every part of a verification is given.
pub(super) struct Context<'a> {
    pub(super) ports: &'a Ports<'a>,
    pub(super) jobs: usize,
    pub(super) findings: Findings,
    pub(super) notes: Mutex<Vec<String>>,
    pub(super) count: Counters,
}

/// Counters that threads share.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) files: AtomicU64,
    pub(super) pages: AtomicU64,
    pub(super) extents: AtomicU64,
    pub(super) index_boxes: AtomicU64,
    pub(super) segments: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) read_bytes: AtomicU64,
}

/// Counts up.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    /// The counts so far.
    pub(super) fn read(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            files: of(&self.files),
            pages: of(&self.pages),
            extents: of(&self.extents),
            index_boxes: of(&self.index_boxes),
            segments: of(&self.segments),
            events: of(&self.events),
            read_bytes: lifeboat_units::ByteCount(of(&self.read_bytes)),
            ..Counts::default()
        }
    }
}

impl<'a> Context<'a> {
    pub(super) fn cluster(&self) -> &'a Cluster {
        self.ports.cluster
    }

    pub(super) fn progress(&self) -> &'a dyn Progress {
        self.ports.progress
    }

    pub(super) fn note(&self, text: String) {
        self.notes.lock().unwrap_or_else(|e| e.into_inner()).push(text);
    }

    pub(super) fn go_on(&self) -> Result<(), VerifyError> {
        if self.ports.cancel.is_cancelled() { Err(VerifyError::Cancelled) } else { Ok(()) }
    }

    /// Does `each` for all items on as many threads as were asked for; the first error ends it.
    pub(super) fn in_parallel<T: Sync>(
        &self,
        items: &[T],
        each: impl Fn(&T, &mut Worker) -> Result<(), VerifyError> + Sync,
    ) -> Result<(), VerifyError> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<VerifyError>> = Mutex::new(None);
        let run = || {
            let mut worker = Worker::default();
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.go_on().and_then(|()| each(item, &mut worker)) {
                    next.store(items.len(), Ordering::Relaxed);
                    failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            let threads = self.jobs.clamp(1, items.len().max(1));
            (1..threads).for_each(|_| drop(scope.spawn(run)));
            run();
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) sealed: Vec<u8>,
    pub(super) raw: Vec<u8>,
    pub(super) decompressor: Option<(u32, lifeboat_repo::codec::Decompressor)>,
}

/// Whether a failure is damage of one object, to be reported, and not a store that cannot be
/// reached. A read that fails (a bad sector) is damage of what was to be read.
pub(super) fn is_damage(error: &RepoError) -> bool {
    is_about_one_object(error) || matches!(error, RepoError::Store(StoreError::Io { .. }))
}
