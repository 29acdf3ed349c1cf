//! Key slots, data keys, and the unlocked key file of a host.
//!
//! Format and reasons: docs/format/keys.md.

use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use lifeboat_store::{Key, Store};
use lifeboat_units::{Entropy, Secret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypt::{BoxKind, IndexKey, Scope, SealKey};
use crate::error::RepoError;
use crate::id::{RepositoryId, hex, unhex};
use crate::kdf::Kdf;

/// Largest object of keys that is read, in bytes.
pub(crate) const KEY_OBJECT_BYTES_MAX: u64 = 64 << 10;
/// Version of slots, of the list of recipients and of key files.
const VERSION: u32 = 1;
/// More slots than this are not tried: each costs a key derivation.
const SLOTS_MAX: usize = 64;
/// Where key slots lie.
const SLOT_PREFIX: &str = "keys/slots/";
/// The list of recipients.
const RECIPIENTS: &str = "keys/recipients";

/// The private half that opens content.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Identity {
    /// Reads `AGE-SECRET-KEY-1…`.
    pub fn parse(text: &str) -> Result<Self, RepoError> {
        age::x25519::Identity::from_str(text.trim()).map(Self).map_err(|why| RepoError::Key {
            operation: "read the private key",
            why: why.to_owned(),
        })
    }

    /// The text that [`Identity::parse`] and the `age` tool read. A secret.
    pub fn to_secret(&self) -> Secret {
        Secret::new(self.0.to_string().expose_secret().to_owned())
    }

    /// The public half, `age1…`.
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity[secret of {}]", self.recipient())
    }
}

/// What a host can do with a repository: always write, and read content if it has the identity.
#[derive(Debug, Clone)]
pub struct Keyring {
    /// The repository these keys belong to.
    pub repository: RepositoryId,
    /// Seals manifests, maps and names.
    pub index: IndexKey,
    /// To whom content is sealed (`age1…`), at least one.
    pub recipients: Vec<String>,
    /// Opens content; `None` in write-only mode.
    pub identity: Option<Identity>,
}

