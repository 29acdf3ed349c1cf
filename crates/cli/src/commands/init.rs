//! `lifeboat init`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_engine::{ClusterIdentity, Origin};
use lifeboat_jobs::succession;
use lifeboat_postgres::live::backup::{OriginOptions, PostgresOrigin};
use lifeboat_postgres::live::cluster::{Account, Binaries, Places, running_postmaster};
use lifeboat_postgres::live::conninfo::Conninfo;
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_repo::repository::identify;
use lifeboat_repo::{
    Cluster, ClusterName, Keyring, Protection, RepoError, Repository, SystemEntropy,
};
use lifeboat_store::Store;
use lifeboat_units::{Clock, Secret};
use serde::Serialize;

use super::init_settings::{self, Setting};
use crate::app::{self, App};
use crate::config::{self, PLACES, sample};
use crate::error::{CliError, Trouble, usage};
use crate::exit::Outcome;
use crate::files;
use crate::secrets;
use crate::server_commands::{ServerCommands, shell_word};
use crate::ui::{Page, Report};

/// Connect to a server, make the repository and its keys, write the configuration
///
/// Writes the file that --config names (otherwise ./lifeboat.toml, as root
/// /etc/lifeboat/lifeboat.toml) and beside it this host's key. Then prints what to set in
/// PostgreSQL, or sets it with --apply. A repository that is there already is used, when the
/// passphrase opens it.
///
/// The repository is encrypted by a passphrase: from --passphrase-file, from LIFEBOAT_PASSPHRASE,
/// or asked for at a terminal. Whoever loses it loses the backups.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  \
    sudo -u postgres lifeboat --config /etc/lifeboat/lifeboat.toml init \\\n    \
    --pg 'host=/run/postgresql user=postgres' --repo file:///srv/lifeboat --apply")]
pub(crate) struct Args {
    /// Name of this cluster in the repository
    #[arg(long, value_name = "NAME", default_value = config::keys::CLUSTER.default, value_parser = cluster_name)]
    name: ClusterName,
    /// How to connect, as libpq reads it [default: the PG… variables and libpq's defaults]
    #[arg(long, value_name = "CONNINFO", default_value = "", hide_default_value = true)]
    pg: String,
    /// Where the repository is or is to be, such as file:///srv/lifeboat
    #[arg(long, value_name = "URL")]
    repo: String,
    /// A file whose first line is the passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    passphrase_file: Option<PathBuf>,
    /// Make a repository that everybody who can read its files can read
    #[arg(long)]
    no_encryption: bool,
    /// Set archive_mode, archive_command and restore_command by ALTER SYSTEM, and reload
    #[arg(long)]
    apply: bool,
    /// After pg_upgrade to a new host: this server continues the cluster of this name
    #[arg(long)]
    r#continue: bool,
    /// Replace a configuration and a key file that are there already
    #[arg(long)]
    force: bool,
}

fn cluster_name(text: &str) -> Result<ClusterName, String> {
    text.parse().map_err(|_| "it has 1 to 64 of a-z, 0-9, `-` and `_`".to_owned())
}

pub(crate) fn run(app: &App, args: &Args) -> Result<Outcome, CliError> {
    let file = place(app)?;
    if file.exists() && !args.force {
        return Err(Trouble::ConfigExists { path: file }.into());
    }
    let mut server = Server::look(args)?;
    let passphrase = passphrase(args)?;
    let made = make_repository(app, args, passphrase.as_ref(), &server)?;
    let key_file = file.with_file_name("lifeboat.key");
    write_files(args, &file, &key_file, &server, &made)?;
    if args.r#continue {
        succession::record(&made.cluster, app.clock.now(), &server.identity)?;
    }
    let commands = ServerCommands::new(&file, &[])?;
    let mut settings = init_settings::wanted(&server.facts, &commands);
    if args.apply {
        init_settings::apply(server.origin.session()?, &mut settings)?;
    }
    app.ui.emit(&Made {
        config: file,
        key_file,
        repository: made.cluster.store().location(),
        repository_is_new: made.is_new,
        encrypted: !args.no_encryption,
        cluster: args.name.to_string(),
        system_id: server.identity.system_id.to_string(),
        server_version: server.facts.version.clone(),
        data_directory: server.origin.data_directory().to_owned(),
        checksums: server.identity.checksums,
        applied: args.apply,
        restart_needed: settings.iter().any(|setting| setting.restart && !setting.holds),
        settings,
    })?;
    Ok(Outcome::Done)
}

