//! What a connection string says about TLS, with libpq's meanings and defaults.
//!
//! Source: PostgreSQL documentation, "SSL Support" (libpq), and `src/interfaces/libpq/fe-connect.c`
//! (`pqConnectOptions2`), `fe-secure-openssl.c` (`initialize_SSL`).

use std::path::PathBuf;

use super::parse::Raw;
use super::{ConninfoError, Environment};

/// How much protection a connection needs (`sslmode`). Sockets of this machine never use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS only when the server insists.
    Allow,
    /// TLS when the server offers it.
    Prefer,
    /// TLS; whoever answers will do, unless there is a root certificate file.
    Require,
    /// TLS with a server whose certificate somebody trusted has signed.
    VerifyCa,
    /// The same, and the certificate is for the host's name.
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// Whether the password's proof is bound to the TLS connection (`channel_binding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Never.
    Disable,
    /// When the server offers it.
    Prefer,
    /// Always: no other login will do.
    Require,
}

/// Whose signatures count (`sslrootcert`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities in a file.
    File(PathBuf),
    /// The authorities that this machine trusts; the first of these files that exists.
    System(Vec<PathBuf>),
}

/// Versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    V1_2,
    /// 1.3.
    V1_3,
}

/// Everything about TLS. Files are read when a connection is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// How much protection.
    pub mode: SslMode,
    /// Whether TLS begins at once (`sslnegotiation=direct`; PostgreSQL 17 and later).
    pub is_direct: bool,
    /// Whether the server is told the host's name before it shows its certificate (`sslsni`).
    pub sni: bool,
    /// Channel binding.
    pub binding: Binding,
    /// Whose signatures count; `None` when the server's certificate is not checked.
    pub roots: Option<Roots>,
    /// Revoked certificates.
    pub revoked: Option<PathBuf>,
    /// Our own certificate and its private key.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Oldest version that will do.
    pub version_min: TlsVersion,
    /// Newest version that will do.
    pub version_max: TlsVersion,
}

/// Where operating systems keep the authorities that they trust: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl TlsSettings {
    /// Settings of connections without TLS.
    pub fn off() -> Self {
        Self {
            mode: SslMode::Disable,
            is_direct: false,
            sni: true,
            binding: Binding::Prefer,
            roots: None,
            revoked: None,
            own: None,
            version_min: TlsVersion::V1_2,
            version_max: TlsVersion::V1_3,
        }
    }
}

