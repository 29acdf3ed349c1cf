//! Configuration, checked: no strings or defaults left to interpret.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use lifeboat_postgres::live::remote::compression::WireCompression;
use lifeboat_postgres::live::slots::is_slot_name;
use lifeboat_repo::{ClusterName, Compression};

use super::PLACES;
use super::error::ConfigError;
use super::keys::{self, Key};
use super::raw::{Origin, Raw, Written};

/// Segments that are fetched ahead unless told otherwise, as [`keys::WAL_PREFETCH`] says.
const PREFETCH_SEGMENTS: u32 = 16;

/// How often received WAL is stored unless told otherwise, as [`keys::WAL_SHIP_EVERY`] says.
const SHIP_EVERY: Duration = Duration::from_secs(5);

/// What every command works by.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The file, absolute; a place where it could be when everything came by `--set`.
    pub file: PathBuf,
    /// Whether there is a file.
    pub found: bool,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// How to connect; empty leaves all to the environment.
    pub conninfo: String,
    /// The data directory, when it is not where the server says.
    pub data_directory: Option<PathBuf>,
    /// How to connect to a standby's primary.
    pub primary: Option<String>,
    /// Where to look for binaries first.
    pub binaries: Option<PathBuf>,
    /// Address of the repository.
    pub url: Option<String>,
    /// How to compress.
    pub compression: Compression,
    /// The host's unlocked keys.
    pub key_file: PathBuf,
    /// First line is the passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// Prints the passphrase.
    pub passphrase_command: Option<String>,
    /// Threads of a backup.
    pub backup_jobs: usize,
    /// How a server compresses what it sends.
    pub wire_compression: WireCompression,
    /// Threads of a restore.
    pub restore_jobs: usize,
    /// Whether WAL is pushed in the background.
    pub push_in_background: bool,
    /// Threads of the background process.
    pub push_jobs: usize,
    /// How long one push waits for it.
    pub push_timeout: Duration,
    /// How much WAL may wait before it is given up, in bytes.
    pub backlog_max: Option<u64>,
    /// How long to wait for a segment.
    pub archive_timeout: Duration,
    /// Fetch so many segments ahead of recovery, at most.
    pub wal_prefetch: u32,
    /// Threads that fetch ahead.
    pub wal_prefetch_jobs: usize,
    /// How many backups it takes until the sweep has looked at everything.
    pub sweep_of: u32,
    /// Store what was received so often.
    pub wal_ship_every: Duration,
    /// The replication slot.
    pub wal_slot: String,
    /// Keep at least so many backups.
    pub keep_backups: Option<u32>,
    /// Keep any moment of so long reachable.
    pub keep_window: Option<Duration>,
}

