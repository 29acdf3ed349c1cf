//! Makes a new cluster, for demonstrations and tests.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use super::{Account, Binaries, Cluster, ClusterError};

/// How to make a cluster.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The data directory: missing or empty.
    pub directory: PathBuf,
    /// Whom it shall belong to; not root.
    pub account: Account,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Size of a WAL segment in MiB; 16 unless said.
    pub wal_segment_mib: Option<u32>,
    /// Name of the first superuser.
    pub superuser: String,
    /// Settings, as name and value, appended to postgresql.conf.
    pub settings: Vec<(String, String)>,
}

impl Cluster {
    /// Runs `initdb`: everybody on this machine who can reach the socket may log in, so the
    /// socket belongs into a directory of its own.
    pub fn init(binaries: Binaries, options: &InitOptions) -> Result<Self, ClusterError> {
        options.account.create_directory(&options.directory)?;
        let program = binaries.program("initdb");
        let mut command = options.account.command(&program);
        command.arg("--pgdata").arg(&options.directory).current_dir("/");
        command.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        command.arg(format!("--username={}", options.superuser));
        if options.checksums {
            command.arg("--data-checksums");
        } else if binaries.major() >= 18 {
            command.arg("--no-data-checksums"); // the default was turned round in 18
        }
        if let Some(size) = options.wal_segment_mib {
            command.arg(format!("--wal-segsize={size}"));
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ClusterError::Run { program: program.clone(), source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ClusterError::Failed { program, said });
        }
        let cluster = Self { binaries, directory: options.directory.clone() };
        cluster.append_settings(&options.settings)?;
        Ok(cluster)
    }

    fn append_settings(&self, settings: &[(String, String)]) -> Result<(), ClusterError> {
        let path = self.directory.join("postgresql.conf");
        let failed = |source| ClusterError::Write { path: path.clone(), source };
        let mut text = String::new();
        for (name, value) in settings {
            text.push_str(&crate::recovery_conf::line(name, value)?);
        }
        let mut file = File::options().append(true).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)
    }
}
