//! Running the server's programs as the owner of its data, because PostgreSQL refuses root.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::ClusterError;

/// Whom files and processes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Account {
    /// The owner of a data directory. A server can never run as root.
    pub fn owner_of(directory: &Path) -> Result<Self, ClusterError> {
        let metadata = fs::metadata(directory)
            .map_err(|source| ClusterError::Read { path: directory.to_owned(), source })?;
        if metadata.uid() == 0 {
            return Err(ClusterError::OwnedByRoot { directory: directory.to_owned() });
        }
        Ok(Self { uid: metadata.uid(), gid: metadata.gid() })
    }

    /// The account that this process runs as.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The account with this name, from `/etc/passwd`.
    pub fn named(name: &str) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            if fields.first() != Some(&name) {
                return None;
            }
            let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok());
            Some(Self { uid: number(2)?, gid: number(3)? })
        })
    }

    /// The name of this account, from `/etc/passwd`.
    pub fn name(self) -> Option<String> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let same = fields.get(2)?.parse() == Ok(self.uid);
            same.then(|| fields[0].to_owned())
        })
    }

    /// A command that runs as this account.
    ///
    /// As root, `setpriv` gives it the account's other groups too (a server may need one to read
    /// its TLS key); without `setpriv` it gets none. Not as root, it runs as whoever we are.
    pub fn command(self, program: &Path) -> Command {
        let own = Self::own();
        if own.uid != 0 || self.uid == 0 {
            return Command::new(program);
        }
        let tool = ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().find(|p| Path::new(p).exists());
        if let (Some(tool), Some(_)) = (tool, self.name()) {
            let mut command = Command::new(tool);
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
            command.arg("--init-groups").arg("--").arg(program);
            return command;
        }
        let mut command = Command::new(program);
        // The standard library drops all other groups when root changes the user.
        command.uid(self.uid).gid(self.gid);
        command
    }

    /// Gives a path to this account, when we may.
    pub fn give(self, path: &Path) -> io::Result<()> {
        if Self::own().uid == 0 { chown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// Makes sure that a directory exists, for this account only.
    pub fn create_directory(self, path: &Path) -> Result<(), ClusterError> {
        let failed = |source| ClusterError::Write { path: path.to_owned(), source };
        if !path.is_dir() {
            fs::create_dir_all(path).map_err(failed)?;
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
            self.give(path).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes sure that a file exists and this account can write to it.
    pub(super) fn create_file(self, path: &Path) -> Result<(), ClusterError> {
        let failed = |source| ClusterError::Write { path: path.to_owned(), source };
        if path.exists() {
            return Ok(());
        }
        File::options().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        self.give(path).map_err(failed)
    }
}
