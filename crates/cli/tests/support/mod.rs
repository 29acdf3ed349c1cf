//! Runs the program in a directory of its own, and writes down what it said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory, and an environment that holds nothing of the machine's.
pub struct Lab {
    home: tempfile::TempDir,
}

impl Lab {
    /// An empty one.
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("lifeboat-cli-").tempdir().unwrap();
        Self { home }
    }

    /// With a configuration.
    pub fn with_config(text: &str) -> Self {
        let lab = Self::new();
        lab.write("lifeboat.toml", text);
        lab
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Writes a file that only its owner can read.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        self.mode(name, 0o600);
    }

    /// Sets permission bits.
    pub fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The program, to be run here.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(words).current_dir(self.home.path()).stdin(Stdio::null());
        command.env_clear().env("TZ", "UTC").env("COLUMNS", "100").env("HOME", self.home.path());
        command
    }

    /// Runs it; gives exit code, standard output and standard error as one text, with the
    /// directory and what differs from run to run masked.
    pub fn run(&self, words: &[&str]) -> String {
        self.say(&mut self.command(words))
    }

    /// As [`Lab::run`], of a command that was altered.
    pub fn say(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        let mut text =
            format!("exit: {}\n", output.status.code().map_or("signal".into(), |c| c.to_string()));
        for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
            if !bytes.is_empty() {
                text.push_str(&format!("--- {name} ---\n{}", String::from_utf8_lossy(&bytes)));
            }
        }
        self.mask(&text)
    }

    fn mask(&self, text: &str) -> String {
        let text = text.replace(&self.home.path().display().to_string(), "[LAB]");
        let program = Path::new(env!("CARGO_BIN_EXE_lifeboat")).display().to_string();
        text.replace(&program, "[LIFEBOAT]")
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }
}
