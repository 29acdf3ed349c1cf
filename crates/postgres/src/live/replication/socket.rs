//! The socket below: found, connected, given its time limits, and shut down from elsewhere.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustls::{ClientConnection, StreamOwned};

use super::error::WireError;
use crate::live::conninfo::{Conninfo, Endpoint, Host};
use crate::live::tls::ClientTls;

/// Shortest time limit: zero would mean none.
const SHORTEST: Duration = Duration::from_millis(1);

/// A connected socket, plain.
#[derive(Debug)]
enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connected socket, with TLS around it or without.
#[derive(Debug)]
pub(super) struct Socket(Layer);

#[derive(Debug)]
enum Layer {
    Plain(Raw),
    Tls(Box<Tls>),
}

#[derive(Debug)]
struct Tls {
    stream: StreamOwned<ClientConnection, Buffered>,
    client: ClientTls,
}

/// A handle that outlives what is done with a socket, to end it.
#[derive(Debug)]
pub(super) struct Handle(Raw);

impl Socket {
    /// Connects to the first address of the host that answers, until `deadline`.
    pub(super) fn connect(
        conninfo: &Conninfo,
        host: &Host,
        deadline: Instant,
    ) -> Result<Self, WireError> {
        Raw::connect(conninfo, host, deadline).map(|raw| Self(Layer::Plain(raw)))
    }

    /// Begins TLS and completes its handshake, until `deadline`.
    pub(super) fn begin_tls(self, client: ClientTls, deadline: Instant) -> Result<Self, WireError> {
        let Layer::Plain(raw) = self.0 else { return Ok(self) };
        let connection = ClientConnection::new(client.config.clone(), client.name.clone());
        let connection = connection.map_err(|error| client.sort(&error))?;
        let mut stream = StreamOwned::new(connection, Buffered::new(raw));
        while stream.conn.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            stream.sock.raw.set_limits(Some(left)).map_err(|source| WireError::Io { source })?;
            stream.conn.complete_io(&mut stream.sock).map_err(|error| client.sort_io(&error))?;
        }
        client.check_alpn(stream.conn.alpn_protocol())?;
        Ok(Self(Layer::Tls(Box::new(Tls { stream, client }))))
    }

    /// What a login over this connection can be bound to.
    pub(super) fn bound_to(&self) -> Option<Vec<u8>> {
        match &self.0 {
            Layer::Plain(_) => None,
            Layer::Tls(tls) => tls.client.bound_to(tls.stream.conn.peer_certificates()),
        }
    }

    fn raw(&self) -> &Raw {
        match &self.0 {
            Layer::Plain(raw) => raw,
            Layer::Tls(tls) => &tls.stream.sock.raw,
        }
    }

    /// How long one read may wait.
    pub(super) fn set_read_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.raw().set_read_limit(limit)
    }

    /// How long one write may wait.
    pub(super) fn set_write_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.raw().set_write_limit(limit)
    }

    /// Another handle to the same socket.
    pub(super) fn handle(&self) -> io::Result<Handle> {
        self.raw().again().map(Handle)
    }

    /// Ends reads and writes on all handles.
    pub(super) fn shut_down(&self) {
        self.raw().shut_down();
    }
}

impl Handle {
    /// Ends reads and writes on all handles.
    pub(super) fn shut_down(&self) {
        self.0.shut_down();
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Layer::Plain(raw) => raw.read(into),
            Layer::Tls(tls) => tls.stream.read(into).map_err(|error| tls.client.explain(error)),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Layer::Plain(raw) => raw.write(bytes),
            Layer::Tls(tls) => tls.stream.write(bytes).map_err(|error| tls.client.explain(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Layer::Plain(raw) => raw.flush(),
            Layer::Tls(tls) => tls.stream.flush(),
        }
    }
}

/// Reads much at once, because TLS reads in small pieces.
#[derive(Debug)]
struct Buffered {
    raw: Raw,
    buffer: Box<[u8]>,
    /// What of the buffer is not yet given.
    start: usize,
    end: usize,
}

impl Buffered {
    const BYTES: usize = 128 << 10;

    fn new(raw: Raw) -> Self {
        Self { raw, buffer: vec![0; Self::BYTES].into(), start: 0, end: 0 }
    }
}

impl Read for Buffered {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = self.raw.read(&mut self.buffer)?;
        }
        let count = into.len().min(self.end - self.start);
        into[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.raw.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Raw {
    fn connect(conninfo: &Conninfo, host: &Host, deadline: Instant) -> Result<Self, WireError> {
        let failed = |source| WireError::Io { source };
        match &host.endpoint {
            Endpoint::Socket(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", host.port));
                UnixStream::connect(path).map(Self::Unix).map_err(failed)
            }
            Endpoint::Tcp(name, address) => {
                let addresses: Vec<SocketAddr> = match address {
                    Some(address) => vec![(*address, host.port).into()],
                    None => (name.as_str(), host.port).to_socket_addrs().map_err(failed)?.collect(),
                };
                let mut last = WireError::Unresolved { name: name.clone() };
                for address in addresses {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match TcpStream::connect_timeout(&address, left.max(SHORTEST)) {
                        Ok(stream) => {
                            tune(&stream, conninfo).map_err(failed)?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(source) => last = WireError::Io { source },
                    }
                }
                Err(last)
            }
        }
    }

    fn set_limits(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_limit(limit)?;
        self.set_write_limit(limit)
    }

    fn set_read_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(|limit| limit.max(SHORTEST));
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(limit),
            Self::Unix(stream) => stream.set_read_timeout(limit),
        }
    }

    fn set_write_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(|limit| limit.max(SHORTEST));
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(limit),
            Self::Unix(stream) => stream.set_write_timeout(limit),
        }
    }

    fn again(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn shut_down(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Raw {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets what the connection string says about TCP.
fn tune(stream: &TcpStream, conninfo: &Conninfo) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (socket, keepalives) = (stream.as_fd(), conninfo.keepalives);
    sockopt::set_socket_keepalive(socket, keepalives.on)?;
    if keepalives.on {
        // Zero means the system's default, as in libpq.
        if !keepalives.idle.is_zero() {
            sockopt::set_tcp_keepidle(socket, keepalives.idle)?;
        }
        if !keepalives.interval.is_zero() {
            sockopt::set_tcp_keepintvl(socket, keepalives.interval)?;
        }
        if keepalives.count > 0 {
            sockopt::set_tcp_keepcnt(socket, keepalives.count)?;
        }
    }
    if !conninfo.tcp_user_timeout.is_zero() {
        let milliseconds = u32::try_from(conninfo.tcp_user_timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, milliseconds)?;
    }
    Ok(())
}
