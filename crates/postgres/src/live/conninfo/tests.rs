use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use lifeboat_units::Explain;

use super::*;

fn read(text: &str, environment: &[(&str, &str)]) -> Result<Conninfo, ConninfoError> {
    let environment: HashMap<_, _> = environment.iter().copied().collect();
    Conninfo::read(text, &|name| environment.get(name).map(|v| (*v).to_owned()))
}

#[test]
fn the_text_goes_before_the_environment() {
    let environment =
        [("PGHOST", "/run/a"), ("PGPORT", "6000"), ("PGUSER", "env"), ("PGDATABASE", "shop")];
    let conninfo = read("user=text", &environment).unwrap();
    assert_eq!(conninfo.to_string(), "host=/run/a port=6000 user=text dbname=shop");
    let conninfo = read("postgres://al@db.example/x", &environment).unwrap();
    assert_eq!(conninfo.to_string(), "host=db.example port=6000 user=al dbname=x");
    assert_eq!(conninfo.application_name, "lifeboat");
    assert_eq!(conninfo.connect_timeout, Duration::from_secs(10));
}

#[test]
fn a_password_is_never_printed() {
    let conninfo = read("user=al password=hunter2", &[]).unwrap();
    assert_eq!(conninfo.hosts[0].password.as_ref().map(Secret::expose), Some("hunter2"));
    assert!(!format!("{conninfo} {conninfo:?}").contains("hunter2"));
}

#[test]
fn the_password_file_counts_only_when_nobody_else_can_read_it() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("passwords");
    fs::write(&path, "db:5432:*:al:one\n/run/x:5433:*:al:two\n").unwrap();
    let text = "host=db,/run/x port=5432,5433 user=al";
    let read_with = |mode| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        read(text, &[("PGPASSFILE", path.to_str().unwrap())]).unwrap()
    };
    let safe = read_with(0o600);
    let passwords: Vec<_> =
        safe.hosts.iter().map(|h| h.password.as_ref().map(|p| p.expose().to_owned())).collect();
    assert_eq!(passwords, [Some("one".to_owned()), Some("two".to_owned())]);
    let open = read_with(0o640);
    assert!(open.hosts.iter().all(|h| h.password.is_none()));
    assert!(open.warnings[0].contains("0600"), "{:?}", open.warnings);
}

#[test]
fn a_service_fills_what_the_text_leaves_open() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".pg_service.conf"), "[shop]\nhost=db\nuser=svc\nport=7000\n")
        .unwrap();
    let environment = [("HOME", home.path().to_str().unwrap()), ("PGPORT", "1")];
    let conninfo = read("service=shop user=al", &environment).unwrap();
    assert_eq!(conninfo.to_string(), "host=db port=7000 user=al dbname=al");
    let error = read("service=none", &environment).unwrap_err();
    assert!(error.to_string().contains(".pg_service.conf"), "{error}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let code = |text: &str| read(text, &[("USER", "al")]).unwrap_err().code().0;
    assert_eq!(code("host=db sslmode=verify-full"), "LB-PG-004");
    // Sockets of this machine use no TLS, whatever is asked for.
    assert!(read("user=al sslmode=verify-full", &[]).is_ok());
    assert_eq!(
        read("user=al host=db", &[("PGSSLMODE", "require")]).unwrap().tls.mode,
        SslMode::Require
    );
    assert_eq!(code("sslmode=maybe"), "LB-PG-003");
    assert_eq!(code("hots=db"), "LB-PG-002");
    assert_eq!(code("host=a,b port=1,2,3"), "LB-PG-003");
    assert_eq!(code("port=70000"), "LB-PG-003");
    assert_eq!(code("host"), "LB-PG-001");
    assert_eq!(read("", &[]).unwrap_err().code().0, "LB-PG-007");
}

#[test]
fn what_cannot_be_checked_is_refused_over_sockets_too() {
    for text in ["requirepeer=postgres", "require_auth=scram-sha-256", "gssencmode=require"] {
        for host in ["host=/tmp", "host=db", "host=db sslmode=disable"] {
            let error = read(&format!("user=al {host} {text}"), &[]).unwrap_err();
            assert_eq!(error.code().0, "LB-PG-004", "{host} {text}");
        }
    }
    assert!(read("user=al host=/tmp requirepeer='' gssencmode=prefer", &[]).is_ok());
    let environment = [("PGREQUIREPEER", "postgres")];
    assert_eq!(read("user=al host=/tmp", &environment).unwrap_err().code().0, "LB-PG-004");
    let wrong = read("user=al host=/tmp sslnegotiation=10x", &[]).unwrap_err();
    assert_eq!(wrong.code().0, "LB-PG-003");
}

#[test]
fn a_wrong_value_is_told_what_would_be_right() {
    for key in [
        "port",
        "hostaddr",
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "target_session_attrs",
        "sslmode",
        "sslnegotiation",
        "sslcertmode",
        "sslsni",
        "channel_binding",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    ] {
        let error = read(&format!("user=al host=db {key}=10x"), &[]).unwrap_err();
        assert_eq!(error.code().0, "LB-PG-003", "{key}");
        assert!(error.help().is_some(), "{key} has no next step");
    }
}

#[test]
fn values_are_quoted_so_that_libpq_reads_them_back() {
    assert_eq!(quote("plain"), "plain");
    assert_eq!(quote(""), "''");
    assert_eq!(quote(r"a 'b\"), r"'a \'b\\'");
}

#[test]
fn a_password_in_the_text_is_told_from_one_that_it_leads_to() {
    let holds = |text: &str| Conninfo::holds_password(text).unwrap();
    assert!(holds("host=/tmp password=y") && holds("postgresql://x:y@db/"));
    assert!(!holds("host=/tmp passfile=/home/al/.pgpass") && !holds("service=main password=''"));
}
