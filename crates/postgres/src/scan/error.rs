//! Why a data directory cannot be listed.

use std::io;
use std::path::PathBuf;

use lifeboat_units::{Code, Explain, Retry};

/// Why a data directory cannot be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// A file or directory that cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What cannot be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tablespace link that does not say where it leads from the root of the file system.
    #[error("tablespace link `pg_tblspc/{oid}` leads to the relative path `{}`", location.display())]
    Relative {
        /// The tablespace.
        oid: u32,
        /// Where the link leads.
        location: PathBuf,
    },
    /// A tablespace link that leads to another link.
    #[error("tablespace link `pg_tblspc/{oid}` leads to another link, `{}`", location.display())]
    LinkToLink {
        /// The tablespace.
        oid: u32,
        /// Where the link leads.
        location: PathBuf,
    },
    /// A tablespace link that leads into the data directory.
    #[error("tablespace {oid} lies inside the data directory, at `{}`", location.display())]
    InsideData {
        /// The tablespace.
        oid: u32,
        /// Where it lies.
        location: PathBuf,
    },
    /// Two tablespaces, one within the other, or both at one place.
    #[error("tablespace {inner} at `{}` lies inside tablespace {outer}", location.display())]
    Nested {
        /// The one inside.
        inner: u32,
        /// The one around it.
        outer: u32,
        /// Where the inner one lies.
        location: PathBuf,
    },
    /// A tablespace link that leads to something else than a directory, or nowhere.
    #[error("tablespace link `pg_tblspc/{oid}` leads to `{}`, which is no directory", location.display())]
    NoDirectory {
        /// The tablespace.
        oid: u32,
        /// Where the link leads.
        location: PathBuf,
    },
    /// Links that lead round in a circle, or deeper than any data directory goes.
    #[error("`{}` is nested too deeply: do links lead round in a circle?", path.display())]
    TooDeep {
        /// The place where listing gave up.
        path: PathBuf,
    },
}

impl Explain for ScanError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code("LB-PG-050"),
            Self::Relative { .. } => Code("LB-PG-051"),
            Self::LinkToLink { .. } => Code("LB-PG-052"),
            Self::InsideData { .. } => Code("LB-PG-053"),
            Self::Nested { .. } => Code("LB-PG-054"),
            Self::NoDirectory { .. } => Code("LB-PG-055"),
            Self::TooDeep { .. } => Code("LB-PG-056"),
        }
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn help(&self) -> Option<String> {
        let text = match self {
            Self::Read { .. } => "run lifeboat as the owner of the data directory",
            Self::Relative { .. } | Self::LinkToLink { .. } | Self::NoDirectory { .. } => {
                "make the link lead straight to the tablespace's directory, by its absolute path"
            }
            Self::InsideData { .. } | Self::Nested { .. } => {
                "move the tablespace to a directory of its own; a backup would hold its files twice"
            }
            Self::TooDeep { .. } => "look for a link that leads back to a directory above it",
        };
        Some(text.to_owned())
    }
}
