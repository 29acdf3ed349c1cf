//! What `init` made, and what is left to do.

use std::path::PathBuf;

use serde::Serialize;

use super::check::{Point, State};
use super::init_settings::{self, Setting};
use crate::server_commands::shell_word;
use crate::ui::{Page, Report};

/// What was made, and what is left to do.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    pub config: PathBuf,
    pub key_file: PathBuf,
    pub repository: String,
    pub repository_is_new: bool,
    pub encrypted: bool,
    pub cluster: String,
    pub system_id: String,
    pub server_version: String,
    /// `None` when it cannot be read here.
    pub data_directory: Option<PathBuf>,
    /// How a server is reached whose data directory cannot be read here.
    pub remote: Option<Remote>,
    pub standby: bool,
    pub checksums: bool,
    pub applied: bool,
    pub settings: Vec<Setting>,
    pub restart_needed: bool,
}

/// A server that is reached only through the network.
#[derive(Debug, Serialize)]
pub(super) struct Remote {
    /// Connection string, without a password.
    pub server: String,
    /// Why its data directory cannot be read here.
    pub why: String,
    /// Whether it is on this machine.
    pub is_near: bool,
    /// What stands in the way of backups.
    pub troubles: Vec<Point>,
    /// The command that receives WAL where nothing runs on the server's machine.
    pub receive_command: String,
    /// The replication slot that it makes.
    pub slot: &'static str,
}

impl Report for Made {
    fn text(&self, page: &mut Page) {
        self.what(page);
        match &self.remote {
            Some(remote) => self.far(page, remote),
            None if self.standby => {
                let heads = [
                    "On the primary's machine, unless it archives into this repository already, \
                     set in postgresql.conf:",
                    "Set in postgresql.conf here:",
                ];
                let (there, here) = self.places();
                init_settings::done(page, &self.settings, self.applied);
                init_settings::lines(page, heads[0], there, self.applied);
                init_settings::lines(page, heads[1], here, self.applied);
            }
            None => init_settings::text(page, &self.settings, self.applied),
        }
        page.line("");
        if self.encrypted {
            page.line("Keep the passphrase somewhere else too: without it no backup can be read.");
        }
        let restart =
            if self.restart_needed { "Restart PostgreSQL, then prove" } else { "Now prove" };
        let config = shell_word(&self.config.display().to_string());
        page.line(format!("{restart} that it works, and take the first backup:"));
        page.line(format!("  lifeboat --config {config} check"));
        page.line(format!("  lifeboat --config {config} backup"));
    }
}

impl Made {
    /// The settings that are not to be made through this connection, and those that are.
    fn places(&self) -> (Vec<&Setting>, Vec<&Setting>) {
        self.settings.iter().partition(|setting| setting.not_here.is_some())
    }

    fn what(&self, page: &mut Page) {
        let (tick, note) = (page.tick(), page.note());
        let made = if self.repository_is_new { "made" } else { "found" };
        let keys = if self.encrypted { "encrypted by your passphrase" } else { "NOT encrypted" };
        let place = match (&self.data_directory, &self.remote) {
            (Some(directory), _) => format!("in {}", directory.display()),
            (None, Some(remote)) => format!("at {}", remote.server),
            (None, None) => String::new(),
        };
        page.line(format!(
            "{tick} PostgreSQL {} {place}, system {}",
            self.server_version, self.system_id
        ));
        if self.standby {
            page.line(format!("{note} it is a standby: its primary archives the WAL"));
        }
        page.line(format!("{tick} repository {made} in {}, {keys}", self.repository));
        page.line(format!("{tick} configuration {}", self.config.display()));
        page.line(format!("{tick} this host's key {}", self.key_file.display()));
        if !self.checksums {
            page.line(format!(
                "{note} the server has no page checksums: damage on its disk may go unseen"
            ));
        }
    }

    fn far(&self, page: &mut Page, remote: &Remote) {
        let note = page.note();
        page.line(format!("{note} backups come through the network: {}", remote.why));
        if remote.is_near {
            page.line(
                "  to have the data directory read instead, run init as its owner, with a role that \
                 may see where it is (pg_read_all_settings)",
            );
        }
        for point in &remote.troubles {
            let mark = if point.state == State::Failed { page.cross() } else { page.note() };
            page.line(format!("{mark} {}: {}", point.name, point.found));
            for line in point.help.iter().flat_map(|help| help.trim_end().lines()) {
                page.line(format!("  {line}"));
            }
        }
        init_settings::done(page, &self.settings, self.applied);
        let (there, anywhere) = self.places();
        let head = "Set in the server's postgresql.conf:";
        init_settings::lines(page, head, anywhere, self.applied);
        if there.iter().all(|setting| setting.holds) {
            let tick = page.tick();
            page.line(format!("{tick} the server's archive_command is lifeboat's"));
            page.line(
                "  `lifeboat check` sees whether what it archives arrives in this repository",
            );
            return;
        }
        let whose = if self.standby { "the primary's" } else { "the server's" };
        page.line("");
        page.line("WAL has to reach the repository in one of two ways (or both):");
        let head = format!(
            "1. from {whose} machine, when it reaches the repository: put lifeboat, this\n   \
             configuration and this key there under the same names, and set in postgresql.conf"
        );
        init_settings::lines(page, &head, there, self.applied);
        page.line("");
        page.line(format!("2. from this machine, with nothing on {whose}: run as a service"));
        page.line("");
        page.line(format!("  {}", remote.receive_command));
        page.line("");
        page.line(format!(
            "   It makes the replication slot `{}`; while nobody receives, the server keeps all \
             WAL for it.",
            remote.slot
        ));
    }
}
