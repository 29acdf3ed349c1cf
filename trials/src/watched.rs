//! A lab that remembers what its server was told is archived.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lifeboat_testkit::scratch::{self, ScratchBuilder, ScratchServer};

use crate::lab::{Lab, run};

/// A server with small segments.
pub fn builder(major: u32) -> ScratchBuilder {
    ScratchServer::of(major).setting("autovacuum", "off").wal_segment_mib(1)
}

/// A lab that keeps a copy of every file at the moment when the server is told that it is
/// archived.
pub struct Watched {
    /// The lab.
    pub lab: Lab,
    kept: PathBuf,
}

impl Watched {
    /// Watches a lab.
    pub fn of(lab: Lab) -> Self {
        let kept = lab.server.directory("kept");
        let watched = Self { lab, kept };
        watched.archive("");
        watched
    }

    /// Archives with further words, such as `--set KEY=VALUE`, and keeps what is archived.
    pub fn archive(&self, words: &str) {
        let archive =
            self.lab.archive_command().replace(" wal push", &format!(" {words} wal push"));
        let command = format!(
            "{archive} && cp %p {}/%f.new && mv {}/%f.new {}/%f",
            self.kept.display(),
            self.kept.display(),
            self.kept.display(),
        );
        self.lab.server.execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        self.lab.server.execute("SELECT pg_reload_conf()");
    }

    /// The spool of its data directory.
    pub fn spool(&self) -> PathBuf {
        self.lab.server.data_directory().join("lifeboat.spool")
    }

    /// The pusher that lives; `None` when none does.
    pub fn pusher(&self) -> Option<u32> {
        self.lab.pusher()
    }

    /// Names of what the server was told is archived.
    pub fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.kept).expect("it is there").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with(".new")).collect();
        names.sort();
        names
    }

    /// Compares all that was kept with what is in the repository; says how many files. Pushing
    /// compares: it says whether the same content is there already.
    #[track_caller]
    pub fn all_is_there(&self) -> usize {
        let kept = self.kept();
        for name in &kept {
            let path = self.kept.join(name).display().to_string();
            let set = ["--set", "wal.push=sync", "--json", "wal", "push", &path];
            let mut push = self.lab.command(&set);
            let said = run(push.current_dir(self.lab.server.data_directory())).ok().json();
            assert_eq!(said["outcome"], "already-there", "{name} was archived, and is not there");
        }
        kept.len()
    }

    /// How many files wait to be archived.
    pub fn waiting(&self) -> usize {
        let status = self.lab.server.data_directory().join("pg_wal/archive_status");
        let entries = fs::read_dir(status).expect("it is there").flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "ready")).count()
    }
}

/// A lab that is watched; `None`, counted as skipped, where there is no such server.
pub fn watched(test: &str, builder: ScratchBuilder) -> Option<Watched> {
    match Lab::start(builder) {
        Ok(lab) => Some(Watched::of(lab)),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

/// Sends a signal to a process.
pub fn signal(process: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &process.to_string()]).status();
}
