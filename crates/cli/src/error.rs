//! Errors on their way out: any error that explains itself, and those of the command line.

use std::path::PathBuf;

use lifeboat_units::{Code, Explain, Retry};

/// Whatever stopped a command. [`crate::exit`] turns it into words and a number.
pub(crate) struct CliError(pub Box<dyn Explain>);

impl<E: Explain> From<E> for CliError {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

/// What goes wrong in the command line itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Arguments that do not go together or cannot be understood.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        help: Option<String>,
    },
    /// A file that init would have to replace.
    #[error("`{}` exists already", path.display())]
    ConfigExists {
        /// The file.
        path: PathBuf,
    },
    /// Nobody said how to protect the keys.
    #[error("no passphrase was given, and nobody can be asked: this is not a terminal")]
    NoPassphrase,
    /// A source of the passphrase that does not work.
    #[error("cannot get the passphrase from {from}: {problem}")]
    Passphrase {
        /// Which source.
        from: String,
        /// Why it does not work.
        problem: String,
    },
    /// The passphrase was typed differently the second time.
    #[error("the two passphrases differ")]
    PassphrasesDiffer,
    /// Others can read the key file.
    #[error("key file `{}` can be read by others (mode {mode:03o})", path.display())]
    KeyFileMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file or directory that cannot be written, read or given away.
    #[error("cannot {operation} `{}`", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The output cannot be written.
    #[error("cannot write the output")]
    Output {
        /// Why.
        source: std::io::Error,
    },
    /// A part of the demonstration that did not go as it should.
    #[error("{0}")]
    Demo(String),
    /// The landing is not where the plan said.
    #[error("{0}")]
    Landing(String),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The system refused to start a thread.
    #[error("the system starts no more threads for this process: {0}")]
    Threads(String),
    /// A mistake in lifeboat.
    #[error("lifeboat failed because of a mistake in itself: {0}")]
    Bug(String),
}

impl Explain for Trouble {
    fn code(&self) -> Code {
        Code(match self {
            Self::Usage { .. } => "LB-CLI-001",
            Self::ConfigExists { .. } => "LB-CLI-002",
            Self::NoPassphrase => "LB-CLI-003",
            Self::Passphrase { .. } => "LB-CLI-004",
            Self::PassphrasesDiffer => "LB-CLI-005",
            Self::KeyFileMode { .. } => "LB-CLI-006",
            Self::File { .. } => "LB-CLI-007",
            Self::Output { .. } => "LB-CLI-008",
            Self::Demo(_) => "LB-CLI-009",
            Self::Landing(_) => "LB-CLI-010",
            Self::Interrupted => "LB-CLI-011",
            Self::Threads(_) => "LB-CLI-012",
            Self::Bug(_) => "LB-CLI-099",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Usage { .. }
            | Self::ConfigExists { .. }
            | Self::NoPassphrase
            | Self::Passphrase { .. }
            | Self::PassphrasesDiffer
            | Self::KeyFileMode { .. }
            | Self::Demo(_)
            | Self::Landing(_)
            | Self::Bug(_) => Retry::Never,
            Self::File { .. } | Self::Output { .. } | Self::Interrupted | Self::Threads(_) => {
                Retry::Later
            }
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Usage { help, .. } => return help.clone(),
            Self::ConfigExists { .. } => {
                "name another file with --config, or give --force to replace it".to_owned()
            }
            Self::NoPassphrase => "set repository.passphrase-file or LIFEBOAT_PASSPHRASE; \
                                   `init` also takes --passphrase-file or --no-encryption"
                .to_owned(),
            Self::KeyFileMode { path, .. } => {
                format!(
                    "whoever read it can write to the repository; then: chmod 600 {}",
                    path.display()
                )
            }
            Self::Landing(_) => {
                "do not use this server before you know why; its log says what it replayed"
                    .to_owned()
            }
            Self::Threads(_) => "raise the limit (ulimit -u and -v; TasksMax and MemoryMax of a \
                                 service), or take fewer of them: --jobs 1"
                .to_owned(),
            Self::Bug(_) => "please report it, with the words above".to_owned(),
            Self::Passphrase { from, .. } if from == crate::secrets::VARIABLE => {
                "set it to what the key slot was made with, or unset it".to_owned()
            }
            Self::Passphrase { .. } => {
                "LIFEBOAT_PASSPHRASE gives the passphrase instead; backups and WAL go \
                 on without it"
                    .to_owned()
            }
            Self::PassphrasesDiffer
            | Self::File { .. }
            | Self::Output { .. }
            | Self::Interrupted
            | Self::Demo(_) => return None, // the message and its cause say it
        })
    }
}

/// A usage error with help.
pub(crate) fn usage(message: impl Into<String>, help: impl Into<String>) -> Trouble {
    Trouble::Usage { message: message.into(), help: Some(help.into()) }
}
