//! A repository, and one cluster's part of it.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use lifeboat_store::{Key, Store};
use lifeboat_units::{Entropy, Timestamp};
use serde::{Deserialize, Serialize};

use crate::codec::Transforms;
use crate::crypt::{BoxKind, Scope, SealKey};
use crate::error::RepoError;
use crate::id::{BackupId, ClusterName, RepositoryId};
use crate::keys::{KEY_OBJECT_BYTES_MAX, Keyring, Protection};
use crate::manifest::Manifest;
use crate::page_hash::PageHasher;

/// Format version of the repository as a whole.
pub const FORMAT_VERSION: u32 = 1;
/// The object that says "this is a repository"; written last when one is made.
const MARKER: &str = "repository.json";
const MARKER_BYTES_MAX: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    lifeboat: String,
    version: u32,
    id: String,
    created: Timestamp,
}

/// An open repository.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    entropy: Arc<dyn Entropy>,
}

impl Repository {
    /// Makes a repository: keys first, the marker last, so that a half-made one is none.
    ///
    /// Errors: [`RepoError::Exists`] when there is one.
    pub fn create(
        store: Arc<dyn Store>,
        protection: &Protection<'_>,
        now: Timestamp,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, RepoError> {
        match identify(store.as_ref()) {
            Err(RepoError::Missing { .. }) => {}
            Ok(_) => return Err(RepoError::Exists { location: store.location() }),
            Err(other) => return Err(other),
        }
        remove_half_made(store.as_ref())?;
        let keyring = Keyring::generate(RepositoryId::random(entropy.as_ref()), entropy.as_ref());
        let slot = keyring.put_slot(store.as_ref(), "first", protection, entropy.as_ref())?;
        keyring.store_recipients(store.as_ref(), entropy.as_ref())?;
        let marker = Marker {
            lifeboat: "repository".to_owned(),
            version: FORMAT_VERSION,
            id: keyring.repository.to_string(),
            created: now,
        };
        let body = serde_json::to_vec_pretty(&marker).expect("texts always serialise");
        store.put(&Key::new(MARKER)?, &body)?;
        // Two that make a repository at once remove each other's keys as half made. Whoever put
        // the marker must find its own keys, or data would be sealed with keys that nobody keeps.
        let found = store.get(&slot.0, KEY_OBJECT_BYTES_MAX)?;
        let recipients_open =
            Keyring::assemble(store.as_ref(), keyring.repository, keyring.index.clone(), None);
        if found != slot.1 || recipients_open.is_err() {
            return Err(RepoError::damaged(
                MARKER,
                "another process made a repository here at the same time; remove it and repeat",
            ));
        }
        Ok(Self { store, keyring: Arc::new(keyring), entropy })
    }

    /// Opens a repository with keys that fit it.
    pub fn open(
        store: Arc<dyn Store>,
        keyring: Keyring,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, RepoError> {
        let found = identify(store.as_ref())?;
        let opened = Self { store, keyring: Arc::new(keyring), entropy };
        opened.is_that(found)?;
        Ok(opened)
    }

    /// Asks whether the store still holds the repository that was opened. A process that lives long
    /// asks before it calls anything stored: the file system may have been unmounted meanwhile, and
    /// what was written to the directory below is gone when it is mounted again.
    ///
    /// Errors: [`RepoError::Gone`], [`RepoError::ForeignKey`] when another one lies there.
    pub fn confirm(&self) -> Result<(), RepoError> {
        match identify(self.store.as_ref()) {
            Ok(found) => self.is_that(found),
            Err(RepoError::Missing { location }) => Err(RepoError::Gone { location }),
            Err(error) => Err(error),
        }
    }

    fn is_that(&self, found: RepositoryId) -> Result<(), RepoError> {
        if found == self.keyring.repository {
            return Ok(());
        }
        Err(RepoError::ForeignKey {
            key_of: self.keyring.repository.to_string(),
            is: found.to_string(),
            location: self.store.location(),
        })
    }

    /// The keys it was opened with.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The store it lies in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Where random bytes come from.
    pub fn entropy(&self) -> &dyn Entropy {
        self.entropy.as_ref()
    }

    /// One cluster's part.
    pub fn cluster(&self, name: ClusterName) -> Cluster {
        let hasher = self.keyring.index.hasher(self.keyring.repository, &name);
        Cluster { repository: self.clone(), name, hasher, log_transforms: Transforms::default() }
    }

    /// Names of all clusters that have anything stored.
    pub fn clusters(&self) -> Result<Vec<ClusterName>, RepoError> {
        let mut names = std::collections::BTreeSet::new();
        self.store.list("clusters/", &mut |entry| {
            if let Some(name) = entry.key.as_str().split('/').nth(1) {
                names.insert(name.to_owned());
            }
        })?;
        names.iter().map(|name| name.parse()).collect()
    }
}

/// Says which repository lies in a store.
///
/// Errors: [`RepoError::Missing`], [`RepoError::TooNew`].
pub fn identify(store: &dyn Store) -> Result<RepositoryId, RepoError> {
    let body = match store.get(&Key::new(MARKER)?, MARKER_BYTES_MAX) {
        Ok(body) => body,
        Err(error) if error.is_not_found() => {
            return Err(RepoError::Missing { location: store.location() });
        }
        Err(error) => return Err(error.into()),
    };
    let damaged = |what: String| RepoError::damaged(MARKER, what);
    // The version first: a newer format may have other fields.
    let value: serde_json::Value =
        serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(version) => {
            return Err(RepoError::TooNew {
                object: MARKER.to_owned(),
                found: u32::try_from(version).unwrap_or(u32::MAX),
                known: FORMAT_VERSION,
            });
        }
        None => return Err(damaged("it names no version".to_owned())),
    }
    let marker: Marker = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
    if marker.lifeboat != "repository" {
        return Err(damaged("it does not say that it is a repository".to_owned()));
    }
    marker.id.parse().map_err(|_| damaged("its identifier is none".to_owned()))
}

/// Removes keys of a repository whose making was cut short: without the marker nothing was ever
/// sealed with them.
fn remove_half_made(store: &dyn Store) -> Result<(), RepoError> {
    let mut data = 0;
    store.list("clusters/", &mut |_| data += 1)?;
    if data > 0 {
        return Err(RepoError::damaged(MARKER, "it is missing, but there are data of clusters"));
    }
    let mut keys = Vec::new();
    store.list("keys/", &mut |entry| keys.push(entry.key))?;
    keys.iter().try_for_each(|key| store.delete(key)).map_err(RepoError::from)
}

/// Where a path leads, as far as it is there: without links, the rest as it is.
fn found(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut ancestors = path.ancestors();
    let there = ancestors.find_map(|there| Some((there, there.canonicalize().ok()?)));
    let Some((there, mut found)) = there else { return path };
    for part in path.strip_prefix(there).into_iter().flat_map(Path::components) {
        match part {
            Component::ParentDir => _ = found.pop(),
            part => found.push(part),
        }
    }
    found
}

/// One cluster's part of a repository.
#[derive(Clone)]
pub struct Cluster {
    repository: Repository,
    name: ClusterName,
    hasher: PageHasher,
    log_transforms: Transforms,
}

impl Cluster {
    /// Whose log files are reordered before compression: the first of these is written, any of them
    /// can be read.
    pub fn with_log_transforms(self, log_transforms: Transforms) -> Self {
        Self { log_transforms, ..self }
    }

