//! From settings to a client that can begin TLS: files read, keys checked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, SupportedProtocolVersion};

use super::certificate::{Parts, end_point_hash};
use super::error::TlsError;
use super::verify::Verifier;
use crate::live::conninfo::{Binding, Endpoint, Host, Roots, SslMode, TlsSettings, TlsVersion};

/// Largest file of certificates that is read; that of an operating system has 250 KB.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Name of the protocol within TLS. Source: `PG_ALPN_PROTOCOL` in `src/include/libpq/pqcomm.h`.
const PROTOCOL: &[u8] = b"postgresql";

/// One way to try a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Without TLS.
    Plain,
    /// With TLS, or without when the server offers none.
    Preferred,
    /// With TLS.
    Required,
}

/// The ways to try, in this order: a later one when an earlier one fails for want of it.
/// Source: "SSL Mode Descriptions" (libpq).
pub(crate) fn attempts(mode: SslMode, host: &Host) -> &'static [Encryption] {
    match (mode, &host.endpoint) {
        (SslMode::Disable, _) | (_, Endpoint::Socket(_)) => &[Encryption::Plain],
        (SslMode::Allow, _) => &[Encryption::Plain, Encryption::Required],
        (SslMode::Prefer, _) => &[Encryption::Preferred, Encryption::Plain],
        _ => &[Encryption::Required],
    }
}

/// What a connection to one host needs for TLS.
#[derive(Debug, Clone)]
pub(crate) struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    pub(crate) binding: Binding,
    pub(crate) is_direct: bool,
    own: Option<PathBuf>,
    roots: String,
}

impl ClientTls {
    /// Reads the files and prepares connections to `host`.
    pub(crate) fn new(settings: &TlsSettings, host: &Host) -> Result<Self, TlsError> {
        let Endpoint::Tcp(host, _) = &host.endpoint else { return Err(TlsError::NotOffered) };
        let name = ServerName::try_from(host.clone());
        let name = name.map_err(|_| TlsError::HostName { host: host.clone() })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (trusted, roots) = trusted(settings.roots.as_ref())?;
        let chain = match &trusted {
            Some(trusted) => Some(chain_verifier(settings, &provider, trusted)?),
            None => None,
        };
        let verifier = Verifier {
            algorithms: provider.signature_verification_algorithms,
            chain,
            trusted: trusted.unwrap_or_default(),
            checks_name: settings.mode == SslMode::VerifyFull,
            checks_revocation: settings.revoked.is_some(),
        };
        let key_provider = provider.clone();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(settings))
            .map_err(|_| TlsError::NoVersion)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &settings.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let own = certified_key(&key_provider, certificate, key)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
            }
        };
        config.enable_sni = settings.sni;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            name,
            binding: settings.binding,
            is_direct: settings.is_direct,
            own: settings.own.as_ref().map(|(certificate, _)| certificate.clone()),
            roots,
        })
    }

    /// Says what a failed handshake means.
    pub(crate) fn sort(&self, error: &rustls::Error) -> TlsError {
        TlsError::sort(error, self.own.as_ref(), &self.roots)
    }

    /// Whether the other side is a PostgreSQL server: direct TLS could reach any other service.
    /// Source: `open_client_SSL` and `PQconnectPoll`, which ask for this with direct TLS only.
    pub(crate) fn check_alpn(&self, selected: Option<&[u8]>) -> Result<(), TlsError> {
        if self.is_direct && selected != Some(PROTOCOL) {
            return Err(TlsError::Handshake { source: rustls::Error::NoApplicationProtocol });
        }
        Ok(())
    }

    /// Says what a failed handshake means by the stream's error, in which that hides.
    pub(crate) fn sort_io(&self, error: &io::Error) -> TlsError {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(inner) => self.sort(inner),
            None if error.kind() == io::ErrorKind::UnexpectedEof => TlsError::Cut,
            None => TlsError::Network { kind: error.kind() },
        }
    }

    /// Puts what TLS has to say in place of what the stream says, where it has something.
    pub(crate) fn explain(&self, error: io::Error) -> io::Error {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(inner) => io::Error::new(error.kind(), self.sort(inner)),
            None => error,
        }
    }

    /// What a login is bound to, when channel binding is wanted and there is a hash for it.
    pub(crate) fn bound_to(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Vec<u8>> {
        if self.binding == Binding::Disable {
            return None;
        }
        chain?.first().and_then(|certificate| end_point_hash(certificate))
    }
}

