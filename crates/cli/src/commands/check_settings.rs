//! The points of `check` that are settings of the server.

use std::path::Path;

use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::slots::{KeptWal, Slot};

use super::check::Point;
use super::check_points::Seen;
use crate::app::App;
use crate::error::CliError;
use crate::server_commands::setting;

/// Summaries that are kept for less are gone before the next daily backup, in minutes.
const SUMMARY_MINUTES_MIN: u64 = 2 * 24 * 60;

/// Looks at every setting that matters. Where WAL is received, it need not be archived. Of a server
/// that is `far`, the files on its machine cannot be seen, and it sends its files instead of having
/// them read.
pub(crate) fn points(app: &App, seen: Seen<'_>, far: bool) -> Result<Vec<Point>, CliError> {
    let Seen { facts, received, damaged } = seen;
    if facts.in_recovery && facts.setting("archive_mode") != Some("always") {
        // The rest is the primary's.
        return Ok(vec![wal_level(facts), checksums(facts, damaged), summaries(facts, far)]);
    }
    let mut points = vec![wal_level(facts)];
    if received && facts.setting("archive_mode") == Some("off") {
        points.push(Point::good("archive_mode", "off: WAL is received instead"));
    } else {
        let command = app.server_commands()?.archive();
        let config = app.settings()?.file.display().to_string();
        points.push(archive_mode(facts));
        points.push(archive_command(facts, &Wanted { command, config, far }));
        points.push(archiver(facts));
    }
    // That of the configuration is looked at more closely.
    let ours = &app.settings()?.wal_slot;
    points.extend(facts.slots.iter().filter(|slot| slot.name != *ours).map(slot));
    points.extend([
        switched_on(
            facts,
            "full_page_writes",
            "a crash while a backup runs would leave torn pages",
        ),
        switched_on(facts, "fsync", "a crash of the machine can destroy the database itself"),
        checksums(facts, damaged),
        summaries(facts, far),
    ]);
    points.extend(synchronous(facts));
    Ok(points)
}

/// Where nobody that is waited for is there, no commit returns.
fn synchronous(facts: &ServerFacts) -> Option<Point> {
    const NAME: &str = "synchronous_standby_names";
    let names = facts.setting(NAME).filter(|names| !names.is_empty())?;
    Some(match facts.synchronous {
        Some(0) => Point::failed(
            NAME,
            format!("`{names}`, and nobody of that name receives: every commit waits"),
            "start who is meant (`lifeboat wal receive --synchronous` is called `lifeboat`), or \
             set it to '' and reload",
        ),
        Some(count) => Point::good(NAME, format!("`{names}`: {count} of those meant receive")),
        None => Point::note(
            NAME,
            format!("`{names}`: whether who is meant receives cannot be seen"),
            "GRANT pg_read_all_stats lets the role see it",
        ),
    })
}

/// Physical slots hand WAL to receivers and standbys, and keep what these have not taken.
fn slot(slot: &Slot) -> Point {
    const NAME: &str = "replication slot";
    let name = &slot.name;
    match slot {
        Slot { kept: KeptWal::Lost, .. } => Point::failed(
            NAME,
            format!("`{name}` was given up: the server removed WAL that it should have kept"),
            "lifeboat wal receive --create-slot, then lifeboat backup; or: \
             SELECT pg_drop_replication_slot(…)",
        ),
        Slot { in_use: true, .. } => Point::good(NAME, format!("`{name}` is being received")),
        Slot { in_use: false, .. } => Point::note(
            NAME,
            format!("nobody receives through `{name}`: the server keeps all WAL for it"),
            "lifeboat wal receive (as a service), or start the standby that it is for",
        ),
    }
}

/// What `archive_command` should be.
struct Wanted {
    command: String,
    config: String,
    far: bool,
}

fn wal_level(facts: &ServerFacts) -> Point {
    match facts.setting("wal_level") {
        Some("minimal") => {
            Point::failed("wal_level", "minimal", "wal_level = 'replica', and a restart")
        }
        Some(level) => Point::good("wal_level", level),
        None => hidden("wal_level"),
    }
}