/// How the keys in a slot are protected.
pub enum Protection<'a> {
    /// By a passphrase.
    Passphrase(&'a Secret),
    /// Not at all: whoever reads the repository reads the data.
    Open,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotObject {
    lifeboat: String,
    version: u32,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kdf: Option<Kdf>,
    keys: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotKeys {
    index: Zeroizing<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Zeroizing<String>>,
}

fn slot_key(name: &str) -> Result<Key, RepoError> {
    let ok = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if ok {
        Ok(Key::new(format!("{SLOT_PREFIX}{name}"))?)
    } else {
        Err(RepoError::BadName { what: "key slot", name: name.to_owned() })
    }
}

impl Keyring {
    /// New keys for a new repository, with a private key of its own.
    pub fn generate(repository: RepositoryId, entropy: &dyn Entropy) -> Self {
        let identity = Identity(age::x25519::Identity::generate());
        Self {
            repository,
            index: IndexKey::random(entropy),
            recipients: vec![identity.recipient()],
            identity: Some(identity),
        }
    }

    /// Adds a key slot that opens to these keys (the identity only if it is at hand).
    pub fn add_slot(
        &self,
        store: &dyn Store,
        name: &str,
        protection: &Protection<'_>,
        entropy: &dyn Entropy,
    ) -> Result<(), RepoError> {
        self.put_slot(store, name, protection, entropy).map(drop)
    }

    /// Adds a slot and gives its object.
    pub(crate) fn put_slot(
        &self,
        store: &dyn Store,
        name: &str,
        protection: &Protection<'_>,
        entropy: &dyn Entropy,
    ) -> Result<(Key, Vec<u8>), RepoError> {
        let key = slot_key(name)?;
        let keys = SlotKeys {
            index: Zeroizing::new(hex(self.index.expose())),
            identity: self
                .identity
                .as_ref()
                .map(|identity| Zeroizing::new(identity.to_secret().expose().to_owned())),
        };
        let plain = Zeroizing::new(serde_json::to_vec(&keys).expect("texts always serialise"));
        let (kind, kdf, keys) = match protection {
            Protection::Open => ("open", None, hex(&plain)),
            Protection::Passphrase(passphrase) => {
                let kdf = Kdf::new(entropy);
                let mut sealed = plain.to_vec();
                let scope = Scope::repository(self.repository, name);
                let seal = SealKey::new(&*kdf.derive(key.as_str(), passphrase)?, &scope);
                seal.seal(BoxKind::Slot, 0, &mut sealed, 0);
                // The one object whose loss is the loss of all: proven to open before it is kept.
                let mut again = Zeroizing::new(sealed.clone());
                if seal.open(BoxKind::Slot, 0, key.as_str(), &mut again)? != &plain[..] {
                    return Err(RepoError::damaged(key.as_str(), "it does not read back"));
                }
                ("passphrase", Some(kdf), hex(&sealed))
            }
        };
        let slot = SlotObject {
            lifeboat: "key slot".to_owned(),
            version: VERSION,
            kind: kind.to_owned(),
            kdf,
            keys,
        };
        let body = serde_json::to_vec_pretty(&slot).expect("texts always serialise");
        match store.put(&key, &body) {
            Err(error) if error.is_already_exists() => Err(RepoError::Key {
                operation: "add the key slot",
                why: format!("there is a slot `{name}` already, and a slot is never replaced"),
            }),
            put => Ok(put.map(|()| (key, body))?),
        }
    }

    /// Stores the list of recipients, sealed by the index key.
    pub fn store_recipients(
        &self,
        store: &dyn Store,
        entropy: &dyn Entropy,
    ) -> Result<(), RepoError> {
        let plain = serde_json::to_vec(&self.recipients).expect("texts always serialise");
        let scope = Scope::repository(self.repository, RECIPIENTS);
        let mut body = vec![VERSION as u8];
        self.index.seal_single(&scope, BoxKind::Recipients, &plain, entropy, &mut body);
        store.put(&Key::new(RECIPIENTS)?, &body)?;
        Ok(())
    }

    /// Opens the slots with a passphrase, or an open slot without one.
    ///
    /// Open slots are taken only where no passphrase is given and no slot asks for one: whoever
    /// can write to the store could put one there with keys of his own. A slot that is damaged
    /// does not keep another from opening.
    pub fn unlock(
        store: &dyn Store,
        repository: RepositoryId,
        passphrase: Option<&Secret>,
    ) -> Result<Self, RepoError> {
        let slots = slots(store)?;
        let wrong = RepoError::WrongPassphrase { location: store.location(), slots: slots.len() };
        let most = if passphrase.is_some() { SLOTS_MAX } else { slots.len() };
        let (mut open, mut unreadable, mut locked) = (None, None, false);
        for name in slots.iter().take(most) {
            match try_slot(store, repository, name, passphrase) {
                Ok(Attempt::Unlocked(keys)) => {
                    return Self::from_slot(store, repository, &keys, name);
                }
                Ok(Attempt::Open(keys)) => open = open.or(Some((keys, name))),
                Ok(Attempt::Locked) => locked = true,
                Ok(Attempt::Gone) => {}
                Err(error @ (RepoError::Damaged { .. } | RepoError::TooNew { .. })) => {
                    unreadable.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match (open, passphrase) {
            (Some((keys, name)), None) if !locked => {
                Self::from_slot(store, repository, &keys, name)
            }
            // With a passphrase the slot it was for may be the unreadable one.
            (_, None) if locked => Err(wrong),
            _ => Err(unreadable.unwrap_or(wrong)),
        }
    }

    fn from_slot(
        store: &dyn Store,
        repository: RepositoryId,
        keys: &SlotKeys,
        slot: &str,
    ) -> Result<Self, RepoError> {
        let index = unhex(&keys.index)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| RepoError::damaged(slot, "its index key has not 32 bytes"))?;
        let identity = keys.identity.as_ref().map(|text| Identity::parse(text)).transpose()?;
        Self::assemble(store, repository, IndexKey::from_bytes(index), identity)
    }

    /// Completes keys with the repository's list of recipients; proves that the index key fits.
    pub(crate) fn assemble(
        store: &dyn Store,
        repository: RepositoryId,
        index: IndexKey,
        identity: Option<Identity>,
    ) -> Result<Self, RepoError> {
        let mut body = store.get(&Key::new(RECIPIENTS)?, KEY_OBJECT_BYTES_MAX)?;
        match body.first() {
            Some(version) if u32::from(*version) == VERSION => {}
            Some(version) => {
                return Err(RepoError::TooNew {
                    object: RECIPIENTS.to_owned(),
                    found: u32::from(*version),
                    known: VERSION,
                });
            }
            None => return Err(RepoError::damaged(RECIPIENTS, "it is empty")),
        }
        let scope = Scope::repository(repository, RECIPIENTS);
        let plain = index.open_single(&scope, BoxKind::Recipients, RECIPIENTS, &mut body[1..])?;
        let recipients: Vec<String> = serde_json::from_slice(plain)
            .map_err(|e| RepoError::damaged(RECIPIENTS, e.to_string()))?;
        if recipients.is_empty() {
            return Err(RepoError::damaged(RECIPIENTS, "it names nobody"));
        }
        Ok(Self { repository, index, recipients, identity })
    }

    /// Writes the unlocked keys to a file of mode 0600: the index key, and the identity if
    /// `with_identity`. Replaces the file as a whole.
    pub fn write_file(&self, path: &Path, with_identity: bool) -> Result<(), RepoError> {
        let keys = KeyFile {
            lifeboat: "unlocked keys".to_owned(),
            version: VERSION,
            repository: self.repository.to_string(),
            index: Zeroizing::new(hex(self.index.expose())),
            identity: self
                .identity
                .as_ref()
                .filter(|_| with_identity)
                .map(|identity| Zeroizing::new(identity.to_secret().expose().to_owned())),
        };
        let body =
            Zeroizing::new(serde_json::to_vec_pretty(&keys).expect("texts always serialise"));
        replace_private(path, &body)
            .map_err(|source| RepoError::KeyFile { path: path.to_owned(), source })
    }

    /// Reads keys from a file that [`Keyring::write_file`] wrote, for the repository in `store`.
    pub fn read_file(
        store: &dyn Store,
        repository: RepositoryId,
        path: &Path,
    ) -> Result<Self, RepoError> {
        let fail = |source| RepoError::KeyFile { path: path.to_owned(), source };
        let invalid = |why: String| fail(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
        let body = Zeroizing::new(std::fs::read(path).map_err(fail)?);
        let object = || path.display().to_string();
        check_version(&body, object).map_err(|e| match e {
            RepoError::Damaged { what, .. } => invalid(what),
            other => other,
        })?;
        let keys: KeyFile = serde_json::from_slice(&body).map_err(|e| invalid(e.to_string()))?;
        if keys.lifeboat != "unlocked keys" {
            return Err(invalid("it is no file of unlocked keys".to_owned()));
        }
        if keys.repository != repository.to_string() {
            return Err(RepoError::ForeignKey {
                key_of: keys.repository,
                is: repository.to_string(),
                location: store.location(),
            });
        }
        let index = unhex(&keys.index)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| invalid("its index key has not 32 bytes".to_owned()))?;
        let identity = keys.identity.as_ref().map(|text| Identity::parse(text)).transpose()?;
        Self::assemble(store, repository, IndexKey::from_bytes(index), identity)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    lifeboat: String,
    version: u32,
    repository: String,
    index: Zeroizing<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Zeroizing<String>>,
}

/// Refuses JSON of another version, before its fields are looked at: they may be others.
fn check_version(body: &[u8], object: impl Fn() -> String) -> Result<(), RepoError> {
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|e| RepoError::damaged(object(), e.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => Ok(()),
        Some(version) => Err(RepoError::TooNew {
            object: object(),
            found: u32::try_from(version).unwrap_or(u32::MAX),
            known: VERSION,
        }),
        None => Err(RepoError::damaged(object(), "it names no version")),
    }
}

/// Writes a file that only its owner reads: whole or not at all.
fn replace_private(path: &Path, body: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    // Made anew, never written over: a file that lies there already may be readable by others.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        std::fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(body)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(directory)?.sync_all()
}

/// Names of all key slots, sorted.
pub fn slots(store: &dyn Store) -> Result<Vec<String>, RepoError> {
    let mut names = Vec::new();
    store.list(SLOT_PREFIX, &mut |entry| names.push(entry.key.name().to_owned()))?;
    names.sort();
    Ok(names)
}

/// The slots that no passphrase opens, sorted, and what is wrong with each: they are damaged, or of a
/// newer version.
pub fn damaged_slots(store: &dyn Store) -> Result<Vec<(String, RepoError)>, RepoError> {
    let mut damaged = Vec::new();
    for name in slots(store)? {
        match read_slot(store, &slot_key(&name)?) {
            Ok(_) => {}
            Err(error @ (RepoError::Damaged { .. } | RepoError::TooNew { .. })) => {
                damaged.push((name, error));
            }
            Err(error) if error.is_not_found() => {} // removed since it was listed
            Err(error) => return Err(error),
        }
    }
    Ok(damaged)
}

/// Removes a key slot; refuses to remove the last that is not damaged.
pub fn remove_slot(store: &dyn Store, name: &str) -> Result<(), RepoError> {
    let refused = |why| Err(RepoError::Key { operation: "remove the key slot", why });
    let all = slots(store)?;
    if !all.iter().any(|slot| slot == name) {
        return refused(format!("there is no slot `{name}`; there are {}", all.join(", ")));
    }
    let damaged: Vec<String> = damaged_slots(store)?.into_iter().map(|(slot, _)| slot).collect();
    if all.iter().all(|slot| slot == name || damaged.contains(slot)) {
        let others = match damaged.is_empty() {
            true => String::new(),
            false => format!(" (damaged, or of a newer version: {})", damaged.join(", ")),
        };
        return refused(format!(
            "`{name}` is the last that may open{others}: without it nothing can ever be read again"
        ));
    }
    store.delete(&slot_key(name)?)?;
    Ok(())
}

/// What came of trying a slot.
enum Attempt {
    /// The passphrase opened it.
    Unlocked(SlotKeys),
    /// Its keys lie open.
    Open(SlotKeys),
    /// It needs a passphrase, and not this one.
    Locked,
    /// It was removed since it was listed.
    Gone,
}

/// Tries one slot.
fn try_slot(
    store: &dyn Store,
    repository: RepositoryId,
    name: &str,
    passphrase: Option<&Secret>,
) -> Result<Attempt, RepoError> {
    let key = slot_key(name)?;
    let object = key.as_str();
    let slot = match read_slot(store, &key) {
        Err(error) if error.is_not_found() => return Ok(Attempt::Gone),
        slot => slot?,
    };
    match (slot, passphrase) {
        (Slot::Open(keys), _) => Ok(Attempt::Open(keys)),
        (Slot::Sealed { .. }, None) => Ok(Attempt::Locked),
        (Slot::Sealed { kdf, mut keys }, Some(passphrase)) => {
            let scope = Scope::repository(repository, name);
            let seal = SealKey::new(&*kdf.derive(object, passphrase)?, &scope);
            match seal.open(BoxKind::Slot, 0, object, &mut keys) {
                Ok(plain) => parse_keys(object, plain).map(Attempt::Unlocked),
                Err(_) => Ok(Attempt::Locked),
            }
        }
    }
}

/// What a slot holds.
enum Slot {
    Open(SlotKeys),
    Sealed { kdf: Kdf, keys: Zeroizing<Vec<u8>> },
}

/// Reads a slot and checks all that can be checked without its passphrase.
fn read_slot(store: &dyn Store, key: &Key) -> Result<Slot, RepoError> {
    let object = key.as_str();
    let body = store.get(key, KEY_OBJECT_BYTES_MAX)?;
    let damaged = |what: String| RepoError::damaged(object, what);
    check_version(&body, || object.to_owned())?;
    let slot: SlotObject = serde_json::from_slice(&body).map_err(|e| damaged(e.to_string()))?;
    if slot.lifeboat != "key slot" {
        return Err(damaged("it does not say that it is a key slot".to_owned()));
    }
    let keys =
        Zeroizing::new(unhex(&slot.keys).ok_or_else(|| damaged("not hexadecimal".to_owned()))?);
    match (slot.kind.as_str(), slot.kdf) {
        ("open", None) => parse_keys(object, &keys).map(Slot::Open),
        ("passphrase", Some(kdf)) => {
            kdf.check(object)?;
            Ok(Slot::Sealed { kdf, keys })
        }
        _ => Err(damaged(format!("unknown kind of slot `{}`", slot.kind))),
    }
}

fn parse_keys(object: &str, plain: &[u8]) -> Result<SlotKeys, RepoError> {
    serde_json::from_slice(plain).map_err(|e| RepoError::damaged(object, e.to_string()))
}

/// A fresh key for the content of one backup or log file.
pub struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    /// Longest wrapped key that is read, in bytes: room for dozens of recipients.
    pub const WRAPPED_BYTES_MAX: usize = 16 << 10;

    /// A new key.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(bytes.as_mut());
        Self(bytes)
    }

    /// The sealing key of this data key in its scope.
    pub fn seal_key(&self, scope: &Scope) -> SealKey {
        SealKey::new(&self.0, scope)
    }

    /// Wraps the key to every recipient: an age file (age-encryption.org/v1).
    pub fn wrap(&self, recipients: &[String]) -> Result<Vec<u8>, RepoError> {
        let fail = |why: String| RepoError::Key { operation: "wrap a data key", why };
        let parsed = recipients
            .iter()
            .map(|text| age::x25519::Recipient::from_str(text).map_err(|e| fail(e.to_owned())))
            .collect::<Result<Vec<_>, _>>()?;
        let encryptor =
            age::Encryptor::with_recipients(parsed.iter().map(|r| r as &dyn age::Recipient))
                .map_err(|e| fail(e.to_string()))?;
        let mut wrapped = Vec::with_capacity(256);
        let mut writer = encryptor.wrap_output(&mut wrapped).map_err(|e| fail(e.to_string()))?;
        writer.write_all(self.0.as_ref()).map_err(|e| fail(e.to_string()))?;
        writer.finish().map_err(|e| fail(e.to_string()))?;
        Ok(wrapped)
    }

    /// Unwraps a key with the identity.
    pub fn unwrap(
        wrapped: &[u8],
        identity: Option<&Identity>,
        object: &str,
    ) -> Result<Self, RepoError> {
        let identity = identity.ok_or(RepoError::WriteOnly)?;
        let plain = Zeroizing::new(
            age::decrypt(&identity.0, wrapped)
                .map_err(|e| RepoError::damaged(object, format!("its data key: {e}")))?,
        );
        let bytes: [u8; 32] = plain
            .as_slice()
            .try_into()
            .map_err(|_| RepoError::damaged(object, "its data key has not 32 bytes"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}
