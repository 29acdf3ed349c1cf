//! What every job is given.

use std::sync::Arc;

use lifeboat_engine::{Engine, Transform};
use lifeboat_repo::{Cluster, Reorder, Transforms};
use lifeboat_units::{Cancel, Clock, Progress};

/// What every job is given: nothing is global.
#[derive(Clone, Copy)]
pub struct Ports<'a> {
    /// The cluster's part of the repository.
    pub cluster: &'a Cluster,
    /// What knows the database.
    pub engine: &'a dyn Engine,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Who hears how far the job is.
    pub progress: &'a dyn Progress,
    /// Set when the job is to stop.
    pub cancel: &'a Cancel,
}

impl Ports<'_> {
    /// The engine's page transforms, as the repository wants them.
    pub fn transforms(&self, page_bytes: u32) -> Transforms {
        transforms(self.engine.page_transforms(page_bytes))
    }
}

/// The engine's transforms of log files, as a cluster of the repository wants them.
pub fn log_transforms(engine: &dyn Engine) -> Transforms {
    transforms(engine.log_transforms())
}

fn transforms(list: Vec<Box<dyn Transform>>) -> Transforms {
    Transforms::new(list.into_iter().map(|t| Arc::new(Adapter(t)) as Arc<dyn Reorder>).collect())
}

/// An engine's transform with the repository's face: the two crates do not know each other.
struct Adapter(Box<dyn Transform>);

impl Reorder for Adapter {
    fn id(&self) -> u8 {
        self.0.id()
    }

    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        self.0.split(raw, out)
    }

    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), String> {
        self.0.join(split, out).map_err(|e| e.to_string())
    }
}