fn archive_mode(facts: &ServerFacts) -> Point {
    match facts.setting("archive_mode") {
        Some("off") => Point::failed(
            "archive_mode",
            "off, and nobody receives WAL",
            "archive_mode = 'on', and a restart; or `lifeboat wal receive` as a service",
        ),
        Some(mode) => Point::good("archive_mode", mode),
        None => hidden("archive_mode"),
    }
}

fn archive_command(facts: &ServerFacts, wanted: &Wanted) -> Point {
    const NAME: &str = "archive_command";
    if let Some(library) = facts.setting("archive_library").filter(|library| !library.is_empty()) {
        let found = format!("archive_library `{library}` is used instead");
        return Point::failed(NAME, found, "archive_library = '', and a restart");
    }
    let help = || {
        let line = setting(NAME, &wanted.command);
        match wanted.far {
            false => format!("{line}\nthen: SELECT pg_reload_conf()"),
            true => format!(
                "on the server's machine, with lifeboat, this configuration and its key there:\n\
                 {line}\nor here, as a service: lifeboat wal receive --create-slot"
            ),
        }
    };
    match facts.setting(NAME) {
        None => hidden(NAME),
        Some("" | "(disabled)") => Point::failed(NAME, "not set", help()),
        Some(command) if let Some(program) = missing_program(command, wanted.far) => {
            let found = format!("there is no program `{program}`");
            Point::note(
                NAME,
                found,
                format!("unless the server has its own, in a container:\n{}", help()),
            )
        }
        Some(command) if command == wanted.command => {
            Point::good(NAME, "this lifeboat and this configuration")
        }
        Some(command)
            if command.contains("wal push")
                && let Some(operator) = hides_failures(command) =>
        {
            let found = format!(
                "`{command}`: with `{operator}` it may succeed although nothing was stored"
            );
            let end = command.trim_end();
            match ["true", ":", "exit 0"].iter().any(|always| end.ends_with(always)) {
                true => Point::failed(NAME, found, help()),
                false => Point::note(NAME, found, help()),
            }
        }
        Some(command) if command.contains("wal push") && command.contains("%p") => {
            let config = &wanted.config;
            let here = config.replace('%', "%%");
            if command.contains(&here) {
                Point::good(NAME, command)
            } else if wanted.far {
                // On another machine the configuration may lie where it likes.
                Point::note(
                    NAME,
                    command,
                    "whether its configuration, on the server's machine, names this repository and \
                     cluster cannot be seen from here: `WAL arrives` shows it",
                )
            } else {
                Point::note(NAME, command, format!("it does not name this configuration, {config}"))
            }
        }
        Some(command) => Point::failed(NAME, format!("`{command}` is not lifeboat"), help()),
    }
}

/// The operator of a shell command by which it may succeed although a part of it failed. What is
/// quoted is none.
fn hides_failures(command: &str) -> Option<&'static str> {
    let (mut plain, mut quote, mut escaped) = (String::new(), None, false);
    for c in command.chars() {
        match (c, quote) {
            _ if escaped => escaped = false,
            ('\\', None | Some('"')) => escaped = true,
            ('\'' | '"', None) => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            (_, None) => plain.push(c),
            _ => {}
        }
    }
    let plain = plain.replace("&&", "").replace("2>&1", "");
    ["||", ";", "|", "&"].into_iter().find(|operator| plain.contains(operator))
}

/// The program of a shell command, when it is named by its whole path and is not there.
fn missing_program(command: &str, far: bool) -> Option<&str> {
    let command = command.trim_start();
    let program = match command.strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next(),
        None => command.split_whitespace().next(),
    };
    // Anything that the shell would read otherwise is left alone.
    let plain =
        |program: &&str| program.starts_with('/') && !program.contains(['\\', '$', '"', '%', '\'']);
    program.filter(plain).filter(|program| !far && !Path::new(program).exists())
}

