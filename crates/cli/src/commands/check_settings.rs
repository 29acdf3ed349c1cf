//! The points of `check` that are settings of the server.

use lifeboat_postgres::live::server::ServerFacts;

use super::check::Point;
use crate::app::App;
use crate::error::CliError;
use crate::server_commands::setting;

/// Looks at every setting that matters.
pub(crate) fn points(app: &App, facts: &ServerFacts) -> Result<Vec<Point>, CliError> {
    let wanted = app.server_commands()?.archive();
    Ok(vec![
        wal_level(facts),
        archive_mode(facts),
        archive_command(facts, &wanted, &app.settings()?.file.display().to_string()),
        switched_on(
            facts,
            "full_page_writes",
            "a crash while a backup runs would leave torn pages",
        ),
        switched_on(facts, "fsync", "a crash of the machine can destroy the database itself"),
        checksums(facts),
        archiver(facts),
    ])
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
        Some("off") => Point::failed("archive_mode", "off", "archive_mode = 'on', and a restart"),
        Some(mode) => Point::good("archive_mode", mode),
        None => hidden("archive_mode"),
    }
}

fn archive_command(facts: &ServerFacts, wanted: &str, config: &str) -> Point {
    const NAME: &str = "archive_command";
    if let Some(library) = facts.setting("archive_library").filter(|library| !library.is_empty()) {
        let found = format!("archive_library `{library}` is used instead");
        return Point::failed(NAME, found, "archive_library = '', and a restart");
    }
    let help = || format!("{}\nthen: SELECT pg_reload_conf()", setting(NAME, wanted));
    match facts.setting(NAME) {
        None => hidden(NAME),
        Some("" | "(disabled)") => Point::failed(NAME, "not set", help()),
        Some(command) if command == wanted => {
            Point::good(NAME, "this lifeboat and this configuration")
        }
        Some(command) if command.contains("wal push") && command.contains("%p") => {
            let here = config.replace('%', "%%");
            if command.contains(&here) {
                Point::good(NAME, command)
            } else {
                Point::note(NAME, command, format!("it does not name this configuration, {config}"))
            }
        }
        Some(command) => Point::failed(NAME, format!("`{command}` is not lifeboat"), help()),
    }
}

fn switched_on(facts: &ServerFacts, name: &'static str, why: &str) -> Point {
    match facts.setting(name) {
        Some("on") => Point::good(name, "on"),
        Some(value) => Point::failed(name, value, format!("{name} = 'on': {why}")),
        None => hidden(name),
    }
}

fn checksums(facts: &ServerFacts) -> Point {
    const NAME: &str = "checksums";
    match facts.setting("data_checksums") {
        Some("on") => Point::good(NAME, "on"),
        _ => Point::note(
            NAME,
            "off: damage on the server's disk may go unseen",
            "pg_checksums --enable, with the server stopped",
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
