//! Connections with settings that suit a backup.

use lifeboat_units::Timestamp;
use postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Config, NoTls, Row};

use super::conninfo::{Binding, Conninfo, Endpoint, Host, Wanted};
use super::error::{Cause, LiveError};
use super::privileges;
use super::tls::{ClientTls, DriverTls, Encryption, TlsError, attempts};

/// Set in every session: nothing of ours may be cut off by a time limit that was meant for
/// others, nor find functions of somebody's schema, nor wait for a synchronous standby.
const SETTINGS: &str = "\
    SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; \
    SELECT set_config('search_path', '', false); SET datestyle = 'ISO, YMD'; SET synchronous_commit = local";

/// An open session and what is always known about it.
pub struct Session {
    client: Client,
    role: String,
    version_num: u32,
    host: usize,
}

impl Session {
    /// Connects to the first of the hosts that lets us in.
    pub fn open(conninfo: &Conninfo) -> Result<Self, LiveError> {
        let mut last = None;
        for (number, host) in conninfo.hosts.iter().enumerate() {
            match connect(conninfo, host) {
                Ok(client) => {
                    let mut session = Self { host: number, ..Self::prepare(client)? };
                    if session.is_wanted(conninfo.wanted)? {
                        return Ok(session);
                    }
                    last = Some(LiveError::NoneWanted {
                        wanted: conninfo.wanted,
                        server: conninfo.to_string(),
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(LiveError::Answer { doing: "connecting to no host at all" }))
    }

    fn prepare(mut client: Client) -> Result<Self, LiveError> {
        const DOING: &str = "preparing the session";
        let failed = |error| LiveError::statement(DOING, error);
        let row = client
            .query_one(
                "SELECT current_setting('server_version_num')::int4, current_user::text, \
                 current_setting('server_version')",
                &[],
            )
            .map_err(failed)?;
        let version_num = u32::try_from(row.get::<_, i32>(0)).unwrap_or(0);
        if !(14..=18).contains(&(version_num / 10_000)) {
            return Err(LiveError::Version { version: row.get(2) });
        }
        client.batch_execute(SETTINGS).map_err(failed)?;
        if version_num >= 170_000 {
            client.batch_execute("SET transaction_timeout = 0").map_err(failed)?;
        }
        Ok(Self { client, role: row.get(1), version_num, host: 0 })
    }

    /// Whether this is the kind of server that the connection string asks for.
    fn is_wanted(&mut self, wanted: Wanted) -> Result<bool, LiveError> {
        let wants_standby = match wanted {
            Wanted::Any => return Ok(true),
            Wanted::Primary => false,
            Wanted::Standby => true,
        };
        let row = self.ask("asking for the server's kind", "SELECT pg_is_in_recovery()", &[])?;
        Ok(row.get::<_, bool>(0) == wants_standby)
    }

    /// The role that statements run as.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Which of the connection string's hosts this is, counted from 0.
    pub fn host(&self) -> usize {
        self.host
    }

    /// Such as 180006.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    /// Such as 18.
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }

    /// Asks for exactly one row; `doing` is what to say when it fails.
    pub fn ask(
        &mut self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, LiveError> {
        self.client.query_one(sql, parameters).map_err(|error| self.sort(doing, error))
    }

    /// Asks for any number of rows.
    pub fn ask_all(
        &mut self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, LiveError> {
        self.client.query(sql, parameters).map_err(|error| self.sort(doing, error))
    }

    /// Time by the server's clock.
    pub fn time(&mut self) -> Result<Timestamp, LiveError> {
        const DOING: &str = "reading the server's clock";
        let sql = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::int8";
        let row = self.ask(DOING, sql, &[])?;
        Timestamp::from_microsecond(row.get(0)).map_err(|_| LiveError::Answer { doing: DOING })
    }

    fn sort(&self, doing: &'static str, error: postgres::Error) -> LiveError {
        if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            let grants = privileges::grants(self.major(), &self.role);
            return LiveError::Privilege { role: self.role.clone(), doing, grants };
        }
        LiveError::statement(doing, error)
    }
}

/// Tries the ways that `sslmode` allows, one after the other.
fn connect(conninfo: &Conninfo, host: &Host) -> Result<Client, LiveError> {
    let mut first: Option<LiveError> = None;
    for encryption in attempts(conninfo.tls.mode, host) {
        let mut config = config(conninfo, host);
        let connected = match encryption {
            Encryption::Plain => config.ssl_mode(SslMode::Disable).connect(NoTls),
            preferred => {
                let is_preferred = *preferred == Encryption::Preferred;
                config.ssl_mode(if is_preferred { SslMode::Prefer } else { SslMode::Require });
                if conninfo.tls.is_direct {
                    config.ssl_negotiation(SslNegotiation::Direct);
                }
                match ClientTls::new(&conninfo.tls, host) {
                    Ok(client) => config.connect(DriverTls(client)),
                    Err(source) => {
                        let server = conninfo.to_string();
                        first.get_or_insert(LiveError::Tls { server, source });
                        continue;
                    }
                }
            }
        };
        match connected.map_err(|error| refused(conninfo, error)) {
            Err(LiveError::Tls { source: TlsError::NotOffered, .. }) if first.is_some() => {}
            Err(error @ LiveError::Tls { .. }) => _ = first.get_or_insert(error),
            // A server that wants it plain has said so over TLS, and that is the better reason.
            Err(error) if error.sqlstate() == Some("28000") => match encryption {
                Encryption::Required => first = Some(error),
                _ => _ = first.get_or_insert(error),
            },
            Err(error) => return Err(first.unwrap_or(error)),
            Ok(client) => return Ok(client),
        }
    }
    Err(first.unwrap_or(LiveError::Answer { doing: "connecting in no way at all" }))
}

fn config(conninfo: &Conninfo, host: &Host) -> Config {
    let Conninfo {
        hosts: _,
        user,
        dbname,
        options,
        application_name,
        connect_timeout,
        keepalives,
        tcp_user_timeout,
        tls,
        wanted: _,
        warnings: _,
    } = conninfo;
    let mut config = Config::new();
    match &host.endpoint {
        Endpoint::Socket(directory) => {
            config.host_path(directory);
        }
        Endpoint::Tcp(name, address) => {
            config.host(name);
            if let Some(address) = address {
                config.hostaddr(*address);
            }
        }
    }
    config.port(host.port).user(user).dbname(dbname).application_name(application_name);
    config.connect_timeout(*connect_timeout).channel_binding(match tls.binding {
        Binding::Disable => ChannelBinding::Disable,
        Binding::Prefer => ChannelBinding::Prefer,
        Binding::Require => ChannelBinding::Require,
    });
    config.keepalives(keepalives.on).keepalives_idle(keepalives.idle);
    config.keepalives_interval(keepalives.interval).keepalives_retries(keepalives.count);
    if !tcp_user_timeout.is_zero() {
        config.tcp_user_timeout(*tcp_user_timeout);
    }
    if let Some(options) = options {
        config.options(options);
    }
    if let Some(password) = &host.password {
        config.password(password.expose());
    }
    // The driver would print notices to its log; nothing here prints.
    config.notice_callback(|_| {});
    config
}

fn refused(conninfo: &Conninfo, source: postgres::Error) -> LiveError {
    let server = conninfo.to_string();
    if let Some(source) = tls_trouble(&source) {
        return LiveError::Tls { server, source };
    }
    // Class 28: invalid authorization. A missing password is an error of the driver, not of the server.
    let login = source.code().is_some_and(|code| code.code().starts_with("28"))
        || (source.code().is_none() && !source.is_closed() && is_authentication(&source));
    let source = Cause::Driver(source);
    if login { LiveError::Login { server, source } } else { LiveError::Connect { server, source } }
}

/// What TLS has to say through the driver, which tells its own errors apart only by their text.
fn tls_trouble(error: &postgres::Error) -> Option<TlsError> {
    if let Some(found) = TlsError::find(error) {
        return Some(found.clone());
    }
    let why = std::error::Error::source(error)?.to_string();
    if why.contains("server does not support TLS") {
        return Some(TlsError::NotOffered);
    }
    if !why.contains("server did not use channel binding") {
        return None;
    }
    let why = "the server offers none: it is without TLS, or asks for no password as SCRAM";
    Some(TlsError::NoBinding { why })
}

/// The driver tells its kinds of errors apart only by their text.
fn is_authentication(error: &postgres::Error) -> bool {
    let text = error.to_string();
    text.contains("authentication") || text.contains("invalid configuration")
}