/// Reads and checks the settings.
///
/// Without a host in the network none is used, as in libpq, and no file is looked for.
pub(super) fn read(
    raw: &Raw,
    environment: Environment<'_>,
    has_network: bool,
) -> Result<TlsSettings, ConninfoError> {
    let get = |key: &str| raw.get(key).map(String::as_str);
    let wrong = |key: &'static str, value: &str| ConninfoError::Value { key, value: value.into() };
    let is_system = get("sslrootcert") == Some("system");
    let default_mode = if is_system { "verify-full" } else { "prefer" };
    let mode_text = get("sslmode").unwrap_or(default_mode);
    let mode = SslMode::parse(mode_text).ok_or_else(|| wrong("sslmode", mode_text))?;
    let binding = choice(
        raw,
        "channel_binding",
        &[
            ("prefer", Binding::Prefer),
            ("require", Binding::Require),
            ("disable", Binding::Disable),
        ],
    )?;
    let is_direct = choice(raw, "sslnegotiation", &[("postgres", false), ("direct", true)])?;
    let sends_own = choice(raw, "sslcertmode", &[("allow", true), ("disable", false)])?;
    let sni = choice(raw, "sslsni", &[("1", true), ("0", false)])?;
    let version_min = version(raw, "ssl_min_protocol_version", TlsVersion::V1_2)?;
    let version_max = version(raw, "ssl_max_protocol_version", TlsVersion::V1_3)?;
    refuse(raw, &ALWAYS_REFUSED)?;
    if mode == SslMode::Disable || !has_network {
        return Ok(TlsSettings { binding, ..TlsSettings::off() });
    }
    let weak = |needed| ConninfoError::WeakMode { mode: mode_text.into(), needed };
    if is_system && mode < SslMode::VerifyFull {
        return Err(weak("sslrootcert=system needs sslmode=verify-full"));
    }
    if is_direct && mode < SslMode::Require {
        return Err(weak("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"));
    }
    refuse(raw, &[("sslcrldir", &[]), ("sslpassword", &[])])?;
    let files = Files {
        raw,
        home: environment("HOME").map(PathBuf::from),
        strict: mode >= SslMode::Require,
    };
    let roots = if is_system {
        let said = environment("SSL_CERT_FILE").map(PathBuf::from);
        Some(Roots::System(said.into_iter().chain(SYSTEM_ROOTS.map(PathBuf::from)).collect()))
    } else {
        files.find("sslrootcert", "root.crt")?.map(Roots::File)
    };
    if roots.is_none() && mode >= SslMode::VerifyCa {
        let path = files.default("root.crt").unwrap_or_else(|| "~/.postgresql/root.crt".into());
        return Err(ConninfoError::NoRoots { mode: mode_text.to_owned(), path });
    }
    let own = if sends_own { files.own()? } else { None };
    Ok(TlsSettings {
        mode,
        is_direct,
        sni,
        binding,
        roots,
        revoked: files.find("sslcrl", "root.crl")?,
        own,
        version_min,
        version_max,
    })
}

/// Keys that are not supported, and the values that ask for nothing.
type Refused<'a> = [(&'static str, &'a [&'a str])];

/// What asks for more protection than lifeboat can give is refused, over whatever connection.
const ALWAYS_REFUSED: [(&str, &[&str]); 3] =
    [("require_auth", &[]), ("requirepeer", &[]), ("gssencmode", &["disable", "prefer"])];

fn refuse(raw: &Raw, keys: &Refused<'_>) -> Result<(), ConninfoError> {
    for (key, harmless) in keys {
        let value = raw.get(*key).map(String::as_str).filter(|value| !value.is_empty());
        if let Some(value) = value.filter(|value| !harmless.contains(value)) {
            let value = if *key == "sslpassword" { "…" } else { value };
            return Err(ConninfoError::Unsupported { key, value: value.to_owned() });
        }
    }
    Ok(())
}

/// The first choice is the default.
fn choice<T: Copy>(
    raw: &Raw,
    key: &'static str,
    choices: &[(&str, T)],
) -> Result<T, ConninfoError> {
    let text = raw.get(key).map_or(choices[0].0, String::as_str);
    let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| ConninfoError::Value { key, value: text.to_owned() })
}

/// TLS 1.0 and 1.1 are below what will do, whatever is asked for.
fn version(raw: &Raw, key: &'static str, default: TlsVersion) -> Result<TlsVersion, ConninfoError> {
    let Some(text) = raw.get(key) else { return Ok(default) };
    let is_minimum = default == TlsVersion::V1_2;
    match text.to_ascii_lowercase().as_str() {
        "tlsv1" | "tlsv1.1" if is_minimum => Ok(TlsVersion::V1_2),
        "tlsv1.2" => Ok(TlsVersion::V1_2),
        "tlsv1.3" => Ok(TlsVersion::V1_3),
        _ => Err(ConninfoError::Value { key, value: text.clone() }),
    }
}

/// Finds files by their key or at their usual place.
struct Files<'a> {
    raw: &'a Raw,
    home: Option<PathBuf>,
    /// Whether a file that is named must be there.
    strict: bool,
}

