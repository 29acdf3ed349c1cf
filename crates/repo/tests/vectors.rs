//! The golden vectors of docs/format: each is decoded; where encoding gives the same bytes each
//! time, each is encoded again to the same bytes.

#[path = "support/fixed.rs"]
mod fixed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fixed::{Fixed, PAGE};
use lifeboat_repo::codec::EXTENT_BYTES_MAX;
use lifeboat_repo::crypt::BoxKind;
use lifeboat_repo::map::{Source, page_hash};
use lifeboat_repo::pack::{PackBuilder, PackId, read_toc};
use lifeboat_repo::reader::{IndexReader, ReadBuffers};
use lifeboat_repo::table::{PartRef, decode_boxed_part, decode_chunk};
use lifeboat_repo::{
    Compression, ContentReader, Keyring, Lease, Protection, Purpose, ReadPurpose, Reading,
    RepoError, Repository, TailPlace, repository,
};
use lifeboat_store::{Key, MemoryStore, Store};
use lifeboat_testkit::SimClock;
use lifeboat_units::{Clock, Secret};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vectors")
}

fn vector(name: &str) -> Vec<u8> {
    let path = directory().join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    assert!(digits.len().is_multiple_of(2), "{name}");
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// A store that holds what the vectors hold, and nothing that was made today.
fn store() -> MemoryStore {
    let store = MemoryStore::new();
    for (name, key) in fixed::names() {
        store.put(&key, &vector(name)).unwrap();
    }
    store
}

/// What today's code stores under a vector's name.
fn key_of(name: &str) -> Key {
    fixed::names().into_iter().find(|(n, _)| *n == name).unwrap().1
}

#[test]
fn every_vector_has_a_page_that_names_it() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/format");
    let mut text = String::new();
    for page in std::fs::read_dir(pages).unwrap() {
        text.push_str(&std::fs::read_to_string(page.unwrap().path()).unwrap());
    }
    for file in std::fs::read_dir(directory()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(text.contains(&name), "no page names {name}");
    }
}

#[test]
fn the_marker_and_the_keys_read_back_and_are_written_the_same() {
    let store = store();
    assert_eq!(repository::identify(&store).unwrap(), fixed::repository_id());
    let passphrase = Secret::new(fixed::PASSPHRASE.to_owned());
    let locked = Keyring::unlock(&store, fixed::repository_id(), None).unwrap_err();
    assert!(matches!(locked, RepoError::WrongPassphrase { slots: 2, .. }), "{locked}");
    for passphrase in [Some(&passphrase), None] {
        // Without a passphrase, only where no slot asks for one.
        if passphrase.is_none() {
            store.delete(&key_of("slot-passphrase")).unwrap();
        }
        let opened = Keyring::unlock(&store, fixed::repository_id(), passphrase).unwrap();
        assert_eq!(opened.index.expose(), &[fixed::INDEX_BYTE; 32]);
        assert_eq!(opened.recipients, fixed::keyring().recipients);
        let identity = opened.identity.unwrap().to_secret();
        assert_eq!(identity.expose(), fixed::IDENTITY);
    }
    let again = MemoryStore::new();
    fixed::put_keys(&again);
    for name in ["marker", "slot-open", "slot-passphrase", "recipients"] {
        assert_eq!(again.get(&key_of(name), 1 << 20).unwrap(), vector(name), "{name}");
    }
}

