//! Objects that are cut, flipped, made of nonsense or put in another's place: found and named,
//! never a panic, never a large allocation on somebody's word.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use lifeboat_repo::crypt::{BoxKind, IndexKey, Scope};
use lifeboat_repo::pack::{MAGIC, PackBuilder, PackId, read_toc};
use lifeboat_repo::table::{decode_boxed_part, decode_chunk};
use lifeboat_repo::{
    BackupId, Cluster, Compression, Fact, Lease, LogPlace, Purpose, RepoError, RepositoryId,
};
use lifeboat_store::{Key, MemoryStore, Store};
use lifeboat_testkit::SimClock;
use support::{PAGE, Seeded, Take};

fn log_place(name: &str) -> LogPlace {
    LogPlace { system: "7".to_owned(), timeline: 1, name: name.to_owned() }
}

/// A repository with one of everything.
fn world() -> (MemoryStore, BackupId) {
    let (store, id) = support::with_baseline();
    let cluster = support::main_cluster(&support::open(store.clone(), 2).unwrap());
    for (name, seed) in [("000000010000000000000001", 1), ("000000010000000000000002", 2)] {
        let content = Seeded::new(seed).bytes(1000);
        let facts = serde_json::json!({ "note": name });
        cluster
            .push_log(&log_place(name), &content, Compression::Auto, support::at(11), facts)
            .unwrap();
    }
    cluster.record(support::at(12), Fact::BackupAdded { id }).unwrap();
    cluster
        .record(support::at(13), Fact::BackupRemoved { id, reason: "a test".to_owned() })
        .unwrap();
    let clock = SimClock::new(support::at(14));
    Lease::acquire(&cluster, Purpose::Backup, &clock).unwrap().release().unwrap();
    (store, id)
}

/// Uses everything that is there.
fn read_all(store: &MemoryStore, id: BackupId) -> Result<(), RepoError> {
    let cluster = support::main_cluster(&support::open(store.clone(), 3)?);
    if !cluster.backups()?.contains(&id) {
        return Err(RepoError::damaged(format!("{id}"), "not listed"));
    }
    let read = support::read_backup(&cluster, id)?;
    assert!(read == support::some_files(), "damage was read as data");
    read_tocs(&cluster)?;
    for log in cluster.logs()? {
        cluster.read_log(&log.place)?;
    }
    cluster.journal()?;
    let clock = SimClock::new(support::at(15));
    Lease::acquire(&cluster, Purpose::Expire, &clock)?.release()
}

fn read_tocs(cluster: &Cluster) -> Result<(), RepoError> {
    for key in support::packs(cluster) {
        let session: BackupId = key.as_str().split('/').nth(3).unwrap().parse().unwrap();
        let pack = PackId { session, number: key.name().parse().unwrap() };
        let body = cluster.store().get(&key, 64 << 20)?;
        read_toc(pack, &cluster.index_key(session), &body)?;
    }
    Ok(())
}

/// Changes one object and expects that reading everything fails with its name in the message.
fn must_be_found(
    key: &Key,
    what: &str,
    change: impl FnOnce(&mut Vec<u8>),
    from: &MemoryStore,
    id: BackupId,
) {
    let store = MemoryStore::from_snapshot(from.snapshot());
    assert!(store.corrupt(key, change));
    if store.snapshot() == from.snapshot() {
        return;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| read_all(&store, id)));
    let outcome = outcome.unwrap_or_else(|_| panic!("{key}: {what}: a panic"));
    let error = outcome.expect_err(&format!("{key}: {what}: nobody noticed"));
    assert!(names(&error, key), "{key}: {what}: {error}");
}

/// Whether an error names an object. A slot that opens no more is said of all slots.
fn names(error: &RepoError, key: &Key) -> bool {
    let text = format!("{error}");
    let short = key.as_str().strip_prefix("clusters/main/").unwrap_or(key.as_str());
    let pack = short.strip_prefix("data/").unwrap_or(short);
    let by_marker = matches!(error, RepoError::Missing { .. }) && short == "repository.json";
    let by_id = matches!(error, RepoError::Damaged { .. })
        && short == "repository.json"
        && text.contains("keys/recipients");
    let by_slot = short.starts_with("keys/") && text.contains("keys/recipients");
    let by_backup = short.starts_with("backups/") && text.contains(key.name());
    text.contains(short) || text.contains(pack) || by_marker || by_id || by_slot || by_backup
}

