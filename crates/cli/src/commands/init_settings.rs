//! The settings that archiving needs, for `init`: what is wanted, what is there, setting them.

use lifeboat_postgres::live::error::LiveError;
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;
use serde::Serialize;

use crate::server_commands::{ServerCommands, setting};
use crate::ui::Page;

/// A setting of the server and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What it should be.
    pub value: String,
    /// What it is.
    pub current: Option<String>,
    /// Whether it is as it should be.
    pub holds: bool,
    /// Whether a change takes a restart.
    pub restart: bool,
    /// Whether archiving works without it.
    pub optional: bool,
}

/// The settings that are wanted, with what is there.
pub(crate) fn wanted(facts: &ServerFacts, commands: &ServerCommands) -> Vec<Setting> {
    let one = |name, value: String, good: &[&str], restart, optional| {
        let current = facts.setting(name).map(str::to_owned);
        let holds = current.as_deref().is_some_and(|now| now == value || good.contains(&now));
        Setting { name, value, current, holds, restart, optional }
    };
    vec![
        one("wal_level", "replica".to_owned(), &["replica", "logical"], true, false),
        one("full_page_writes", "on".to_owned(), &[], false, false),
        one("archive_mode", "on".to_owned(), &["always"], true, false),
        one("archive_command", commands.archive(), &[], false, false),
        one("restore_command", commands.restore(), &[], false, true),
    ]
}

/// Sets what does not hold, reloads, and looks what a restart is still needed for.
pub(crate) fn apply(session: &mut Session, settings: &mut [Setting]) -> Result<(), LiveError> {
    const DOING: &str = "setting it with ALTER SYSTEM (a superuser may)";
    for setting in settings.iter().filter(|setting| !setting.holds) {
        let value = setting.value.replace('\'', "''");
        session.ask_all(DOING, &format!("ALTER SYSTEM SET {} = '{value}'", setting.name), &[])?;
    }
    session.ask("reloading the configuration", "SELECT pg_catalog.pg_reload_conf()", &[])?;
    for setting in settings.iter_mut().filter(|setting| !setting.restart) {
        setting.holds = true; // takes effect with the reload
    }
    Ok(())
}

/// What is to be set, as lines for postgresql.conf.
pub(crate) fn text(page: &mut Page, settings: &[Setting], applied: bool) {
    let missing: Vec<&Setting> = settings.iter().filter(|setting| !setting.holds).collect();
    let tick = page.tick();
    if applied {
        page.line(format!("{tick} the settings are made, by ALTER SYSTEM"));
        for setting in missing {
            let note = page.note();
            page.line(format!("{note} {} takes effect with the next restart", setting.name));
        }
        return;
    }
    if missing.is_empty() {
        page.line(format!("{tick} PostgreSQL's settings are as they should be"));
        return;
    }
    page.line("");
    page.line("Set in postgresql.conf (or run this again with --apply --force):");
    page.line("");
    for wanted in missing {
        let remark = match (wanted.restart, wanted.optional) {
            (true, _) => "   # needs a restart",
            (_, true) => "   # for standbys and manual recovery",
            _ => "",
        };
        page.line(format!("{}{remark}", setting(wanted.name, &wanted.value)));
    }
}
