//! The commands that PostgreSQL runs: this program with this configuration.

use std::path::{Path, PathBuf};

use lifeboat_postgres::live::cluster::shell_quote;
use lifeboat_postgres::live::conninfo::Conninfo;

use crate::error::Trouble;

/// Writes commands for the settings of a server.
#[derive(Debug, Clone)]
pub(crate) struct ServerCommands {
    program: PathBuf,
    config: PathBuf,
    sets: Vec<String>,
}

impl ServerCommands {
    /// Commands of this very program. `config` is absolute; `sets` as given to `--set`.
    pub fn new(config: &Path, sets: &[String]) -> Result<Self, Trouble> {
        let program = std::env::current_exe().map_err(|source| Trouble::File {
            operation: "find the program",
            path: "lifeboat".into(),
            source,
        })?;
        let sets = sets.iter().filter(|set| !holds_secret(set)).cloned().collect();
        Ok(Self { program, config: config.to_owned(), sets })
    }

    /// For `archive_command`.
    pub fn archive(&self) -> String {
        self.command("wal push %p")
    }

    /// For `restore_command`.
    pub fn restore(&self) -> String {
        self.command("wal get %f %p")
    }

    /// For `recovery_end_command`: removes what only recovery needs.
    pub fn recovered(&self) -> String {
        self.command("wal recovered")
    }

    /// The server replaces `%p` and others, and hands the rest to a shell.
    fn command(&self, rest: &str) -> String {
        let mut words = vec![word(&self.program.display().to_string())];
        words.extend(["--config".to_owned(), word(&self.config.display().to_string())]);
        for set in &self.sets {
            words.extend(["--set".to_owned(), word(set)]);
        }
        format!("{} {rest}", words.join(" "))
    }
}

/// A connection string with a password. The server's commands go into its settings, its log and the
/// list of processes, and none of them needs the connection.
fn holds_secret(set: &str) -> bool {
    let value = ["postgres.conninfo=", "postgres.primary="]
        .iter()
        .find_map(|key| set.trim_start().strip_prefix(key));
    value.is_some_and(|text| Conninfo::holds_password(text).unwrap_or(true))
}

/// A word for the shell, in quotes only where it needs them.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    let bare = !text.is_empty() && text.chars().all(plain);
    if bare { text.to_owned() } else { shell_quote(text) }
}

/// A word of a command of the server: `%` is doubled because the server looks for it first.
fn word(text: &str) -> String {
    shell_word(text).replace('%', "%%")
}

/// A line of postgresql.conf.
pub(crate) fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_quotes_and_percent_signs_survive_server_and_shell() {
        let commands = ServerCommands {
            program: "/opt/life boat/bin/lifeboat".into(),
            config: "/srv/100%/it's.toml".into(),
            sets: vec!["repository.compression=zstd:3".into()],
        };
        let archive = commands.archive();
        assert_eq!(
            archive,
            r"'/opt/life boat/bin/lifeboat' --config '/srv/100%%/it'\''s.toml' --set repository.compression=zstd:3 wal push %p"
        );
        assert!(setting("archive_command", &archive).contains(r"it''\\''''s"));
    }

    #[test]
    fn a_password_does_not_get_into_the_servers_settings() {
        let sets = [
            "postgres.conninfo=host=db user=al password=hunter2",
            "postgres.primary=postgresql://al:hunter2@db/",
            "postgres.conninfo=host=db user=al",
            "wal.push=sync",
        ];
        let commands = ServerCommands::new(Path::new("/c"), &sets.map(str::to_owned)).unwrap();
        for command in [commands.archive(), commands.restore(), commands.recovered()] {
            assert!(!command.contains("hunter2"), "{command}");
            assert!(command.contains("user=al") && command.contains("wal.push=sync"), "{command}");
        }
    }
}