/// Where the configuration goes.
fn place(app: &App) -> Result<PathBuf, CliError> {
    let default = if Account::own().uid == 0 { PLACES[1] } else { PLACES[0] };
    let named = app.global.config.clone();
    let named = named.or_else(|| config::variable(config::CONFIG_VARIABLE).map(PathBuf::from));
    let path = named.unwrap_or_else(|| PathBuf::from(default));
    Ok(std::path::absolute(&path).map_err(files::failed("find", &path))?)
}

/// The server as it was found.
struct Server {
    conninfo: String,
    origin: PostgresOrigin,
    identity: ClusterIdentity,
    facts: ServerFacts,
    owner: Account,
}

impl Server {
    fn look(args: &Args) -> Result<Self, CliError> {
        let conninfo = Conninfo::read(&args.pg, &config::connection_variable)?;
        if Conninfo::read(&args.pg, &|name| (name == "USER").then(|| "x".into()))
            .is_ok_and(|given| given.hosts.iter().any(|host| host.password.is_some()))
        {
            return Err(usage(
                "--pg holds a password, which everybody who can list processes sees",
                "put it into a password file (~/.pgpass, mode 0600) or PGPASSWORD",
            )
            .into());
        }
        // What came from the environment now will not be there when PostgreSQL archives.
        let text = if args.pg.is_empty() { conninfo.to_string() } else { args.pg.clone() };
        let mut origin = PostgresOrigin::connect(conninfo, OriginOptions::default())?;
        let identity = origin.identity()?;
        let facts = ServerFacts::read(origin.session()?)?;
        let owner = Account::owner_of(origin.data_directory())?;
        Ok(Self { conninfo: text, origin, identity, facts, owner })
    }
}

impl Server {
    /// Where the running server's programs are, when they would not be found there.
    fn unusual_binaries(&self) -> Option<PathBuf> {
        let major = self.identity.major;
        let plain = Places { by_major: Vec::new(), ..app::places(None) };
        if Binaries::find(major, &plain).is_ok() {
            return None;
        }
        let server = running_postmaster(self.origin.data_directory()).ok()??;
        let program = std::fs::read_link(format!("/proc/{}/exe", server.pid)).ok()?;
        let given = program.parent().map(Path::to_owned);
        let found = Binaries::find(major, &Places { given, ..plain }).ok()?;
        Some(found.directory().to_owned())
    }
}

/// How the keys are to be protected; `None` without encryption.
fn passphrase(args: &Args) -> Result<Option<Secret>, CliError> {
    if args.no_encryption {
        return Ok(None);
    }
    let found = match &args.passphrase_file {
        Some(path) => secrets::from_file(path)?,
        None => match config::variable(secrets::VARIABLE) {
            Some(text) => Secret::new(text),
            None => secrets::ask("passphrase for the repository", true)?,
        },
    };
    Ok(Some(found))
}

/// The repository, made or found.
struct Repo {
    cluster: Cluster,
    keyring: Keyring,
    is_new: bool,
}

