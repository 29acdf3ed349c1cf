//! `lifeboat show`

use lifeboat_engine::{ClusterIdentity, Tablespace};
use lifeboat_jobs::facts::{BackupFacts, DamagedPage, Reading};
use lifeboat_jobs::inventory::Backup;
use lifeboat_repo::{BackupId, Totals};
use serde::Serialize;

use super::list::Row;
use super::reading;
use crate::app::{Access, App};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report, seconds};

/// Show one backup in full
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  lifeboat show 20261122T231501Z-1a2b3c4d")]
pub(crate) struct Args {
    /// The backup, as `list` shows it
    #[arg(value_name = "ID", value_parser = backup_id)]
    id: BackupId,
}

/// Reads a backup's identifier.
pub(crate) fn backup_id(text: &str) -> Result<BackupId, String> {
    text.parse()
        .map_err(|_| "it looks like 20261122T231501Z-1a2b3c4d; `lifeboat list` shows all".into())
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let opened = app.open(Access::Write)?;
    let manifest = opened.cluster.manifest(args.id)?;
    let facts = BackupFacts::of(&manifest)?;
    let packs: u64 =
        manifest.packs.values().flatten().map(|(first, last)| u64::from(last - first) + 1).sum();
    let backup = Backup { manifest, facts };
    let (first, last) = backup.segments();
    let (timeline, size) = (backup.facts.timeline, backup.facts.identity.log_segment);
    let name = |number| lifeboat_engine::SegmentName::new(timeline, number, size).to_string();
    app.ui.emit(&Shown {
        backup: Row::of(&backup),
        identity: backup.facts.identity.clone(),
        wal_first: name(first),
        wal_last: name(last),
        packs,
        sessions: backup.manifest.packs.len(),
        tablespaces: backup.facts.tablespaces.clone(),
        damage: backup.facts.damage.clone(),
        totals: backup.manifest.totals,
        reading: backup.facts.reading.clone(),
    })?;
    Ok(Outcome::Done)
}

/// A backup in full.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    backup: Row,
    identity: ClusterIdentity,
    wal_first: String,
    wal_last: String,
    packs: u64,
    sessions: usize,
    tablespaces: Vec<Tablespace>,
    damage: Vec<DamagedPage>,
    totals: Totals,
    reading: Option<Reading>,
}

impl Report for Shown {
    fn text(&self, page: &mut Page) {
        let (backup, identity) = (&self.backup, &self.identity);
        let taken = format!("{} to {}", page.time(backup.started_at), page.time(backup.stopped_at));
        let checksums = if identity.checksums { "on" } else { "off" };
        page.line(format!("backup {}", backup.id));
        page.pairs(&[
            ("note", backup.note.clone().unwrap_or_default()),
            ("taken", format!("{taken} ({})", seconds(backup.duration_seconds))),
            (
                "server",
                format!("PostgreSQL {}, system {}", backup.server_version, identity.system_id),
            ),
            ("pages", format!("{} bytes each, checksums {checksums}", identity.page_bytes)),
            ("timeline", backup.timeline.to_string()),
            ("consistent", format!("{} to {}", backup.start_lsn, backup.stop_lsn)),
            ("needs WAL", format!("{} to {}", self.wal_first, self.wal_last)),
            ("database", format!("{} in {} files", backup.size_bytes, backup.files)),
            (
                "new",
                format!("{}, {} of {} pages", backup.new_bytes, backup.pages_new, backup.pages),
            ),
            ("read", reading::line(&self.totals, self.reading.as_ref())),
            ("lies in", format!("{} packs of {} backups", self.packs, self.sessions)),
            (
                "compared with",
                backup.compared_with.map_or("nothing: the first".into(), |id| id.to_string()),
            ),
        ]);
        for tablespace in &self.tablespaces {
            page.line(format!(
                "tablespace {} in {}",
                tablespace.oid,
                tablespace.location.display()
            ));
        }
        reading::faults(page, self.reading.as_ref());
        if backup.damaged_pages > 0 {
            let cross = page.cross();
            page.line(format!(
                "{cross} {} pages were damaged when they were read:",
                backup.damaged_pages
            ));
        }
        for damaged in &self.damage {
            page.line(format!("  {} page {}: {}", damaged.path, damaged.page, damaged.what));
        }
    }
}
