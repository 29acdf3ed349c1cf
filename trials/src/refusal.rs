//! What a refusal must look like, and what must be left untouched by it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchBuilder};
use serde_json::Value;

use crate::lab::{Lab, Ran};

impl Ran {
    /// Fails the trial unless the program refused: this exit code, all of these words on standard
    /// error, a code in brackets, and a line that says what to do.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> Self {
        let said = format!("{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "{said}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in:\n{said}");
        }
        assert!(self.stderr.contains("error: ") && self.stderr.contains("   [LB-"), "{said}");
        assert!(self.stderr.contains("\nhelp:  "), "nothing to do is named in:\n{said}");
        self
    }

    /// Fails the trial unless `verify` ended with findings that name all of these.
    #[track_caller]
    pub fn found(self, words: &[&str]) -> Self {
        let said = format!("{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.code, Some(3), "{said}");
        for word in words {
            assert!(self.stdout.contains(word), "`{word}` is not named in:\n{said}");
        }
        self
    }
}

/// What a repository held at a moment.
pub struct Memory {
    objects: BTreeMap<String, Vec<u8>>,
    backups: Value,
}

impl Memory {
    /// Remembers every object of the lab's repository, leases apart, and the list of backups.
    #[track_caller]
    pub fn of(lab: &Lab) -> Self {
        let read = |name: String| {
            // A server that archives meanwhile comes and goes with temporary files.
            let content = std::fs::read(lab.repository.join(&name)).ok()?;
            Some((name, content))
        };
        let objects = lab.objects().into_iter().filter(|name| !name.contains("/lease/"));
        Self { objects: objects.filter_map(read).collect(), backups: backups(lab) }
    }

    /// Fails the trial unless all that was there still is, byte by byte, and the same backups are
    /// listed.
    #[track_caller]
    pub fn nothing_lost(&self, lab: &Lab, what: &str) {
        self.objects_hold(lab, what);
        assert_eq!(backups(lab), self.backups, "{what}: other backups are listed");
    }

    /// Fails the trial unless all that was there still is, byte by byte.
    #[track_caller]
    pub fn objects_hold(&self, lab: &Lab, what: &str) {
        for (name, content) in &self.objects {
            let now = std::fs::read(lab.repository.join(name));
            let now = now.unwrap_or_else(|e| panic!("{what}: {name} is gone: {e}"));
            assert!(now == *content, "{what}: {name} was changed");
        }
    }

    /// As [`Memory::nothing_lost`], and nothing was added either.
    #[track_caller]
    pub fn nothing_changed(&self, lab: &Lab, what: &str) {
        self.nothing_lost(lab, what);
        let now = Self::of(lab);
        let added: Vec<_> =
            now.objects.keys().filter(|name| !self.objects.contains_key(*name)).collect();
        assert!(added.is_empty(), "{what}: {added:?} were added");
    }
}

#[track_caller]
fn backups(lab: &Lab) -> Value {
    lab.run(&["list", "--json"]).ok().json()["backups"].clone()
}

/// A lab on a server of this version; when this machine has none, the test is noted as skipped.
pub fn lab(test: &str, builder: ScratchBuilder) -> Option<Lab> {
    match Lab::start(builder) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

/// Asks again and again until it holds; fails the trial when it does not within a minute.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes a directory. A process in the background may put a file into it at that moment; it ends
/// when its directory is gone.
#[track_caller]
pub fn remove_tree(directory: &Path) {
    until("the directory is removed", || match std::fs::remove_dir_all(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    });
}

/// Copies a directory as it is, owners and modes included.
#[track_caller]
pub fn copy_tree(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "cp -a {} fails", from.display());
}
