//! The server as `init` finds it: its data directory here, or at the other end of a connection.

use std::path::{Path, PathBuf};

use lifeboat_engine::{ClusterIdentity, Origin};
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin};
use lifeboat_postgres::live::cluster::{Account, Binaries, Places, running_postmaster};
use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::error::LiveError;
use lifeboat_postgres::live::remote::compression::{WireCompression, is_near};
use lifeboat_postgres::live::remote::{RemoteOptions, RemoteOrigin};
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;

use super::check::{Point, State};
use super::check_remote;
use crate::app;
use crate::config;
use crate::error::{CliError, usage};
use crate::origin::{self, Place};

/// The server as it was found.
pub(super) struct Server {
    /// How to connect, as the configuration is to say it.
    pub conninfo: String,
    /// Its system, and how its data are laid out.
    pub identity: ClusterIdentity,
    /// What it says about itself.
    pub facts: ServerFacts,
    /// To whom the files that `init` makes are to belong.
    pub owner: Account,
    way: Way,
}

enum Way {
    Here(Box<PostgresOrigin>),
    Far(Box<Far>),
}

/// A server that is reached only through the network.
pub(super) struct Far {
    origin: RemoteOrigin,
    /// Why its data directory cannot be read here.
    pub why: String,
    /// Whether it is on this machine all the same.
    pub is_near: bool,
    /// What stands in the way of backups.
    pub troubles: Vec<Point>,
}

impl Far {
    /// Where it is, without a password.
    pub fn server(&self) -> String {
        self.origin.conninfo().to_string()
    }
}

impl Server {
    /// Connects to what `--pg` names, and asks.
    pub fn look(pg: &str) -> Result<Self, CliError> {
        let conninfo = Conninfo::read(pg, &config::connection_variable)?;
        if Conninfo::holds_password(pg)? {
            return Err(usage(
                "--pg holds a password, which everybody who can list processes sees",
                "put it into a password file (~/.pgpass, mode 0600) or PGPASSWORD",
            )
            .into());
        }
        // What came from the environment now will not be there when PostgreSQL archives.
        let text = if pg.is_empty() { conninfo.to_string() } else { pg.to_owned() };
        let options = OriginOptions { standby: true, ..OriginOptions::default() };
        match origin::place(conninfo.clone(), options)? {
            Place::Here(origin) => Self::here(text, origin),
            Place::Far(why) => Self::far(text, conninfo, why),
        }
    }

    fn here(conninfo: String, mut origin: Box<PostgresOrigin>) -> Result<Self, CliError> {
        let identity = origin.identity()?;
        let facts = ServerFacts::read(origin.session()?)?;
        let owner = Account::owner_of(origin.data_directory())?;
        Ok(Self { conninfo, identity, facts, owner, way: Way::Here(origin) })
    }

    fn far(text: String, conninfo: Conninfo, why: String) -> Result<Self, CliError> {
        let is_near = is_near(&conninfo);
        let mut origin = RemoteOrigin::connect(conninfo, RemoteOptions::default())?;
        let identity = origin.identity()?;
        let conninfo = origin.conninfo().clone();
        let session = origin.session()?;
        let facts = ServerFacts::read(session)?;
        let points = check_remote::points(session, &facts, &conninfo, WireCompression::Auto)?;
        let troubles = points.into_iter().filter(|point| point.state != State::Good).collect();
        let way = Way::Far(Box::new(Far { origin, why, is_near, troubles }));
        Ok(Self { conninfo: text, identity, facts, owner: Account::own(), way })
    }

    /// A session of it.
    pub fn session(&mut self) -> Result<&mut Session, LiveError> {
        match &mut self.way {
            Way::Here(origin) => origin.session(),
            Way::Far(far) => far.origin.session(),
        }
    }

    /// Its data directory, when that can be read here.
    pub fn data_directory(&self) -> Option<&Path> {
        match &self.way {
            Way::Here(origin) => Some(origin.data_directory()),
            Way::Far(_) => None,
        }
    }

    /// What is to be said of a server that is reached only through the network.
    pub fn as_far(&self) -> Option<&Far> {
        match &self.way {
            Way::Here(_) => None,
            Way::Far(far) => Some(far),
        }
    }

    /// Where the running server's programs are, when they would not be found there.
    pub fn unusual_binaries(&self) -> Option<PathBuf> {
        let major = self.identity.major;
        let plain = Places { by_major: Vec::new(), ..app::places(None) };
        if Binaries::find(major, &plain).is_ok() {
            return None;
        }
        let server = running_postmaster(self.data_directory()?).ok()??;
        let program = std::fs::read_link(format!("/proc/{}/exe", server.pid)).ok()?;
        let given = program.parent().map(Path::to_owned);
        let found = Binaries::find(major, &Places { given, ..plain }).ok()?;
        Some(found.directory().to_owned())
    }
}
