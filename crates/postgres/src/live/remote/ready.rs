//! What a server has ready for sending backups and WAL, and what its pg_hba.conf needs for it.

use crate::live::error::LiveError;
use crate::live::privileges::quote_identifier;
use crate::live::session::Session;

/// What is there for sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Senders at work: a standby, a receiver or a backup takes one each.
    pub senders: u32,
    /// How many there may be (`max_wal_senders`).
    pub senders_max: u32,
    /// Kinds of compression that the server was built with, of those that are of use on the way.
    pub compression: Vec<String>,
    /// The line of pg_hba.conf that lets the session's role replicate from where it comes from.
    pub hba_line: String,
}

impl Ready {
    /// Asks the server. Every role may.
    ///
    /// - Which compression there is shows in what `wal_compression` may be set to. Source:
    ///   `wal_compression_options` in PostgreSQL `src/backend/utils/misc/guc_tables.c` has lz4 and
    ///   zstd (since 15) only where the build has them, as BASE_BACKUP does.
    pub fn of(session: &mut Session) -> Result<Self, LiveError> {
        let row = session.ask(
            "reading what the server has ready for replication",
            "SELECT (SELECT count(*) FROM pg_catalog.pg_stat_get_wal_senders()), \
             current_setting('max_wal_senders')::int8, \
             (SELECT enumvals FROM pg_catalog.pg_settings WHERE name = 'wal_compression'), \
             pg_catalog.host(pg_catalog.inet_client_addr()), \
             coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl \
                       WHERE pid = pg_catalog.pg_backend_pid()), false)",
            &[],
        )?;
        let count = |at| u32::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        let mut compression: Vec<String> = row.get::<_, Option<_>>(2).unwrap_or_default();
        compression.retain(|kind| ["lz4", "zstd"].contains(&kind.as_str()));
        let address: Option<String> = row.get(3);
        let hba_line = hba_line(session.role(), address.as_deref(), row.get(4));
        Ok(Self { senders: count(0), senders_max: count(1), compression, hba_line })
    }
}

/// Source: PostgreSQL documentation, "The pg_hba.conf File".
fn hba_line(role: &str, address: Option<&str>, tls: bool) -> String {
    let role = quote_identifier(role);
    let kind = if tls { "hostssl" } else { "host" };
    match address {
        None => format!("local  replication  {role}  scram-sha-256"),
        Some(v6) if v6.contains(':') => {
            format!("{kind}  replication  {role}  {v6}/128  scram-sha-256")
        }
        Some(v4) => format!("{kind}  replication  {role}  {v4}/32  scram-sha-256"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_for_pg_hba_names_where_the_role_comes_from() {
        let line = |address, tls| hba_line("al", address, tls);
        assert_eq!(line(None, false), "local  replication  \"al\"  scram-sha-256");
        assert!(line(Some("10.0.0.7"), true).starts_with("hostssl  replication"));
        assert!(line(Some("10.0.0.7"), false).contains("  10.0.0.7/32  "));
        assert!(line(Some("fe80::1"), true).contains("  fe80::1/128  "));
    }
}
