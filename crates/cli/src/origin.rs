//! Where a backup is taken from: found by itself where it is clear.

use lifeboat_engine::Origin;
use lifeboat_postgres::live::backup::PostgresOrigin;
use lifeboat_postgres::live::conninfo::Wanted;
use lifeboat_postgres::live::remote::{RemoteOptions, RemoteOrigin};

use crate::app::App;
use crate::error::CliError;

/// Where a backup is taken from.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// A primary whose data directory is on this machine
    Local,
    /// A standby whose data directory is on this machine
    Standby,
    /// A server anywhere, which sends its files over the replication protocol
    Remote,
}

/// A server to take a backup of.
pub(crate) struct Found {
    /// The server.
    pub origin: Box<dyn Origin>,
    /// How the backup is taken and why so, when that was found out.
    pub how: Option<String>,
}

/// Connects to the server as a backup does.
pub(crate) fn find(app: &App, from: Option<From>) -> Result<Found, CliError> {
    match from {
        Some(From::Local) => local(app, app.origin(Wanted::Primary)?),
        Some(From::Standby) => local(app, app.origin(Wanted::Standby)?),
        Some(From::Remote) => remote(app, None),
        // Whoever says where it is wants it to be read.
        None if app.settings()?.data_directory.is_some() => local(app, app.origin(Wanted::Any)?),
        None => match app.origin(Wanted::Any) {
            Ok(mut origin) => match origin.is_elsewhere()? {
                None => local(app, origin),
                Some(why) => remote(app, Some(why)),
            },
            // LiveError::Privilege: it may not even see where the data directory is.
            Err(error) if error.0.code().0 == "LB-PG-024" => {
                remote(app, Some("the role may not see where the data directory is".to_owned()))
            }
            Err(error) => Err(error),
        },
    }
}

fn local(app: &App, origin: PostgresOrigin) -> Result<Found, CliError> {
    say_standby(app, &origin)?;
    Ok(Found { origin: Box::new(origin), how: None })
}

fn remote(app: &App, why: Option<String>) -> Result<Found, CliError> {
    let compression = app.settings()?.wire_compression;
    let origin = RemoteOrigin::connect(app.conninfo()?, RemoteOptions { compression })?;
    let how = why.map(|why| format!("the server sends its files: {why}"));
    Ok(Found { origin: Box::new(origin), how })
}

/// What somebody should know before a backup from a standby.
fn say_standby(app: &App, origin: &PostgresOrigin) -> Result<(), CliError> {
    if !origin.is_standby() {
        return Ok(());
    }
    app.ui
        .say("the server is a standby: the backup is taken there, its primary archives the WAL")?;
    if let Some(why) = origin.primary_trouble() {
        app.ui.warn(&format!(
            "the primary cannot be asked to finish segments ({why}): the backup waits until it \
             does so by itself. `SELECT pg_switch_wal()` there, or archive_timeout, helps; \
             `postgres.primary` in the configuration says how to reach it"
        ));
    }
    Ok(())
}
