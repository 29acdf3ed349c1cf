//! Settings that keep a restored server to itself: it must not reach, nor be reached by,
//! anything that the origin has to do with.

use std::path::Path;

use lifeboat_engine::StartRequest;

/// Settings that the server checks against its origin's before it lets anybody read while it
/// recovers; the control file says the least that will do.
/// Source: `CheckRequiredParameterValues` in `xlog.c` (14: `xlog.c`, 15+: `xlogrecovery.c`).
pub const REQUIRED: &[(&str, &str)] = &[
    ("max_connections setting:", "max_connections"),
    ("max_worker_processes setting:", "max_worker_processes"),
    ("max_wal_senders setting:", "max_wal_senders"),
    ("max_prepared_xacts setting:", "max_prepared_transactions"),
    ("max_locks_per_xact setting:", "max_locks_per_transaction"),
];

/// Settings for any start of a restored server: data directory, port and socket.
pub fn common(request: &StartRequest) -> Vec<(String, String)> {
    let path = |path: &Path| path.display().to_string();
    own(&[
        // A configuration that was copied along may name the origin's own directory.
        ("data_directory", &path(&request.directory)),
        ("port", &request.port.to_string()),
        ("unix_socket_directories", &path(&request.socket_directory)),
        ("hot_standby", "on"),
    ])
}

/// Settings for a server that keeps to itself.
///
/// - `limits` is what the control file requires, by setting.
/// - Whoever can reach the socket may log in, so its directory must be private.
/// - `shared_preload_libraries` is emptied: a library that the origin preloads (pg_cron and its
///   like) may act by itself. Extensions whose data need theirs cannot be read then.
/// - Memory is kept small, because the origin may run beside it.
pub fn isolated(request: &StartRequest, limits: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut settings = own(&[
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("unix_socket_group", ""),
        ("hba_file", &request.socket_directory.join(HBA_FILE).display().to_string()),
        ("ident_file", &request.socket_directory.join(IDENT_FILE).display().to_string()),
        ("external_pid_file", ""),
        ("ssl", "off"),
        ("archive_mode", "off"),
        ("archive_command", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("local_preload_libraries", ""),
        ("shared_buffers", "128MB"),
        ("huge_pages", "off"),
        ("autovacuum", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_min_messages", "warning"),
        ("log_timezone", "UTC"),
        ("lc_messages", "C"),
    ]);
    if request.major >= 15 {
        settings.extend(own(&[("archive_library", "")]));
    }
    if request.major >= 17 {
        settings.extend(own(&[("sync_replication_slots", "off")]));
    }
    if request.major >= 18 {
        settings.extend(own(&[("io_method", "worker")]));
    }
    settings.extend(limits);
    settings
}

/// Host-based authentication of an isolated server, in its socket's directory.
pub const HBA_FILE: &str = "lifeboat_hba.conf";
/// Its user map, empty.
pub const IDENT_FILE: &str = "lifeboat_ident.conf";
/// Its configuration, when the restored directory has none.
pub const CONFIG_FILE: &str = "lifeboat_postgresql.conf";

/// Reads the required limits from what `pg_controldata` prints in the C locale.
pub fn limits(controldata: &str) -> Vec<(String, String)> {
    let find = |title: &str| {
        controldata.lines().find_map(|line| line.strip_prefix(title)).map(|v| v.trim().to_owned())
    };
    REQUIRED.iter().filter_map(|(title, name)| Some(((*name).to_owned(), find(title)?))).collect()
}

fn own(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_what_pg_controldata_prints() {
        let text = "wal_level setting:                    replica\n\
                    max_connections setting:              250\n\
                    max_prepared_xacts setting:           3\n";
        let expected = own(&[("max_connections", "250"), ("max_prepared_transactions", "3")]);
        assert_eq!(limits(text), expected);
    }
}
