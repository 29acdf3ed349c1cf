//! Finds the programs of the right major version.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ClusterError;

/// Where to look for binaries. Passed in, so that nothing here depends on the process.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// A `bin` directory that somebody named; looked at first.
    pub given: Option<PathBuf>,
    /// Directories that hold `<major>/bin`.
    pub by_major: Vec<PathBuf>,
    /// The value of PATH.
    pub path: Option<String>,
}

/// The directory of one version's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    major: u32,
}

impl Binaries {
    /// Finds `postgres` of this major version: in the given directory, then below the given
    /// parents, where packages put it, where `pg_config` says, and on the PATH.
    pub fn find(major: u32, places: &Places) -> Result<Self, ClusterError> {
        let mut looked = Vec::new();
        for directory in candidates(major, places) {
            if major_of_program(&directory.join("postgres")) == Some(major) {
                return Ok(Self { directory, major });
            }
            let text = directory.display().to_string();
            if !looked.contains(&text) {
                looked.push(text);
            }
        }
        Err(ClusterError::NoBinaries { major, looked })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The path of one program, such as `pg_ctl`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn candidates(major: u32, places: &Places) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = places.given.iter().cloned().collect();
    for parent in &places.by_major {
        directories.push(parent.join(major.to_string()).join("bin"));
    }
    // Debian and Ubuntu; the PostgreSQL project's RPMs; official containers; Homebrew.
    directories.push(format!("/usr/lib/postgresql/{major}/bin").into());
    directories.push(format!("/usr/pgsql-{major}/bin").into());
    directories.push("/usr/local/pgsql/bin".into());
    directories.push(format!("/opt/homebrew/opt/postgresql@{major}/bin").into());
    for directory in places.path.as_deref().unwrap_or("").split(':').filter(|d| !d.is_empty()) {
        let directory = PathBuf::from(directory);
        if let Some(said) = pg_config_directory(&directory.join("pg_config")) {
            directories.push(said);
        }
        directories.push(directory);
    }
    directories
}

fn pg_config_directory(program: &Path) -> Option<PathBuf> {
    if !program.exists() {
        return None;
    }
    let output = Command::new(program).arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim()))
}

/// Reads `postgres (PostgreSQL) 18.6 (…)`; also `18beta1` and `19devel`.
fn major_of_program(program: &Path) -> Option<u32> {
    if !program.exists() {
        return None;
    }
    let output = Command::new(program).arg("--version").output().ok()?;
    parse_version(&String::from_utf8(output.stdout).ok()?)
}

fn parse_version(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL)")?.1.trim_start();
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18.6 (Debian 18.6-3)\n"), Some(18));
        assert_eq!(parse_version("postgres (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(parse_version("something else 15"), None);
    }

    #[test]
    fn missing_binaries_say_where_they_were_looked_for() {
        let places = Places { given: Some("/not/there".into()), ..Places::default() };
        let error = Binaries::find(99, &places).unwrap_err().to_string();
        assert!(
            error.contains("/not/there") && error.contains("/usr/lib/postgresql/99"),
            "{error}"
        );
    }
}
