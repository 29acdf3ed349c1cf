//! A replication connection: opened, asked, shut down.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::channel::{Channel, SILENCE_MAX};
use super::copy::{Room, TextRows, text};
use super::error::WireError;
use super::frame::{append, append_untyped, tag};
use super::login::Login;
use super::message::{Cell, ServerReport, row, version_num};
use super::socket::{Handle, Socket};
use crate::live::conninfo::{Conninfo, Host, Wanted};
use crate::live::error::{Cause, LiveError};
use crate::live::tls::{ClientTls, Encryption, TlsError, attempts};

/// Source: `NEGOTIATE_SSL_CODE` in `src/include/libpq/pqcomm.h`.
const SSL_REQUEST: i32 = 1234 << 16 | 5679;

/// The rows of one answer.
pub type Rows = Vec<Vec<Cell>>;

/// A physical replication connection: takes replication commands and `SHOW`, no SQL.
///
/// Needs a role with the attribute `REPLICATION` and a line for the database `replication` in
/// the server's pg_hba.conf. Dropping it closes it, whatever it is in the middle of.
#[derive(Debug)]
pub struct Connection {
    pub(super) channel: Channel,
    role: String,
    version_num: u32,
    pub(super) silence_max: Option<Duration>,
}

/// Ends a connection from another thread: whatever waits for the server fails at once.
#[derive(Debug)]
pub struct Stopper(Handle);

impl Stopper {
    /// Shuts the connection down, both ways.
    pub fn stop(&self) {
        self.0.shut_down();
    }
}

impl Connection {
    /// Connects to the first of the hosts that lets us in and is of the wanted kind.
    pub fn open(conninfo: &Conninfo) -> Result<Self, LiveError> {
        let mut last = None;
        for host in &conninfo.hosts {
            match Self::connect(conninfo, host) {
                Ok(connection) => match connection.check(conninfo) {
                    Ok(()) => return Ok(connection),
                    Err(error @ LiveError::Version { .. }) => return Err(error),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(refused(conninfo, error)),
            }
        }
        Err(last.unwrap_or(LiveError::Answer { doing: "connecting to no host at all" }))
    }

    /// Tries the ways that `sslmode` allows, one after the other.
    fn connect(conninfo: &Conninfo, host: &Host) -> Result<Self, WireError> {
        let mut first: Option<WireError> = None;
        for encryption in attempts(conninfo.tls.mode, host) {
            match Self::attempt(conninfo, host, *encryption) {
                Err(WireError::Tls(TlsError::NotOffered)) if first.is_some() => {}
                Err(error @ WireError::Tls(_)) => _ = first.get_or_insert(error),
                // A server that wants it plain has said so over TLS, and that is the better reason.
                Err(error) if error.is_refusal() => match encryption {
                    Encryption::Required => first = Some(error),
                    _ => _ = first.get_or_insert(error),
                },
                Err(error) => return Err(first.unwrap_or(error)),
                Ok(connection) => return Ok(connection),
            }
        }
        Err(first.unwrap_or(WireError::Closed))
    }

    fn attempt(
        conninfo: &Conninfo,
        host: &Host,
        encryption: Encryption,
    ) -> Result<Self, WireError> {
        let deadline = Instant::now() + conninfo.connect_timeout;
        let mut socket = Socket::connect(conninfo, host, deadline)?;
        if encryption != Encryption::Plain {
            let client = ClientTls::new(&conninfo.tls, host)?;
            socket = match negotiate(&mut socket, &client, deadline)? {
                true => socket.begin_tls(client, deadline)?,
                false if encryption == Encryption::Preferred => socket,
                false => return Err(TlsError::NotOffered.into()),
            };
        }
        let mut channel = Channel::new(socket)?;
        let login = Login {
            user: &conninfo.user,
            password: host.replication_password.as_ref().or(host.password.as_ref()),
            application_name: &conninfo.application_name,
            options: conninfo.options.as_deref(),
            binding: conninfo.tls.binding,
            deadline,
        };
        login.run(&mut channel)?;
        let version = channel.server_version.as_deref().unwrap_or("");
        let version_num = version_num(version).unwrap_or(0);
        let role = conninfo.user.clone();
        Ok(Self { channel, role, version_num, silence_max: Some(SILENCE_MAX) })
    }

    fn check(&self, conninfo: &Conninfo) -> Result<(), LiveError> {
        if !(14..=18).contains(&self.major()) {
            let version = self.channel.server_version.clone().unwrap_or_default();
            return Err(LiveError::Version { version });
        }
        let is_wanted = match conninfo.wanted {
            Wanted::Any => true,
            Wanted::Primary => !self.in_recovery(),
            Wanted::Standby => self.in_recovery(),
        };
        if is_wanted {
            return Ok(());
        }
        Err(LiveError::NoneWanted { wanted: conninfo.wanted, server: conninfo.to_string() })
    }

    /// Such as 180006.
    pub fn server_version_num(&self) -> u32 {
        self.version_num
    }

    /// Such as 18.
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }

