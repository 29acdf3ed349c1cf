//! Why a connection string cannot be used.

use std::path::PathBuf;

use lifeboat_units::{Code, Explain, Retry};

/// A connection string that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConninfoError {
    /// A word without `=value`. Its text may be part of a password and is not kept.
    #[error("the connection string has a word without `=value` at character {position}")]
    NoValue {
        /// Counted from 1.
        position: usize,
    },
    /// A quoted value that does not end.
    #[error("a quoted value in the connection string does not end")]
    OpenQuote,
    /// A query part of a URI that is not `key=value`.
    #[error("the connection URI has a parameter without `=value` after `?`")]
    UriQuery,
    /// An address in brackets that does not end, or is followed by something else than a port.
    #[error("the connection URI has a malformed address in brackets")]
    UriBracket,
    /// A broken percent escape.
    #[error("the connection URI has a malformed `%` escape")]
    Percent,
    /// A key that libpq does not know either.
    #[error("the connection string has an unknown key `{key}`")]
    UnknownKey {
        /// As written.
        key: String,
    },
    /// A value that cannot be what its key says.
    #[error("`{value}` is no {key} for a connection")]
    Value {
        /// The key.
        key: &'static str,
        /// As written. Never a password.
        value: String,
    },
    /// Lists of hosts, addresses and ports of different lengths.
    #[error("the connection string names {hosts} hosts but {others} {what}")]
    Counts {
        /// How many hosts.
        hosts: usize,
        /// How many of the others.
        others: usize,
        /// What the others are.
        what: &'static str,
    },
    /// Nobody to check the server's certificate with.
    #[error("sslmode={mode} checks the server's certificate, but there is no root certificate file `{}`", path.display())]
    NoRoots {
        /// The mode asked for.
        mode: String,
        /// Where it is by default.
        path: PathBuf,
    },
    /// A mode that is weaker than another setting allows.
    #[error("sslmode={mode} is too weak here: {needed}")]
    WeakMode {
        /// The mode asked for.
        mode: String,
        /// What asks for more.
        needed: &'static str,
    },
    /// A key or value that libpq knows and lifeboat does not.
    #[error("{key}={value} in the connection string is not supported by lifeboat")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// As written. Never a password.
        value: String,
    },
    /// A service that no service file knows.
    #[error("service `{service}` is in none of the service files: {}", looked.join(", "))]
    Service {
        /// Its name.
        service: String,
        /// The files that were looked for.
        looked: Vec<String>,
    },
    /// A password or service file that cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody to log in as.
    #[error("no user name: neither the connection string nor PGUSER nor USER says one")]
    NoUser,
}

impl Explain for ConninfoError {
    fn code(&self) -> Code {
        match self {
            Self::NoValue { .. }
            | Self::OpenQuote
            | Self::UriQuery
            | Self::UriBracket
            | Self::Percent => Code("LB-PG-001"),
            Self::UnknownKey { .. } => Code("LB-PG-002"),
            Self::Value { .. } | Self::Counts { .. } => Code("LB-PG-003"),
            Self::NoRoots { .. } | Self::WeakMode { .. } | Self::Unsupported { .. } => {
                Code("LB-PG-004")
            }
            Self::Service { .. } => Code("LB-PG-005"),
            Self::File { .. } => Code("LB-PG-006"),
            Self::NoUser => Code("LB-PG-007"),
        }
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::NoValue { .. } | Self::OpenQuote => {
                "write it as `host=/run/postgresql dbname=postgres`, values with spaces in single quotes"
            }
            Self::UriQuery | Self::UriBracket | Self::Percent => {
                "write it as `postgresql://user@host:5432/dbname?sslmode=prefer`"
            }
            Self::UnknownKey { .. } => "the keys are those of libpq: host, port, user, dbname, …",
            Self::NoRoots { .. } => {
                "put the certificate of the authority that signed the server's there, or name it in sslrootcert (`system`: those that this machine trusts)"
            }
            Self::Service { .. } => "set PGSERVICEFILE, or leave the service out",
            Self::NoUser => "add user=… to the connection string",
            Self::Unsupported { .. } => {
                "leave it out of the connection string (and out of PG… variables)"
            }
            Self::Value { key, .. } => return accepted(key).map(str::to_owned),
            Self::Counts { .. } => "give one for all hosts, or as many as there are hosts",
            Self::WeakMode { .. } => "set sslmode=verify-full",
            Self::File { .. } => "does it exist, and may this user read it?",
        };
        Some(text.to_owned())
    }
}

/// What a key takes, where that is worth saying.
fn accepted(key: &str) -> Option<&'static str> {
    Some(match key {
        "port" => "a number from 1 to 65535",
        "hostaddr" => "an IP address; names belong into host",
        "connect_timeout" | "keepalives_idle" | "keepalives_interval" => {
            "a whole number of seconds, without a unit"
        }
        "tcp_user_timeout" => "a whole number of milliseconds, without a unit",
        "keepalives_count" => "how many may get lost: a whole number",
        "keepalives" => "1, or 0 to send none",
        "target_session_attrs" => "any, read-write, read-only, primary, standby or prefer-standby",
        "sslmode" => "disable, allow, prefer, require, verify-ca or verify-full",
        "sslnegotiation" => "postgres or direct",
        "sslcertmode" => "allow or disable",
        "sslsni" => "1, or 0 to send no name",
        "channel_binding" => "prefer, require or disable",
        "ssl_min_protocol_version" | "ssl_max_protocol_version" => "TLSv1.2 or TLSv1.3",
        _ => return None,
    })
}
