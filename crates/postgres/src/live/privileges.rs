//! What a role needs for backups, and the GRANTs that give it.

use super::error::LiveError;
use super::session::Session;

/// What the role of a session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    /// Is a superuser: may do all of the following.
    pub superuser: bool,
    /// Start backup mode.
    pub backup_start: bool,
    /// Stop backup mode.
    pub backup_stop: bool,
    /// Finish a WAL segment.
    pub switch_wal: bool,
    /// Set a named restore point.
    pub restore_point: bool,
    /// Read settings that are hidden from others, such as the data directory.
    pub read_settings: bool,
    /// Read the control file through functions.
    pub control: bool,
    /// Open replication connections.
    pub replication: bool,
    /// Read files of the data directory through functions.
    pub read_file: bool,
}

impl Privileges {
    /// Whether a backup can be taken with these.
    pub fn suffice_for_backup(&self) -> bool {
        self.backup_start
            && self.backup_stop
            && self.switch_wal
            && self.read_settings
            && self.control
    }

    /// Asks what the session's role may do.
    pub fn of(session: &mut Session) -> Result<Self, LiveError> {
        let [start, stop] = backup_functions(session.major());
        let sql = format!(
            "SELECT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), \
             {}, {}, {}, {}, pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE'), {} AND {}, \
             (SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles \
              WHERE rolname = current_user), {}",
            may(start),
            may(stop),
            may("pg_switch_wal()"),
            may("pg_create_restore_point(text)"),
            may("pg_control_system()"),
            may("pg_control_checkpoint()"),
            may(READ_FILE),
        );
        let row = session.ask("reading the role's privileges", &sql, &[])?;
        Ok(Self {
            superuser: row.get(0),
            backup_start: row.get(1),
            backup_stop: row.get(2),
            switch_wal: row.get(3),
            restore_point: row.get(4),
            read_settings: row.get(5),
            control: row.get(6),
            replication: row.get(7),
            read_file: row.get(8),
        })
    }
}

/// The function through which a page is looked at again when it came torn.
const READ_FILE: &str = "pg_read_binary_file(text, bigint, bigint, boolean)";

fn may(function: &str) -> String {
    format!("pg_catalog.has_function_privilege('pg_catalog.{function}', 'EXECUTE')")
}

/// Signatures of the functions that start and stop backup mode.
/// Source: `pg_proc.dat`; they were renamed, and lost the exclusive form, in 15.
fn backup_functions(major: u32) -> [&'static str; 2] {
    if major >= 15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    }
}

/// The statements that let `role` take backups and nothing else, one per line.
///
/// - `pg_read_all_settings` shows `data_directory`; `pg_control_system` and
///   `pg_control_checkpoint` are open to everybody unless somebody revoked that.
/// - They are to be run in the database that the role connects to: function privileges are
///   kept per database.
/// - Checked by: `a_role_with_only_the_printed_grants_takes_a_backup`, on 15, 17 and 18.
pub fn grants(major: u32, role: &str) -> String {
    let role = quote_identifier(role);
    let [start, stop] = backup_functions(major);
    let mut statements = format!("GRANT pg_read_all_settings TO {role};\n");
    for function in [start, stop, "pg_switch_wal()", "pg_create_restore_point(text)"] {
        statements
            .push_str(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};\n"));
    }
    statements
}

/// The statement that lets `role` take backups over the network.
pub fn replication_grant(role: &str) -> String {
    format!("ALTER ROLE {} REPLICATION;\n", quote_identifier(role))
}

/// The statements that let `role` do what a backup over the network can do without, one per line:
/// see at its beginning that WAL arrives, and look again at a page that came torn.
///
/// - To be run in the database that the role connects to.
/// - Checked by: `a_role_with_only_the_guides_grants_takes_remote_backups`, on 15 and 18.
pub fn optional_remote_grants(role: &str) -> String {
    let role = quote_identifier(role);
    let grant = |function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};\n");
    ["pg_switch_wal()", READ_FILE].map(grant).concat()
}

/// Quotes a name for SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_major_gets_its_own_signatures_and_names_are_quoted() {
        assert!(grants(14, "al").contains("pg_start_backup(text, boolean, boolean) TO \"al\";"));
        assert!(grants(15, "al").contains("pg_backup_start(text, boolean) TO \"al\";"));
        assert!(grants(18, "a\"; drop").contains("TO \"a\"\"; drop\";"));
        assert!(!grants(18, "al").contains("pg_stop_backup"));
    }
}
