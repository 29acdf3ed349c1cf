//! Whether a data directory can be read here, and is the running server's own.

use lifeboat_engine::SystemId;

use super::{PostgresOrigin, read_control};
use crate::live::error::LiveError;

/// A server notes its start in two places, which may lie so far apart, in seconds.
const START_SECONDS_MAX: i64 = 60;

impl PostgresOrigin {
    /// Why the data directory cannot be read here, or is not proven to be this server's: it is
    /// unreadable, of another system, or a copy. `None` when it is the server's own.
    pub fn is_elsewhere(&mut self) -> Result<Option<String>, LiveError> {
        let path = self.directory.display().to_string();
        let control = match read_control(&self.directory) {
            Ok((_, control)) => control,
            Err(_) => return Ok(Some(format!("`{path}` cannot be read here"))),
        };
        let lock = std::fs::read_to_string(self.directory.join("postmaster.pid"));
        let row = self.session()?.ask(
            "asking for the server's start",
            "SELECT system_identifier, current_setting('port'), \
             extract(epoch FROM pg_postmaster_start_time())::int8 FROM pg_control_system()",
            &[],
        )?;
        let (system, port, started): (i64, String, i64) = (row.get(0), row.get(1), row.get(2));
        if control.system_id != SystemId(system as u64) {
            return Ok(Some(format!("`{path}` belongs to another server")));
        }
        let same = lock.is_ok_and(|lock| is_of(&lock, &port, started));
        Ok((!same).then(|| format!("`{path}` is not that of the running server")))
    }
}

/// Whether this is the `postmaster.pid` of the server that listens on this port and started then.
/// Source of its lines: PostgreSQL `src/include/utils/pidfile.h`.
fn is_of(lock: &str, port: &str, started: i64) -> bool {
    let line = |number: usize| lock.lines().nth(number - 1).unwrap_or("").trim();
    let began: Option<i64> = line(3).parse().ok();
    line(4) == port && began.is_some_and(|began| (began - started).abs() <= START_SECONDS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_of_another_server_or_another_time_proves_nothing() {
        let lock = "77\n/data\n1700000000\n5433\n/tmp\n\n\nready   \n";
        assert!(is_of(lock, "5433", 1_700_000_003));
        assert!(!is_of(lock, "5432", 1_700_000_003));
        assert!(!is_of(lock, "5433", 1_700_000_903));
        assert!(!is_of("", "5433", 1_700_000_003));
        assert!(!is_of("77\n", "5433", 1_700_000_003));
    }
}
