//! A restored server: started, asked, checked, stopped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::ScratchServer;
use postgres::{Client, NoTls};

use crate::lab::{Lab, Ran, run};

/// A restored data directory whose server runs on a socket of its own.
pub struct Restored<'a> {
    server: &'a ScratchServer,
    /// Its data directory.
    pub directory: PathBuf,
    sockets: PathBuf,
}

impl<'a> Restored<'a> {
    /// Restores and starts, as `pg_ctl start` does after `restore` without `--start`; waits until
    /// it was promoted.
    #[track_caller]
    pub fn start(lab: &'a Lab, name: &str, target: &[&str]) -> Self {
        let directory = lab.place(name);
        let into = directory.display().to_string();
        let mut arguments = vec!["restore", "--into", &into, "--jobs", "2"];
        arguments.extend_from_slice(target);
        lab.run(&arguments).ok();
        let restored = Self::of(&lab.server, &directory);
        let started = restored.pg_ctl_start();
        assert_eq!(started.code, Some(0), "{} does not start:\n{}", name, restored.log_text());
        restored.wait_for_promotion();
        restored
    }

    /// A handle on a directory that was restored; its server is not started.
    pub fn of(server: &'a ScratchServer, directory: &Path) -> Self {
        // A socket's path may be 107 bytes long; temporary homes leave room for this.
        let name = directory.file_name().map_or_else(String::new, |n| n.display().to_string());
        let sockets = server.directory(&format!("s-{name}"));
        Self { server, directory: directory.to_owned(), sockets }
    }

    /// Starts the server and gives what `pg_ctl` said.
    pub fn pg_ctl_start(&self) -> Ran {
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c port=5432",
            self.sockets.display()
        );
        run(self
            .server
            .command("pg_ctl")
            .arg("-D")
            .arg(&self.directory)
            .args(["-w", "-t", "90", "-o", &options, "-l"])
            .arg(self.log())
            .arg("start"))
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    /// What its log says.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Waits until recovery is over.
    #[track_caller]
    pub fn wait_for_promotion(&self) {
        let until = Instant::now() + Duration::from_secs(90);
        while self.value("SELECT pg_is_in_recovery()") != "f" {
            assert!(Instant::now() < until, "still recovering:\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Connection string.
    pub fn conninfo(&self) -> String {
        format!("host='{}' port=5432 user=postgres dbname=postgres", self.sockets.display())
    }

    /// A session.
    #[track_caller]
    pub fn client(&self) -> Client {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match Client::connect(&self.conninfo(), NoTls) {
                Ok(client) => return client,
                Err(error) => {
                    assert!(Instant::now() < until, "{error:?}\n{}", self.log_text());
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Rows as psql -At gives them.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<String> {
        let answers = self.client().simple_query(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let row = |answer: &postgres::SimpleQueryMessage| match answer {
            postgres::SimpleQueryMessage::Row(row) => {
                let columns = (0..row.len()).map(|at| row.get(at).unwrap_or(""));
                Some(columns.collect::<Vec<_>>().join("|"))
            }
            _ => None,
        };
        answers.iter().filter_map(row).collect()
    }

    /// The only value of a query.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        self.query(sql).pop().unwrap_or_else(|| panic!("{sql}: no row"))
    }

    /// A dump of all databases as text, without what differs from dump to dump.
    pub fn dump(&self) -> String {
        dump(self.server, &self.sockets)
    }

    /// `pg_amcheck` with the server running, then a stop and `pg_checksums --check`.
    #[track_caller]
    pub fn check_and_stop(&self) {
        let host = self.sockets.display().to_string();
        self.server.run("pg_amcheck", &["-h", &host, "-U", "postgres", "--install-missing", "-a"]);
        self.stop();
        let directory = self.directory.display().to_string();
        if self
            .server
            .run("pg_controldata", &[&directory])
            .contains("checksum version:           1")
        {
            self.server.run("pg_checksums", &["--check", "-D", &directory]);
        }
    }

    /// Stops it.
    #[track_caller]
    pub fn stop(&self) {
        let directory = self.directory.display().to_string();
        self.server.run("pg_ctl", &["-D", &directory, "-w", "-m", "fast", "stop"]);
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let _ = self
            .server
            .command("pg_ctl")
            .arg("-D")
            .arg(&self.directory)
            .args(["-m", "immediate", "-w", "stop"])
            .output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A dump of all databases of the server with this socket, without the lines that are random.
pub fn dump(server: &ScratchServer, sockets: &Path) -> String {
    let host = sockets.display().to_string();
    // Restored servers have a directory of their own, and the usual port.
    let is_origin = sockets == server.socket_directory();
    let port = if is_origin { server.port() } else { 5432 }.to_string();
    let text = server.run("pg_dumpall", &["-h", &host, "-p", &port, "-U", "postgres"]);
    let is_random =
        |line: &&str| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
    text.lines().filter(|line| !is_random(line)).collect::<Vec<_>>().join("\n")
}