impl Settings {
    /// Checks what was written. `file` is absolute; relative paths in it start at its directory.
    pub fn check(raw: &Raw, file: &Path, found: bool) -> Result<Self, ConfigError> {
        let directory = file.parent().unwrap_or(Path::new("/"));
        let text = |key: &Key| raw.get(key).map(|written| written.text.clone());
        let path = |key: &Key| raw.get(key).map(|written| located(written, directory));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = |key, default| parsed(raw, key, threads).map(|jobs| jobs.unwrap_or(default));
        Ok(Self {
            file: file.to_owned(),
            found,
            cluster: parsed(raw, &keys::CLUSTER, name)?
                .unwrap_or_else(|| keys::CLUSTER.default.parse().expect("the default is a name")),
            conninfo: text(&keys::CONNINFO).unwrap_or_default(),
            data_directory: path(&keys::DATA_DIRECTORY),
            primary: text(&keys::PRIMARY).filter(|text| !text.is_empty()),
            binaries: path(&keys::BINARIES),
            url: text(&keys::URL).filter(|url| !url.is_empty()),
            compression: parsed(raw, &keys::COMPRESSION, compression)?.unwrap_or_default(),
            key_file: path(&keys::KEY_FILE).unwrap_or_else(|| directory.join("lifeboat.key")),
            passphrase_file: path(&keys::PASSPHRASE_FILE),
            passphrase_command: text(&keys::PASSPHRASE_COMMAND).filter(|text| !text.is_empty()),
            backup_jobs: jobs(&keys::JOBS, processors.min(4))?,
            wire_compression: parsed(raw, &keys::WIRE_COMPRESSION, wire_compression)?
                .unwrap_or_default(),
            restore_jobs: jobs(&keys::RESTORE_JOBS, processors)?,
            push_in_background: parsed(raw, &keys::WAL_PUSH, push_mode)?.unwrap_or(true),
            push_jobs: jobs(&keys::WAL_PUSH_JOBS, processors.min(4))?,
            backlog_max: parsed(raw, &keys::WAL_BACKLOG_MAX, size)?,
            push_timeout: parsed(raw, &keys::WAL_PUSH_TIMEOUT, duration)?
                .unwrap_or(Duration::from_secs(60)),
            archive_timeout: parsed(raw, &keys::ARCHIVE_TIMEOUT, duration)?
                .unwrap_or(Duration::from_secs(60)),
            wal_prefetch: parsed(raw, &keys::WAL_PREFETCH, segments)?.unwrap_or(PREFETCH_SEGMENTS),
            wal_prefetch_jobs: jobs(&keys::WAL_PREFETCH_JOBS, processors.min(4))?,
            sweep_of: parsed(raw, &keys::SWEEP_SHARE, share)?.unwrap_or(14),
            wal_ship_every: parsed(raw, &keys::WAL_SHIP_EVERY, duration)?.unwrap_or(SHIP_EVERY),
            wal_slot: parsed(raw, &keys::WAL_SLOT, slot_name)?
                .unwrap_or_else(|| keys::WAL_SLOT.default.to_owned()),
            keep_backups: parsed(raw, &keys::KEEP_BACKUPS, count)?,
            keep_window: parsed(raw, &keys::KEEP_WINDOW, duration)?,
        })
    }

    /// The repository's address.
    pub fn url(&self) -> Result<&str, ConfigError> {
        match &self.url {
            Some(url) => Ok(url),
            None if !self.found => {
                Err(ConfigError::Missing { looked: PLACES.map(str::to_owned).to_vec() })
            }
            None => Err(ConfigError::Unset {
                key: keys::URL.name,
                file: self.file.display().to_string(),
                example: keys::URL.example,
            }),
        }
    }
}

/// A path in the file starts at the file's directory, one of `--set` where the user is.
fn located(written: &Written, directory: &Path) -> PathBuf {
    match written.origin {
        Origin::File { .. } => directory.join(&written.text),
        Origin::Flag => {
            std::path::absolute(&written.text).unwrap_or_else(|_| (&written.text).into())
        }
    }
}

fn parsed<T>(
    raw: &Raw,
    key: &Key,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    let Some(written) = raw.get(key) else { return Ok(None) };
    read(&written.text).map(Some).map_err(|problem| ConfigError::Value {
        key: key.name.to_owned(),
        origin: written.origin.clone(),
        problem,
    })
}

fn name(text: &str) -> Result<ClusterName, String> {
    text.parse().map_err(|_| format!("cannot be `{text}`: it has 1 to 64 of a-z, 0-9, `-` and `_`"))
}

fn compression(text: &str) -> Result<Compression, String> {
    text.parse()
        .map_err(|_| format!("cannot be `{text}`: it is auto, zstd:1 to zstd:19, lz4 or none"))
}

/// Reads a size such as `512MiB` or `50GiB`, in bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("cannot be `{text}`: it is a size such as 512MiB, 50GiB or 1TiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1u64 << 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(bad)
}

