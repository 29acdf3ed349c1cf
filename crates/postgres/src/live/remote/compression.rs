//! Compression by the server, on the way only.

use std::str::FromStr;

use crate::live::conninfo::{Conninfo, Endpoint};

/// How the server compresses what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WireCompression {
    /// As suits the way: not at all within this machine, lz4 over a network.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// LZ4: little work for the server.
    Lz4,
    /// Zstandard at this level.
    Zstd(u8),
}

/// A text that is no compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is auto, none, lz4 or zstd:1 to zstd:19")]
pub struct NoCompression;

impl FromStr for WireCompression {
    type Err = NoCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            _ => {
                let level = text.strip_prefix("zstd:").and_then(|level| level.parse().ok());
                let level = level.filter(|level| (1..=19).contains(level));
                level.map(Self::Zstd).ok_or(NoCompression)
            }
        }
    }
}

impl WireCompression {
    /// The kind of compression that is asked for, in the server's words; `None` for plain data.
    pub fn kind(self, conninfo: &Conninfo) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Auto if is_near(conninfo) => None,
            Self::Auto | Self::Lz4 => Some("lz4"),
            Self::Zstd(_) => Some("zstd"),
        }
    }

    /// Options of BASE_BACKUP that say so, in the order in which they are to be tried: a server
    /// may be built without one kind.
    pub fn options(self, conninfo: &Conninfo) -> Vec<String> {
        let first = self.kind(conninfo).map(|kind| match self {
            Self::Zstd(level) => {
                format!(", COMPRESSION '{kind}', COMPRESSION_DETAIL 'level={level}'")
            }
            _ => format!(", COMPRESSION '{kind}'"),
        });
        first.into_iter().chain([String::new()]).collect()
    }
}

/// Whether every server of the connection string is on this machine.
pub fn is_near(conninfo: &Conninfo) -> bool {
    conninfo.hosts.iter().all(|host| match &host.endpoint {
        Endpoint::Socket(_) => true,
        Endpoint::Tcp(name, address) => match address.or_else(|| name.parse().ok()) {
            Some(address) => address.is_loopback(),
            None => name == "localhost",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(compression: &str, conninfo: &str) -> Vec<String> {
        let conninfo = Conninfo::read(conninfo, &|name| (name == "USER").then(|| "al".into()));
        compression.parse::<WireCompression>().unwrap().options(&conninfo.unwrap())
    }

    #[test]
    fn only_what_leaves_the_machine_is_compressed_unless_it_is_asked_for() {
        let none = vec![String::new()];
        for near in ["host=/run/postgresql", "host=localhost", "host=::1,127.0.0.1"] {
            assert_eq!(options("auto", near), none, "{near}");
            assert_eq!(options("lz4", near).len(), 2, "{near}");
        }
        for far in ["host=db.example.org", "host=db hostaddr=10.0.0.7", "host=/tmp,10.0.0.7"] {
            assert_eq!(options("auto", far)[0], ", COMPRESSION 'lz4'", "{far}");
            assert_eq!(options("none", far), none, "{far}");
        }
        assert!(options("zstd:3", "host=/tmp")[0].contains("'level=3'"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "gzip", "zstd", "zstd:0", "zstd:20", "zstd:x", "lz4:1"] {
            assert!(text.parse::<WireCompression>().is_err(), "{text}");
        }
    }
}
