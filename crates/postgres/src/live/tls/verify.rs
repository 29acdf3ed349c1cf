//! Whose certificates are believed, and for which names.
//!
//! Chains, validity and signatures are the TLS library's work. Three things are as libpq has
//! them: a certificate that lies itself in the file of trusted ones is trusted, one of version 1
//! that a trusted authority has signed is good, and one without any subjectAltName is for its
//! common name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::certificate::{Parts, name_fits};
use super::error::TlsError;

/// Checks what a server shows.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// Checks the chain; `None` when any certificate will do.
    pub(super) chain: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates that are trusted.
    pub(super) trusted: Vec<CertificateDer<'static>>,
    /// Whether the certificate must be for the host's name.
    pub(super) checks_name: bool,
    /// Whether there is a list of revoked certificates.
    pub(super) checks_revocation: bool,
}

impl Verifier {
    /// Checks a certificate that the library does not know how to check. `refused` is what the
    /// library says.
    fn check_otherwise(
        &self,
        certificate: &CertificateDer<'_>,
        wanted: &ServerName<'_>,
        now: UnixTime,
        refused: Error,
    ) -> Result<(), Error> {
        let parts = Parts::of(certificate).filter(|parts| self.trusts(certificate, parts));
        let validity = parts.as_ref().and_then(Parts::validity);
        let (Some(parts), Some((begins, ends))) = (parts, validity) else { return Err(refused) };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < begins {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > ends {
            return Err(CertificateError::Expired.into());
        }
        if !self.checks_name {
            return Ok(());
        }
        if parts.is_version_1 {
            return check_common_name(&parts, wanted);
        }
        let checked = verify_server_name(&ParsedCertificate::try_from(certificate)?, wanted);
        checked.or_else(|error| sort_name(error, certificate, wanted))
    }

    /// Whether a certificate lies itself among those that are trusted, or is one of version 1
    /// that one of them has signed. A list of revoked certificates is not looked at for those.
    fn trusts(&self, certificate: &CertificateDer<'_>, parts: &Parts<'_>) -> bool {
        if self.trusted.iter().any(|trusted| trusted.as_ref() == certificate.as_ref()) {
            return true;
        }
        let authorities = self.trusted.iter().filter_map(|trusted| Parts::of(trusted));
        parts.is_version_1
            && !self.checks_revocation
            && authorities.into_iter().any(|by| parts.is_signed_by(&by, self.algorithms.all))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // The name is the last thing that it checks, after chain, validity and revocation.
        let checked =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let checked = match checked {
            Ok(verified) => return Ok(verified),
            Err(error) if is_name(&error) && !self.checks_name => Ok(()),
            Err(error) if is_name(&error) => sort_name(error, end_entity, server_name),
            Err(error) if is_unknown_form(&error) => {
                self.check_otherwise(end_entity, server_name, now, error)
            }
            Err(error) => Err(error),
        };
        checked.map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The library takes no certificate of version 1 apart, but its key will do.
        match Parts::of(cert).filter(|parts| parts.is_version_1) {
            None => verify_tls13_signature(message, cert, dss, &self.algorithms),
            Some(parts) => {
                let key = SubjectPublicKeyInfoDer::from(parts.public_key);
                verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn is_name(error: &Error) -> bool {
    let Error::InvalidCertificate(error) = error else { return false };
    matches!(
        error,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
    )
}

/// Whether the library refuses the form of a certificate, and did not come to check more.
fn is_unknown_form(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(why)) => {
            let why = format!("{why:?}");
            why.contains("CaUsedAsEndEntity") || why.contains("UnsupportedCertVersion")
        }
        _ => false,
    }
}

/// Whether a certificate without alternative names is for `wanted` by its common name.
fn check_common_name(parts: &Parts<'_>, wanted: &ServerName<'_>) -> Result<(), Error> {
    let (name, host) = (parts.common_name(), wanted.to_str());
    if name.as_deref().is_some_and(|name| name_fits(name, &host)) {
        return Ok(());
    }
    Err(other_name(&host, name.into_iter().collect()))
}

/// What a name that does not fit means: a certificate without any alternative name is for its
/// common name.
fn sort_name(error: Error, certificate: &[u8], wanted: &ServerName<'_>) -> Result<(), Error> {
    match error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented, ..
        }) => match Parts::of(certificate) {
            Some(parts) if presented.is_empty() => check_common_name(&parts, wanted),
            _ => Err(other_name(&wanted.to_str(), readable(&presented))),
        },
        other => Err(other),
    }
}

fn other_name(wanted: &str, presented: Vec<String>) -> Error {
    let error = TlsError::Name { wanted: wanted.to_owned(), presented };
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Names as people write them, out of `DnsName("db.example")` and the like.
fn readable(presented: &[String]) -> Vec<String> {
    let inner = |text: &String| {
        let quoted = text.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")"));
        let bare = text.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        quoted.or(bare).unwrap_or(text).to_owned()
    };
    presented.iter().map(inner).collect()
}
