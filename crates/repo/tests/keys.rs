//! Slots, passphrases, key files, and a host that can only write. Key derivations are slow on
//! purpose, so there are few of them.

mod support;

use std::sync::Arc;

use lifeboat_repo::crypt::IndexKey;
use lifeboat_repo::{
    Compression, Fact, Identity, Keyring, LogPlace, Protection, RepoError, Repository, keys,
    repository,
};
use lifeboat_store::{Key, MemoryStore, Store};
use lifeboat_units::Secret;
use support::{Seeded, Take};

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

#[test]
fn slots_are_added_and_removed_and_only_their_passphrases_open() {
    let store = MemoryStore::new();
    let (old, new) = (secret("old one"), secret("new one"));
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let protection = Protection::Passphrase(&old);
    let repository =
        Repository::create(shared, &protection, support::at(0), Arc::new(Seeded::new(1))).unwrap();
    let id = repository::identify(&store).unwrap();
    let wrong = Keyring::unlock(&store, id, Some(&secret("no"))).unwrap_err();
    assert!(matches!(wrong, RepoError::WrongPassphrase { slots: 1, .. }), "{wrong}");
    let none = Keyring::unlock(&store, id, None).unwrap_err();
    assert!(matches!(none, RepoError::WrongPassphrase { .. }), "no passphrase: {none}");

    let random = Seeded::new(2);
    let keyring = repository.keyring();
    keyring.add_slot(&store, "second", &Protection::Passphrase(&new), &random).unwrap();
    let again = keyring.add_slot(&store, "second", &Protection::Open, &random).unwrap_err();
    assert!(matches!(again, RepoError::Key { .. }), "never replaced: {again}");
    keys::remove_slot(&store, "first").unwrap();
    assert_eq!(keys::slots(&store).unwrap(), ["second"]);
    assert!(keys::remove_slot(&store, "second").is_err(), "the last one stays");
    assert!(keys::remove_slot(&store, "third").is_err());
    assert!(Keyring::unlock(&store, id, Some(&old)).is_err());

    // A slot that is damaged, and one from the future, do not keep the good one from opening.
    store.put(&Key::new("keys/slots/aa").unwrap(), b"{\"version\": 2, \"lock\": \"new\"}").unwrap();
    store.put(&Key::new("keys/slots/bb").unwrap(), b"nonsense").unwrap();
    let last = keys::remove_slot(&store, "second").unwrap_err().to_string();
    assert!(last.contains("damaged, or of a newer version: aa, bb"), "{last}");
    let damaged = keys::damaged_slots(&store).unwrap();
    assert_eq!(damaged.iter().map(|(slot, _)| slot.as_str()).collect::<Vec<_>>(), ["aa", "bb"]);
    let opened = Keyring::unlock(&store, id, Some(&new)).unwrap();
    assert_eq!(opened.index.expose(), keyring.index.expose());
    let none = Keyring::unlock(&store, id, None).unwrap_err();
    assert!(matches!(none, RepoError::WrongPassphrase { .. }), "the passphrase may help: {none}");
    store.delete(&Key::new("keys/slots/second").unwrap()).unwrap();
    let error = Keyring::unlock(&store, id, Some(&new)).unwrap_err();
    assert!(matches!(&error, RepoError::TooNew { object, .. } if object == "keys/slots/aa"));
}

/// Who can write to the store, and has no key, puts an open slot with keys of his own beside the
/// others. A host that gives a passphrase must not seal its data with them.
#[test]
fn a_planted_open_slot_is_not_taken_where_a_slot_asks_for_a_passphrase() {
    let store = MemoryStore::new();
    let passphrase = secret("ours");
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let protection = Protection::Passphrase(&passphrase);
    let ours =
        Repository::create(shared, &protection, support::at(0), Arc::new(Seeded::new(1))).unwrap();
    let id = repository::identify(&store).unwrap();
    let theirs = Keyring::generate(id, &Seeded::new(66));
    theirs.add_slot(&store, "aaa", &Protection::Open, &Seeded::new(67)).unwrap();
    let none = Keyring::unlock(&store, id, None).unwrap_err();
    assert!(matches!(none, RepoError::WrongPassphrase { .. }), "{none}");
    let opened = Keyring::unlock(&store, id, Some(&passphrase)).unwrap();
    assert_eq!(opened.index.expose(), ours.keyring().index.expose());
    store.delete(&Key::new("keys/recipients").unwrap()).unwrap();
    theirs.store_recipients(&store, &Seeded::new(68)).unwrap();
    let error = Keyring::unlock(&store, id, Some(&passphrase)).unwrap_err();
    assert!(matches!(&error, RepoError::Damaged { object, .. } if object == "keys/recipients"));
}

#[test]
fn a_key_derivation_that_asks_for_too_much_is_refused_before_it_runs() {
    let store = MemoryStore::new();
    support::create(store.clone(), 1);
    let id = repository::identify(&store).unwrap();
    for (memory, passes, lanes, salt) in [
        (u32::MAX, 1, 1, "00".repeat(16)),
        (64, 1000, 1, "00".repeat(16)),
        (64, 1, 1000, "00".repeat(16)),
        (64, 1, 1, "xx".to_owned()),
        (0, 0, 0, String::new()),
    ] {
        let body = format!(
            "{{\"lifeboat\": \"key slot\", \"version\": 1, \"kind\": \"passphrase\", \"kdf\": {{\
             \"name\": \"argon2id\", \"memory_kib\": {memory}, \"passes\": {passes}, \
             \"lanes\": {lanes}, \"salt\": \"{salt}\"}}, \"keys\": \"00\"}}"
        );
        let key = Key::new("keys/slots/aa").unwrap();
        store.delete(&key).unwrap();
        store.put(&key, body.as_bytes()).unwrap();
        let error = Keyring::unlock(&store, id, Some(&secret("x"))).unwrap_err();
        let named = matches!(&error, RepoError::Damaged { object, .. } if object == key.as_str());
        assert!(named, "{error}");
    }
}

