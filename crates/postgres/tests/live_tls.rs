//! TLS with real servers, for both kinds of connection. Certificates are made by openssl(1), as
//! administrators make them.

mod tls_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::error::LiveError;
use lifeboat_postgres::live::replication::Connection;
use lifeboat_postgres::live::session::Session;
use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_units::Explain;
use tls_support::{Form, on_each_with_tls};

fn read(text: &str) -> Conninfo {
    Conninfo::read(text, &|_| None).unwrap()
}

fn chain(error: &LiveError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Opens both kinds of connection: both work, and say whether they are within TLS.
#[track_caller]
fn both(server: &ScratchServer, text: &str) -> bool {
    let conninfo = read(text);
    let mut session = Session::open(&conninfo).unwrap_or_else(|e| panic!("{text}: {}", chain(&e)));
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let has_tls: bool = session.ask("asking", sql, &[]).unwrap().get(0);
    let name = format!("boat{}", std::process::id());
    let named = read(&format!("{text} application_name={name}"));
    let mut wire = Connection::open(&named).unwrap_or_else(|e| panic!("{text}: {}", chain(&e)));
    wire.identify_system().unwrap();
    let sql = format!(
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = '{name}'"
    );
    assert_eq!(server.value(&sql) == "t", has_tls, "{text}");
    drop(wire);
    while !server.query(&sql).is_empty() {}
    has_tls
}

/// Opens both kinds of connection: both fail, with this code, and say this.
#[track_caller]
fn neither(text: &str, code: &str, says: &str) -> String {
    let conninfo = read(text);
    let session = Session::open(&conninfo).map(drop).unwrap_err();
    let wire = Connection::open(&conninfo).map(drop).unwrap_err();
    for error in [&session, &wire] {
        assert_eq!(error.code().0, code, "{text}: {}", chain(error));
        assert!(chain(error).contains(says), "{text}: {}", chain(error));
    }
    assert_eq!(session.help(), wire.help());
    wire.help().unwrap_or_default()
}

#[test]
fn the_servers_certificate_is_checked_as_the_mode_says() {
    on_each_with_tls("the_servers_certificate_is_checked_as_the_mode_says", Form::Modern, |lab| {
        let (server, host) = (&lab.server, &lab.host);
        let (right, wrong) = (lab.authority.file(), lab.other_authority().file());
        for mode in ["prefer", "require"] {
            assert!(both(server, &format!("{host} sslmode={mode}")));
        }
        for mode in ["disable", "allow"] {
            assert!(!both(server, &format!("{host} sslmode={mode}")));
        }
        for mode in ["require", "verify-ca", "verify-full"] {
            assert!(both(server, &format!("{host} sslmode={mode} sslrootcert={right}")));
            // A root certificate file makes even `require` look at the certificate.
            let text = format!("{host} sslmode={mode} sslrootcert={wrong}");
            let help = neither(&text, "LB-PG-039", "signed by nobody whom");
            assert!(help.contains("sslrootcert"), "{help}");
        }
        // `prefer` goes on without TLS, as libpq does.
        assert!(!both(server, &format!("{host} sslmode=prefer sslrootcert={wrong}")));
        // The name is that of the host, not of its address; also for addresses.
        let elsewhere = host.replace("db.example", "other.example");
        assert!(both(server, &format!("{elsewhere} sslmode=verify-ca sslrootcert={right}")));
        let text = format!("{elsewhere} sslmode=verify-full sslrootcert={right}");
        let help = neither(
            &text,
            "LB-PG-039",
            "is for `db.example`, `127.0.0.1`, not for `other.example`",
        );
        assert!(help.contains("name"), "{help}");
        let by_address = host.replace("host=db.example", "");
        assert!(both(server, &format!("{by_address} sslmode=verify-full sslrootcert={right}")));
        assert!(both(
            server,
            &format!(
                "{host} sslmode=verify-full sslrootcert={right} ssl_max_protocol_version=TLSv1.2"
            )
        ));
        let text = format!("{host} sslmode=require sslrootcert=system");
        assert!(Conninfo::read(&text, &|_| None).is_err());
        let system = |name: &str| (name == "SSL_CERT_FILE").then(|| right.clone());
        let text = format!("{host} sslrootcert=system");
        Connection::open(&Conninfo::read(&text, &system).unwrap()).unwrap();
        // Where TLS is asked for by pg_hba.conf, without it nobody gets in.
        lab.hba("hostssl all,replication all 127.0.0.1/32 trust");
        let help = neither(&format!("{host} sslmode=disable"), "LB-PG-021", "no encryption");
        assert!(help.contains("pg_hba.conf"), "{help}");
        assert!(both(server, &format!("{host} sslmode=allow")));
        lab.hba("hostnossl all,replication all 127.0.0.1/32 trust");
        assert!(!both(server, &format!("{host} sslmode=prefer")));
        neither(&format!("{host} sslmode=require"), "LB-PG-021", "SSL encryption");
        let direct =
            format!("{host} sslmode=verify-full sslrootcert={right} sslnegotiation=direct");
        lab.hba("host all,replication all 127.0.0.1/32 trust");
        if server.major() >= 17 {
            assert!(both(server, &direct));
        } else {
            neither(&direct, "LB-PG-039", "closed the connection");
        }
        // A server without TLS.
        server.execute("ALTER SYSTEM SET ssl = off");
        server.execute("SELECT pg_reload_conf()");
        lab.wait_until(|| !both(server, &format!("{host} sslmode=prefer")));
        let help = neither(&format!("{host} sslmode=require"), "LB-PG-039", "does not offer TLS");
        assert!(help.contains("ssl = on"), "{help}");
        assert!(!both(server, &format!("{host} sslmode=allow")));
    });
}

#[test]
fn certificates_out_of_their_time_or_withdrawn_are_refused() {
    on_each_with_tls(
        "certificates_out_of_their_time_or_withdrawn_are_refused",
        Form::Modern,
        |lab| {
            let host = &lab.host;
            let text = format!("{host} sslmode=verify-full sslrootcert={}", lab.authority.file());
            let none_revoked = lab.authority.revoke(None);
            assert!(both(&lab.server, &format!("{text} sslcrl={none_revoked}")));
            let revoked =
                lab.authority.revoke(Some(&lab.server.data_directory().join("server.crt")));
            neither(&format!("{text} sslcrl={revoked}"), "LB-PG-039", "is revoked");
            lab.serve(Form::Expired);
            let help = neither(&text, "LB-PG-039", "has expired");
            assert!(help.contains("renew"), "{help}");
            assert!(both(&lab.server, &format!("{host} sslmode=require")));
        },
    );
}

#[test]
fn old_forms_of_certificates_are_known() {
    on_each_with_tls("old_forms_of_certificates_are_known", Form::Version1, |lab| {
        let host = &lab.host;
        let other = host.replace("db.example", "other.example");
        let (right, wrong) = (lab.authority.file(), lab.other_authority().file());
        // Version 1, without any extension: the recipe that many followed.
        assert!(both(&lab.server, &format!("{host} sslmode=require")));
        assert!(both(&lab.server, &format!("{host} sslmode=verify-full sslrootcert={right}")));
        let full =
            |host: &str, root: &str| format!("{host} sslmode=verify-full sslrootcert={root}");
        neither(&full(host, &wrong), "LB-PG-039", "cannot be used");
        neither(&full(&other, &right), "LB-PG-039", "is for `db.example`, not for");
        // Signed by itself, and its own root.
        lab.serve(Form::SelfSigned);
        let own = lab.server.data_directory().join("server.crt").display().to_string();
        assert!(both(&lab.server, &full(host, &own)));
        neither(&full(&other, &own), "LB-PG-039", "is for `db.example`, not for");
        neither(&full(host, &right), "LB-PG-039", "");
        // Without alternative names the common name counts.
        lab.serve(Form::CommonName);
        assert!(both(&lab.server, &full(host, &right)));
        neither(&full(&other, &right), "LB-PG-039", "is for `db.example`, not for");
    });
}

#[test]
fn client_certificates_let_in() {
    on_each_with_tls("client_certificates_let_in", Form::Modern, |lab| {
        let (server, host) = (&lab.server, &lab.host);
        lab.hba("hostssl all,replication all 127.0.0.1/32 cert");
        let (certificate, key) = lab.authority.issue("client", "postgres", &[]);
        let (other, other_key) = lab.other_authority().issue("client", "postgres", &[]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(&other_key, fs::Permissions::from_mode(0o600)).unwrap();
        let with = |certificate: &str, key: &str| {
            format!("{host} sslmode=require sslcert={certificate} sslkey={key}")
        };
        assert!(both(server, &with(&certificate, &key)));
        let none = neither(&format!("{host} sslmode=require"), "LB-PG-021", "certificate");
        assert!(none.contains("pg_hba.conf"), "{none}");
        let help = neither(
            &with(&other, &other_key),
            "LB-PG-039",
            "does not accept the client certificate",
        );
        assert!(help.contains("ssl_ca_file"), "{help}");
        neither(&with(&certificate, &other_key), "LB-PG-039", "does not go with the certificate");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let help = neither(&with(&certificate, &key), "LB-PG-039", "others may read it");
        assert!(help.contains("0600"), "{help}");
        neither(&with(&certificate, &certificate), "LB-PG-039", "");
    });
}

#[test]
fn logins_are_bound_to_the_connection() {
    on_each_with_tls("logins_are_bound_to_the_connection", Form::Modern, |lab| {
        let (server, host) = (&lab.server, &lab.host);
        let base = host.replace("user=postgres", "user=boat password=s3cret");
        server.execute("CREATE ROLE boat LOGIN REPLICATION PASSWORD 's3cret'");
        lab.hba("host all,replication all 127.0.0.1/32 scram-sha-256");
        for binding in ["disable", "prefer", "require"] {
            assert!(both(server, &format!("{base} sslmode=require channel_binding={binding}")));
        }
        let says = "channel_binding=require, but";
        neither(&format!("{base} sslmode=disable channel_binding=require"), "LB-PG-039", says);
        lab.hba("host all,replication all 127.0.0.1/32 trust");
        let help =
            neither(&format!("{base} sslmode=require channel_binding=require"), "LB-PG-039", says);
        assert!(help.contains("scram-sha-256"), "{help}");
        // Another wrong password is no reason to try without TLS.
        lab.hba("host all,replication all 127.0.0.1/32 scram-sha-256");
        neither(&base.replace("s3cret", "wrong"), "LB-PG-021", "password");
        // Certificates of other kinds: what is hashed depends on them.
        for form in [Form::Rsa, Form::Sha384] {
            lab.serve(form);
            assert!(both(server, &format!("{base} sslmode=require channel_binding=require")));
        }
        lab.serve(Form::Modern);
        // A base backup over TLS comes whole.
        let mut connection = Connection::open(&read(&format!("{base} sslmode=require"))).unwrap();
        let command = "BASE_BACKUP (LABEL 'x', CHECKPOINT 'fast', WAIT false)";
        let mut copy = connection.copy_out("taking a base backup", command).unwrap();
        let mut bytes = 0;
        while let Some(message) = copy.next().unwrap() {
            bytes += message.len();
        }
        assert!(bytes > 20 << 20, "{bytes}");
        assert!(copy.after().unwrap().is_some());
    });
}