#[test]
fn every_cut_and_many_flips_of_every_object_are_found_and_named() {
    let (store, id) = world();
    read_all(&store, id).unwrap();
    let random = Seeded::new(11);
    let mut changes = 0;
    for (key, body) in store.snapshot() {
        let length = body.len();
        // Every length of what is short, and of what is long the ends and every 97th.
        let near_end = |at: usize| !(64..length.saturating_sub(64)).contains(&at);
        for at in (0..length).filter(|at| length < 400 || near_end(*at) || at % 397 == 0) {
            must_be_found(&key, &format!("cut to {at}"), |b| b.truncate(at), &store, id);
            changes += 1;
        }
        for at in (0..length).filter(|at| near_end(*at) || at % 97 == 0) {
            let bit = 1 << random.below(8);
            if is_free(&key, &body, at) {
                continue;
            }
            must_be_found(&key, &format!("bit {bit} of {at}"), |b| b[at] ^= bit, &store, id);
            changes += 1;
        }
        if !key.as_str().ends_with(".json") && !key.as_str().contains("slots") {
            must_be_found(&key, "a byte too many", |b| b.push(0), &store, id);
            changes += 1;
        }
        for round in 0..20 {
            let nonsense = random.bytes(random.below(300));
            must_be_found(&key, &format!("nonsense {round}"), |b| *b = nonsense, &store, id);
            changes += 1;
        }
    }
    assert!(changes > 2000, "{changes}");
}

/// JSON that is not sealed has bytes that mean nothing (blanks) or nothing that is checked: when
/// it was made, and the letters' case of hexadecimal digits.
fn is_free(key: &Key, body: &[u8], at: usize) -> bool {
    let json = key.as_str() == "repository.json" || key.as_str().contains("slots");
    let text = String::from_utf8_lossy(body);
    let created = text.find("\"created\"").unwrap_or(usize::MAX);
    json && (body[at].is_ascii_whitespace() || at >= created || body[at].is_ascii_hexdigit())
}

#[test]
fn an_object_in_the_place_of_another_is_found_and_named() {
    let (store, id) = world();
    let cluster = support::main_cluster(&support::open(store.clone(), 4).unwrap());
    let mut files = support::some_files();
    files.get_mut("base/1/1259").unwrap().reverse();
    let second = support::take_backup(&cluster, &files, &Take::at(50)).unwrap().unwrap().id;
    let snapshot = store.snapshot();
    let mut swaps = 0;
    let kinds = ["backups", "data", "wal", "journal", "lease", "keys"];
    for (from, body) in &snapshot {
        for to in snapshot.keys().filter(|to| *to != from) {
            let same_kind = kinds.iter().any(|kind| {
                let part = format!("{kind}/");
                from.as_str().contains(&part) && to.as_str().contains(&part)
            });
            if same_kind {
                let second_too = MemoryStore::from_snapshot(snapshot.clone());
                assert!(second_too.corrupt(to, |b| b.clone_from(body)));
                let error = read_all(&second_too, id)
                    .and_then(|()| {
                        let cluster = support::main_cluster(&support::open(second_too.clone(), 5)?);
                        support::read_backup(&cluster, second).map(drop)
                    })
                    .expect_err(&format!("{from} in the place of {to}"));
                assert!(names(&error, to), "{from} in the place of {to}: {error}");
                swaps += 1;
            }
        }
    }
    assert!(swaps >= 14, "{swaps}");
}

#[test]
fn an_object_under_a_name_of_its_own_kind_that_is_not_its_own_is_found() {
    let (store, id) = world();
    let renamed = [
        (format!("clusters/main/backups/{id}"), "clusters/main/backups/20991122T231501Z-00000000"),
        (
            "clusters/main/wal/7/00000001/000000010000000000000001".to_owned(),
            "clusters/main/wal/7/00000001/000000010000000000000009",
        ),
        (
            "clusters/main/wal/7/00000001/000000010000000000000001".to_owned(),
            "clusters/main/wal/8/00000001/000000010000000000000001",
        ),
        (String::new(), "clusters/main/journal/20991122T231501.000000Z-00000000"),
        ("clusters/main/lease/000000000002".to_owned(), "clusters/main/lease/000000000900"),
    ];
    for (from, to) in renamed {
        let copy = MemoryStore::from_snapshot(store.snapshot());
        let snapshot = copy.snapshot();
        let (_, body) = match from.as_str() {
            "" => snapshot.iter().find(|(key, _)| key.as_str().contains("journal/")).unwrap(),
            from => snapshot.get_key_value(&Key::new(from).unwrap()).unwrap(),
        };
        copy.put(&Key::new(to).unwrap(), body).unwrap();
        let cluster = support::main_cluster(&support::open(copy.clone(), 5).unwrap());
        let result = match to.split('/').nth(2).unwrap() {
            "backups" => cluster.manifest(cluster.backups().unwrap().pop().unwrap()).map(drop),
            _ => read_all(&copy, id),
        };
        let error = result.expect_err(to).to_string();
        assert!(error.contains(to), "{to}: {error}");
    }
}

#[test]
fn an_object_of_another_cluster_or_repository_is_found() {
    let (store, id) = world();
    let repository = support::open(store.clone(), 6).unwrap();
    let other = repository.cluster("other".parse().unwrap());
    let foreign = support::create(MemoryStore::new(), 77);
    for (key, body) in store.snapshot() {
        let Some(rest) = key.as_str().strip_prefix("clusters/main/") else { continue };
        store.put(&Key::new(format!("clusters/other/{rest}")).unwrap(), &body).unwrap();
        foreign.store().put(&key, &body).unwrap();
    }
    for cluster in [other, support::main_cluster(&foreign)] {
        let seals = [
            cluster.manifest(id).map(drop),
            cluster.journal().map(drop),
            cluster.read_log(&log_place("000000010000000000000001")).map(drop),
            read_tocs(&cluster),
            Lease::acquire(&cluster, Purpose::Backup, &SimClock::new(support::at(1))).map(drop),
        ];
        for seal in seals {
            let error = seal.unwrap_err();
            assert!(matches!(error, RepoError::Damaged { .. }), "{error}");
        }
    }
}

