//! What commands share: settings, the repository and its keys, the engine.

use std::cell::OnceCell;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_jobs::wal::RECOVERY_KEY_FILE;
use lifeboat_jobs::wal::push::ack::{Errand, Settings as PushWords, Target};
use lifeboat_jobs::{Ports, log_transforms};
use lifeboat_postgres::engine::PostgresEngine;
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin};
use lifeboat_postgres::live::cluster::{Account, Places};
use lifeboat_postgres::live::conninfo::{Conninfo, Wanted};
use lifeboat_repo::repository::identify;
use lifeboat_repo::{Cluster, Keyring, RepoError, Repository, RepositoryId, SystemEntropy};
use lifeboat_store::Store;
use lifeboat_units::{Cancel, SystemClock};

use crate::args::Global;
use crate::config::{self, Settings};
use crate::error::{CliError, Trouble};
use crate::files;
use crate::progress::Terminal;
use crate::secrets;
use crate::server_commands::ServerCommands;
use crate::ui::Ui;

/// What a command needs of the repository's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Add and list; the host's key file is enough.
    Write,
    /// Read content too: the private key, unlocked by the passphrase.
    Read,
    /// As `Read`, for `wal get`: the keys that a restore left are tried first, and nobody is asked.
    Recovery,
}

/// Everything that is singular.
pub(crate) struct App {
    /// Flags that all commands have.
    pub global: Global,
    /// Where output goes.
    pub ui: Ui,
    /// Set by Ctrl-C.
    pub cancel: Cancel,
    /// The time.
    pub clock: SystemClock,
    settings: OnceCell<Settings>,
}

impl App {
    /// Reads nothing yet: commands that need no configuration work without.
    pub fn new(global: Global, cancel: Cancel) -> Self {
        let ui = Ui::new(global.json, global.quiet, global.color);
        Self { global, ui, cancel, clock: SystemClock::default(), settings: OnceCell::new() }
    }

    /// The settings, read when first asked for.
    pub fn settings(&self) -> Result<&Settings, CliError> {
        if let Some(settings) = self.settings.get() {
            return Ok(settings);
        }
        let settings = config::load(self.global.config.as_deref(), &self.global.set)?;
        Ok(self.settings.get_or_init(|| settings))
    }

    /// The engine, with the places where binaries may be.
    pub fn engine(&self) -> Result<PostgresEngine, CliError> {
        let settings = self.settings()?;
        let engine = PostgresEngine::new(places(settings.binaries.clone()));
        let role = self.conninfo().map(|conninfo| conninfo.user);
        Ok(match role {
            Ok(role) => engine.with_role(role),
            Err(_) => engine,
        })
    }

    /// How to reach the server.
    pub fn conninfo(&self) -> Result<Conninfo, CliError> {
        Ok(Conninfo::read(&self.settings()?.conninfo, &config::connection_variable)?)
    }

    /// How a backup treats its server; a standby will do unless a primary is wanted.
    pub fn origin_options(&self, wanted: Wanted) -> Result<OriginOptions, CliError> {
        let settings = self.settings()?;
        let read = |text: &String| Conninfo::read(text, &config::connection_variable);
        Ok(OriginOptions {
            data_directory: settings.data_directory.clone(),
            standby: wanted != Wanted::Primary,
            primary: settings.primary.as_ref().map(read).transpose()?,
            patience: settings.archive_timeout,
            cancel: self.cancel.clone(),
            ..OriginOptions::default()
        })
    }

    /// Connects to the server as a backup does; to a standby unless a primary is wanted.
    pub fn origin(&self, wanted: Wanted) -> Result<PostgresOrigin, CliError> {
        let options = self.origin_options(wanted)?;
        let mut conninfo = self.conninfo()?;
        if wanted != Wanted::Any {
            conninfo.wanted = wanted;
        }
        Ok(PostgresOrigin::connect(conninfo, options)?)
    }

    /// The commands that PostgreSQL is to run.
    pub fn server_commands(&self) -> Result<ServerCommands, CliError> {
        Ok(ServerCommands::new(&self.settings()?.file, &self.global.set)?)
    }

    /// To which repository and cluster WAL is pushed, and with which settings.
    pub fn push_errand(&self) -> Result<Errand, CliError> {
        let settings = self.settings()?;
        Ok(Errand {
            target: Target::of(settings.url()?, settings.cluster.as_str()),
            settings: PushWords::of(&settings.file, &self.global.set),
        })
    }

    /// Opens the repository.
    pub fn open(&self, access: Access) -> Result<Opened, CliError> {
        let settings = self.settings()?;
        let store: Arc<dyn Store> = Arc::from(lifeboat_store::url::open(settings.url()?)?);
        let id = identify(store.as_ref())?;
        let keyring = self.keyring(store.as_ref(), id, access)?;
        let repository = Repository::open(store, keyring, Arc::new(SystemEntropy))?;
        let engine = self.engine()?;
        Ok(Opened {
            cluster: repository
                .cluster(settings.cluster.clone())
                .with_log_transforms(log_transforms(&engine)),
            engine,
            progress: Terminal::new(!self.global.quiet && !self.global.json),
        })
    }

