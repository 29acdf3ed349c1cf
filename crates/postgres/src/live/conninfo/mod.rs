//! Where a server is and who logs in: connection strings as libpq reads them.
//!
//! Precedence, as in libpq: the text, then the service file, then `PG…` variables, then
//! defaults. The environment is passed in, so that nothing here depends on the process.

mod error;
mod files;
mod keys;
mod parse;
mod tls;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_units::Secret;

pub use error::ConninfoError;
use files::Passwords;
use keys::{KEYS, VARIABLES};
use parse::Raw;
pub use tls::{Binding, Roots, SslMode, TlsSettings, TlsVersion};

/// Looks up one variable of the environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where one of the named servers listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Directory of a Unix socket.
    Socket(PathBuf),
    /// Name or address, and the address to use instead of resolving the name.
    Tcp(String, Option<IpAddr>),
}

/// One server to try, with the password for it.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its port, which also names the socket.
    pub port: u16,
    /// From the text, PGPASSWORD or the password file.
    pub password: Option<Secret>,
    /// From a line of the password file for the database `replication`, which goes first there.
    pub replication_password: Option<Secret>,
}

/// A connection string, read and completed.
#[derive(Debug, Clone)]
pub struct Conninfo {
    /// Servers in the order in which they are tried; at least one.
    pub hosts: Vec<Host>,
    /// Role to log in as.
    pub user: String,
    /// Database.
    pub dbname: String,
    /// Command-line options for the session, as in PGOPTIONS.
    pub options: Option<String>,
    /// Shown in pg_stat_activity.
    pub application_name: String,
    /// How long one attempt may take.
    pub connect_timeout: Duration,
    /// TCP keepalives: idle, interval, count.
    pub keepalives: Keepalives,
    /// How long sent data may stay unacknowledged; zero for the system's default.
    pub tcp_user_timeout: Duration,
    /// Protection on the way; sockets of this machine need none.
    pub tls: TlsSettings,
    /// Which of the servers will do.
    pub wanted: Wanted,
    /// Things to tell the user, such as an ignored password file.
    pub warnings: Vec<String>,
}

/// Which kind of server a connection is for (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Whichever answers first.
    Any,
    /// One that is written to.
    Primary,
    /// One that recovers.
    Standby,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "server",
            Self::Primary => "primary",
            Self::Standby => "standby",
        })
    }
}

/// TCP keepalive settings; a backup's session may be silent for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalives {
    /// Whether they are used.
    pub on: bool,
    /// Silence before the first one.
    pub idle: Duration,
    /// Between two.
    pub interval: Duration,
    /// Unanswered ones before the connection counts as lost.
    pub count: u32,
}

impl Conninfo {
    /// Reads a connection string (`key=value …` or `postgresql://…`; may be empty) and completes
    /// it from a service file, the environment, a password file and defaults.
    pub fn read(text: &str, environment: Environment<'_>) -> Result<Self, ConninfoError> {
        let mut raw = parse::split(text)?;
        for key in raw.keys() {
            if !KEYS.contains(&key.as_str()) {
                return Err(ConninfoError::UnknownKey { key: key.clone() });
            }
        }
        add_service(&mut raw, environment)?;
        for (key, variable) in VARIABLES {
            if !raw.contains_key(*key)
                && let Some(value) = environment(variable).filter(|v| !v.is_empty())
            {
                raw.insert((*key).to_owned(), value);
            }
        }
        raw.retain(|_, value| !value.is_empty());
        build(&raw, environment)
    }

    /// Whether the text itself holds a password; one that it leads to, as by `passfile`, is none.
    pub fn holds_password(text: &str) -> Result<bool, ConninfoError> {
        Ok(parse::split(text)?.get("password").is_some_and(|password| !password.is_empty()))
    }

    /// The same for one of the servers only, counted from 0.
    #[must_use]
    pub fn only(mut self, host: usize) -> Self {
        if host < self.hosts.len() {
            self.hosts = vec![self.hosts.swap_remove(host)];
        }
        self
    }
}

