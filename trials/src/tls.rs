//! Certificates for servers, made by openssl(1).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use lifeboat_testkit::scratch::ScratchServer;

/// An authority with its key.
pub struct Authority {
    home: PathBuf,
}

impl Authority {
    /// Makes one in a directory of the server's home; `None` without openssl(1).
    pub fn new(server: &ScratchServer, name: &str) -> Option<Self> {
        let home = server.directory(name);
        let authority = Self { home };
        let subject = format!("/CN=authority {name}");
        let made = authority.openssl(&format!(
            "req -x509 -nodes -days 30 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 \
             -keyout ca.key -out ca.crt -subj|{subject}"
        ));
        made.then_some(authority)
    }

    /// Its certificate, for `sslrootcert`.
    pub fn certificate(&self) -> String {
        self.home.join("ca.crt").display().to_string()
    }

    /// Has the server show a certificate for this name, and speak TLS.
    pub fn serve(&self, server: &ScratchServer, name: &str) {
        let extensions = format!("subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n");
        fs::write(self.home.join("names.ext"), extensions).expect("it can be written");
        let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1";
        self.openssl(&format!("req -new -nodes {curve} -keyout s.key -out s.csr -subj|/CN={name}"));
        self.openssl(
            "x509 -req -days 30 -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
             -extfile names.ext -out s.crt",
        );
        for (from, to, mode) in [("s.crt", "server.crt", 0o644), ("s.key", "server.key", 0o600)] {
            let to = server.data_directory().join(to);
            fs::copy(self.home.join(from), &to).expect("it can be copied");
            fs::set_permissions(&to, Permissions::from_mode(mode)).expect("its mode can be set");
            server.account().give(&to).expect("it can be given away");
        }
        server.execute("ALTER SYSTEM SET ssl = on");
        server.execute("SELECT pg_reload_conf()");
    }

    /// Words are parted by blanks, the last one may follow a `|` and hold blanks.
    fn openssl(&self, words: &str) -> bool {
        let (words, last) = words.split_once('|').unwrap_or((words, ""));
        let words = words.split_whitespace().chain([last]).filter(|word| !word.is_empty());
        match Command::new("openssl").args(words).current_dir(&self.home).output() {
            Ok(output) if output.status.success() => true,
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => false,
        }
    }
}
