//! The points of `check` that are about a server which is reached only through the network.

use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::privileges::{grants, optional_remote_grants, replication_grant};
use lifeboat_postgres::live::remote::MAJOR_MIN;
use lifeboat_postgres::live::remote::compression::WireCompression;
use lifeboat_postgres::live::remote::ready::Ready;
use lifeboat_postgres::live::replication::Connection;
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;

use super::check::Point;
use crate::error::CliError;

/// SQLSTATE `invalid_authorization_specification`: no line of pg_hba.conf fits.
const NO_HBA_LINE: &str = "28000";
/// SQLSTATE `too_many_connections`: all senders are at work.
const TOO_MANY: &str = "53300";

/// Whether backups of this version can be sent.
pub(crate) fn version(facts: &ServerFacts) -> Point {
    const NAME: &str = "version";
    let found = format!("PostgreSQL {}", facts.version);
    if facts.major() >= MAJOR_MIN {
        return Point::good(NAME, found);
    }
    Point::failed(
        NAME,
        format!("{found} sends backups in a form that lifeboat does not read"),
        format!("version {MAJOR_MIN} or later; or run lifeboat on the server's own machine"),
    )
}

/// Whether the role can take a backup over the network, and what that lacks. `conninfo` leads to
/// the session's server.
pub(crate) fn points(
    session: &mut Session,
    facts: &ServerFacts,
    conninfo: &Conninfo,
    wire: WireCompression,
) -> Result<Vec<Point>, CliError> {
    let ready = Ready::of(session)?;
    Ok(vec![
        privileges(facts),
        replication(facts, conninfo, &ready),
        senders(&ready),
        compression(conninfo, wire, &ready),
    ])
}

fn privileges(facts: &ServerFacts) -> Point {
    const NAME: &str = "privileges";
    let (may, role) = (&facts.privileges, &facts.role);
    if may.superuser {
        return Point::good(NAME, "superuser; less would do, see the guide on remote backups");
    }
    if !may.replication && !may.suffice_for_backup() {
        // Whoever forgot the GRANTs on the server's own machine lands here too.
        let here = grants(facts.major(), role);
        return Point::failed(
            NAME,
            "the role may not replicate",
            format!(
                "a superuser runs:\n{}on the server's own machine, instead:\n{here}",
                replication_grant(role)
            ),
        );
    }
    let missing = match (may.switch_wal, may.read_file) {
        (true, true) => return Point::good(NAME, "the role may all that a remote backup needs"),
        (false, true) => "finish a WAL segment: that WAL arrives is seen only at a backup's end",
        (true, false) => "read pages again: one that was being written may be called damaged",
        (false, false) => {
            "finish a WAL segment (that WAL arrives is seen only at a backup's end) nor read pages \
             again (one that was being written may be called damaged)"
        }
    };
    let found = format!("enough; but the role may not {missing}");
    Point::note(NAME, found, format!("a superuser runs:\n{}", optional_remote_grants(role)))
}

fn replication(facts: &ServerFacts, conninfo: &Conninfo, ready: &Ready) -> Point {
    const NAME: &str = "replication";
    let asked = Connection::open(conninfo).and_then(|mut server| server.identify_system());
    let error = match asked {
        Ok(system) if system.system == facts.system_id => {
            let found = format!("a connection can be opened; WAL up to {}", system.flushed);
            return Point::good(NAME, found);
        }
        Ok(system) => {
            return Point::failed(
                NAME,
                format!("leads to another server: system {}", system.system),
                "ordinary and replication connections must lead to one and the same server",
            );
        }
        Err(error) => error,
    };
    let help = match error.sqlstate() {
        Some(NO_HBA_LINE) => Some(format!(
            "in the server's pg_hba.conf:\n{}\nthen: SELECT pg_reload_conf()",
            ready.hba_line
        )),
        Some(TOO_MANY) => Some("see WAL senders".to_owned()),
        _ => None,
    };
    let point = Point::error(NAME, error);
    Point { help: help.or(point.help), ..point }
}

fn senders(ready: &Ready) -> Point {
    const NAME: &str = "WAL senders";
    let Ready { senders, senders_max, .. } = ready;
    let found = format!("{senders} of {senders_max} at work (max_wal_senders)");
    if senders < senders_max {
        return Point::good(NAME, found);
    }
    let wanted = (senders_max + 2).max(10);
    Point::failed(NAME, found, format!("max_wal_senders = {wanted}, and a restart"))
}

fn compression(conninfo: &Conninfo, wire: WireCompression, ready: &Ready) -> Point {
    const NAME: &str = "wire compression";
    let wanted = match wire.kind(conninfo) {
        None => return Point::good(NAME, "none is wanted"),
        Some(kind) => kind,
    };
    if ready.compression.iter().any(|kind| kind == wanted) {
        return Point::good(NAME, format!("the server can {wanted}"));
    }
    let help = match ready.compression.as_slice() {
        [] => "a server that is built --with-lz4 or --with-zstd".to_owned(),
        [other, ..] => {
            let level = if other == "zstd" { ":1" } else { "" };
            format!("backup.wire-compression = \"{other}{level}\"")
        }
    };
    Point::note(NAME, format!("the server was built without {wanted}: backups come plain"), help)
}
