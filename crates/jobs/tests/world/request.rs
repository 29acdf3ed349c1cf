//! What is asked of a restore.

use std::path::Path;

use lifeboat_engine::RecoveryMode;
use lifeboat_jobs::restore::{RestoreRequest, Target, TimelineChoice};

/// A request to restore `target` into `into`.
pub fn request(into: &Path, target: Target) -> RestoreRequest {
    RestoreRequest {
        into: into.to_owned(),
        delta: false,
        target,
        timeline: TimelineChoice::Latest,
        tablespaces: Vec::new(),
        owner_instead_of_root: None,
        jobs: 1,
        mode: RecoveryMode::Copy,
        restore_command: "lifeboat wal get %f %p".to_owned(),
        recovery_end_command: None,
        archive_command: None,
    }
}