#[test]
fn the_key_file_reads_back_and_is_written_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (golden, written) = (directory.path().join("golden"), directory.path().join("written"));
    std::fs::write(&golden, vector("key-file")).unwrap();
    let keys = Keyring::read_file(&store(), fixed::repository_id(), &golden).unwrap();
    assert_eq!(keys.index.expose(), &[fixed::INDEX_BYTE; 32]);
    keys.write_file(&written, true).unwrap();
    assert_eq!(std::fs::read(&written).unwrap(), vector("key-file"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&written.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn extents_of_every_codec_give_the_same_bytes() {
    for (name, codec, transform) in
        [("stored", 0, 0), ("zstd", 1, 0), ("lz4", 2, 0), ("reordered", 1, 200)]
    {
        let extent = vector(&format!("extent-{name}"));
        assert_eq!(extent[..2], [codec, transform], "{name}");
        let mut raw = Vec::new();
        fixed::decompressor().decompress(name, &extent, &mut raw).unwrap();
        assert!(raw == fixed::raw_extent() && raw.len() < EXTENT_BYTES_MAX, "{name}");
    }
    // The libraries may compress otherwise one day; what is stored as it is, cannot change.
    assert_eq!(fixed::extent(Compression::None, false), vector("extent-stored"));
}

#[test]
fn map_part_and_chunk_read_back_and_are_written_the_same() {
    let part = decode_boxed_part("x", &vector("map-part"), PAGE).unwrap();
    assert_eq!(part.pages(), 70);
    assert!(part.runs.iter().any(|run| run.source == Source::Zero && run.pages == 2));
    assert_eq!(fixed::encode_part(&part), vector("map-part"));
    let files = decode_chunk("x", &vector("table-chunk"), PAGE).unwrap();
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, fixed::files().into_keys().collect::<Vec<_>>());
    let kinds: Vec<_> = files
        .iter()
        .flat_map(|file| &file.parts)
        .map(|part| match part {
            PartRef::Zero => "zero",
            PartRef::Inline(_) => "inline",
            PartRef::Boxed { .. } => "boxed",
        })
        .collect();
    assert_eq!(kinds, ["inline", "boxed", "inline"]);
    assert_eq!(fixed::encode_chunk(&files), vector("table-chunk"));
}

#[test]
fn packs_read_back_and_are_written_the_same() {
    let cluster = fixed::open(&store(), 0);
    let id = fixed::backup_id();
    let manifest = cluster.manifest(id).unwrap();
    let wrapped = manifest.wrapped_key(id).unwrap();
    let identity = cluster.repository().keyring().identity.as_ref();
    let data_key = lifeboat_repo::keys::DataKey::unwrap(&wrapped, identity, "x").unwrap();
    let (index, content) = (cluster.index_key(id), data_key.seal_key(&cluster.backup_scope(id)));
    for (number, name) in [(0, "pack-content"), (1, "pack-index")] {
        let pack = PackId { session: id, number };
        let body = vector(name);
        let mut builder = PackBuilder::new(pack, Vec::new());
        let mut at = 8;
        let toc = read_toc(pack, &index, &body).unwrap();
        assert!(toc.len() >= 2, "{name}");
        for line in toc {
            let key = if line.kind == BoxKind::Extent { &content } else { &index };
            assert_eq!(line.sealed_by, id);
            let mut sealed = body[at..at + line.length as usize].to_vec();
            at += line.length as usize;
            let plain = key.open(line.kind, line.number, name, &mut sealed).unwrap();
            builder.add(key, line.kind, line.number, |out| out.extend_from_slice(plain));
        }
        assert_eq!(builder.finish(&index), (pack, body), "{name}");
    }
}

#[test]
fn the_backup_reads_back_from_the_vectors_alone() {
    let cluster = fixed::open(&store(), 0);
    assert_eq!(cluster.backups().unwrap(), [fixed::backup_id()]);
    let manifest = cluster.manifest(fixed::backup_id()).unwrap();
    assert_eq!(manifest.facts, fixed::backup_facts());
    let index = IndexReader::new(&cluster, PAGE);
    let content = ContentReader::new(&cluster, &manifest).unwrap();
    let mut buffers = ReadBuffers::new(fixed::decompressor());
    let files = index.chunk(&manifest.chunks[0]).unwrap();
    for file in files {
        let expected = &fixed::files()[file.path.as_str()];
        assert_eq!(file.size_bytes, expected.len() as u64);
        for part in &file.parts {
            let map = index.part(part, file.pages(PAGE) as u32).unwrap();
            let mut page = 0;
            for run in &map.runs {
                for i in 0..run.pages as usize {
                    let from = (page + i) * PAGE as usize;
                    let want = &expected[from..expected.len().min(from + PAGE as usize)];
                    let Source::Extent { index, offset } = run.source else {
                        assert!(want.iter().all(|b| *b == 0) && map.hashes[page + i] == 0);
                        continue;
                    };
                    let at = offset as usize + i * PAGE as usize;
                    let extent = [map.extents[index as usize]];
                    let read = content.extents(&extent, &mut buffers, |_, raw| {
                        assert_eq!(&raw[at..at + want.len()], want);
                        Ok::<_, RepoError>(())
                    });
                    read.unwrap();
                    let hash = page_hash(cluster.hasher().page(want));
                    assert_eq!(hash, map.hashes[page + i]);
                }
                page += run.pages as usize;
            }
        }
    }
}

#[test]
fn the_manifest_says_the_same_when_it_is_written_again() {
    let cluster = fixed::open(&store(), 0);
    let id = fixed::backup_id();
    let manifest = cluster.manifest(id).unwrap();
    let sealed = manifest.seal(cluster.name(), &cluster.index_key(id)).unwrap();
    let again = MemoryStore::new();
    again.put(&key_of("manifest"), &sealed).unwrap();
    assert_eq!(fixed::open_unmarked(&again).manifest(id).unwrap(), manifest);
}

#[test]
fn the_log_file_reads_back() {
    let cluster = fixed::open(&store(), 0);
    let (head, content) = cluster.read_log(&fixed::log_place()).unwrap();
    assert!(content == fixed::log_content());
    assert_eq!(head.facts, fixed::log_facts());
    assert_eq!(head.archived_at, fixed::now());
    let listed = cluster.logs().unwrap();
    assert_eq!(listed[0].place, fixed::log_place());
    assert_eq!(listed[0].stored_bytes, vector("log-file").len() as u64);
}

#[test]
fn the_log_tail_reads_back() {
    let cluster = fixed::open(&store(), 0);
    let place = fixed::tail_place();
    let (head, content) = cluster.read_tail(&place).unwrap();
    assert!(content == fixed::tail_content());
    assert_eq!((head.facts, head.archived_at), (fixed::log_facts(), fixed::now()));
    let tails = cluster.tails_of(&place.of.system, 1).unwrap();
    assert_eq!(tails, std::slice::from_ref(&place));
    assert_eq!(cluster.log_digest(&content), head.digest);
    // Bound to its name: as another stretch of the same segment it does not open.
    let moved = TailPlace { from: 0x3000, to: 0x4000, ..place };
    let key = key_of("log-tail").as_str().replace("00002000-00003000", "00003000-00004000");
    let other = MemoryStore::new();
    other.put(&Key::new(key).unwrap(), &vector("log-tail")).unwrap();
    let error = fixed::open_unmarked(&other).read_tail(&moved).unwrap_err();
    assert!(matches!(error, RepoError::Damaged { .. }), "{error}");
}

#[test]
fn the_event_reads_back_and_is_written_the_same() {
    let journal = fixed::open(&store(), 0).journal().unwrap();
    assert_eq!(journal.len(), 1);
    assert_eq!((journal[0].event.at, &journal[0].event.fact), (fixed::now(), &fixed::fact()));
    let again = MemoryStore::new();
    fixed::open_unmarked_with(&again, 0x77).record(fixed::now(), fixed::fact()).unwrap();
    assert_eq!(again.get(&key_of("event"), 1 << 20).unwrap(), vector("event"));
}

#[test]
fn the_lease_is_seen_and_a_new_one_has_the_same_fields() {
    let store = store();
    let clock = SimClock::new(fixed::now());
    let cluster = fixed::open(&store, 0x99);
    let Err(busy) = Lease::acquire(&cluster, Purpose::Backup, &clock) else { panic!("taken") };
    let text = busy.to_string();
    assert!(text.contains("process 4242 on db1 is backing up cluster `main`"), "{text}");
    assert_eq!(fixed::lease(), vector("lease"));
    store.delete(&key_of("lease")).unwrap();
    let lease = Lease::acquire(&cluster, Purpose::Expire, &clock).unwrap();
    let key = Key::new("clusters/main/lease/000000000001").unwrap();
    let mut body = store.get(&key, 1 << 20).unwrap();
    lease.release().unwrap();
    let scope = cluster.object_scope("lease/000000000001");
    let index = &cluster.repository().keyring().index;
    let plain = index.open_single(&scope, BoxKind::Lease, "x", &mut body[1..]).unwrap();
    let new: serde_json::Value = serde_json::from_slice(plain).unwrap();
    let old: serde_json::Value = serde_json::from_str(fixed::lease_json()).unwrap();
    let fields = |value: &serde_json::Value| -> Vec<String> {
        let all = value.as_object().unwrap().iter();
        let holder = value["holder"].as_object().unwrap().keys().cloned();
        all.map(|(name, _)| name.clone()).chain(holder).collect()
    };
    assert_eq!(fields(&new), fields(&old));
}

#[test]
fn the_note_of_who_reads_is_seen_until_it_lapses() {
    let (store, clock) = (store(), SimClock::new(fixed::now()));
    let cluster = fixed::open(&store, 0x99);
    assert_eq!(fixed::reading(), vector("reading"));
    let found = cluster.readings(clock.now()).unwrap();
    let [live] = &found.live[..] else { panic!("{found:?}") };
    assert_eq!(
        (&live.backups[..], live.purpose),
        (&[fixed::backup_id()][..], ReadPurpose::Restore)
    );
    assert_eq!(live.who, "process 4242 on db1");
    assert_eq!(live.until.to_string(), "2026-11-23T00:15:01Z");
    clock.advance(Duration::from_secs(3600));
    let lapsed = cluster.readings(clock.now()).unwrap();
    assert!(lapsed.live.is_empty() && lapsed.stale.is_empty(), "{lapsed:?}");
    clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(cluster.readings(clock.now()).unwrap().stale, [key_of("reading")]);
    // A new one has the same fields, and its name is bound to it.
    store.delete(&key_of("reading")).unwrap();
    clock.set(fixed::now());
    let backups = [fixed::backup_id()];
    let reading = Reading::begin(&cluster, ReadPurpose::Restore, &backups, &clock).unwrap();
    assert_eq!(reading.name(), "reading/20261123T001501Z-99999999");
    let body = store.get(&key_of("reading"), 1 << 20).unwrap();
    let scope = cluster.object_scope(reading.name());
    let index = &cluster.repository().keyring().index;
    let mut sealed = body.clone();
    let plain = index.open_single(&scope, BoxKind::Reading, "x", &mut sealed[1..]).unwrap();
    let new: serde_json::Value = serde_json::from_slice(plain).unwrap();
    let old: serde_json::Value = serde_json::from_str(&fixed::reading_json()).unwrap();
    let fields = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(fields(&new), fields(&old));
    for later in ["20261124T001501Z-99999999", "20991123T001501Z-99999999"] {
        let key = Key::new(format!("clusters/main/reading/{later}")).unwrap();
        store.put(&key, &body).unwrap();
    }
    let found = cluster.readings(clock.now()).unwrap();
    let counts = (found.live.len(), found.unreadable.len(), found.forged.len());
    assert_eq!(counts, (1, 1, 1), "{found:?}");
    reading.end().unwrap();
    assert!(store.get(&key_of("reading"), 1 << 20).unwrap_err().is_not_found());
}

#[test]
fn an_open_repository_is_made_of_the_same_kinds_of_objects() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Repository::create(Arc::clone(&store), &Protection::Open, fixed::now(), Arc::new(Fixed(3)))
        .unwrap();
    let mut keys = Vec::new();
    store.list("", &mut |entry| keys.push(entry.key.to_string())).unwrap();
    assert_eq!(keys, ["keys/recipients", "keys/slots/first", "repository.json"]);
}