    /// Whether the server was a standby when it last said so (`in_hot_standby`): when the
    /// connection was opened, and whenever a command ended after a promotion.
    pub fn in_recovery(&self) -> bool {
        self.channel.in_hot_standby
    }

    /// How long the server may be silent before the connection counts as lost, from now on.
    /// `None` waits as long as the TCP connection lives. At first it is 60 seconds.
    pub fn set_silence_max(&mut self, limit: Option<Duration>) {
        self.silence_max = limit;
    }

    /// A handle with which another thread can end this connection.
    pub fn stopper(&self) -> Result<Stopper, LiveError> {
        let again = self.channel.socket().handle();
        again.map(Stopper).map_err(|source| {
            LiveError::wire("preparing to end the connection", WireError::Io { source })
        })
    }

    /// What the server remarked since this was last asked: warnings and notices.
    pub fn take_notices(&mut self) -> Vec<ServerReport> {
        std::mem::take(&mut self.channel.notices)
    }

    /// Runs one command (or several, separated by semicolons where the server allows that) and
    /// gives all rows. `doing` is what to say when it fails.
    ///
    /// - Errors: [`LiveError::Query`] with the server's SQLSTATE (see [`LiveError::sqlstate`]),
    ///   after which the connection can be used on; [`LiveError::Lost`], after which it cannot.
    pub fn query(&mut self, doing: &'static str, command: &str) -> Result<TextRows, LiveError> {
        let rows = self.rows(command).map_err(|error| self.sort(doing, error))?;
        text(doing, rows)
    }

    /// The same, in bytes.
    pub(super) fn rows(&mut self, command: &str) -> Result<Rows, WireError> {
        self.send_query(command)?;
        let mut rows = Rows::new();
        let mut room = Room::new();
        loop {
            match self.channel.receive(self.silence_max)? {
                tag::DATA_ROW => {
                    room.take(self.channel.body().len())?;
                    rows.push(row(self.channel.body())?);
                }
                tag::ROW_DESCRIPTION | tag::COMMAND_COMPLETE | tag::EMPTY_QUERY => {}
                tag::READY => return Ok(rows),
                tag::ERROR => return Err(self.failure()),
                kind => return Err(self.unexpected(kind)),
            }
        }
    }

    pub(super) fn send_query(&mut self, command: &str) -> Result<(), WireError> {
        let mut message = Vec::new();
        append(&mut message, tag::QUERY, |body| {
            body.extend(command.bytes().filter(|byte| *byte != 0));
            body.push(0);
        });
        self.channel.send(&message)
    }

    /// The error that the current message reports; goes on to where the server takes commands
    /// again, if it does.
    pub(super) fn failure(&mut self) -> WireError {
        let report = self.channel.report();
        if !matches!(self.channel.receive(Some(SILENCE_MAX)), Ok(tag::READY)) {
            self.channel.give_up();
        }
        report
    }

    /// A message that has no place where it came: the connection is given up.
    pub(super) fn unexpected(&mut self, kind: u8) -> WireError {
        self.channel.give_up();
        WireError::Unexpected { kind: kind.into() }
    }

    pub(super) fn sort(&self, doing: &'static str, error: WireError) -> LiveError {
        // 42501: insufficient_privilege.
        if error.sqlstate() == Some("42501") {
            return LiveError::replication_privilege(&self.role, doing);
        }
        LiveError::wire(doing, error)
    }
}

/// Asks whether the server speaks TLS. Only the one byte of its answer is read: whatever might
/// follow it in the clear must not be taken for something that came through TLS.
fn negotiate(
    socket: &mut Socket,
    client: &ClientTls,
    deadline: Instant,
) -> Result<bool, WireError> {
    if client.is_direct {
        return Ok(true);
    }
    let mut request = Vec::new();
    append_untyped(&mut request, |body| body.extend_from_slice(&SSL_REQUEST.to_be_bytes()));
    let mut answer = [0];
    let left = deadline.saturating_duration_since(Instant::now());
    let asked = socket
        .set_read_limit(Some(left))
        .and_then(|()| socket.write_all(&request))
        .and_then(|()| socket.read_exact(&mut answer));
    asked.map_err(WireError::of_socket)?;
    match answer[0] {
        b'S' => Ok(true),
        b'N' => Ok(false),
        kind => Err(WireError::Unexpected { kind: kind.into() }),
    }
}

fn refused(conninfo: &Conninfo, error: WireError) -> LiveError {
    if let WireError::Tls(source) = error {
        return LiveError::Tls { server: conninfo.to_string(), source };
    }
    if error.sqlstate() == Some("42501") {
        return LiveError::replication_privilege(
            &conninfo.user,
            "opening a replication connection",
        );
    }
    let (server, login) = (conninfo.to_string(), error.is_login());
    let source = Cause::Wire(error);
    if login { LiveError::Login { server, source } } else { LiveError::Connect { server, source } }
}