    /// As root, starts this command again as the owner of the repository, and does not return:
    /// what root wrote there, the server could neither read nor extend.
    pub fn as_owner_of_repository(&self) -> Result<(), CliError> {
        // Others touch nothing here: a repository that hangs must not hold the server's calls.
        if Account::own().uid != 0 {
            return Ok(());
        }
        let owner = self.owner_of_repository()?.filter(|owner| owner.uid != 0);
        let Some(owner) = owner else { return Ok(()) };
        let program = Path::new("/proc/self/exe");
        let program = std::fs::read_link(program).map_err(files::failed("find", program))?;
        let mut command = owner.command(&program);
        let error = command.args(std::env::args_os().skip(1)).exec();
        Err(files::failed("run, as the owner of the repository,", &program)(error).into())
    }

    /// Who owns the repository: as a rule the server's user. `None` where that cannot be seen.
    pub fn owner_of_repository(&self) -> Result<Option<Account>, CliError> {
        let store = lifeboat_store::url::open(self.settings()?.url()?)?;
        let metadata = std::fs::metadata(store.location()).ok();
        Ok(metadata.map(|metadata| Account { uid: metadata.uid(), gid: metadata.gid() }))
    }

    fn keyring(
        &self,
        store: &dyn Store,
        id: RepositoryId,
        access: Access,
    ) -> Result<Keyring, CliError> {
        let settings = self.settings()?;
        let mut files = vec![settings.key_file.clone()];
        if access == Access::Recovery {
            files.insert(0, PathBuf::from(RECOVERY_KEY_FILE));
        }
        for file in files.iter().filter(|file| file.exists()) {
            let keyring = read_key_file(store, id, file)?;
            if access == Access::Write || keyring.identity.is_some() {
                return Ok(keyring);
            }
        }
        self.unlock(store, id, access != Access::Recovery)
    }

    /// Unlocks the keys in the repository: with the passphrase that is configured, otherwise as
    /// they are when they are open, otherwise with one for which a person may be asked.
    ///
    /// A configured passphrase comes first: where one is expected, keys that lie open were put
    /// there by somebody else.
    pub fn unlock(
        &self,
        store: &dyn Store,
        id: RepositoryId,
        may_ask: bool,
    ) -> Result<Keyring, CliError> {
        let settings = self.settings()?;
        if let Some(path) = settings.passphrase_file.as_deref().filter(|p| secrets::is_public(p)) {
            self.ui.warn(&format!("everybody can read the passphrase file `{}`", path.display()));
        }
        if let Some(passphrase) = secrets::configured(settings)? {
            return Ok(Keyring::unlock(store, id, Some(&passphrase))?);
        }
        match Keyring::unlock(store, id, None) {
            Err(RepoError::WrongPassphrase { .. }) if may_ask => {
                let passphrase = secrets::ask("passphrase of the repository", false)?;
                Ok(Keyring::unlock(store, id, Some(&passphrase))?)
            }
            Err(RepoError::WrongPassphrase { .. }) => Err(Trouble::NoPassphrase.into()),
            unlocked => Ok(unlocked?),
        }
    }
}

/// Reads a file of unlocked keys that nobody else can read.
fn read_key_file(store: &dyn Store, id: RepositoryId, path: &Path) -> Result<Keyring, CliError> {
    if let Ok(metadata) = std::fs::metadata(path) {
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Trouble::KeyFileMode { path: path.to_owned(), mode }.into());
        }
    }
    Ok(Keyring::read_file(store, id, path)?)
}

/// Where binaries may be: a directory that was named, those of `LIFEBOAT_TOOLS`, the usual ones.
pub(crate) fn places(given: Option<PathBuf>) -> Places {
    let tools = config::variable("LIFEBOAT_TOOLS").map(|tools| PathBuf::from(tools).join("pg"));
    Places { given, by_major: tools.into_iter().collect(), path: config::variable("PATH") }
}

/// An open repository and what jobs need beside it.
pub(crate) struct Opened {
    /// The cluster's part.
    pub cluster: Cluster,
    /// What knows PostgreSQL.
    pub engine: PostgresEngine,
    /// Hears how far a job is.
    pub progress: Terminal,
}

impl Opened {
    /// What every job is given.
    pub fn ports<'a>(&'a self, app: &'a App) -> Ports<'a> {
        Ports {
            cluster: &self.cluster,
            engine: &self.engine,
            clock: &app.clock,
            progress: &self.progress,
            cancel: &app.cancel,
        }
    }
}
