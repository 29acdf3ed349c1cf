//! What can be wrong with the configuration.

use std::path::PathBuf;

use lifeboat_units::{Code, Explain, Retry};

use super::raw::Origin;

/// A mistake in the configuration: which key, and where it was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// None of the places has a file.
    #[error("there is no configuration; looked for {}", looked.join(", "))]
    Missing {
        /// The places.
        looked: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{origin}: {problem}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser says.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no key `{key}`")]
    UnknownKey {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// The key that was most likely meant.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be used.
    #[error("{origin}: `{key}` {problem}")]
    Value {
        /// The key.
        key: String,
        /// Where.
        origin: Origin,
        /// What is wrong with it, as the end of the sentence.
        problem: String,
    },
    /// A key without which the command cannot work.
    #[error("`{key}` is not set in {file}")]
    Unset {
        /// The key.
        key: &'static str,
        /// The configuration.
        file: String,
        /// How it is written.
        example: &'static str,
    },
    /// `--set` without `=`.
    #[error("--set `{text}`: KEY=VALUE was expected")]
    Assignment {
        /// As written.
        text: String,
    },
}

impl Explain for ConfigError {
    fn code(&self) -> Code {
        Code(match self {
            Self::Missing { .. } => "LB-CONF-001",
            Self::Read { .. } => "LB-CONF-002",
            Self::Syntax { .. } => "LB-CONF-003",
            Self::UnknownKey { .. } => "LB-CONF-004",
            Self::Value { .. } => "LB-CONF-005",
            Self::Unset { .. } => "LB-CONF-006",
            Self::Assignment { .. } => "LB-CONF-007",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Missing { .. }
            | Self::Read { .. }
            | Self::Syntax { .. }
            | Self::UnknownKey { .. }
            | Self::Value { .. }
            | Self::Unset { .. }
            | Self::Assignment { .. } => Retry::Never,
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => {
                Some("`lifeboat init` writes one; --config FILE names another place".to_owned())
            }
            Self::UnknownKey { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{nearest}`?"))
            }
            Self::UnknownKey { nearest: None, .. } => {
                Some("all keys are in docs/reference/config.md".to_owned())
            }
            Self::Unset { key, example, .. } => {
                Some(format!("add it, or give --set '{key}={example}'"))
            }
            Self::Assignment { .. } => {
                Some("such as --set repository.compression=zstd:3".to_owned())
            }
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Some("name one that is there; `lifeboat init` writes one to a new place".to_owned())
            }
            Self::Read { path, .. } if path.is_dir() => {
                Some("name the file in it: --config …/lifeboat.toml".to_owned())
            }
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::InvalidData => {
                Some("save it as UTF-8; all keys: docs/reference/config.md".to_owned())
            }
            Self::Read { .. } => Some(
                "run lifeboat as a user who may read it: the server's, or the file's owner"
                    .to_owned(),
            ),
            Self::Syntax { .. } => {
                Some("all keys and how they are written: docs/reference/config.md".to_owned())
            }
            Self::Value { .. } => None, // all is said
        }
    }
}
