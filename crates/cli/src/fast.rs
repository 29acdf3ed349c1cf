//! The shortest way through `wal push`: a file that the background pusher has acknowledged.
//!
//! PostgreSQL starts one process per WAL file and waits for it, so most calls should cost little
//! more than the start of a process: no command line parser, no threads, no repository.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lifeboat_jobs::wal::data_directory;
use lifeboat_jobs::wal::push::ack::{Kind, Target};
use lifeboat_jobs::wal::push::spool::Spool;
use lifeboat_postgres::engine::PostgresEngine;

use crate::config::{self, keys, settings};

/// Whether the command is a `wal push` of a file for which an acknowledgement counts. Anything
/// else, and whatever is unusual or wrong, is left to the commands themselves.
pub(crate) fn is_acknowledged(arguments: &[OsString]) -> bool {
    answer(arguments).is_some()
}

fn answer(arguments: &[OsString]) -> Option<()> {
    let call = Call::of(arguments)?;
    let raw = config::read(config::locate(call.config.as_deref()).as_deref(), &call.sets).ok()?;
    let text = |key| raw.get(key).map(|written| written.text.as_str());
    if !settings::push_mode(text(&keys::WAL_PUSH).unwrap_or(keys::WAL_PUSH.default)).ok()? {
        return None;
    }
    let cluster = text(&keys::CLUSTER).unwrap_or(keys::CLUSTER.default);
    let target = Target::of(text(&keys::URL)?, cluster);
    let directory = data_directory(&PostgresEngine::default(), &call.path);
    let ack = Spool::of(&directory).answer(&call.path, target)?;
    // What was given up must be said.
    (ack.kind == Kind::Stored).then_some(())
}

/// The words of the plainest call: `lifeboat [--config FILE] [--set KEY=VALUE]... wal push PATH`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    config: Option<PathBuf>,
    sets: Vec<String>,
    path: PathBuf,
}

impl Call {
    fn of(arguments: &[OsString]) -> Option<Self> {
        let mut call = Self::default();
        let mut words = arguments.iter().skip(1);
        loop {
            match words.next()?.to_str()? {
                "--config" => call.config = Some(words.next()?.into()),
                "--set" => call.sets.push(words.next()?.to_str()?.to_owned()),
                "wal" => break,
                _ => return None,
            }
        }
        if words.next()? != "push" {
            return None;
        }
        call.path = words.next()?.into();
        let plain = !call.path.starts_with("-") && !is_flag(&call.path);
        (plain && words.next().is_none()).then_some(call)
    }
}

fn is_flag(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(b"-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Option<Call> {
        Call::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn only_the_plainest_call_is_taken() {
        let plain = call("lifeboat --config /etc/x.toml --set a=b wal push pg_wal/F").unwrap();
        let expected = Call {
            config: Some("/etc/x.toml".into()),
            sets: vec!["a=b".into()],
            path: "pg_wal/F".into(),
        };
        assert_eq!(plain, expected);
        assert!(call("lifeboat wal push F").is_some());
        for line in [
            "lifeboat",
            "lifeboat wal push",
            "lifeboat wal push --help",
            "lifeboat wal get F",
            "lifeboat wal push F F",
            "lifeboat --json wal push F",
            "lifeboat --config",
            "lifeboat wal --json push F",
        ] {
            assert_eq!(call(line), None, "{line}");
        }
    }
}
