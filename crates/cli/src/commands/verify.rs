//! `lifeboat verify`

use lifeboat_jobs::verify::{self, VerifyReport, VerifySettings};
use lifeboat_repo::BackupId;

use super::show::backup_id;
use crate::app::{Access, App};
use crate::config::settings::threads;
use crate::error::CliError;
use crate::exit::Outcome;
use crate::ui::{Page, Report, counted, seconds};

/// Read everything back and check it
///
/// Reads every object that backups and WAL refer to: seals, page hashes, and whether the WAL goes
/// on without a gap. Names what is damaged and which backups it touches, and ends with 3 when
/// there is anything to name.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  lifeboat verify\n  lifeboat verify 20261122T231501Z-1a2b3c4d")]
pub(crate) struct Args {
    /// Only these backups, and the WAL that makes them consistent
    #[arg(value_name = "ID", value_parser = backup_id)]
    ids: Vec<BackupId>,
    /// Threads that read and check
    #[arg(long, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let opened = app.open(Access::Read)?;
    let settings = VerifySettings {
        backups: (!args.ids.is_empty()).then(|| args.ids.clone()),
        jobs: args.jobs.unwrap_or(app.settings()?.restore_jobs),
    };
    let report = verify::run(&opened.ports(app), &settings)?;
    drop(opened);
    app.ui.emit(&report)?;
    Ok(if report.is_clean() { Outcome::Done } else { Outcome::Findings })
}

impl Report for VerifyReport {
    fn text(&self, page: &mut Page) {
        for finding in &self.findings {
            let cross = page.cross();
            page.line(format!("{cross} {}: {}", finding.object, finding.what));
            let backups: Vec<String> = finding.backups.iter().map(ToString::to_string).collect();
            if !backups.is_empty() {
                page.line(format!("    touches backup {}", backups.join(", ")));
            }
            if finding.files_count > 0 {
                let more = finding.files_count.saturating_sub(finding.files.len() as u64);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                page.line(format!("    touches {}{more}", finding.files.join(", ")));
            }
            if let Some(reach) = &finding.reach {
                page.line(format!("    {reach}"));
            }
        }
        for text in &self.notes {
            let note = page.note();
            page.line(format!("{note} {text}"));
        }
        let counts = &self.counts;
        let read = format!(
            "{}, {} pages, {}, {} read in {}",
            counted(counts.backups, "backup"),
            counts.pages,
            counted(counts.segments, "WAL file"),
            counts.read_bytes,
            seconds(self.seconds)
        );
        if self.is_clean() {
            let tick = page.tick();
            page.line(format!("{tick} all is well: {read}"));
        } else {
            page.line(format!("{} in {read}", counted(self.findings.len() as u64, "finding")));
        }
    }
}
