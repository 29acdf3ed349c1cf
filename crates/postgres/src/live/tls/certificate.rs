//! The few parts of a certificate that are looked at here, taken out of its DER encoding.
//!
//! Chains, signatures and names are checked by the TLS library; this finds what it does not
//! give: the hash that channel binding needs, the common name that libpq falls back to, and
//! certificates of version 1, which `openssl x509 -req` made by default before OpenSSL 3.2.
//!
//! Source: RFC 5280 (`Certificate`), RFC 5929 (`tls-server-end-point`), X.690 (DER).

use aws_lc_rs::digest;
use lifeboat_units::Timestamp;
use rustls::pki_types::SignatureVerificationAlgorithm;

/// Takes elements off the front of a DER encoding.
struct Der<'a>(&'a [u8]);

const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]`, explicit: the version of a certificate; the hash of RSA-PSS.
const CONTEXT_0: u8 = 0xa0;

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.is_empty() || digits.len() > 4 {
                return None;
            }
            length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
            rest = after;
        }
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, content))
    }

    /// The next element, which must have this tag: its content.
    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
    }

    /// The same with tag and length.
    fn whole(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let before = self.0;
        self.expect(wanted)?;
        before.get(..before.len() - self.0.len())
    }

    /// A bit string of whole bytes.
    fn bits(&mut self) -> Option<&'a [u8]> {
        self.expect(BIT_STRING)?.split_first().filter(|(unused, _)| **unused == 0).map(|(_, b)| b)
    }
}

/// A certificate, taken apart.
pub(super) struct Parts<'a> {
    /// What is signed.
    signed: &'a [u8],
    /// Identifies the signature's algorithm: the content of `AlgorithmIdentifier`.
    algorithm: &'a [u8],
    signature: &'a [u8],
    /// Version 1: without any extension.
    pub(super) is_version_1: bool,
    issuer: &'a [u8],
    validity: &'a [u8],
    subject: &'a [u8],
    /// `SubjectPublicKeyInfo`, whole.
    pub(super) public_key: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(super) fn of(certificate: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(certificate).expect(SEQUENCE)?);
        let signed = outer.whole(SEQUENCE)?;
        let (algorithm, signature) = (outer.expect(SEQUENCE)?, outer.bits()?);
        let mut fields = Der(Der(signed).expect(SEQUENCE)?);
        let is_version_1 = fields.0.first() != Some(&CONTEXT_0);
        if !is_version_1 {
            fields.next()?;
        }
        // The serial number, and the signature's algorithm once more.
        fields.next()?;
        fields.next()?;
        let (issuer, validity) = (fields.expect(SEQUENCE)?, fields.expect(SEQUENCE)?);
        let (subject, public_key) = (fields.expect(SEQUENCE)?, fields.whole(SEQUENCE)?);
        Some(Self {
            signed,
            algorithm,
            signature,
            is_version_1,
            issuer,
            validity,
            subject,
            public_key,
        })
    }

    /// When it begins and ends, in seconds since the Unix epoch.
    pub(super) fn validity(&self) -> Option<(i64, i64)> {
        let mut times = Der(self.validity);
        Some((time(times.next()?)?, time(times.next()?)?))
    }

    /// The last common name of the subject.
    pub(super) fn common_name(&self) -> Option<String> {
        let mut names = Der(self.subject);
        let mut found = None;
        while let Some((SET, attributes)) = names.next() {
            let mut attributes = Der(attributes);
            while let Some((SEQUENCE, attribute)) = attributes.next() {
                let mut attribute = Der(attribute);
                // 2.5.4.3: commonName.
                if attribute.expect(OID) == Some(&[0x55, 0x04, 0x03]) {
                    let text = attribute.next().map(|(_, text)| text.to_vec());
                    found = text.and_then(|text| String::from_utf8(text).ok());
                }
            }
        }
        found
    }

    /// Whether `issuer` has signed it.
    pub(super) fn is_signed_by(
        &self,
        issuer: &Parts<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let mut key = Der(issuer.public_key);
        let Some(mut key) = key.expect(SEQUENCE).map(Der) else { return false };
        let (Some(kind), Some(key)) = (key.expect(SEQUENCE), key.bits()) else { return false };
        self.issuer == issuer.subject
            && algorithms
                .iter()
                .filter(|known| known.signature_alg_id().as_ref() == self.algorithm)
                .filter(|known| known.public_key_alg_id().as_ref() == kind)
                .any(|known| known.verify_signature(key, self.signed, self.signature).is_ok())
    }
}

/// The hash of a certificate that binds a login to it; `None` where none is defined (Ed25519).
///
/// The hash is that of the certificate's own signature; SHA-256 where that is MD5 or SHA-1.
pub(super) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let mut algorithm = Der(Parts::of(certificate)?.algorithm);
    let oid = algorithm.expect(OID)?;
    let hash = match oid {
        // 1.2.840.113549.1.1.10: RSASSA-PSS, whose parameters name the hash; SHA-1 by default.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a] => pss_hash(&mut algorithm)?,
        oid => signature_hash(oid)?,
    };
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// The hash within a signature algorithm.
fn signature_hash(oid: &[u8]) -> Option<&'static digest::Algorithm> {
    Some(match oid {
        // 1.2.840.113549.1.1.*: RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, kind] => match kind {
            0x04 | 0x05 | 0x0b => &digest::SHA256,
            0x0c => &digest::SHA384,
            0x0d => &digest::SHA512,
            _ => return None,
        },
        // 1.2.840.10045.4.1: ECDSA with SHA-1; 4.3.*: with SHA-2.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => &digest::SHA256,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, kind] => match kind {
            0x02 => &digest::SHA256,
            0x03 => &digest::SHA384,
            0x04 => &digest::SHA512,
            _ => return None,
        },
        _ => return None,
    })
}

fn pss_hash(algorithm: &mut Der<'_>) -> Option<&'static digest::Algorithm> {
    let mut parameters = Der(algorithm.expect(SEQUENCE)?);
    let Some((CONTEXT_0, hash)) = parameters.next() else { return Some(&digest::SHA256) };
    let oid = Der(Der(hash).expect(SEQUENCE)?).expect(OID)?;
    Some(match oid {
        // 1.3.14.3.2.26: SHA-1; 2.16.840.1.101.3.4.2.*: SHA-2.
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] => &digest::SHA256,
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, kind] => match kind {
            0x01 => &digest::SHA256,
            0x02 => &digest::SHA384,
            0x03 => &digest::SHA512,
            _ => return None,
        },
        _ => return None,
    })
}

/// Reads `YYMMDDHHMMSSZ` (UTCTime, 1950 to 2049) or `YYYYMMDDHHMMSSZ` (GeneralizedTime).
fn time((tag, text): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    let (year, rest) = match tag {
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            (format!("{}{year}", if year < "50" { "20" } else { "19" }), rest)
        }
        0x18 => text.split_at_checked(4).map(|(year, rest)| (year.to_owned(), rest))?,
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2);
    let (month, day, hour) = (part(0)?, part(2)?, part(4)?);
    let (minute, second) = (part(6)?, part(8)?);
    let whole = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    let is_whole = rest.get(10..) == Some("Z");
    whole.parse::<Timestamp>().ok().filter(|_| is_whole).map(Timestamp::as_second)
}

/// Whether a name in a certificate stands for a host: the same, or `*.` and the rest of it
/// behind its first label. Source: `wildcard_certificate_match` in `fe-secure-common.c`.
pub(super) fn name_fits(name: &str, host: &str) -> bool {
    if name.contains('\0') {
        return false;
    }
    match name.strip_prefix("*.") {
        Some(rest) => host
            .split_once('.')
            .is_some_and(|(label, after)| !label.is_empty() && after.eq_ignore_ascii_case(rest)),
        None => name.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look_at(bytes: &[u8]) {
        end_point_hash(bytes);
        if let Some(parts) = Parts::of(bytes) {
            parts.validity();
            parts.common_name();
            parts.is_signed_by(&parts, &[]);
        }
    }

    #[test]
    fn a_star_stands_for_one_label() {
        assert!(name_fits("DB.example", "db.EXAMPLE"));
        assert!(name_fits("*.example.org", "db.example.org"));
        for (name, host) in [
            ("*.example.org", "example.org"),
            ("*.example.org", "a.b.example.org"),
            ("*.example.org", ".example.org"),
            ("*", "db"),
            ("db.example\0.org", "db.example"),
            ("d*.example.org", "db.example.org"),
        ] {
            assert!(!name_fits(name, host), "{name} {host}");
        }
    }

    #[test]
    fn times_are_read_in_both_forms() {
        assert_eq!(time((0x17, b"700101000001Z")), Some(1));
        assert_eq!(time((0x18, b"20500101000000Z")), Some(2_524_608_000));
        assert_eq!(time((0x17, b"491231235959Z")), Some(2_524_607_999));
        for text in ["7001010000Z", "700101000001", "701301000001Z", "700101000001+0100", "\u{e9}"]
        {
            assert_eq!(time((0x17, text.as_bytes())), None, "{text}");
        }
    }

    proptest! {
        /// Law: nothing that a server shows makes this panic.
        #[test]
        fn nonsense_does_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            look_at(&bytes);
            for (at, tag) in [(0, SEQUENCE), (2, SEQUENCE), (4, SEQUENCE)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = tag;
                }
                look_at(&bytes);
            }
        }
    }
}
