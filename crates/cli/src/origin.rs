//! Where a backup is taken from: found by itself where it is clear.

use std::path::Path;

use lifeboat_engine::{Engine, Origin, RecoveryMark};
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin};
use lifeboat_postgres::live::conninfo::{Conninfo, Wanted};
use lifeboat_postgres::live::error::LiveError;
use lifeboat_postgres::live::remote::{RemoteOptions, RemoteOrigin};
use lifeboat_repo::Cluster;

use crate::app::App;
use crate::error::{CliError, usage};

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

/// Where a server is, as seen from here.
pub(crate) enum Place {
    /// Its data directory can be read here.
    Here(Box<PostgresOrigin>),
    /// It is reached only through the network, for this reason.
    Far(String),
}

/// Finds out whether the server's data directory can be read here, for `options` with which a
/// connection would be made if it could.
pub(crate) fn place(conninfo: Conninfo, options: OriginOptions) -> Result<Place, LiveError> {
    // Whoever says where it is wants it to be read.
    let told = options.data_directory.is_some();
    match PostgresOrigin::connect(conninfo, options) {
        Ok(origin) if told => Ok(Place::Here(Box::new(origin))),
        Ok(mut origin) => Ok(match origin.is_elsewhere()? {
            None => Place::Here(Box::new(origin)),
            Some(why) => Place::Far(why),
        }),
        Err(LiveError::Privilege { .. }) => {
            Ok(Place::Far("the role may not see where the data directory is".to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// Connects to the server as a backup does.
pub(crate) fn find(app: &App, cluster: &Cluster, from: Option<From>) -> Result<Found, CliError> {
    let here = match from {
        Some(From::Local) => Box::new(app.origin(Wanted::Primary)?),
        Some(From::Standby) => Box::new(app.origin(Wanted::Standby)?),
        Some(From::Remote) => return remote(app, None),
        None => match place(app.conninfo()?, app.origin_options(Wanted::Any)?)? {
            Place::Here(origin) => origin,
            Place::Far(why) => return remote(app, Some(why)),
        },
    };
    cluster.refuse_within(here.data_directory())?;
    local(app, here)
}

/// Connects to a server that sends its files.
pub(crate) fn connect_far(app: &App) -> Result<RemoteOrigin, CliError> {
    let settings = app.settings()?;
    let OriginOptions { primary, patience, cancel, .. } = app.origin_options(Wanted::Any)?;
    let compression = settings.wire_compression;
    let options = RemoteOptions { compression, primary, patience, cancel };
    Ok(RemoteOrigin::connect(app.conninfo()?, options)?)
}

fn local(app: &App, origin: Box<PostgresOrigin>) -> Result<Found, CliError> {
    if origin.is_standby() {
        if recovers_only(&app.engine()?, origin.data_directory()) {
            let help = "wait until it is promoted (`restore --start` waits), then take the backup";
            return Err(usage(RECOVERS, help).into());
        }
        say_standby(app, origin.primary_trouble())?;
    }
    Ok(Found { origin, how: None })
}

/// What is said of a server that is no standby, although it replays WAL.
pub(crate) const RECOVERS: &str = "the server still recovers, as one that was restored does";

/// Whether a server that replays WAL is on its way to a promotion, and no standby.
pub(crate) fn recovers_only(engine: &dyn Engine, data_directory: &Path) -> bool {
    engine.recovery_mark(data_directory) == Some(RecoveryMark::Once)
}

fn remote(app: &App, why: Option<String>) -> Result<Found, CliError> {
    let origin = connect_far(app)?;
    if origin.is_standby() {
        say_standby(app, origin.primary_trouble())?;
    }
    let how = why.map(|why| format!("the server sends its files: {why}"));
    Ok(Found { origin: Box::new(origin), how })
}

/// What somebody should know before a backup from a standby.
fn say_standby(app: &App, trouble: Option<&str>) -> Result<(), CliError> {
    app.ui
        .say("the server is a standby: the backup is taken there, its primary archives the WAL")?;
    if let Some(why) = trouble {
        app.ui.warn(&format!(
            "the primary cannot be asked to finish segments ({why}): the backup waits until it \
             does so by itself. `SELECT pg_switch_wal()` there, or archive_timeout, helps; \
             `postgres.primary` in the configuration says how to reach it"
        ));
    }
    Ok(())
}