fn make_repository(
    app: &App,
    args: &Args,
    passphrase: Option<&Secret>,
    server: &Server,
) -> Result<Repo, CliError> {
    let store: Arc<dyn Store> = Arc::from(lifeboat_store::url::create(&args.repo)?);
    let entropy = Arc::new(SystemEntropy);
    let (repository, is_new) = match identify(store.as_ref()) {
        Ok(id) => {
            let keyring = Keyring::unlock(store.as_ref(), id, passphrase)?;
            (Repository::open(store, keyring, entropy)?, false)
        }
        Err(RepoError::Missing { .. }) => {
            let protection = passphrase.map_or(Protection::Open, Protection::Passphrase);
            let made = Repository::create(store, &protection, app.clock.now(), entropy)?;
            (made, true)
        }
        Err(other) => return Err(other.into()),
    };
    if is_new && let Some(path) = local_path(&args.repo) {
        files::give(path, server.owner)?;
    }
    let cluster = repository.cluster(args.name.clone());
    if !args.r#continue {
        refuse_other_system(&cluster, &server.identity)?;
    }
    Ok(Repo { keyring: repository.keyring().clone(), cluster, is_new })
}

/// The directory of a local repository, when its address needs no decoding.
fn local_path(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    (path.starts_with('/') && !path.contains('%')).then(|| Path::new(path))
}

/// Two servers under one name would make each other's backups worthless.
fn refuse_other_system(cluster: &Cluster, identity: &ClusterIdentity) -> Result<(), CliError> {
    let Some(current) = succession::current(cluster)? else { return Ok(()) };
    if current.system == identity.system_id {
        return Ok(());
    }
    let message = format!(
        "cluster `{}` in this repository is system {}, but this server is system {}",
        cluster.name(),
        current.system,
        identity.system_id
    );
    let help = "give this server another name: --name NAME; or, when it is what became of that \
                one, as after pg_upgrade: --continue";
    Err(usage(message, help).into())
}

fn write_files(
    args: &Args,
    file: &Path,
    key_file: &Path,
    server: &Server,
    made: &Repo,
) -> Result<(), CliError> {
    let store = made.cluster.store();
    let foreign = || Keyring::read_file(store, made.keyring.repository, key_file).is_err();
    if key_file.exists() && !args.force && foreign() {
        return Err(Trouble::ConfigExists { path: key_file.to_owned() }.into());
    }
    let passphrase_file = match &args.passphrase_file {
        Some(path) => Some(std::path::absolute(path).map_err(files::failed("find", path))?),
        None => None,
    };
    let binaries = server.unusual_binaries();
    let written = sample::Written {
        binaries: binaries.as_deref().and_then(Path::to_str),
        cluster: args.name.as_str(),
        conninfo: &server.conninfo,
        url: &args.repo,
        passphrase_file: passphrase_file.as_deref().and_then(Path::to_str),
    };
    made.keyring.write_file(key_file, args.no_encryption)?;
    files::give(key_file, server.owner)?;
    files::write(file, &written.text(), 0o644)?;
    Ok(files::give(file, server.owner)?)
}

/// What was made, and what is left to do.
#[derive(Debug, Serialize)]
struct Made {
    config: PathBuf,
    key_file: PathBuf,
    repository: String,
    repository_is_new: bool,
    encrypted: bool,
    cluster: String,
    system_id: String,
    server_version: String,
    data_directory: PathBuf,
    checksums: bool,
    applied: bool,
    settings: Vec<Setting>,
    restart_needed: bool,
}

impl Report for Made {
    fn text(&self, page: &mut Page) {
        let tick = page.tick();
        let made = if self.repository_is_new { "made" } else { "found" };
        let keys = if self.encrypted { "encrypted by your passphrase" } else { "NOT encrypted" };
        page.line(format!(
            "{tick} PostgreSQL {} in {}, system {}",
            self.server_version,
            self.data_directory.display(),
            self.system_id
        ));
        page.line(format!("{tick} repository {made} in {}, {keys}", self.repository));
        page.line(format!("{tick} configuration {}", self.config.display()));
        page.line(format!("{tick} this host's key {}", self.key_file.display()));
        if !self.checksums {
            let note = page.note();
            page.line(format!(
                "{note} the server has no page checksums: damage on its disk may go unseen"
            ));
        }
        init_settings::text(page, &self.settings, self.applied);
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
