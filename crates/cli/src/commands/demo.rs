//! `lifeboat demo`

mod lab;
mod load;

use std::time::Duration;

use lifeboat_units::{ByteCount, Clock, Timestamp};
use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Trouble};
use crate::exit::Outcome;
use crate::ui::{Page, Report, between, seconds};
use lab::Lab;
use load::{Load, Proof};

/// See it all on a throw-away server, in a minute
///
/// Makes a PostgreSQL server in a temporary directory, sets up the repository and archiving, writes
/// to it all the time, takes two backups, drops a table by mistake, brings back the moment before,
/// and proves that every row is there that was acknowledged before that moment, and none after it.
/// Then everything is removed. Shows each command as you would type it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  lifeboat demo")]
pub(crate) struct Args {
    /// Leave the directory, with the servers stopped
    #[arg(long)]
    keep: bool,
    /// How much data to begin with, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    size: u32,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let began = app.clock.now();
    let mut lab = Lab::make(app, args.keep)?;
    app.ui.say(&format!(
        "a throw-away PostgreSQL {} in {}\n",
        lab.major(),
        lab.home().display()
    ))?;
    let story = tell(app, args, &mut lab)?;
    let report = Told { seconds: between(began, app.clock.now()), ..story };
    drop(lab); // servers stopped, everything removed
    app.ui.emit(&report)?;
    if report.proof.holds() {
        Ok(Outcome::Done)
    } else {
        Err(Trouble::Demo("what was restored is not what was acknowledged".to_owned()).into())
    }
}

/// The story, step by step.
fn tell(app: &App, args: &Args, lab: &mut Lab) -> Result<Told, CliError> {
    lab.lifeboat(
        "set up the repository, its keys and archiving",
        &[
            "init",
            "--pg",
            &lab.conninfo(),
            "--repo",
            &format!("file://{}/repo", lab.home().display()),
            "--passphrase-file",
            "passphrase",
            "--apply",
        ],
    )?;
    lab.restart()?;
    lab.lifeboat("prove that it works", &["check"])?;
    let size = lab.fill(args.size)?;
    let load = Load::start(&lab.conninfo(), app.cancel.clone())?;
    let first =
        lab.lifeboat("the first backup, while rows are written all the time", &["backup"])?;
    lab.pause(Duration::from_secs(3))?;
    let second =
        lab.lifeboat("a later backup: complete too, but only what changed", &["backup"])?;
    lab.pause(Duration::from_secs(2))?;
    // The server knows microseconds.
    let now = app.clock.now();
    let moment = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    lab.pause(Duration::from_millis(700))?;
    let dropped = lab.sql("by mistake", "DROP TABLE orders");
    let log = load.stop();
    dropped?;
    lab.finish_segment()?;
    let text = moment.strftime("%Y-%m-%d %H:%M:%S.%6fZ").to_string();
    let restore = lab.lifeboat(
        "bring back the moment before",
        &[
            "restore",
            "--into",
            &lab.restored().display().to_string(),
            "--to-time",
            &text,
            "--start",
            "--socket-directory",
            &lab.restored_socket().display().to_string(),
        ],
    )?;
    let proof = log.compare(&lab.restored_conninfo(), moment)?;
    let verify = lab.lifeboat("read everything back and check it", &["verify"])?;
    lab.lifeboat("what is there", &["list"])?;
    Ok(Told {
        moment,
        database_bytes: size,
        repository_bytes: lab.repository_size(),
        first_backup_seconds: first,
        second_backup_seconds: second,
        restore_seconds: restore,
        verify_seconds: verify,
        proof,
        seconds: 0.0,
    })
}

/// What the demonstration showed.
#[derive(Debug, Serialize)]
struct Told {
    moment: Timestamp,
    database_bytes: ByteCount,
    repository_bytes: ByteCount,
    first_backup_seconds: f64,
    second_backup_seconds: f64,
    /// With starting the server and replaying WAL.
    restore_seconds: f64,
    verify_seconds: f64,
    proof: Proof,
    seconds: f64,
}

impl Report for Told {
    fn text(&self, page: &mut Page) {
        let proof = &self.proof;
        let mark = if proof.holds() { page.tick() } else { page.cross() };
        page.line(format!(
            "{mark} {} rows were acknowledged before the moment: {} of them are missing",
            proof.acknowledged_before, proof.missing
        ));
        page.line(format!(
            "{mark} {} rows were begun after it: {} of them are there",
            proof.begun_after, proof.extra
        ));
        page.line("");
        page.pairs(&[
            ("database", self.database_bytes.to_string()),
            (
                "repository",
                format!("{}, two backups and all WAL, encrypted", self.repository_bytes),
            ),
            ("first backup", seconds(self.first_backup_seconds)),
            ("later backup", seconds(self.second_backup_seconds)),
            (
                "restore",
                format!("{}, until it was recovered and promoted", seconds(self.restore_seconds)),
            ),
            ("verify", seconds(self.verify_seconds)),
            ("in all", seconds(self.seconds)),
        ]);
    }
}