impl Files<'_> {
    fn default(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(".postgresql").join(name))
    }

    /// A named file that is not there is refused where TLS is required: libpq goes on without
    /// the check that the file stands for.
    fn find(&self, key: &'static str, name: &str) -> Result<Option<PathBuf>, ConninfoError> {
        match self.raw.get(key).map(PathBuf::from) {
            None => Ok(self.default(name).filter(|path| path.exists())),
            Some(path) if path.exists() => Ok(Some(path)),
            Some(_) if !self.strict => Ok(None),
            Some(path) => {
                let source = std::io::ErrorKind::NotFound.into();
                Err(ConninfoError::File { path, source })
            }
        }
    }

    fn own(&self) -> Result<Option<(PathBuf, PathBuf)>, ConninfoError> {
        let Some(certificate) = self.find("sslcert", "postgresql.crt")? else { return Ok(None) };
        let key = match self.raw.get("sslkey") {
            Some(path) => Some(PathBuf::from(path)),
            None => self.default("postgresql.key"),
        };
        match key {
            Some(key) if key.exists() => Ok(Some((certificate, key))),
            _ if !self.strict => Ok(None),
            Some(path) => {
                let source = std::io::ErrorKind::NotFound.into();
                Err(ConninfoError::File { path, source })
            }
            None => Err(ConninfoError::Value { key: "sslkey", value: String::new() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read_with(text: &str, home: &str) -> Result<TlsSettings, ConninfoError> {
        let raw = super::super::parse::split(text).unwrap();
        read(&raw, &|name| (name == "HOME").then(|| home.to_owned()), true)
    }

    fn bare(text: &str) -> Result<TlsSettings, ConninfoError> {
        read_with(text, "/not/there")
    }

    #[test]
    fn modes_need_what_they_check_with() {
        assert_eq!(bare("").unwrap().mode, SslMode::Prefer);
        assert_eq!(bare("sslmode=require").unwrap().roots, None);
        let home = tempfile::tempdir().unwrap();
        let (path, home_text) = (home.path().join(".postgresql"), home.path().to_str().unwrap());
        let none = read_with("sslmode=verify-full", home_text).unwrap_err();
        assert!(none.to_string().contains(".postgresql/root.crt"), "{none}");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("root.crt"), "").unwrap();
        let found = read_with("sslmode=require", home_text).unwrap();
        assert_eq!(found.roots, Some(Roots::File(path.join("root.crt"))));
        // A certificate without its key is a mistake, not a choice.
        fs::write(path.join("postgresql.crt"), "").unwrap();
        assert!(read_with("sslmode=require", home_text).is_err());
        assert_eq!(read_with("sslmode=require sslcertmode=disable", home_text).unwrap().own, None);
        fs::write(path.join("postgresql.key"), "").unwrap();
        assert!(read_with("sslmode=require", home_text).unwrap().own.is_some());
    }

    #[test]
    fn a_named_file_must_be_there_where_tls_is_required() {
        assert!(bare("sslmode=require sslrootcert=/not/there").is_err());
        assert_eq!(bare("sslmode=prefer sslrootcert=/not/there").unwrap().roots, None);
    }

    #[test]
    fn weak_modes_do_not_go_with_what_needs_strong_ones() {
        let system = bare("sslrootcert=system").unwrap();
        assert_eq!(system.mode, SslMode::VerifyFull);
        assert!(matches!(system.roots, Some(Roots::System(_))));
        assert!(bare("sslrootcert=system sslmode=require").is_err());
        assert!(bare("sslnegotiation=direct").is_err());
        assert!(bare("sslnegotiation=direct sslmode=require").unwrap().is_direct);
    }

    #[test]
    fn versions_and_choices_are_checked() {
        assert_eq!(bare("ssl_min_protocol_version=TLSv1").unwrap().version_min, TlsVersion::V1_2);
        assert_eq!(bare("ssl_min_protocol_version=TLSv1.3").unwrap().version_min, TlsVersion::V1_3);
        for text in [
            "ssl_max_protocol_version=TLSv1.1",
            "sslsni=yes",
            "channel_binding=maybe",
            "sslcertmode=require",
            "sslcrldir=/x",
            "sslpassword=hunter2",
        ] {
            let error = bare(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
