//! A scratch PostgreSQL for the tests of files: made, filled, stopped, and read.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Binaries of one major version, or `None` with a line in the list of skipped tests.
pub fn binaries(test: &str, major: u32) -> Option<PathBuf> {
    let tools = std::env::var_os("LIFEBOAT_TOOLS")
        .map_or_else(|| PathBuf::from("/var/cache/lifeboat-tools"), PathBuf::from);
    let places = [
        tools.join(format!("pg/{major}/bin")),
        PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
    ];
    let found = places.into_iter().find(|bin| bin.join("initdb").exists());
    if found.is_none() {
        let line = format!("{test}: PostgreSQL {major} is not installed");
        eprintln!("skipped {line}");
        if let Some(list) = std::env::var_os("LIFEBOAT_SKIPS") {
            let mut file = fs::File::options().create(true).append(true).open(list).unwrap();
            writeln!(file, "{line}").unwrap();
        }
    }
    found
}

/// A data directory and the server that runs on it.
pub struct Scratch {
    home: TempDir,
    bin: PathBuf,
}

impl Scratch {
    /// Runs initdb with further options, adds settings, and starts the server.
    pub fn start(bin: PathBuf, options: &[&str], settings: &str) -> Self {
        let home = tempfile::Builder::new().prefix("lifeboat-pure-").tempdir_in("/tmp").unwrap();
        // The server runs as another user than a test that runs as root.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let scratch = Self { home, bin };
        let data = scratch.data();
        let mut initdb = scratch.command("initdb");
        initdb.args(["--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]);
        run(initdb.arg("-D").arg(&data).args(options));
        let mut file = fs::File::options().append(true).open(data.join("postgresql.conf")).unwrap();
        writeln!(
            file,
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\n\
             max_prepared_transactions = 4\nautovacuum = off\n{settings}",
            scratch.home.path().display()
        )
        .unwrap();
        scratch.control("start");
        scratch
    }

    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub fn stop(&self) {
        self.control("stop");
    }

    fn control(&self, verb: &str) {
        let log = self.home.path().join("log");
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(self.data()).arg("-l").arg(log).args(["-w", "-s", verb]);
        if verb == "stop" {
            command.args(["-m", "fast"]);
        }
        run(&mut command);
    }

    /// Runs SQL, statement by statement, and returns what it prints.
    pub fn sql(&self, script: &str) -> String {
        let mut command = self.command("psql");
        command.arg("-h").arg(self.home.path()).args(["-U", "postgres", "-XAtq"]);
        // A file, so that statements run one by one and not as one transaction.
        let file = self.home.path().join("script.sql");
        fs::write(&file, script).unwrap();
        run(command.args(["-v", "ON_ERROR_STOP=0", "-f"]).arg(file))
    }

    /// One of PostgreSQL's programs, run as a user that it accepts, in UTC and English.
    pub fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let is_root = fs::metadata("/proc/self").is_ok_and(|m| {
            use std::os::unix::fs::MetadataExt;
            m.uid() == 0
        });
        let mut command = if is_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command.env("TZ", "UTC").env("LC_ALL", "C").current_dir("/tmp");
        command
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let mut command = self.command("pg_ctl");
            let _ = command
                .arg("-D")
                .arg(self.data())
                .args(["-w", "-s", "-m", "immediate", "stop"])
                .output();
        }
    }
}

/// Runs a program that must succeed; returns what it prints.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", complaint(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a file has a relation's name: digits, a fork, a segment number.
pub fn is_relation(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    let (number, fork) = stem.split_once('_').unwrap_or((stem, "main"));
    !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
        && ["main", "fsm", "vm", "init"].contains(&fork)
}

/// The relation files below `base` and `global`, with the number of each one's first page.
pub fn relation_files(data: &Path) -> Vec<(PathBuf, u32)> {
    let mut directories = vec![data.join("base"), data.join("global")];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if is_relation(&path) {
                let name = path.file_name().unwrap().to_str().unwrap();
                let segment: u32 = name.split('.').nth(1).map_or(0, |s| s.parse().unwrap());
                files.push((path, segment * 131_072));
            }
        }
    }
    files.sort();
    files
}

/// Numbers without a pattern, the same for the same seed.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.next() % limit
    }
}
