//! Restores into a directory and recovers it.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_jobs::restore::{self, RestoreError, RestorePlan, Target};
use lifeboat_jobs::wal::{self, GetOutcome, RecoveryState};
use lifeboat_repo::Cluster;
use lifeboat_testkit::ToyEngine;
use lifeboat_testkit::toy_log::Files;
use lifeboat_testkit::toy_recovery::recover;

use super::World;
pub use super::request::request;

impl World {
    /// Plans and applies a restore.
    pub fn restore(
        &self,
        cluster: &Cluster,
        into: &Path,
        target: Target,
    ) -> Result<RestorePlan, RestoreError> {
        let ports = self.ports_of(cluster, &ToyEngine, &self.clock);
        let request = request(into, target);
        let plan = restore::plan(&ports, &request)?;
        restore::apply(&ports, &plan, &request)?;
        Ok(plan)
    }

    /// Recovers a restored directory, with WAL from the repository.
    pub fn recover(&self, cluster: &Cluster, directory: &Path) -> Result<Files, String> {
        let ports = self.ports_of(cluster, &ToyEngine, &self.clock);
        let state = RecoveryState::read(directory).map_err(|e| e.to_string())?;
        let to = directory.join("pg_wal/RECOVERYXLOG");
        recover(directory, |name| match wal::get(&ports, &name.to_string(), &to, state.as_ref()) {
            Ok(GetOutcome::Fetched { .. }) => Ok(Some(fs::read(&to).unwrap())),
            Ok(GetOutcome::NotThere { .. }) => Ok(None),
            Err(error) => Err(lifeboat_jobs::inventory::chain(&error)),
        })
    }

    /// Restores and recovers into a directory that is removed afterwards.
    pub fn content_at(&self, target: Target) -> Result<Files, String> {
        let into = self.fresh();
        let restored = self.restore(&self.cluster, &into, target).map_err(|e| e.to_string());
        let files = restored.and_then(|_| self.recover(&self.cluster, &into));
        if into.exists() {
            fs::remove_dir_all(&into).unwrap();
        }
        files
    }

    /// A place for a restore at which nothing is.
    pub fn fresh(&self) -> PathBuf {
        let into = self.home.path().join("restored");
        assert!(!into.exists());
        into
    }
}
