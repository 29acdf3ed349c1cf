//! `lifeboat backup`

use lifeboat_jobs::backup::{self, BackupReport, BackupSettings};
use lifeboat_jobs::succession::{self, Continued};
use lifeboat_jobs::wal::push::spool::Spool;
use lifeboat_units::Clock;

use super::reading;
use crate::app::{Access, App};
use crate::config::settings::{share, threads};
use crate::error::CliError;
use crate::exit::Outcome;
use crate::origin::{self, From};
use crate::ui::{Page, Report, between, seconds};

/// Take a base backup: complete by itself, at the price of what changed
///
/// Reads the data directory, of a primary or a standby, where it is on this machine and can be read;
/// otherwise the server sends its files over the replication protocol (PostgreSQL 15 or later, a
/// role with REPLICATION). Either way the backup is the same, and the next one may be taken the
/// other way.
///
/// Checks first that WAL arrives in the repository, and lists the backup only when all the WAL it
/// needs is there. From PostgreSQL 17 on, with `summarize_wal = on`, it reads only what the server
/// says changed and a rotating share of the rest; else it reads everything and compares hashes.
/// Pages that are damaged in the data directory are backed up as they are, named, and make the exit
/// code 3; so do pages that changed although the server said nothing of it.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  lifeboat backup\n  lifeboat backup --label 'before the upgrade'\n  \
                  lifeboat backup --full-read
  lifeboat backup --from standby
  \
                  lifeboat backup --from remote
  \
                  lifeboat backup --continue --label 'after the upgrade'"
)]
pub(crate) struct Args {
    /// A note that `list` shows
    #[arg(long, value_name = "NOTE")]
    label: Option<String>,
    /// Threads that read, compare, compress and seal
    #[arg(long, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
    /// Read everything and compare hashes, whatever the server says of what changed
    #[arg(long)]
    full_read: bool,
    /// Share of the unchanged data to compare by hashes, such as 1/14
    #[arg(long, value_name = "SHARE", value_parser = share)]
    sweep_share: Option<u32>,
    /// Where to take it from [default: found by itself]
    #[arg(long, value_name = "WHERE", value_enum)]
    from: Option<From>,
    /// After pg_upgrade, once: this server continues the cluster under a new system identifier
    ///
    /// Recorded in the repository: from now on this server archives and backs up under the
    /// cluster's name, and the server that was the cluster is refused. Its backups stay.
    #[arg(long)]
    r#continue: bool,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    app.as_owner_of_repository()?;
    let settings = app.settings()?;
    let opened = app.open(Access::Write)?;
    let found = origin::find(app, &opened.cluster, args.from)?;
    if let Some(how) = &found.how {
        app.ui.say(how)?;
    }
    let mut origin = found.origin;
    let backup = BackupSettings {
        jobs: args.jobs.unwrap_or(settings.backup_jobs),
        compression: settings.compression,
        note: args.label.clone(),
        archive_timeout: settings.archive_timeout,
        full_read: args.full_read,
        sweep_of: args.sweep_share.unwrap_or(settings.sweep_of),
    };
    if args.r#continue {
        let identity = origin.identity()?;
        let continued = succession::record(&opened.cluster, app.clock.now(), &identity)?;
        app.ui.say(&match continued {
            Some(Continued { from, to }) => {
                format!(
                    "system {to} continues system {from} as cluster `{}`",
                    opened.cluster.name()
                )
            }
            None => "nothing to continue: the cluster is this system already".to_owned(),
        })?;
    }
    let report = backup::run(&opened.ports(app), origin.as_mut(), &backup)?;
    let spool = Spool::of(origin.data_directory());
    // The backup is listed: what cannot be looked up now, `check` and the pusher look up again.
    let _ = spool.answer_wanted(&opened.cluster, &opened.engine);
    drop(opened);
    app.ui.emit(&report)?;
    // The backup is made and listed; a timer's mail should still tell of damaged pages.
    let faulty = report.reading.as_ref().is_some_and(|reading| reading.faulty_pages > 0);
    Ok(if report.damaged_pages > 0 || faulty { Outcome::Findings } else { Outcome::Done })
}

impl Report for BackupReport {
    fn text(&self, page: &mut Page) {
        let totals = &self.totals;
        let tick = page.tick();
        page.line(format!(
            "{tick} backup {} in {}",
            self.id,
            seconds(between(self.began_at, self.ended_at))
        ));
        let compared = match self.compared_with {
            Some(id) => format!("compared with {id}"),
            None => "the first".to_owned(),
        };
        page.pairs(&[
            ("  database", format!("{} in {} files", totals.size_bytes, totals.files)),
            ("  stored", format!("{}, {compared}", totals.new_bytes)),
            ("  pages", format!("{} of {} new", totals.pages_new, totals.pages)),
            ("  read", reading::line(totals, self.reading.as_ref())),
            (
                "  WAL",
                format!("{} to {}, timeline {}", self.start_lsn, self.stop_lsn, self.timeline),
            ),
        ]);
        reading::faults(page, self.reading.as_ref());
        if self.damaged_pages > 0 {
            let cross = page.cross();
            page.line(format!(
                "{cross} {} damaged pages in the data directory:",
                self.damaged_pages
            ));
            for damaged in self.damage.iter().take(20) {
                page.line(format!("  {} page {}: {}", damaged.path, damaged.page, damaged.what));
            }
            if self.compared_with.is_some() {
                page.line("  no earlier good backup is expired because of this one");
            }
        }
    }
}