fn versions(settings: &TlsSettings) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::V1_3, &rustls::version::TLS13), (TlsVersion::V1_2, &rustls::version::TLS12)]
        .into_iter()
        .filter(|(version, _)| (settings.version_min..=settings.version_max).contains(version))
        .map(|(_, version)| version)
        .collect()
}

/// The certificates that are trusted, and what to call where they come from.
fn trusted(
    roots: Option<&Roots>,
) -> Result<(Option<Vec<CertificateDer<'static>>>, String), TlsError> {
    let path = match roots {
        None => return Ok((None, String::new())),
        Some(Roots::File(path)) => path,
        Some(Roots::System(paths)) => match paths.iter().find(|path| path.exists()) {
            Some(path) => path,
            None => return Err(TlsError::NoSystemRoots { looked: paths.clone() }),
        },
    };
    Ok((Some(certificates(path)?), format!("`{}`", path.display())))
}

fn chain_verifier(
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
    trusted: &[CertificateDer<'static>],
) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut store = RootCertStore::empty();
    // Lists of operating systems hold a few that are not understood; they help nobody.
    store.add_parsable_certificates(trusted.iter().cloned());
    let content = |what| match &settings.roots {
        Some(Roots::File(path)) => TlsError::Content { path: path.clone(), what },
        _ => TlsError::Content { path: PathBuf::new(), what },
    };
    if store.is_empty() {
        return Err(content("certificate that can be used"));
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(store.into(), provider.clone());
    if let Some(path) = &settings.revoked {
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&read(path)?).collect();
        let what = "list of revoked certificates";
        let lists = lists.map_err(|_| TlsError::Content { path: path.clone(), what })?;
        builder = builder.with_crls(lists);
    }
    builder.build().map_err(|_| match &settings.revoked {
        Some(path) => {
            TlsError::Content { path: path.clone(), what: "list of revoked certificates" }
        }
        None => content("certificate that can be used"),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsError::Content { path: path.to_owned(), what: "certificate (PEM)" }),
    }
}

/// Our certificate with its key. Compared here, because the library does not take certificates
/// of version 1 apart.
fn certified_key(
    provider: &CryptoProvider,
    certificate: &Path,
    key: &Path,
) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate)?;
    let wrong = |source| TlsError::KeyMismatch { path: key.to_owned(), source };
    let signer = provider.key_provider.load_private_key(own_key(key)?).map_err(wrong)?;
    let public = signer.public_key();
    let parts = chain.first().and_then(|first| Parts::of(first));
    if let (Some(public), Some(parts)) = (public, parts)
        && public.as_ref() != parts.public_key
    {
        return Err(wrong(InconsistentKeys::KeyMismatch.into()));
    }
    Ok(CertifiedKey::new(chain, signer))
}

/// Reads our private key, unless others may.
/// Source: `initialize_SSL` in `fe-secure-openssl.c`, where 0640 will do for root's files.
fn own_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let file = File::open(path).and_then(|file| file.metadata());
    let metadata = file.map_err(|source| cannot_read(path, source))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.is_file() && metadata.permissions().mode() & forbidden != 0 {
        return Err(TlsError::KeyTooOpen { path: path.to_owned() });
    }
    let text = read(path)?;
    let is_encrypted = ["ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| text.windows(mark.len()).any(|window| window == mark.as_bytes()));
    if is_encrypted {
        return Err(TlsError::KeyEncrypted { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| TlsError::Content { path: path.to_owned(), what: "private key (PEM)" })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map(|file| file.take(FILE_BYTES_MAX));
    let done = file.and_then(|mut file| file.read_to_end(&mut bytes));
    done.map(|_| bytes).map_err(|source| cannot_read(path, source))
}

fn cannot_read(path: &Path, source: std::io::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), source: Arc::new(source) }
}
