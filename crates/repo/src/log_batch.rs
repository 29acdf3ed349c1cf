//! Several log files behind one barrier.

use lifeboat_store::Batch;

use crate::error::RepoError;
use crate::log_encoding::EncodedLog;
use crate::logs::PushOutcome;
use crate::repository::Cluster;

/// Log files that become visible and durable together: the cost of one barrier for all.
pub struct LogBatch<'a> {
    cluster: &'a Cluster,
    batch: Box<dyn Batch>,
    any: bool,
}

impl Cluster {
    /// Begins a batch of log files.
    pub fn log_batch(&self) -> Result<LogBatch<'_>, RepoError> {
        Ok(LogBatch { cluster: self, batch: self.store().batch()?, any: false })
    }
}

impl LogBatch<'_> {
    /// Adds an encoded log file.
    ///
    /// - [`PushOutcome::Stored`] holds only when [`LogBatch::commit`] has returned `Ok`; the other
    ///   outcomes are final.
    pub fn put(&mut self, log: &EncodedLog<'_>) -> Result<PushOutcome, RepoError> {
        match self.batch.put(&log.key, log.body) {
            Ok(()) => {
                self.any = true;
                Ok(PushOutcome::Stored { stored_bytes: log.body.len() as u64 })
            }
            Err(error) if error.is_already_exists() => {
                self.cluster.compare_log(&log.place, log.digest())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes all of it durable, then visible. After an error some may be stored and some not:
    /// whoever pushes them again is told.
    pub fn commit(self) -> Result<(), RepoError> {
        if self.any {
            // What was written to another place than the repository cannot be published in it.
            self.cluster.repository().confirm()?;
            self.batch.commit()?;
        }
        Ok(())
    }
}
