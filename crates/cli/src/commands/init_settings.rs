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
    /// Why it is not to be set through this connection; `None` when it may be.
    pub not_here: Option<&'static str>,
    /// Whether it was set.
    pub made: bool,
    /// Whether the role was not allowed to set it.
    pub refused: bool,
}

impl Setting {
    /// Whether it was set, and takes effect only later.
    pub fn waits_for_restart(&self) -> bool {
        self.restart && !self.holds && self.not_here.is_none()
    }

    /// Whether somebody still has to set it.
    fn is_left(&self, applied: bool) -> bool {
        !self.holds && (!applied || self.refused || self.not_here.is_some())
    }
}

/// The settings that are wanted, with what is there. Of a server that is `far`, nobody here sees
/// whether there is a lifeboat on its machine.
pub(crate) fn wanted(facts: &ServerFacts, commands: &ServerCommands, far: bool) -> Vec<Setting> {
    let one = |name, value: String, good: &[&str], restart, optional| {
        let current = facts.setting(name).map(str::to_owned);
        let holds = current.as_deref().is_some_and(|now| now == value || good.contains(&now));
        let not_here = match name {
            "restore_command" => None,
            _ if facts.in_recovery => Some("the server is a standby, and this is its primary's"),
            "archive_mode" | "archive_command" if far => {
                Some("whether lifeboat is on the server's machine cannot be seen from here")
            }
            _ => None,
        };
        Setting {
            name,
            value,
            current,
            holds,
            restart,
            optional,
            not_here,
            made: false,
            refused: false,
        }
    };
    let mut settings = vec![
        one("wal_level", "replica".to_owned(), &["replica", "logical"], true, false),
        one("full_page_writes", "on".to_owned(), &[], false, false),
        one("archive_mode", "on".to_owned(), &["always"], true, false),
        one("archive_command", commands.archive(), &[], false, false),
    ];
    if far {
        // Whatever its configuration is called there.
        let is_ours = |setting: &Setting| {
            let current = setting.current.as_deref().unwrap_or("");
            current.contains("wal push") && current.contains("%p")
        };
        settings.iter_mut().for_each(|setting| setting.holds |= is_ours(setting));
    } else {
        settings.push(one("restore_command", commands.restore(), &[], false, true));
    }
    settings
}

/// Sets what does not hold and may be set here, reloads, and looks what a restart is still needed
/// for. What the role may not set is marked as refused.
pub(crate) fn apply(session: &mut Session, settings: &mut [Setting]) -> Result<(), LiveError> {
    const DOING: &str = "setting it with ALTER SYSTEM (a superuser may)";
    for setting in settings.iter_mut().filter(|s| !s.holds && s.not_here.is_none()) {
        let value = setting.value.replace('\'', "''");
        let sql = format!("ALTER SYSTEM SET {} = '{value}'", setting.name);
        match session.ask_all(DOING, &sql, &[]) {
            Ok(_) => setting.made = true,
            Err(LiveError::Privilege { .. }) => setting.refused = true,
            Err(error) => return Err(error),
        }
    }
    if settings.iter().any(|setting| setting.made) {
        session.ask("reloading the configuration", "SELECT pg_catalog.pg_reload_conf()", &[])?;
    }
    for setting in settings.iter_mut().filter(|setting| setting.made && !setting.restart) {
        setting.holds = true; // takes effect with the reload
    }
    Ok(())
}

/// What is to be set, as lines for postgresql.conf.
pub(crate) fn text(page: &mut Page, settings: &[Setting], applied: bool) {
    done(page, settings, applied);
    if settings.iter().all(|setting| setting.holds && !setting.made) {
        let tick = page.tick();
        page.line(format!("{tick} PostgreSQL's settings are as they should be"));
        return;
    }
    let how = if applied { "" } else { " (or run this again with --apply --force)" };
    lines(page, &format!("Set in postgresql.conf{how}:"), settings, applied);
}

/// What `--apply` did, and what it did not.
pub(crate) fn done(page: &mut Page, settings: &[Setting], applied: bool) {
    if !applied {
        return;
    }
    let (tick, note, cross) = (page.tick(), page.note(), page.cross());
    let made: Vec<&str> = settings.iter().filter(|s| s.made).map(|s| s.name).collect();
    if !made.is_empty() {
        page.line(format!("{tick} set by ALTER SYSTEM: {}", made.join(", ")));
    }
    for setting in settings.iter().filter(|setting| !setting.holds) {
        let name = setting.name;
        match (setting.not_here, setting.refused) {
            (Some(why), _) => page.line(format!("{note} {name} is not set: {why}")),
            (None, true) => {
                let why = "the role may not (ALTER SYSTEM is for superusers)";
                page.line(format!("{cross} {name} is not set: {why}"));
            }
            (None, false) => {
                page.line(format!("{note} {name} takes effect with the next restart"));
            }
        }
    }
}

/// Those of the settings that somebody still has to make, as lines under a heading.
pub(crate) fn lines<'a>(
    page: &mut Page,
    heading: &str,
    settings: impl IntoIterator<Item = &'a Setting>,
    applied: bool,
) {
    let missing: Vec<_> = settings.into_iter().filter(|s| s.is_left(applied)).collect();
    if missing.is_empty() {
        return;
    }
    page.line("");
    page.line(heading);
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
