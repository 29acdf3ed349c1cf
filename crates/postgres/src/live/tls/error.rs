//! Why there is no TLS connection, said so that somebody can act on it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError};

/// Trouble with TLS: the server's certificate, ours, the files, or the handshake.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The server speaks no TLS.
    #[error("the server does not offer TLS")]
    NotOffered,
    /// Nobody whom we trust has signed the server's certificate.
    #[error("the server's certificate is signed by nobody whom {roots} names")]
    UnknownIssuer {
        /// Where the trusted authorities come from.
        roots: String,
    },
    /// The certificate is for other names.
    #[error("the server's certificate is for {}, not for `{wanted}`", list(presented))]
    Name {
        /// The name that was connected to.
        wanted: String,
        /// The names in the certificate.
        presented: Vec<String>,
    },
    /// The certificate's time is over.
    #[error("the server's certificate has expired")]
    Expired,
    /// The certificate's time has not begun.
    #[error("the server's certificate is not valid yet")]
    NotYetValid,
    /// The certificate was withdrawn.
    #[error("the server's certificate is revoked")]
    Revoked,
    /// It is unknown whether the certificate was withdrawn.
    #[error("no list of revoked certificates covers the server's certificate")]
    RevocationUnknown,
    /// The certificate is none for a server.
    #[error("the server's certificate cannot be used")]
    Unusable {
        /// Why.
        source: rustls::Error,
    },
    /// The server wants a certificate of ours.
    #[error("the server asks for a client certificate and none is set")]
    OwnMissing,
    /// The server does not accept our certificate.
    #[error("the server does not accept the client certificate `{}`", path.display())]
    OwnRefused {
        /// Its file.
        path: PathBuf,
        /// In the server's words.
        alert: AlertText,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A file that does not hold what it should.
    #[error("`{}` holds no {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Others may read the private key.
    #[error("the private key `{}` is not used: others may read it", path.display())]
    KeyTooOpen {
        /// The file.
        path: PathBuf,
    },
    /// The private key is protected by a passphrase.
    #[error("the private key `{}` is encrypted, which lifeboat cannot read", path.display())]
    KeyEncrypted {
        /// The file.
        path: PathBuf,
    },
    /// The private key belongs to another certificate, or is of a kind that is not known here.
    #[error("the private key `{}` does not go with the certificate", path.display())]
    KeyMismatch {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The machine has no list of trusted authorities.
    #[error("this machine has no list of trusted authorities: looked for {}", list_paths(looked))]
    NoSystemRoots {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The versions asked for leave none.
    #[error("no version of TLS lies between ssl_min_protocol_version and ssl_max_protocol_version")]
    NoVersion,
    /// The host's name cannot be in a certificate.
    #[error("`{host}` is no name that a certificate can be for")]
    HostName {
        /// As written.
        host: String,
    },
    /// Channel binding is asked for and cannot be had.
    #[error("channel_binding=require, but {why}")]
    NoBinding {
        /// Why not.
        why: &'static str,
    },
    /// The server went away in the middle, as one that knows no direct TLS does.
    #[error("the server closed the connection during the TLS handshake")]
    Cut,
    /// The network failed in the middle.
    #[error("the connection failed during the TLS handshake: {kind}")]
    Network {
        /// How.
        kind: io::ErrorKind,
    },
    /// Anything else.
    #[error("the TLS handshake failed")]
    Handshake {
        /// Why.
        source: rustls::Error,
    },
}

/// What the other side says went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlertText(pub(crate) AlertDescription);

impl TlsError {
    /// What to do.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotOffered => {
                "set `ssl = on` at the server; or sslmode=prefer, when the network in between is trusted"
            }
            Self::UnknownIssuer { .. } => {
                "set sslrootcert to a file with the certificate of the authority that signed the server's"
            }
            Self::Name { .. } => {
                "connect by a name that it is for (hostaddr may say where that is), or have a certificate made for this one"
            }
            Self::Expired | Self::NotYetValid => {
                "renew the server's certificate; is the clock right, here and there?"
            }
            Self::Revoked => "have a new certificate made for the server",
            Self::RevocationUnknown => "renew the file that sslcrl names, or leave it out",
            Self::Unusable { source } if is_old_form(source) => {
                "have it made as an X.509 certificate of version 3 with a subjectAltName and without CA:TRUE"
            }
            Self::Unusable { .. } => "have a new certificate made for the server",
            Self::OwnMissing => "set sslcert and sslkey (or ~/.postgresql/postgresql.crt and .key)",
            Self::OwnRefused { .. } => {
                "is it signed by an authority in the server's ssl_ca_file, and still valid?"
            }
            Self::KeyTooOpen { .. } => "set its mode to 0600 (0640 when it belongs to root)",
            Self::KeyEncrypted { .. } => {
                "store it without a passphrase, readable by its owner only: openssl pkey -in KEY -out NEWKEY"
            }
            Self::NoSystemRoots { .. } => {
                "install the package ca-certificates, or name a file in sslrootcert"
            }
            Self::NoBinding { .. } => {
                "it needs TLS and a password that the server stores as scram-sha-256"
            }
            Self::Cut => {
                "the server's log may say why; sslnegotiation=direct needs PostgreSQL 17 or later"
            }
            Self::File { .. }
            | Self::Content { .. }
            | Self::KeyMismatch { .. }
            | Self::NoVersion
            | Self::HostName { .. }
            | Self::Network { .. }
            | Self::Handshake { .. } => return None,
        })
    }

    /// Whether the network rather than a setting or certificate may be to blame.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Cut | Self::Network { .. })
    }

    /// Sorts what the handshake says. `own` is our certificate's file, `roots` whom we trust.
    pub(super) fn sort(error: &rustls::Error, own: Option<&PathBuf>, roots: &str) -> Self {
        match error {
            rustls::Error::InvalidCertificate(why) => Self::certificate(why, roots),
            rustls::Error::AlertReceived(alert) if is_about_ours(*alert) => match own {
                Some(path) => Self::OwnRefused { path: path.clone(), alert: AlertText(*alert) },
                None => Self::OwnMissing,
            },
            other => Self::Handshake { source: other.clone() },
        }
    }

    fn certificate(why: &CertificateError, roots: &str) -> Self {
        match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownIssuer { roots: roots.to_owned() }
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::RevocationUnknown,
            CertificateError::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(ours) => ours.clone(),
                None => Self::Unusable { source: why.clone().into() },
            },
            _ => Self::Unusable { source: why.clone().into() },
        }
    }

    /// Finds a TLS error among the causes of another.
    pub(crate) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(found) = inner.and_then(|inner| inner.downcast_ref::<Self>()) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

/// Alerts that a server sends about a client's certificate.
fn is_about_ours(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

fn is_old_form(error: &rustls::Error) -> bool {
    let text = format!("{error:?}");
    text.contains("UnsupportedCertVersion") || text.contains("CaUsedAsEndEntity")
}

fn list(names: &[String]) -> String {
    match names {
        [] => "no name at all".to_owned(),
        names => {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            quoted.join(", ")
        }
    }
}

fn list_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