/// Reads whether to push in the background.
pub(crate) fn push_mode(text: &str) -> Result<bool, String> {
    match text {
        "async" => Ok(true),
        "sync" => Ok(false),
        _ => Err(format!("cannot be `{text}`: it is async or sync")),
    }
}

fn wire_compression(text: &str) -> Result<WireCompression, String> {
    text.parse().map_err(|problem| format!("cannot be `{text}`: {problem}"))
}

/// Reads a number of threads.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=256) => Ok(jobs),
        _ => Err(format!("cannot be `{text}`: it is a number from 1 to 256")),
    }
}

/// Reads the name of a replication slot.
pub(crate) fn slot_name(text: &str) -> Result<String, String> {
    match is_slot_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("cannot be `{text}`: a slot's name has 1 to 63 of a-z, 0-9 and `_`")),
    }
}

/// Reads how many segments to fetch ahead.
fn segments(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(segments @ 0..=1024) => Ok(segments),
        _ => Err(format!("cannot be `{text}`: it is a number of segments from 0 to 1024")),
    }
}

/// Reads a share such as `1/14`, and gives how many of it make the whole.
pub(crate) fn share(text: &str) -> Result<u32, String> {
    let of = if text.trim() == "1" { Some("1") } else { text.trim().strip_prefix("1/") };
    match of.and_then(|of| of.parse().ok()) {
        Some(of @ 1..=1000) => Ok(of),
        _ => Err(format!("cannot be `{text}`: it is a share from 1/1 to 1/1000, such as 1/14")),
    }
}

/// Reads how many to keep.
pub(crate) fn count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => Err(format!("cannot be `{text}`: it is a number from 1 on")),
    }
}

/// Reads a duration such as `90s`, `12h`, `30d` or `4w`; a day has 24 hours.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("cannot be `{text}`: it is a duration such as 90s, 15m, 12h, 30d or 4w");
    let span: Span = text.parse().map_err(|_| bad())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(bad());
    }
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    Duration::try_from(signed).ok().filter(|duration| !duration.is_zero()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, ConfigError> {
        let file = Path::new("/etc/lifeboat/lifeboat.toml");
        Settings::check(&Raw::parse(text, file)?, file, true)
    }

    #[test]
    fn an_empty_file_has_good_defaults() {
        let settings = check("").unwrap();
        assert_eq!(settings.cluster.as_str(), "main");
        assert_eq!(settings.key_file, Path::new("/etc/lifeboat/lifeboat.key"));
        assert_eq!(settings.compression, Compression::Auto);
        assert_eq!(settings.wal_prefetch.to_string(), keys::WAL_PREFETCH.default);
        assert!(settings.url().unwrap_err().to_string().contains("repository.url"));
    }

    #[test]
    fn paths_start_at_the_file_and_durations_have_units() {
        let text = "[repository]\nkey-file = \"k\"\n[retention]\nkeep-window = \"4w\"\n";
        let settings = check(text).unwrap();
        assert_eq!(settings.key_file, Path::new("/etc/lifeboat/k"));
        assert_eq!(settings.keep_window, Some(Duration::from_secs(28 * 86_400)));
        for text in ["5", "1mo", "0s", "-3d", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
    }

    #[test]
    fn a_share_is_one_of_so_many() {
        assert_eq!(check("").unwrap().sweep_of, 14);
        assert_eq!(check("[backup]\nsweep-share = \"1/7\"\n").unwrap().sweep_of, 7);
        assert_eq!(share("1"), Ok(1));
        for text in ["0", "1/0", "2/14", "14", "1/1001", "7%", ""] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("50 GiB"), Ok(50 << 30));
        for text in ["", "5", "0GiB", "GiB", "-1GiB", "5 bytes", "99999999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bad_value_names_key_and_line() {
        let error = check("cluster = \"main\"\n[backup]\njobs = 0\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/lifeboat/lifeboat.toml:3: `backup.jobs` cannot be `0`: it is a number from 1 to 256"
        );
    }
}