#[test]
fn a_host_that_can_only_write_writes_lists_and_reads_no_content() {
    let store = MemoryStore::new();
    let whole = support::create(store.clone(), 1);
    let write_only = Keyring { identity: None, ..whole.keyring().clone() };
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let repository = Repository::open(shared, write_only, Arc::new(Seeded::new(5))).unwrap();
    let cluster = support::main_cluster(&repository);
    let mut files = support::some_files();
    let first = support::take_backup(&cluster, &files, &Take::at(1)).unwrap().unwrap();
    files.get_mut("base/1/1259").unwrap()[0] ^= 1;
    let second = support::take_backup(&cluster, &files, &Take::at(2)).unwrap().unwrap();
    assert_eq!(second.totals.pages_new, 1, "it goes on incrementally");
    let place = LogPlace { system: "7".into(), timeline: 1, name: "0".repeat(24) };
    let push = || {
        let facts = serde_json::Value::Null;
        cluster.push_log(&place, b"records", Compression::Auto, support::at(3), facts)
    };
    push().unwrap();
    push().unwrap();
    cluster.record(support::at(4), Fact::BackupAdded { id: second.id }).unwrap();
    assert_eq!(cluster.backups().unwrap(), [first.id, second.id]);
    assert_eq!(cluster.logs().unwrap().len(), 1);
    assert_eq!(cluster.log_head(&place).unwrap().size_bytes, 7);
    assert_eq!(cluster.journal().unwrap().len(), 1);
    let content = support::read_backup(&cluster, second.id).unwrap_err();
    assert!(matches!(content, RepoError::WriteOnly), "{content}");
    let log = cluster.read_log(&place).unwrap_err();
    assert!(matches!(log, RepoError::WriteOnly), "{log}");
    let reader = support::main_cluster(&whole);
    assert!(support::read_backup(&reader, second.id).unwrap() == files);
    assert_eq!(reader.read_log(&place).unwrap().1, b"records");
}

#[test]
fn a_write_only_slot_and_key_file_hold_no_private_key() {
    let store = MemoryStore::new();
    let whole = support::create(store.clone(), 1);
    let id = whole.keyring().repository;
    let write_only = Keyring { identity: None, ..whole.keyring().clone() };
    write_only.add_slot(&store, "a-host", &Protection::Open, &Seeded::new(3)).unwrap();
    assert!(Keyring::unlock(&store, id, None).unwrap().identity.is_none(), "the first slot");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host.key");
    whole.keyring().write_file(&path, false).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("AGE-SECRET-KEY"));
    assert!(Keyring::read_file(&store, id, &path).unwrap().identity.is_none());
}

#[test]
fn a_key_file_of_another_repository_or_version_or_of_nonsense_is_refused() {
    let store = MemoryStore::new();
    let repository = support::create(store.clone(), 1);
    let id = repository.keyring().repository;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host.key");
    repository.keyring().write_file(&path, true).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Keyring::read_file(&store, id, &path)
    };
    read(&text).unwrap();
    let foreign = text.replace(&id.to_string(), &"ab".repeat(16));
    assert!(matches!(read(&foreign), Err(RepoError::ForeignKey { .. })));
    let newer = text.replace("\"version\": 1", "\"version\": 2");
    assert!(matches!(read(&newer), Err(RepoError::TooNew { found: 2, .. })));
    let other_key =
        Keyring { index: IndexKey::from_bytes([9; 32]), ..repository.keyring().clone() };
    other_key.write_file(&path, true).unwrap();
    assert!(matches!(
        Keyring::read_file(&store, id, &path),
        Err(RepoError::Damaged { object, .. }) if object == "keys/recipients"
    ));
    for at in 0..text.len() {
        let error = read(&text[..at]).unwrap_err();
        assert!(error.to_string().contains("host.key"), "{at}: {error}");
    }
    assert!(matches!(
        Keyring::read_file(&store, id, &directory.path().join("none")),
        Err(RepoError::KeyFile { .. })
    ));
}

#[test]
fn what_lies_under_the_temporary_name_does_not_lend_its_mode_to_a_key_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host.key");
    let temporary = directory.path().join(format!("host.key.{}.tmp", std::process::id()));
    std::fs::write(&temporary, "left behind").unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o666)).unwrap();
    support::create(MemoryStore::new(), 1).keyring().write_file(&path, true).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!temporary.exists());
}

#[test]
fn a_private_key_reads_back_and_nonsense_is_none() {
    let identity =
        Keyring::generate(lifeboat_repo::RepositoryId([1; 16]), &Seeded::new(1)).identity.unwrap();
    let text = identity.to_secret();
    assert_eq!(Identity::parse(text.expose()).unwrap().recipient(), identity.recipient());
    for nonsense in ["", "AGE-SECRET-KEY-1", "age1abc", &text.expose()[..70]] {
        assert!(Identity::parse(nonsense).is_err(), "{nonsense}");
    }
    assert!(!format!("{identity:?}").contains("SECRET-KEY"));
}
