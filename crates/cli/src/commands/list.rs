//! `lifeboat list`

use lifeboat_jobs::inventory::{Backup, Inventory, Unreadable};
use lifeboat_jobs::wal::{self, Gap, GivenUp, Window};
use lifeboat_repo::BackupId;
use lifeboat_units::{ByteCount, Timestamp};
use serde::Serialize;

use crate::app::{Access, App};
use crate::commands::{list_all, wal_list};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report, between, counted, seconds};

/// List backups, and the moments that can be reached
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  lifeboat list\n  lifeboat list --json\n  lifeboat list --all")]
pub(crate) struct Args {
    /// Every cluster of the repository, one line each
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let opened = app.open(Access::Write)?;
    if args.all {
        return list_all::run(app, &opened);
    }
    let ports = opened.ports(app);
    let inventory = Inventory::load(ports.cluster, ports.engine)?;
    let wal = wal::list(&ports)?;
    let timelines = || wal.systems.iter().flat_map(|system| &system.timelines);
    app.ui.emit(&List {
        cluster: ports.cluster.name().to_string(),
        repository: ports.cluster.store().location(),
        backups: inventory.backups.iter().map(Row::of).collect(),
        wal_segments: timelines().map(|timeline| timeline.segments).sum(),
        wal_stored_bytes: timelines().map(|timeline| timeline.stored_bytes).sum(),
        windows: wal.windows.clone(),
        gaps: timelines().flat_map(|timeline| timeline.gaps.clone()).collect(),
        given_up: wal.given_up.clone(),
        unreadable: inventory.unreadable,
    })?;
    Ok(Outcome::Done)
}

/// What is there.
#[derive(Debug, Serialize)]
struct List {
    cluster: String,
    repository: String,
    backups: Vec<Row>,
    wal_segments: u64,
    wal_stored_bytes: ByteCount,
    windows: Vec<Window>,
    gaps: Vec<Gap>,
    given_up: Vec<GivenUp>,
    unreadable: Vec<Unreadable>,
}

/// A backup in short.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub id: BackupId,
    pub started_at: Timestamp,
    pub stopped_at: Timestamp,
    pub duration_seconds: f64,
    pub server_version: String,
    pub timeline: u32,
    pub start_lsn: String,
    pub stop_lsn: String,
    pub size_bytes: ByteCount,
    /// What this backup added to the repository.
    pub new_bytes: ByteCount,
    pub pages: u64,
    pub pages_new: u64,
    pub files: u64,
    pub damaged_pages: u64,
    /// Pages that changed although the server said nothing of it.
    pub faulty_pages: u64,
    pub note: Option<String>,
    pub compared_with: Option<BackupId>,
}

impl Row {
    /// The row of a backup.
    pub fn of(backup: &Backup) -> Self {
        let (facts, manifest) = (&backup.facts, &backup.manifest);
        let totals = &manifest.totals;
        Self {
            id: backup.id(),
            started_at: facts.started_at,
            stopped_at: facts.stopped_at,
            duration_seconds: between(manifest.began_at, manifest.ended_at),
            server_version: facts.server_version.clone(),
            timeline: facts.timeline.0,
            start_lsn: facts.start_lsn.to_string(),
            stop_lsn: facts.stop_lsn.to_string(),
            size_bytes: totals.size_bytes,
            new_bytes: totals.new_bytes,
            pages: totals.pages,
            pages_new: totals.pages_new,
            files: totals.files,
            damaged_pages: facts.damaged_pages,
            faulty_pages: facts.reading.as_ref().map_or(0, |reading| reading.faulty_pages),
            note: facts.note.clone(),
            compared_with: manifest.compared_with,
        }
    }
}

impl Report for List {
    fn text(&self, page: &mut Page) {
        page.line(format!("cluster {} in {}", self.cluster, self.repository));
        page.line("");
        if self.backups.is_empty() {
            page.line("no backup yet");
        } else {
            let header = ["id", "taken", "took", "database", "new", "pages new", "note"];
            let rows = self.backups.iter().map(|row| cells(page, row)).collect();
            page.table(&header, &[2, 3, 4, 5], rows);
        }
        page.line("");
        page.line(format!(
            "WAL: {}, {}",
            counted(self.wal_segments, "segment"),
            self.wal_stored_bytes
        ));
        let cross = page.cross();
        for gap in &self.gaps {
            page.line(format!(
                "{cross} gap: {} to {} ({})",
                gap.first,
                gap.last,
                counted(gap.segments, "segment")
            ));
        }
        wal_list::given_up(page, &self.given_up);
        wal_list::windows(page, &self.windows);
        for object in &self.unreadable {
            page.line(format!("{cross} backup {} cannot be read: {}", object.object, object.why));
        }
    }
}

fn cells(page: &Page, row: &Row) -> Vec<String> {
    let damage = match row.damaged_pages {
        0 => String::new(),
        1 => "1 damaged page; ".to_owned(),
        many => format!("{many} damaged pages; "),
    };
    let unseen = match row.faulty_pages {
        0 => String::new(),
        many => format!("{} changed unseen; ", counted(many, "page")),
    };
    let note = format!("{damage}{unseen}{}", row.note.as_deref().unwrap_or(""));
    vec![
        row.id.to_string(),
        page.time(row.stopped_at),
        seconds(row.duration_seconds),
        row.size_bytes.to_string(),
        row.new_bytes.to_string(),
        row.pages_new.to_string(),
        note.trim_end_matches("; ").to_owned(),
    ]
}
