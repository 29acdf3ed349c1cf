//! Configuration as written: each value a text, with the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::keys::{self, Key};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// `--set KEY=VALUE`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// A value as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its text; numbers as they were written.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

/// All values that were written, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Raw(BTreeMap<&'static str, Written>);

impl Raw {
    /// Reads a file's text.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let line_of = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            origin: Origin::File {
                path: path.to_owned(),
                line: line_of(error.span().map_or(0, |span| span.start)),
            },
            problem: error.message().trim().replace('\n', ", "),
        })?;
        let mut raw = Self::default();
        raw.walk("", table.get_ref(), &|at| Origin::File {
            path: path.to_owned(),
            line: line_of(at),
        })?;
        Ok(raw)
    }

    fn walk(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        origin: &dyn Fn(usize) -> Origin,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let dotted = format!("{prefix}{}", name.get_ref());
            let origin_here = origin(name.span().start);
            let text = match value.get_ref() {
                DeValue::Table(inner) => {
                    self.walk(&format!("{dotted}."), inner, origin)?;
                    continue;
                }
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.as_str().to_owned(),
                DeValue::Float(number) => number.as_str().to_owned(),
                DeValue::Boolean(truth) => truth.to_string(),
                DeValue::Array(_) | DeValue::Datetime(_) => {
                    return Err(ConfigError::Value {
                        key: dotted,
                        origin: origin_here,
                        problem: "must be a text or a number".to_owned(),
                    });
                }
            };
            self.put(&dotted, text, origin_here)?;
        }
        Ok(())
    }

    fn put(&mut self, name: &str, text: String, origin: Origin) -> Result<(), ConfigError> {
        let Some(key) = keys::find(name) else {
            let nearest = keys::nearest(name);
            return Err(ConfigError::UnknownKey { key: name.to_owned(), origin, nearest });
        };
        self.0.insert(key.name, Written { text, origin });
        Ok(())
    }

    /// Adds one `--set KEY=VALUE`; it wins over the file.
    pub fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(ConfigError::Assignment { text: assignment.to_owned() });
        };
        self.put(name.trim(), value.trim().to_owned(), Origin::Flag)
    }

    /// What was written for a key.
    pub fn get(&self, key: &Key) -> Option<&Written> {
        self.0.get(key.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{COMPRESSION, JOBS, URL};
    use super::*;

    fn parse(text: &str) -> Result<Raw, ConfigError> {
        Raw::parse(text, Path::new("/etc/x.toml"))
    }

    #[test]
    fn values_keep_the_place_they_were_written() {
        let mut raw = parse("# c\n[repository]\nurl = \"/srv\"\n\n[backup]\njobs = 3\n").unwrap();
        let line = |line| Origin::File { path: "/etc/x.toml".into(), line };
        assert_eq!(raw.get(&URL).unwrap(), &Written { text: "/srv".into(), origin: line(3) });
        assert_eq!(raw.get(&JOBS).unwrap(), &Written { text: "3".into(), origin: line(6) });
        raw.set("repository.compression=zstd:3").unwrap();
        assert_eq!(raw.get(&COMPRESSION).unwrap().origin, Origin::Flag);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let said = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(said("[backup]\njbos = 2\n"), "/etc/x.toml:2: there is no key `backup.jbos`");
        assert_eq!(
            said("[backup]\njobs = [1]\n"),
            "/etc/x.toml:2: `backup.jobs` must be a text or a number"
        );
        assert!(said("[backup\n").starts_with("/etc/x.toml:1: "), "{}", said("[backup\n"));
    }
}
