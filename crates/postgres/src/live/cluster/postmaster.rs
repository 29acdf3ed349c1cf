//! Tells whether a server runs in a data directory.
//!
//! Source of the file's lines: PostgreSQL `src/include/utils/pidfile.h`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};

use super::ClusterError;

/// A server's `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postmaster {
    /// Its process.
    pub pid: u32,
    /// Port, once known.
    pub port: Option<u16>,
    /// Directory of its first socket, once known and if it has one.
    pub socket_directory: Option<PathBuf>,
    /// `starting`, `stopping`, `ready` or `standby`; empty before it is known.
    pub state: String,
}

/// The server that runs in a data directory; `None` when its `postmaster.pid` is missing or was
/// left behind by a crash.
pub fn running_postmaster(directory: &Path) -> Result<Option<Postmaster>, ClusterError> {
    let path = directory.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ClusterError::Read { path, source }),
    };
    Ok(parse(&text).filter(|postmaster| is_alive(postmaster.pid, directory)))
}

fn parse(text: &str) -> Option<Postmaster> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |number: usize| lines.get(number - 1).copied().unwrap_or("");
    // A negative number is a single-user server, which is a running server too.
    let pid = line(1).trim_start_matches('-').parse().ok()?;
    Some(Postmaster {
        pid,
        port: line(4).parse().ok(),
        socket_directory: (!line(5).is_empty()).then(|| PathBuf::from(line(5))),
        state: line(8).to_owned(),
    })
}

/// Whether the process is that directory's server: servers work in their data directory, so a
/// number that another process got since is told by its working directory. When that cannot be
/// seen, a process called `postgres` counts.
fn is_alive(pid: u32, directory: &Path) -> bool {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    // "Not permitted" means that it is there.
    if test_kill_process(process) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let proc = PathBuf::from(format!("/proc/{pid}"));
    if let Ok(status) = fs::read_to_string(proc.join("stat"))
        && status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    {
        return false; // ended, and only waiting for its parent to notice
    }
    match (fs::read_link(proc.join("cwd")), fs::canonicalize(directory)) {
        (Ok(works_in), Ok(directory)) => works_in == directory,
        _ => fs::read_to_string(proc.join("comm"))
            .map_or(true, |name| name.trim().starts_with("postgres")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_left_behind_is_no_server() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(running_postmaster(directory.path()).unwrap(), None);
        // Our own process is alive, but works elsewhere.
        let text = format!("{}\n/data\n1700000000\n5433\n/tmp\n\n\nready   \n", std::process::id());
        fs::write(directory.path().join("postmaster.pid"), &text).unwrap();
        assert_eq!(running_postmaster(directory.path()).unwrap(), None);
        let parsed = parse(&text).unwrap();
        assert_eq!((parsed.port, parsed.state.as_str()), (Some(5433), "ready"));
        assert_eq!(parsed.socket_directory, Some("/tmp".into()));
        for text in ["", "x\n", "999999999999\n"] {
            fs::write(directory.path().join("postmaster.pid"), text).unwrap();
            assert_eq!(running_postmaster(directory.path()).unwrap(), None, "{text:?}");
        }
    }
}
