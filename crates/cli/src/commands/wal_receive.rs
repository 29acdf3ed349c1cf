//! `lifeboat wal receive`

use std::time::Duration;

use lifeboat_jobs::wal::{self, ReceiveEvent, ReceiveSettings, Told};
use lifeboat_postgres::live::source::ServerSource;

use crate::app::{Access, App};
use crate::config::settings::{duration, slot_name};
use crate::error::{CliError, Trouble};
use crate::exit::Outcome;
use crate::ui::{Page, counted};

/// Receive WAL while it is written, as a service
///
/// Streams through a physical replication slot and stores what comes: finished segments as
/// `wal push` does, and of the segment under way pieces, so that `restore` reaches the last seconds.
/// What is acknowledged to the server as flushed is durable in the repository.
///
/// It connects again by itself, and follows a failover when postgres.conninfo names several hosts.
/// Nothing is kept on this machine: it may be killed at any moment, and a second one at work does no
/// harm. May run beside `archive_command`.
///
/// A signal ends it after everything that was received is stored. It ends by itself, with 1, where
/// trying again does not help, such as when the slot is missing; a repository or a server that fails
/// is waited for.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: lose no commit, with synchronous_standby_names = 'lifeboat' on \
    the server:\n  lifeboat wal receive --create-slot --synchronous")]
pub(crate) struct Args {
    /// Replication slot: a-z, 0-9 and `_` [default: wal.slot]
    #[arg(long, value_name = "NAME", value_parser = slot_name)]
    slot: Option<String>,
    /// Make the slot when it is missing, and replace it when the server gave it up
    #[arg(long)]
    create_slot: bool,
    /// Store what comes at once: for a receiver named in synchronous_standby_names
    #[arg(long)]
    synchronous: bool,
    /// Store what came so often, such as 2s [default: wal.ship-every]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ship_every: Option<Duration>,
    /// What synchronous_standby_names and pg_stat_replication call it
    #[arg(long, value_name = "NAME", default_value = "lifeboat")]
    name: String,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    app.as_owner_of_repository()?;
    let opened = app.open(Access::Write)?;
    let settings = app.settings()?;
    let receive = ReceiveSettings {
        slot: args.slot.clone().unwrap_or_else(|| settings.wal_slot.clone()),
        create_slot: args.create_slot,
        synchronous: args.synchronous,
        ship_every: args.ship_every.unwrap_or(settings.wal_ship_every),
        compression: settings.compression,
    };
    let mut source = ServerSource::new(app.conninfo()?, &args.name, app.clock);
    let mut unheard = None;
    let mut tell = |told: Told| {
        if let Err(error) = show(app, &told) {
            // Nobody listens any more: what is received matters more than what is said of it.
            unheard.get_or_insert(error);
        }
    };
    wal::receive(&opened.ports(app), &receive, &mut source, &mut tell)?;
    match unheard {
        Some(error) => Err(error),
        None => Ok(Outcome::Done),
    }
}

/// One line for people, or one JSON object on one line.
fn show(app: &App, told: &Told) -> Result<(), CliError> {
    if app.ui.json {
        let text = serde_json::to_string(told).map_err(|error| Trouble::Bug(error.to_string()))?;
        return app.ui.print(&format!("{text}\n"));
    }
    if let Some(words) = words(&app.ui.page(), &told.event) {
        app.ui.say(&format!("{}  {words}", app.ui.page().time(told.at)))?;
    }
    Ok(())
}

fn words(page: &Page, event: &ReceiveEvent) -> Option<String> {
    let (cross, note, tick) = (page.cross(), page.note(), page.tick());
    Some(match event {
        ReceiveEvent::Connected { server, system, timeline, end } => {
            format!("connected: {server}; system {system}, timeline {timeline}, WAL up to {end}")
        }
        ReceiveEvent::SlotCreated { slot, replaced: false } => {
            format!("{tick} replication slot `{slot}` was made")
        }
        ReceiveEvent::SlotCreated { slot, replaced: true } => {
            format!("{note} replication slot `{slot}` kept no WAL any more and was made anew")
        }
        ReceiveEvent::Streaming { timeline, from } => {
            format!("receiving timeline {timeline} from {from} on")
        }
        ReceiveEvent::History { timeline } => {
            format!("the history of timeline {timeline} is stored")
        }
        ReceiveEvent::Segment { segment, stored_bytes } if stored_bytes.0 == 0 => {
            format!("{segment} is complete; it was archived already")
        }
        ReceiveEvent::Segment { segment, stored_bytes } => {
            format!("{segment} is complete ({stored_bytes})")
        }
        ReceiveEvent::Progress { received, durable, behind_bytes, pieces } => {
            let durable = durable.map_or_else(|| "not yet".to_owned(), |d| d.to_string());
            let behind = match behind_bytes.0 {
                0 => String::new(),
                _ => format!(", {behind_bytes} behind the server"),
            };
            let pieces = counted(*pieces, "piece");
            format!("received up to {received}, durable up to {durable} ({pieces}){behind}")
        }
        ReceiveEvent::Switched { from, to, at } => {
            format!("timeline {from} ended at {at}; timeline {to} follows")
        }
        ReceiveEvent::LeftBehind { timeline, left_at, stored_to } => format!(
            "{cross} timeline {timeline} was left at {left_at}, and was received up to \
             {stored_to}: what was committed in between is not on the new timeline; `lifeboat \
             restore --timeline {timeline}` brings it back"
        ),
        ReceiveEvent::Gap { first, last, reason } => format!(
            "{cross} gap: {first} to {last} is lost ({reason}). Moments in it cannot be restored, \
             nor any after it from an earlier backup: take a backup now"
        ),
        ReceiveEvent::Waiting { why } => {
            format!("{cross} the repository does not take what was received: {why}")
        }
        ReceiveEvent::Disconnected { why, retry_seconds } => {
            format!("{note} {why}; the next attempt is in {retry_seconds:.1} s")
        }
        ReceiveEvent::Note { message } => format!("{note} {message}"),
        ReceiveEvent::Stopped { durable } => {
            let durable = durable.map_or_else(String::new, |d| format!(": durable up to {d}"));
            format!("stopped{durable}")
        }
    })
}
