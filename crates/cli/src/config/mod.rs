//! Configuration: found, read, checked. The only place that looks into the environment.
//!
//! | module | what it holds |
//! |---|---|
//! | [`keys`] | every key, declared once |
//! | [`raw`] | values as written, with their places |
//! | [`settings`] | the same, checked |
//! | [`sample`] | a file with every key, for the reference |

pub(crate) mod error;
pub(crate) mod keys;
pub(crate) mod raw;
pub(crate) mod sample;
pub(crate) mod settings;

use std::path::{Path, PathBuf};

pub(crate) use error::ConfigError;
use lifeboat_postgres::live::cluster::Account;
use raw::Raw;
pub(crate) use settings::Settings;

/// Where the configuration is looked for when neither flag nor variable names it.
pub(crate) const PLACES: [&str; 2] = ["lifeboat.toml", "/etc/lifeboat/lifeboat.toml"];
/// Names the configuration.
pub(crate) const CONFIG_VARIABLE: &str = "LIFEBOAT_CONFIG";

/// A variable of the environment; `None` when it is unset or empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A variable as libpq's programs see it: the user is the one of this process, and a home
/// directory that this user cannot enter (`sudo` and `setpriv` keep the caller's) is none.
pub(crate) fn connection_variable(name: &str) -> Option<String> {
    match name {
        "USER" => Account::own().name().or_else(|| variable(name)),
        "HOME" => variable(name).filter(|home| std::fs::read_dir(home).is_ok()),
        _ => variable(name),
    }
}

/// The file that is named or found: by flag, by variable, or in one of the usual places.
pub(crate) fn locate(flag: Option<&Path>) -> Option<PathBuf> {
    let named = flag.map(Path::to_owned).or_else(|| variable(CONFIG_VARIABLE).map(PathBuf::from));
    let found = named.or_else(|| PLACES.iter().map(PathBuf::from).find(|path| path.exists()))?;
    Some(std::path::absolute(&found).unwrap_or(found))
}

/// What was written: in the file, and by `--set`.
pub(crate) fn read(file: Option<&Path>, sets: &[String]) -> Result<Raw, ConfigError> {
    let mut raw = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            Raw::parse(&text, path)?
        }
        None => Raw::default(),
    };
    sets.iter().try_for_each(|assignment| raw.set(assignment))?;
    Ok(raw)
}

/// Reads the configuration and what `--set` adds to it.
pub(crate) fn load(flag: Option<&Path>, sets: &[String]) -> Result<Settings, ConfigError> {
    let file = locate(flag);
    let raw = read(file.as_deref(), sets)?;
    // Whoever needs more than defaults asks for the repository's address, and is told then.
    let place = std::path::absolute(PLACES[0]).unwrap_or_default();
    Settings::check(&raw, file.as_deref().unwrap_or(&place), file.is_some())
}
