//! What `postgresql.auto.conf` says so that a restored server recovers as it should.
//!
//! Pure: text in, text out. Source of the syntax: PostgreSQL `src/backend/utils/misc/guc-file.l`.

use lifeboat_engine::{RecoveryMode, RecoverySettings, RecoveryTarget};
use lifeboat_units::Timestamp;

use crate::live::cluster::ClusterError;

/// Settings of an earlier recovery or replication that must not survive into this one.
const OLD: &[&str] = &[
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// The five ways to name a target. The server refuses to start when two have a value.
const TARGETS: &[&str] = &[
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Writes one setting as a line, quoted. A value with a line break cannot be written.
pub fn line(name: &str, value: &str) -> Result<String, ClusterError> {
    if value.contains(['\n', '\r', '\0']) {
        return Err(ClusterError::Setting { name: name.to_owned() });
    }
    let value = value.replace('\\', "\\\\").replace('\'', "''");
    Ok(format!("{name} = '{value}'\n"))
}

/// Gives the new text of `postgresql.auto.conf`: old recovery settings are commented out, the
/// rest is kept, ours follow.
///
/// - `main` is the text of `postgresql.conf`: a target that it sets is emptied, because the
///   server counts targets over both files. The empty ones come first: each line takes effect
///   on its own, and one that follows ours would be refused.
pub fn edit(old: &str, main: &str, settings: &RecoverySettings) -> Result<String, ClusterError> {
    let ours = settings_of(settings);
    let replaced = |name: &str| OLD.contains(&name) || ours.iter().any(|(ours, _)| *ours == name);
    let mut text = String::with_capacity(old.len() + 1024);
    for line in old.lines() {
        if setting_name(line).is_some_and(|name| replaced(&name)) {
            text.push_str("# ");
        }
        text.push_str(line);
        text.push('\n');
    }
    for name in TARGETS {
        let elsewhere = main.lines().any(|line| setting_name(line).as_deref() == Some(*name));
        if elsewhere && !ours.iter().any(|(ours, _)| ours == name) {
            text.push_str(&line(name, "")?);
        }
    }
    for (name, value) in &ours {
        text.push_str(&line(name, value)?);
    }
    Ok(text)
}

/// The settings in the order in which they are written.
fn settings_of(settings: &RecoverySettings) -> Vec<(&'static str, String)> {
    let RecoverySettings {
        major: _, // the names are the same from 14 to 18
        target,
        timeline,
        mode,
        restore_command,
        recovery_end_command,
        archive_command,
    } = settings;
    let mut lines = vec![("restore_command", restore_command.clone())];
    if let Some(command) = recovery_end_command {
        lines.push(("recovery_end_command", command.clone()));
    }
    lines.push((
        "recovery_target_timeline",
        match (timeline, mode) {
            (Some(timeline), _) => timeline.to_string(),
            (None, RecoveryMode::Standby) => "latest".into(), // follows its primary's promotions
            (None, _) => "current".into(),
        },
    ));
    let named = match target {
        RecoveryTarget::Latest => None,
        RecoveryTarget::Immediate => Some(("recovery_target", "immediate".into())),
        RecoveryTarget::Time(at) => Some(("recovery_target_time", time(*at))),
        RecoveryTarget::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
        RecoveryTarget::Name(name) => Some(("recovery_target_name", name.clone())),
    };
    if let Some(named) = named {
        lines.push(named);
        lines.push(("recovery_target_inclusive", "true".into()));
        let action = if *mode == RecoveryMode::Standby { "pause" } else { "promote" };
        lines.push(("recovery_target_action", action.into()));
    }
    match (mode, archive_command) {
        (RecoveryMode::Copy, _) => {
            lines.push(("archive_mode", "off".into()));
            // Its commits would wait for whoever receives from the origin.
            lines.push(("synchronous_standby_names", String::new()));
        }
        (RecoveryMode::Successor, Some(command)) => {
            lines.push(("archive_mode", "on".into()));
            lines.push(("archive_command", command.clone()));
        }
        (RecoveryMode::Successor, None) => {}
        (RecoveryMode::Standby, _) => lines.push(("hot_standby", "on".into())),
    }
    lines
}

/// A moment as the server reads it in any time zone. It knows microseconds; what is finer is
/// cut off, so that the target is never later than asked for.
pub fn time(at: Timestamp) -> String {
    let micros = at.as_microsecond();
    let before = i64::from(at.as_nanosecond().rem_euclid(1000) != 0 && at.as_nanosecond() < 0);
    let cut = Timestamp::from_microsecond(micros - before).unwrap_or(at);
    let text = format!("{cut:.6}");
    format!("{}+00", text.trim_end_matches('Z').replace('T', " "))
}

/// The name of the setting that a line sets, in lower case; `None` for comments and others.
fn setting_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "_.".contains(c)));
    let name = &line[..end.unwrap_or(line.len())];
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::{Lsn, TimelineId};

    use super::*;

    fn settings(target: RecoveryTarget, mode: RecoveryMode) -> RecoverySettings {
        RecoverySettings {
            major: 18,
            target,
            timeline: None,
            mode,
            restore_command: r"get 'a\b' %f %p".into(),
            recovery_end_command: None,
            archive_command: Some("push %p".into()),
        }
    }

    #[test]
    fn old_recovery_settings_are_commented_out_and_the_rest_is_kept() {
        let old = "# Do not edit\nwork_mem = '64MB'\nRecovery_Target_Time = 'x'\n\
                   primary_conninfo='host=a'\nrestore_command 'old'\narchive_mode = 'on'\n";
        let target = RecoveryTarget::Lsn(Lsn(0x16_B374_D848));
        let text = edit(old, "", &settings(target, RecoveryMode::Copy)).unwrap();
        assert_eq!(
            text,
            "# Do not edit\nwork_mem = '64MB'\n# Recovery_Target_Time = 'x'\n\
             # primary_conninfo='host=a'\n# restore_command 'old'\n# archive_mode = 'on'\n\
             restore_command = 'get ''a\\\\b'' %f %p'\nrecovery_target_timeline = 'current'\n\
             recovery_target_lsn = '16/B374D848'\nrecovery_target_inclusive = 'true'\n\
             recovery_target_action = 'promote'\narchive_mode = 'off'\n\
             synchronous_standby_names = ''\n"
        );
    }

    #[test]
    fn a_target_in_the_main_file_is_emptied_before_ours() {
        let main = "recovery_target_xid = 7\n#recovery_target_name = 'x'\n";
        let target = RecoveryTarget::Name("it's".into());
        let text = edit("", main, &settings(target, RecoveryMode::Copy)).unwrap();
        let emptied = text.find("recovery_target_xid = ''").unwrap();
        assert!(emptied < text.find("recovery_target_name = 'it''s'").unwrap());
        assert!(!text.contains("recovery_target_name = ''\n"));
    }

    #[test]
    fn each_mode_archives_as_it_should() {
        let text = |mode| edit("", "", &settings(RecoveryTarget::Latest, mode)).unwrap();
        let copy = text(RecoveryMode::Copy);
        assert!(copy.contains("archive_mode = 'off'\nsynchronous_standby_names = ''"), "{copy}");
        let successor = text(RecoveryMode::Successor);
        assert!(successor.contains("archive_mode = 'on'\narchive_command = 'push %p'"));
        let standby = text(RecoveryMode::Standby);
        assert!(standby.contains("recovery_target_timeline = 'latest'"), "{standby}");
        assert!(!standby.contains("archive"), "{standby}");
        assert!(!successor.contains("synchronous") && !standby.contains("synchronous"));
        let mut older = settings(RecoveryTarget::Immediate, RecoveryMode::Copy);
        older.timeline = Some(TimelineId(17));
        assert!(edit("", "", &older).unwrap().contains("recovery_target_timeline = '17'"));
    }

    #[test]
    fn a_line_break_cannot_smuggle_in_a_setting() {
        assert!(line("restore_command", "a\nb").is_err());
    }

    #[test]
    fn moments_are_written_in_utc_and_never_later_than_asked() {
        let at = |text: &str| time(text.parse().unwrap());
        assert_eq!(at("2026-11-22T23:33:28.1234567Z"), "2026-11-22 23:33:28.123456+00");
        assert_eq!(at("2026-11-22T23:33:28+01:00"), "2026-11-22 22:33:28.000000+00");
        assert_eq!(at("1969-12-31T23:59:59.9999995Z"), "1969-12-31 23:59:59.999999+00");
    }
}