/// Reads only where the servers are, and nothing of who logs in and how: for the
/// `primary_conninfo` of a standby, which is entered with a role of our own.
pub fn hosts_in(text: &str) -> Result<Vec<Host>, ConninfoError> {
    let mut raw = parse::split(text)?;
    raw.retain(|_, value| !value.is_empty());
    endpoints(&raw)
}

impl fmt::Display for Conninfo {
    /// As a connection string without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |part: &dyn Fn(&Host) -> String| {
            quote(&self.hosts.iter().map(part).collect::<Vec<_>>().join(","))
        };
        let host = |h: &Host| match &h.endpoint {
            Endpoint::Socket(directory) => directory.display().to_string(),
            Endpoint::Tcp(name, _) => name.clone(),
        };
        write!(
            f,
            "host={} port={} user={} dbname={}",
            list(&host),
            list(&|h| h.port.to_string()),
            quote(&self.user),
            quote(&self.dbname)
        )
    }
}

/// Writes a value so that libpq reads it back.
pub fn quote(value: &str) -> String {
    if !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || "'\\=".contains(c)) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Fills what the text leaves open from the service it (or PGSERVICE) names.
fn add_service(raw: &mut Raw, environment: Environment<'_>) -> Result<(), ConninfoError> {
    let Some(service) = raw.get("service").cloned().or_else(|| environment("PGSERVICE")) else {
        return Ok(());
    };
    let own = raw
        .get("servicefile")
        .cloned()
        .or_else(|| environment("PGSERVICEFILE"))
        .or_else(|| environment("HOME").map(|home| format!("{home}/.pg_service.conf")));
    let shared = environment("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into());
    let looked: Vec<String> =
        own.into_iter().chain([format!("{shared}/pg_service.conf")]).collect();
    for path in &looked {
        if let Some(found) = files::find_service(Path::new(path), &service)? {
            for (key, value) in found {
                raw.entry(key).or_insert(value);
            }
            return Ok(());
        }
    }
    Err(ConninfoError::Service { service, looked })
}

fn build(raw: &Raw, environment: Environment<'_>) -> Result<Conninfo, ConninfoError> {
    let get = |key: &str| raw.get(key).map(String::as_str);
    let user = match get("user") {
        Some(user) => user.to_owned(),
        None => environment("USER")
            .or_else(|| environment("LOGNAME"))
            .filter(|u| !u.is_empty())
            .ok_or(ConninfoError::NoUser)?,
    };
    let seconds = |key: &'static str, default: u64| match get(key) {
        None => Ok(Duration::from_secs(default)),
        Some(text) => number(key, text).map(Duration::from_secs),
    };
    let hosts = endpoints(raw)?;
    let has_network = hosts.iter().any(|host| matches!(host.endpoint, Endpoint::Tcp(..)));
    let mut conninfo = Conninfo {
        hosts,
        tls: tls::read(raw, environment, has_network)?,
        dbname: get("dbname").unwrap_or(&user).to_owned(),
        user,
        options: get("options").map(str::to_owned),
        application_name: get("application_name").unwrap_or("lifeboat").to_owned(),
        connect_timeout: seconds("connect_timeout", 10)?,
        keepalives: Keepalives {
            on: get("keepalives").map_or(Ok(1), |text| number("keepalives", text))? != 0,
            idle: seconds("keepalives_idle", 60)?,
            interval: seconds("keepalives_interval", 15)?,
            count: get("keepalives_count").map_or(Ok(4), |t| number("keepalives_count", t))? as u32,
        },
        tcp_user_timeout: Duration::from_millis(
            get("tcp_user_timeout").map_or(Ok(0), |text| number("tcp_user_timeout", text))?,
        ),
        wanted: wanted(get("target_session_attrs").unwrap_or("any"))?,
        warnings: Vec::new(),
    };
    if conninfo.connect_timeout.is_zero() {
        // Zero means "forever" to libpq; a backup that waits forever helps nobody.
        conninfo.connect_timeout = Duration::from_secs(10);
    }
    add_passwords(&mut conninfo, raw, environment)?;
    Ok(conninfo)
}

