//! The socket below: found, connected, given its time limits, and shut down from elsewhere.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::error::WireError;
use crate::live::conninfo::{Conninfo, Endpoint, Host};

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects to the first address of the host that answers, until `deadline`.
    pub(super) fn connect(
        conninfo: &Conninfo,
        host: &Host,
        deadline: Instant,
    ) -> Result<Self, WireError> {
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
                    let left = left.max(Duration::from_millis(1));
                    match TcpStream::connect_timeout(&address, left) {
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

    /// How long one read may wait; never zero.
    pub(super) fn set_read_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(|limit| limit.max(Duration::from_millis(1)));
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(limit),
            Self::Unix(stream) => stream.set_read_timeout(limit),
        }
    }

    /// How long one write may wait; never zero.
    pub(super) fn set_write_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(|limit| limit.max(Duration::from_millis(1)));
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(limit),
            Self::Unix(stream) => stream.set_write_timeout(limit),
        }
    }

    /// Another handle to the same socket.
    pub(super) fn again(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// Ends reads and writes on all handles.
    pub(super) fn shut_down(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
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
