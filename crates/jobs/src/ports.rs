//! What every job is given.

use std::sync::Arc;

use lifeboat_engine::{Engine, PageTransform};
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
        let list = self.engine.page_transforms(page_bytes);
        Transforms::new(
            list.into_iter().map(|t| Arc::new(Adapter(t)) as Arc<dyn Reorder>).collect(),
        )
    }
}

/// An engine's transform with the repository's face: the two crates do not know each other.
struct Adapter(Box<dyn PageTransform>);

impl Reorder for Adapter {
    fn id(&self) -> u8 {
        self.0.id()
    }

    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        self.0.split(raw, out)
    }

    fn join(&self, split: &[u8], length: usize, out: &mut Vec<u8>) -> Result<(), String> {
        self.0.join(split, length, out).map_err(|e| e.to_string())
    }
}