    /// How its log files are reordered.
    pub fn log_transforms(&self) -> &Transforms {
        &self.log_transforms
    }

    /// Its name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The repository it is part of.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The store.
    pub fn store(&self) -> &dyn Store {
        self.repository.store.as_ref()
    }

    /// Refuses a directory of a database that holds the repository, or lies in it. It need not be
    /// there yet.
    pub fn refuse_within(&self, place: &Path) -> Result<(), RepoError> {
        let location = self.store().location();
        // Other stores than directories lie in nothing.
        let Some(repository) = Some(Path::new(&location)).filter(|path| path.is_absolute()) else {
            return Ok(());
        };
        let (place_found, repository) = (found(place), found(repository));
        if place_found.starts_with(&repository) || repository.starts_with(&place_found) {
            return Err(RepoError::Within { place: place.to_owned(), location });
        }
        Ok(())
    }

    /// The key of its page hashes.
    pub fn hasher(&self) -> PageHasher {
        self.hasher
    }

    /// The name of an object of this cluster.
    pub fn key(&self, rest: &str) -> Result<Key, RepoError> {
        Ok(Key::new(format!("clusters/{}/{rest}", self.name))?)
    }

    /// To what the objects of one backup are bound.
    pub fn backup_scope(&self, id: BackupId) -> Scope {
        Scope::backup(self.repository.keyring.repository, &self.name, id)
    }

    /// The key that seals the index objects of one backup.
    pub fn index_key(&self, id: BackupId) -> SealKey {
        self.repository.keyring.index.session(&self.backup_scope(id))
    }

    /// To what a single object is bound.
    pub fn object_scope(&self, name: &str) -> Scope {
        Scope::object(self.repository.keyring.repository, &self.name, name)
    }

    /// Appends a single object's box: what is under `name` and nothing else.
    pub(crate) fn seal_single(&self, name: &str, kind: BoxKind, plain: &[u8], out: &mut Vec<u8>) {
        let index = &self.repository.keyring.index;
        index.seal_single(&self.object_scope(name), kind, plain, self.repository.entropy(), out);
    }

    /// Opens a single object's box in place.
    pub(crate) fn open_single<'a>(
        &self,
        name: &str,
        kind: BoxKind,
        object: &str,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], RepoError> {
        self.repository.keyring.index.open_single(&self.object_scope(name), kind, object, sealed)
    }

    /// Identifiers of all listed backups, oldest first. Names that are none are passed over, so
    /// that a file left there by hand stops nobody; verification notes them.
    pub fn backups(&self) -> Result<Vec<BackupId>, RepoError> {
        let prefix = format!("clusters/{}/backups/", self.name);
        let mut ids: Vec<BackupId> = Vec::new();
        self.store().list(&prefix, &mut |entry| {
            let name = entry.key.as_str().strip_prefix(&prefix).unwrap_or_default();
            ids.extend(name.parse::<BackupId>());
        })?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads and checks the manifest of a backup.
    pub fn manifest(&self, id: BackupId) -> Result<Manifest, RepoError> {
        let key = self.manifest_key(id)?;
        let body = match self.store().get(&key, Manifest::BYTES_MAX) {
            Ok(body) => body,
            Err(error) if error.is_not_found() => {
                return Err(RepoError::NoSuchBackup {
                    id: id.to_string(),
                    cluster: self.name.to_string(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        Manifest::open(&key, body, &self.index_key(id), id, &self.name)
    }

    /// Name of a backup's manifest.
    pub fn manifest_key(&self, id: BackupId) -> Result<Key, RepoError> {
        self.key(&format!("backups/{id}"))
    }
}