#[test]
fn extents_that_change_places_within_a_pack_are_found() {
    let store = MemoryStore::new();
    let cluster = support::main_cluster(&support::create(store.clone(), 1));
    // Incompressible, so that both extents have one length.
    let files = support::Files::from([("base/1/1".to_owned(), Seeded::new(1).bytes(64 * PAGE))]);
    let id = support::take_backup(&cluster, &files, &Take::at(1)).unwrap().unwrap().id;
    let key = PackId { session: id, number: 0 }.key(cluster.name());
    let length = 32 * PAGE + 6 + 16;
    store.corrupt(&key, |body| {
        let first = body[8..8 + length].to_vec();
        body.copy_within(8 + length..8 + 2 * length, 8);
        body[8 + length..8 + 2 * length].copy_from_slice(&first);
    });
    let error = support::read_backup(&cluster, id).unwrap_err();
    assert!(matches!(&error, RepoError::Damaged { object, .. } if object.contains("000000 at 8")));
}

#[test]
fn plain_decoders_survive_nonsense_flips_and_cuts() {
    let random = Seeded::new(5);
    let (store, _) = world();
    let cluster = support::main_cluster(&support::open(store, 7).unwrap());
    // Large enough for its map to lie in a pack.
    let mut files = support::some_files();
    files.insert("base/1/1".to_owned(), random.bytes(500 * PAGE));
    let manifest = support::take_backup(&cluster, &files, &Take::at(60)).unwrap().unwrap();
    let index = cluster.index_key(manifest.id);
    let plain = |at: lifeboat_repo::BoxRef, kind| {
        let mut sealed = Vec::new();
        let key = at.pack.key(cluster.name());
        cluster.store().get_range(&key, at.offset.into(), at.length as usize, &mut sealed).unwrap();
        index.open(kind, at.number, "x", &mut sealed).unwrap().to_vec()
    };
    let chunk = plain(manifest.chunks[0].at(), BoxKind::TableChunk);
    let listed = decode_chunk("x", &chunk, PAGE as u32).unwrap();
    let boxed = listed.iter().flat_map(|file| &file.parts).find_map(support::boxed).unwrap();
    let part = plain(boxed, BoxKind::MapPart);
    assert!(part.len() > 4000);
    let accepted = |bytes: &[u8]| {
        let part = decode_boxed_part("the object", bytes, PAGE as u32);
        let chunk = decode_chunk("the object", bytes, PAGE as u32);
        for error in [part.map(drop), chunk.map(drop)].into_iter().filter_map(Result::err) {
            assert!(error.to_string().contains("the object"), "{error}");
        }
    };
    for valid in [&chunk, &part] {
        for at in 0..valid.len() {
            accepted(&valid[..at]);
            for bit in 0..8 {
                let mut flipped = valid.clone();
                flipped[at] ^= 1 << bit;
                accepted(&flipped);
            }
        }
    }
    for _ in 0..20_000 {
        let mut nonsense = random.bytes(1 + random.below(200));
        nonsense[0] = 1; // past the version
        accepted(&nonsense);
    }
}

#[test]
fn a_table_of_contents_that_lies_under_a_true_seal_is_refused() {
    let repository = RepositoryId([1; 16]);
    let session: BackupId = "20261122T231501Z-00000001".parse().unwrap();
    let scope = Scope::backup(repository, &"main".parse().unwrap(), session);
    let key = IndexKey::from_bytes([1; 32]).session(&scope);
    let id = PackId { session, number: 4 };
    let mut builder = PackBuilder::new(id, Vec::new());
    builder.add(&key, BoxKind::MapPart, 0, |out| out.extend_from_slice(b"content"));
    let (_, good) = builder.finish(&key);
    let lines = read_toc(id, &key, &good).unwrap();
    assert_eq!((lines.len(), lines[0].sealed_by, lines[0].length), (1, session, 23));
    assert!(read_toc(PackId { session, number: 5 }, &key, &good).is_err(), "another's number");
    let mut newer = good.clone();
    newer[7] = MAGIC[7] + 1;
    assert!(matches!(read_toc(id, &key, &newer), Err(RepoError::TooNew { found: 2, .. })));
    let random = Seeded::new(9);
    for _ in 0..5000 {
        let mut pack = MAGIC.to_vec();
        let from = pack.len();
        pack.extend(random.bytes(random.below(60)));
        key.seal(BoxKind::PackTrailer, 4, &mut pack, from);
        let sealed = (pack.len() - from) as u32;
        pack.extend_from_slice(&sealed.to_le_bytes());
        pack.extend_from_slice(b"LBPE");
        if let Ok(lines) = read_toc(id, &key, &pack) {
            assert!(lines.iter().all(|line| line.length == 0), "there is not a byte of boxes");
        }
    }
}
