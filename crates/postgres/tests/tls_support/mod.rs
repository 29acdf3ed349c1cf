//! Servers with TLS, and the authorities that sign their certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::session::Session;
use lifeboat_testkit::scratch::{ScratchServer, skip};

/// What kind of certificate a server shows. All are for `db.example`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// ECDSA with SHA-256, names as subjectAltName.
    Modern,
    /// The same, expired yesterday.
    Expired,
    /// RSA.
    Rsa,
    /// ECDSA with SHA-384.
    Sha384,
    /// X.509 version 1: no extensions at all.
    Version1,
    /// Version 3 without a subjectAltName.
    CommonName,
    /// Signed by itself, marked as an authority.
    SelfSigned,
}

/// An authority with its key, made by openssl(1).
pub struct Authority {
    home: PathBuf,
}

fn openssl(home: &Path, arguments: &[&str]) -> bool {
    let output = Command::new("openssl").args(arguments).current_dir(home).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => false,
    }
}

const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

impl Authority {
    /// `None` without openssl(1).
    pub fn new(home: &Path) -> Option<Self> {
        fs::create_dir(home).unwrap();
        let name = home.file_name().unwrap().display();
        let subject = format!("/CN=authority {name}");
        let mut arguments = vec!["req", "-x509", "-nodes", "-days", "30", "-subj", &subject];
        arguments.extend(CURVE);
        arguments.extend(["-keyout", "ca.key", "-out", "ca.crt"]);
        openssl(home, &arguments).then(|| Self { home: home.to_owned() })
    }

    /// Its certificate.
    pub fn file(&self) -> String {
        self.home.join("ca.crt").display().to_string()
    }

    /// A certificate and its key: files.
    pub fn issue(&self, name: &str, common_name: &str, more: &[&str]) -> (String, String) {
        self.issue_with(name, common_name, &CURVE, more)
    }

