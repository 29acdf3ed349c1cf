//! `lifeboat list --all`: every cluster of a repository in one line.

use lifeboat_jobs::inventory::Inventory;
use lifeboat_repo::BackupId;
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use crate::app::{App, Opened};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report};

/// What a repository holds.
#[derive(Debug, Serialize)]
struct All {
    repository: String,
    clusters: Vec<Short>,
}

/// A cluster in short.
#[derive(Debug, Serialize)]
struct Short {
    cluster: String,
    /// The server's version when the newest backup was taken.
    server_version: Option<String>,
    backups: usize,
    newest: Option<BackupId>,
    newest_stopped_at: Option<Timestamp>,
    wal_segments: u64,
    wal_stored_bytes: ByteCount,
    unreadable: usize,
}

pub(crate) fn run(app: &App, opened: &Opened) -> Result<Outcome, CliError> {
    let ports = opened.ports(app);
    let repository = ports.cluster.repository();
    let mut clusters = Vec::new();
    for name in repository.clusters()? {
        let cluster = repository.cluster(name);
        let cluster = cluster.with_log_transforms(ports.cluster.log_transforms().clone());
        let inventory = Inventory::load(&cluster, ports.engine)?;
        let newest = inventory.newest();
        let segments = || inventory.timelines.values().flat_map(|t| t.segments.values());
        clusters.push(Short {
            cluster: cluster.name().to_string(),
            server_version: newest.map(|b| b.facts.server_version.clone()),
            backups: inventory.backups.len(),
            newest: newest.map(|b| b.id()),
            newest_stopped_at: newest.map(|b| b.facts.stopped_at),
            wal_segments: segments().count() as u64,
            wal_stored_bytes: ByteCount(segments().sum()),
            unreadable: inventory.unreadable.len(),
        });
    }
    app.ui.emit(&All { repository: ports.cluster.store().location(), clusters })?;
    Ok(Outcome::Done)
}

impl Report for All {
    fn text(&self, page: &mut Page) {
        page.line(format!("repository {}", self.repository));
        page.line("");
        let header = ["cluster", "server", "backups", "newest", "taken", "WAL segments", "WAL"];
        let row = |short: &Short| {
            vec![
                short.cluster.clone(),
                short.server_version.clone().unwrap_or_default(),
                short.backups.to_string(),
                short.newest.map_or_else(String::new, |id| id.to_string()),
                short.newest_stopped_at.map_or_else(String::new, |at| page.time(at)),
                short.wal_segments.to_string(),
                short.wal_stored_bytes.to_string(),
            ]
        };
        let rows = self.clusters.iter().map(row).collect();
        page.table(&header, &[2, 5, 6], rows);
        let cross = page.cross();
        for short in self.clusters.iter().filter(|short| short.unreadable > 0) {
            page.line(format!(
                "{cross} {}: {} objects cannot be read; `lifeboat verify` names them",
                short.cluster, short.unreadable
            ));
        }
    }
}