fn wanted(text: &str) -> Result<Wanted, ConninfoError> {
    match text {
        "any" | "prefer-standby" => Ok(Wanted::Any),
        "read-write" | "primary" => Ok(Wanted::Primary),
        "read-only" | "standby" => Ok(Wanted::Standby),
        other => Err(ConninfoError::Value { key: "target_session_attrs", value: other.to_owned() }),
    }
}

fn number(key: &'static str, text: &str) -> Result<u64, ConninfoError> {
    text.trim().parse().map_err(|_| ConninfoError::Value { key, value: text.to_owned() })
}

/// Pairs hosts, addresses and ports; one port may serve for all.
fn endpoints(raw: &Raw) -> Result<Vec<Host>, ConninfoError> {
    let list = |key: &str| -> Vec<&str> {
        raw.get(key).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    for (what, length) in [("hosts", names.len()), ("addresses", addresses.len())] {
        if length != 0 && length != count {
            return Err(ConninfoError::Counts { hosts: count, others: length, what });
        }
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ConninfoError::Counts { hosts: count, others: ports.len(), what: "ports" });
    }
    let port = |at: usize| match ports.get(at).or(ports.first()).copied().unwrap_or("") {
        "" => Ok(5432),
        text => text
            .parse::<u16>()
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| ConninfoError::Value { key: "port", value: text.to_owned() }),
    };
    (0..count)
        .map(|at| {
            let name = names.get(at).copied().unwrap_or("");
            let address = addresses.get(at).copied().filter(|a| !a.is_empty());
            Ok(Host {
                endpoint: endpoint(name, address)?,
                port: port(at)?,
                password: None,
                replication_password: None,
            })
        })
        .collect()
}

fn endpoint(name: &str, address: Option<&str>) -> Result<Endpoint, ConninfoError> {
    if let Some(text) = address {
        let address = text
            .parse::<IpAddr>()
            .map_err(|_| ConninfoError::Value { key: "hostaddr", value: text.to_owned() })?;
        let name = if name.is_empty() { text } else { name };
        return Ok(Endpoint::Tcp(name.to_owned(), Some(address)));
    }
    Ok(match name {
        "" => Endpoint::Socket(default_socket_directory()),
        path if path.starts_with('/') => Endpoint::Socket(path.into()),
        // An abstract socket; the driver does not know it, and says so when it tries.
        name => Endpoint::Tcp(name.to_owned(), None),
    })
}

/// Debian, Red Hat and most containers use `/run/postgresql`; PostgreSQL's own default is `/tmp`.
fn default_socket_directory() -> PathBuf {
    ["/var/run/postgresql", "/run/postgresql"]
        .into_iter()
        .map(PathBuf::from)
        .find(|directory| directory.is_dir())
        .unwrap_or_else(|| "/tmp".into())
}

/// Gives each host its password: the one that was said, or its line of the password file.
fn add_passwords(
    conninfo: &mut Conninfo,
    raw: &Raw,
    environment: Environment<'_>,
) -> Result<(), ConninfoError> {
    if let Some(password) = raw.get("password") {
        let secret = Secret::new(password.clone());
        conninfo.hosts.iter_mut().for_each(|host| host.password = Some(secret.clone()));
        return Ok(());
    }
    let home = || environment("HOME").map(|home| format!("{home}/.pgpass"));
    let Some(path) = raw.get("passfile").cloned().or_else(home).map(PathBuf::from) else {
        return Ok(());
    };
    match files::read_passwords(&path)? {
        Passwords::Absent => {}
        Passwords::TooOpen => conninfo.warnings.push(format!(
            "password file `{}` is not used: others may read it; set its mode to 0600",
            path.display()
        )),
        Passwords::Text(text) => {
            for host in &mut conninfo.hosts {
                let name = match &host.endpoint {
                    Endpoint::Socket(path) if *path == default_socket_directory() => "localhost",
                    Endpoint::Socket(path) => path.to_str().unwrap_or(""),
                    Endpoint::Tcp(name, _) => name,
                };
                let port = host.port.to_string();
                let find = |dbname: &str| {
                    files::find_password(text.expose(), [name, &port, dbname, &conninfo.user])
                };
                let found = (find(&conninfo.dbname), find("replication"));
                (host.password, host.replication_password) = found;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