    fn issue_with(
        &self,
        name: &str,
        common_name: &str,
        key_kind: &[&str],
        more: &[&str],
    ) -> (String, String) {
        let [key, request, certificate] = ["key", "csr", "crt"].map(|end| format!("{name}.{end}"));
        let subject = format!("/CN={common_name}");
        let mut arguments = vec!["req", "-new", "-nodes", "-subj", &subject];
        arguments.extend(key_kind);
        arguments.extend(["-keyout", &key, "-out", &request]);
        assert!(openssl(&self.home, &arguments));
        let mut arguments =
            vec!["x509", "-req", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key"];
        arguments.extend(["-CAcreateserial", "-out", &certificate]);
        arguments.extend(more);
        assert!(openssl(&self.home, &arguments));
        let path = |name: &str| self.home.join(name).display().to_string();
        (path(&certificate), path(&key))
    }

    /// A certificate for a server.
    fn issue_server(&self, form: Form) -> (String, String) {
        let (modern, plain) = ("modern.ext", "plain.ext");
        let names = "subjectAltName=DNS:db.example,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(self.home.join(modern), names).unwrap();
        fs::write(self.home.join(plain), "basicConstraints=CA:FALSE\n").unwrap();
        let rsa = ["-newkey", "rsa:2048"];
        let (kind, more): (&[&str], &[&str]) = match form {
            Form::Modern => (&CURVE, &["-days", "30", "-extfile", modern]),
            Form::Expired => (&CURVE, &["-days", "-1", "-extfile", modern]),
            Form::Rsa => (&rsa, &["-days", "30", "-extfile", modern]),
            Form::Sha384 => (&CURVE, &["-days", "30", "-extfile", modern, "-sha384"]),
            Form::Version1 => (&CURVE, &["-days", "30"]),
            Form::CommonName => (&CURVE, &["-days", "30", "-extfile", plain]),
            Form::SelfSigned => {
                let mut arguments = vec!["req", "-x509", "-nodes", "-days", "30"];
                arguments.extend(CURVE);
                arguments.extend([
                    "-subj",
                    "/CN=db.example",
                    "-keyout",
                    "own.key",
                    "-out",
                    "own.crt",
                ]);
                assert!(openssl(&self.home, &arguments));
                let path = |name: &str| self.home.join(name).display().to_string();
                return (path("own.crt"), path("own.key"));
            }
        };
        self.issue_with("server", "db.example", kind, more)
    }

    /// A list of revoked certificates with this one on it.
    pub fn revoke(&self, certificate: Option<&Path>) -> String {
        let config = "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\ncrlnumber=number\n\
                      default_md=sha256\ndefault_crl_days=30\n";
        for (name, text) in [("ca.cnf", config), ("index.txt", ""), ("number", "01\n")] {
            fs::write(self.home.join(name), text).unwrap();
        }
        let common = ["ca", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.crt"];
        if let Some(certificate) = certificate {
            let path = certificate.display().to_string();
            let arguments = [&common[..], &["-revoke", &path]].concat();
            assert!(openssl(&self.home, &arguments));
        }
        let name = if certificate.is_some() { "one.crl" } else { "none.crl" };
        assert!(openssl(&self.home, &[&common[..], &["-gencrl", "-out", name]].concat()));
        self.home.join(name).display().to_string()
    }
}

/// A server with TLS.
pub struct TlsLab {
    pub server: ScratchServer,
    pub authority: Authority,
    /// Connection string by the certificate's name.
    pub host: String,
}

impl TlsLab {
    /// An authority that has signed nothing that the server has.
    pub fn other_authority(&self) -> Authority {
        let home = self.server.home().join("other");
        if home.exists() { Authority { home } } else { Authority::new(&home).unwrap() }
    }

    /// Replaces the server's certificate.
    pub fn serve(&self, form: Form) {
        self.install(form);
        let shown = fs::read(self.server.data_directory().join("server.crt")).unwrap();
        self.server.execute("SELECT pg_reload_conf()");
        // The server shows the new one when openssl sees it.
        self.wait_until(|| {
            let address = format!("127.0.0.1:{}", self.server.port());
            let arguments = ["s_client", "-starttls", "postgres", "-connect", &address];
            let output = Command::new("openssl")
                .args(arguments)
                .stdin(std::process::Stdio::null())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let body = |text: &str| -> String {
                let after = text.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap_or("");
                after.split("-----END").next().unwrap_or("").split_whitespace().collect()
            };
            body(&text) == body(&String::from_utf8_lossy(&shown))
        });
    }

    fn install(&self, form: Form) {
        let (certificate, key) = self.authority.issue_server(form);
        let account = self.server.account();
        for (from, name) in
            [(certificate, "server.crt"), (key, "server.key"), (self.authority.file(), "root.crt")]
        {
            let to = self.server.data_directory().join(name);
            fs::copy(from, &to).unwrap();
            use std::os::unix::fs::PermissionsExt;
            let mode = if name == "server.key" { 0o600 } else { 0o644 };
            fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
            account.give(&to).unwrap();
        }
    }

    /// Sets pg_hba.conf for connections by TCP, and waits until it counts.
    pub fn hba(&self, line: &str) {
        let directory = self.server.data_directory();
        let text = format!("local all,replication postgres trust\n{line}\n");
        fs::write(directory.join("pg_hba.conf"), text).unwrap();
        let before = self.server.value("SELECT pg_conf_load_time()");
        self.server.execute("SELECT pg_reload_conf()");
        // Each new session says which configuration the postmaster had when it began.
        self.wait_until(|| self.server.value("SELECT pg_conf_load_time()") != before);
    }

    #[track_caller]
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < until, "waited in vain");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Runs a test on servers of the oldest and the newest version that this machine has.
pub fn on_each_with_tls(test: &str, form: Form, body: impl Fn(&TlsLab)) {
    for major in [15, 18] {
        let server = match ScratchServer::of(major).tcp().start() {
            Ok(server) => server,
            Err(reason) => {
                skip(&format!("{test}[{major}]"), &reason.to_string());
                continue;
            }
        };
        let Some(authority) = Authority::new(&server.home().join("authority")) else {
            skip(&format!("{test}[{major}]"), "there is no openssl(1)");
            continue;
        };
        let host = format!(
            "host=db.example hostaddr=127.0.0.1 port={} user=postgres dbname=postgres",
            server.port()
        );
        let lab = TlsLab { server, authority, host };
        lab.install(form);
        lab.hba("host all,replication all 127.0.0.1/32 trust");
        lab.server.execute("ALTER SYSTEM SET ssl = on");
        lab.server.execute("ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
        lab.server.execute("SELECT pg_reload_conf()");
        let tls = format!("{} sslmode=require", lab.host);
        let conninfo = Conninfo::read(&tls, &|_| None).unwrap();
        lab.wait_until(|| Session::open(&conninfo).is_ok());
        eprintln!("{test}: PostgreSQL {major}");
        body(&lab);
    }
}
