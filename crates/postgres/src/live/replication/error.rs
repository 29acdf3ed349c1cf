//! What can go wrong on the wire, before it is known what for.

use std::io;
use std::time::Duration;

use super::message::ServerReport;
use crate::live::tls::TlsError;

/// Why a connection of ours cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The operating system says why.
    #[error("the connection failed")]
    Io {
        /// Why.
        source: io::Error,
    },
    /// The other side is gone.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing came for too long.
    #[error("the server said nothing for {} seconds", limit.as_secs())]
    Silent {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The server reports an error.
    #[error("{0}")]
    Server(Box<ServerReport>),
    /// A message of an impossible length.
    #[error("a message of type `{}` claims a length of {claimed}", kind.escape_default())]
    Length {
        /// Type of the message.
        kind: char,
        /// Its length, as claimed.
        claimed: i32,
    },
    /// A message that cannot be what it says.
    #[error("the server does not keep to the protocol: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A message that has no place here.
    #[error("the server does not keep to the protocol: unexpected message of type `{}`", kind.escape_default())]
    Unexpected {
        /// Its type.
        kind: char,
    },
    /// No address belongs to a name.
    #[error("no address belongs to the name `{name}`")]
    Unresolved {
        /// The name.
        name: String,
    },
    /// The server asks for a password and there is none.
    #[error("the server asks for a password and none was given")]
    NoPassword,
    /// A way to log in that is not known here.
    #[error("the server asks for {method}, which lifeboat cannot do")]
    Method {
        /// Its name.
        method: String,
    },
    /// The exchange of proofs failed.
    #[error("the exchange of proofs failed (SCRAM)")]
    Scram {
        /// Why.
        source: io::Error,
    },
    /// The server let us in without proving that it knows the password.
    #[error("the server did not prove that it knows the password")]
    Unproven,
    /// No TLS connection.
    #[error(transparent)]
    Tls(TlsError),
    /// An earlier failure left the connection in the middle of something.
    #[error("the connection was given up after an earlier failure")]
    Broken,
}

impl From<TlsError> for WireError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl WireError {
    /// An error of the socket, or what TLS has to say through it.
    pub(super) fn of_socket(source: io::Error) -> Self {
        match TlsError::find(&source) {
            Some(error) => Self::Tls(error.clone()),
            // A peer that hangs up without ending TLS first.
            None if source.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Io { source },
        }
    }

    /// Whether the server lets nobody in this way (28000): the other kind of encryption may do.
    pub(super) fn is_refusal(&self) -> bool {
        self.sqlstate() == Some("28000")
    }

    /// The SQLSTATE, when it is the server's own report.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(report) => Some(&report.code),
            _ => None,
        }
    }

    /// Whether reading only ran into the socket's time limit.
    pub(super) fn is_pause(&self) -> bool {
        match self {
            Self::Io { source } => {
                matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
            }
            _ => false,
        }
    }

    /// Whether it is about who logs in.
    pub(super) fn is_login(&self) -> bool {
        match self {
            // Class 28: invalid authorization.
            Self::Server(report) => report.code.starts_with("28"),
            Self::NoPassword | Self::Method { .. } | Self::Scram { .. } | Self::Unproven => true,
            _ => false,
        }
    }
}