fn switched_on(facts: &ServerFacts, name: &'static str, why: &str) -> Point {
    match facts.setting(name) {
        Some("on") => Point::good(name, "on"),
        Some(value) => Point::failed(name, value, format!("{name} = 'on': {why}")),
        None => hidden(name),
    }
}

fn checksums(facts: &ServerFacts, damaged: bool) -> Point {
    const NAME: &str = "checksums";
    let help = if damaged {
        // A damaged page would be given a checksum that fits.
        "first mend what the newest backup found damaged; then pg_checksums --enable, with the server stopped"
    } else {
        "pg_checksums --enable, with the server stopped"
    };
    match facts.setting("data_checksums") {
        Some("on") => Point::good(NAME, "on"),
        _ => Point::note(NAME, "off: damage on the server's disk may go unseen", help),
    }
}

/// Advice only: without summaries a backup reads everything.
fn summaries(facts: &ServerFacts, far: bool) -> Point {
    const NAME: &str = "summarize_wal";
    let reads = if far { "the server sends" } else { "a backup reads" };
    if facts.major() < 17 {
        return Point::good(NAME, format!("before PostgreSQL 17 {reads} everything"));
    }
    let on = format!("on: {reads} only what changed");
    match (facts.setting(NAME), facts.setting("wal_summary_keep_time")) {
        // In minutes; 0 keeps them for ever.
        (Some("on"), Some(minutes)) => match minutes.parse::<u64>() {
            Ok(minutes @ 1..SUMMARY_MINUTES_MIN) => Point::note(
                NAME,
                format!("on, but summaries go after {minutes} minutes"),
                format!(
                    "wal_summary_keep_time = '10d': longer than the time between two backups, \
                     else {reads} everything"
                ),
            ),
            _ => Point::good(NAME, on),
        },
        (Some("on"), None) => Point::good(NAME, on),
        _ => Point::note(
            NAME,
            format!("off: {reads} everything to find what changed"),
            "summarize_wal = 'on', then: SELECT pg_reload_conf()",
        ),
    }
}

fn archiver(facts: &ServerFacts) -> Point {
    const NAME: &str = "archiver";
    let archiver = &facts.archiver;
    match &archiver.last_failed {
        Some((segment, at)) if archiver.is_failing() => Point::failed(
            NAME,
            format!("failed last on {segment} at {at}, {} times in all", archiver.failed),
            "the server's log holds what archive_command printed",
        ),
        _ => Point::good(NAME, format!("{} files archived", archiver.archived)),
    }
}

fn hidden(name: &'static str) -> Point {
    Point::failed(name, "the role may not see it", "GRANT pg_read_all_settings to the role")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_told_and_nothing_else() {
        let missing = |command| missing_program(command, false);
        assert_eq!(missing("/no/such/lifeboat wal push %p"), Some("/no/such/lifeboat"));
        assert_eq!(missing("'/no such/lifeboat' wal push %p"), Some("/no such/lifeboat"));
        assert_eq!(missing("/bin/sh -c 'lifeboat wal push %p'"), None);
        assert_eq!(missing("lifeboat wal push %p"), None, "found by PATH");
        assert_eq!(missing("$HOME/lifeboat wal push %p"), None);
        assert_eq!(missing("/opt/50%%/lifeboat wal push %p"), None);
        assert_eq!(missing(""), None);
        assert_eq!(missing_program("/no/such/lifeboat wal push %p", true), None, "another machine");
    }

    #[test]
    fn a_command_that_hides_its_failures_is_told() {
        let push = "/usr/bin/lifeboat --config /etc/l.toml wal push %p";
        for (rest, operator) in [
            (" || true", Some("||")),
            ("; true", Some(";")),
            (" | tee /tmp/log", Some("|")),
            (" &", Some("&")),
            ("", None),
            (" 2>&1", None),
            (" && touch /tmp/done", None),
        ] {
            assert_eq!(hides_failures(&format!("{push}{rest}")), operator, "{rest}");
        }
        assert_eq!(hides_failures("'/opt/a;b|c/lifeboat' wal push \"%p\" --set a=\\;"), None);
    }
}
