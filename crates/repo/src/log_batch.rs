//! Several log files behind one barrier.

use lifeboat_store::Batch;
use lifeboat_units::Timestamp;

use crate::error::RepoError;
use crate::logs::{FILE_BYTES_MAX, LogPlace, LogWriter, PushOutcome};
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
    /// Adds a log file. `digest` is [`Cluster::log_digest`] of `content`.
    ///
    /// - [`PushOutcome::Stored`] holds only when [`LogBatch::commit`] has returned `Ok`; the other
    ///   outcomes are final.
    pub fn push(
        &mut self,
        place: &LogPlace,
        (content, digest): (&[u8], &str),
        writer: &mut LogWriter,
        archived_at: Timestamp,
        facts: serde_json::Value,
    ) -> Result<PushOutcome, RepoError> {
        let cluster = self.cluster;
        let key = place.key(cluster)?;
        if content.len() as u64 > FILE_BYTES_MAX {
            return Err(RepoError::damaged(key.as_str(), "it is longer than a log file can be"));
        }
        match cluster.compare_log(place, digest) {
            Err(error) if error.is_not_found() => {}
            answer => return answer,
        }
        let body = cluster.encode_log(place, content, digest, writer, archived_at, facts)?;
        match self.batch.put(&key, body) {
            Ok(()) => {
                self.any = true;
                Ok(PushOutcome::Stored { stored_bytes: body.len() as u64 })
            }
            Err(error) if error.is_already_exists() => cluster.compare_log(place, digest),
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
