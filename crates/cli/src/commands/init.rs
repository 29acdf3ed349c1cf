//! `lifeboat init`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_engine::ClusterIdentity;
use lifeboat_jobs::succession;
use lifeboat_postgres::live::cluster::Account;
use lifeboat_repo::repository::identify;
use lifeboat_repo::{
    Cluster, ClusterName, Keyring, Protection, RepoError, Repository, SystemEntropy,
};
use lifeboat_store::Store;
use lifeboat_units::{Clock, Secret};

use super::init_report::{Made, Remote};
use super::init_server::{Far, Server};
use super::init_settings::{self, Setting};
use crate::app::App;
use crate::config::{self, PLACES, sample};
use crate::error::{CliError, Trouble, usage};
use crate::exit::Outcome;
use crate::files;
use crate::secrets;
use crate::server_commands::{ServerCommands, shell_word};

/// Connect to a server, make the repository and its keys, write the configuration
///
/// Writes the file that --config names (otherwise ./lifeboat.toml, as root
/// /etc/lifeboat/lifeboat.toml) and beside it this host's key. Then prints what to set in
/// PostgreSQL, or sets it with --apply. A repository that is there already is used, when the
/// passphrase opens it.
///
/// Where the server's data directory cannot be read, as that of a server on another machine, a
/// connection is enough: it prints what to set on the server's machine, how its WAL is received
/// from here where nothing runs there, and what the role lacks. --apply does what goes through a
/// connection and says what does not. A standby will do: its primary archives.
///
/// The repository is encrypted by a passphrase: from --passphrase-file, from LIFEBOAT_PASSPHRASE,
/// or asked for at a terminal. Whoever loses it loses the backups.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  \
    sudo -u postgres lifeboat --config /etc/lifeboat/lifeboat.toml init \\\n    \
    --pg 'host=/run/postgresql user=postgres' --repo file:///srv/lifeboat --apply\n\n\
    Example: a server on another machine:\n  \
    lifeboat init --repo file:///srv/lifeboat \\\n    \
    --pg 'host=db1.example.org user=lifeboat dbname=postgres sslmode=verify-full'")]
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
    let mut server = Server::look(&args.pg)?;
    let passphrase = passphrase(args)?;
    let made = make_repository(app, args, passphrase.as_ref(), &server)?;
    let key_file = file.with_file_name("lifeboat.key");
    write_files(args, &file, &key_file, &server, &made)?;
    if args.r#continue {
        succession::record(&made.cluster, app.clock.now(), &server.identity)?;
    }
    let commands = ServerCommands::new(&file, &[])?;
    let is_far = server.as_far().is_some();
    let mut settings = init_settings::wanted(&server.facts, &commands, is_far);
    if args.apply {
        init_settings::apply(server.session()?, &mut settings)?;
    }
    let refused = settings.iter().any(|setting| setting.refused && !setting.optional);
    app.ui.emit(&Made {
        remote: server.as_far().map(|far| remote(far, &file)),
        config: file,
        key_file,
        repository: made.cluster.store().location(),
        repository_is_new: made.is_new,
        encrypted: !args.no_encryption,
        cluster: args.name.to_string(),
        system_id: server.identity.system_id.to_string(),
        server_version: server.facts.version.clone(),
        data_directory: server.data_directory().map(Path::to_owned),
        standby: server.facts.in_recovery,
        checksums: server.identity.checksums,
        applied: args.apply,
        restart_needed: settings.iter().any(Setting::waits_for_restart),
        settings,
    })?;
    Ok(if refused { Outcome::Findings } else { Outcome::Done })
}

fn remote(far: &Far, config: &Path) -> Remote {
    let config = shell_word(&config.display().to_string());
    Remote {
        server: far.server(),
        why: far.why.clone(),
        is_near: far.is_near,
        troubles: far.troubles.clone(),
        receive_command: format!("lifeboat --config {config} wal receive --create-slot"),
        slot: config::keys::WAL_SLOT.default,
    }
}

/// Where the configuration goes.
fn place(app: &App) -> Result<PathBuf, CliError> {
    let default = if Account::own().uid == 0 { PLACES[1] } else { PLACES[0] };
    let named = app.global.config.clone();
    let named = named.or_else(|| config::variable(config::CONFIG_VARIABLE).map(PathBuf::from));
    let path = named.unwrap_or_else(|| PathBuf::from(default));
    Ok(std::path::absolute(&path).map_err(files::failed("find", &path))?)
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
        far: server.as_far().is_some(),
        standby: server.facts.in_recovery,
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
