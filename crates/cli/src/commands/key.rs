//! `lifeboat key`

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_postgres::live::cluster::Account;
use lifeboat_repo::repository::identify;
use lifeboat_repo::{Protection, keys};
use lifeboat_store::Store;
use serde::Serialize;

use crate::app::{Access, App};
use crate::error::{CliError, usage};
use crate::exit::Outcome;
use crate::files;
use crate::secrets;
use crate::ui::{Page, Report};

/// Manage the repository's key slots and this host's key
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  lifeboat key list\n  \
    lifeboat key add office --new-passphrase-file /root/office\n  lifeboat key remove first")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the key slots: each opens the repository with a passphrase of its own
    #[command(after_help = "Example:\n  lifeboat key list")]
    List,
    /// Add a key slot, with a passphrase of its own
    #[command(after_help = "Example:\n  \
        lifeboat key add office --new-passphrase-file /root/office")]
    Add {
        /// Its name
        name: String,
        /// A file whose first line is the new passphrase; asked for at a terminal otherwise
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Remove a key slot; whoever unlocked the keys before still has them
    #[command(after_help = "Example:\n  lifeboat key remove first")]
    Remove {
        /// Its name
        name: String,
    },
    /// Write this host's key file anew, with the passphrase
    #[command(after_help = "Example:\n  lifeboat key unlock")]
    Unlock,
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let settings = app.settings()?;
    let store: Arc<dyn Store> = Arc::from(lifeboat_store::url::open(settings.url()?)?);
    let id = identify(store.as_ref())?;
    let mut done = match &args.command {
        Command::List => "",
        Command::Add { .. } => "added",
        Command::Remove { .. } => "removed",
        Command::Unlock => "this host's key is written",
    };
    match &args.command {
        Command::List => {}
        Command::Add { name, new_passphrase_file } => {
            app.as_owner_of_repository()?;
            let opened = app.open(Access::Read)?;
            let passphrase = match new_passphrase_file {
                Some(path) => secrets::from_file(path)?,
                None if !secrets::can_ask() => {
                    return Err(usage(
                        "the passphrase of the new slot is not given, and nobody can be asked",
                        "name a file whose first line it is: --new-passphrase-file FILE",
                    )
                    .into());
                }
                None => secrets::ask("passphrase of the new slot", true)?,
            };
            let repository = opened.cluster.repository();
            repository.keyring().add_slot(
                store.as_ref(),
                name,
                &Protection::Passphrase(&passphrase),
                repository.entropy(),
            )?;
        }
        Command::Remove { name } => keys::remove_slot(store.as_ref(), name)?,
        Command::Unlock => {
            let keyring = app.unlock(store.as_ref(), id, true)?;
            keyring.write_file(&settings.key_file, false)?;
            if let Ok(owner) = std::fs::metadata(store.location()) {
                let owner = Account { uid: owner.uid(), gid: owner.gid() };
                files::give(&settings.key_file, owner)?;
            }
        }
    }
    if app.ui.quiet {
        done = "";
    }
    let damaged = keys::damaged_slots(store.as_ref())?;
    app.ui.emit(&Slots {
        repository: store.location(),
        done,
        slots: keys::slots(store.as_ref())?,
        damaged: damaged.into_iter().map(|(slot, why)| (slot, why.to_string())).collect(),
    })?;
    Ok(Outcome::Done)
}

/// The key slots.
#[derive(Debug, Serialize)]
struct Slots {
    repository: String,
    #[serde(skip)]
    done: &'static str,
    slots: Vec<String>,
    /// What is wrong with those that cannot open, by name.
    damaged: BTreeMap<String, String>,
}

impl Report for Slots {
    fn text(&self, page: &mut Page) {
        if !self.done.is_empty() {
            let tick = page.tick();
            page.line(format!("{tick} {}", self.done));
        }
        page.line(format!("key slots of {}:", self.repository));
        for slot in &self.slots {
            match self.damaged.get(slot) {
                None => page.line(format!("  {slot}")),
                Some(why) => {
                    let cross = page.cross();
                    page.line(format!("{cross} {slot}: {why}"));
                }
            }
        }
    }
}
