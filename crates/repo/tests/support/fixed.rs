//! The objects of which `src/vectors` holds one instance each: fixed keys, fixed times, one small
//! backup with pages of 512 bytes. Included by the tests and by `examples/vectors.rs`.
#![allow(dead_code, reason = "every user uses its part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;

use lifeboat_repo::codec::{Compressor, Decompressor};
use lifeboat_repo::crypt::{BoxKind, IndexKey, Scope};
use lifeboat_repo::table::{ChunkBuilder, encode_boxed_part};
use lifeboat_repo::writer::Usage;
use lifeboat_repo::{
    BackupId, BackupWriter, ChunkRef, Cluster, Compression, Fact, FileEntry, Identity, Keyring,
    LogPlace, Manifest, MapPart, PartWriter, Protection, Reorder, Repository, RepositoryId,
    TailPlace, Totals, Transforms,
};
use lifeboat_store::{Key, MemoryStore, Store};
use lifeboat_units::{ByteCount, Entropy, Secret, Timestamp};

/// Size of a page of the small backup, in bytes.
pub const PAGE: u32 = 512;
/// The passphrase of the second key slot.
pub const PASSPHRASE: &str = "correct horse battery staple";
/// The private key, as `age-keygen` prints it: 32 times the byte 0x42.
pub const IDENTITY: &str =
    "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
/// The index key is 32 times this byte.
pub const INDEX_BYTE: u8 = 0x11;
/// The cluster.
pub const CLUSTER: &str = "main";

/// A generator that gives one byte for ever: what is made with it is the same each time.
pub struct Fixed(pub u8);

impl Entropy for Fixed {
    fn fill(&self, into: &mut [u8]) {
        into.fill(self.0);
    }
}

/// All times: 2026-11-22 23:15:01 UTC.
pub fn now() -> Timestamp {
    "2026-11-22T23:15:01Z".parse().expect("a time")
}

/// The repository's number is 16 times 0x01.
pub fn repository_id() -> RepositoryId {
    RepositoryId([0x01; 16])
}

/// The keys of the repository.
pub fn keyring() -> Keyring {
    let identity = Identity::parse(IDENTITY).expect("a private key");
    Keyring {
        repository: repository_id(),
        index: IndexKey::from_bytes([INDEX_BYTE; 32]),
        recipients: vec![identity.recipient()],
        identity: Some(identity),
    }
}

/// The backup: random part 0x5a5a5a5a.
pub fn backup_id() -> BackupId {
    BackupId::new(now(), None, &Fixed(0x5a))
}

/// The name under which the log file lies.
pub fn log_place() -> LogPlace {
    LogPlace {
        system: "7312345678901234567".to_owned(),
        timeline: 1,
        name: "00000001000000000000002A".to_owned(),
    }
}

/// What the log file holds: two pieces, the first of a full MiB.
pub fn log_content() -> Vec<u8> {
    (0u32..(1 << 18) + 100).flat_map(|n| (n / 4096).to_le_bytes()).collect()
}

/// The piece of an unfinished segment.
pub fn tail_place() -> TailPlace {
    let of = LogPlace { name: "00000001000000000000002B".to_owned(), ..log_place() };
    TailPlace { of, from: 0x2000, to: 0x3000 }
}

/// What the piece holds.
pub fn tail_content() -> Vec<u8> {
    (0u32..1024).flat_map(|n| (n / 16).to_le_bytes()).collect()
}

/// Facts beside the log file, as the jobs write them for a segment of PostgreSQL.
pub fn log_facts() -> serde_json::Value {
    serde_json::json!({
        "system": "7312345678901234567",
        "segment": 16_777_216,
        "log": {
            "first_commit": "2026-11-22T23:14:00.25Z",
            "last_commit": "2026-11-22T23:14:59Z",
            "commits": 12,
            "xids": [730, 741],
            "restore_points": [
                {"name": "before-upgrade", "lsn": "0/2A000100", "at": "2026-11-22T23:14:30Z"}
            ],
            "end": "0/2AFFFFB0",
            "cut_off": false
        }
    })
}

/// Facts of the backup, as the jobs write them for a cluster of PostgreSQL.
pub fn backup_facts() -> serde_json::Value {
    serde_json::json!({
        "engine": "postgresql",
        "server_version": "18.1",
        "identity": {
            "system_id": "7312345678901234567",
            "major": 18,
            "catalog_version": 202_506_291,
            "page_bytes": PAGE,
            "pages_per_file": 131_072,
            "log_segment": 16_777_216,
            "checksums": true
        },
        "timeline": 1,
        "start_lsn": "0/2A000028",
        "stop_lsn": "0/2A000158",
        "started_at": "2026-11-22T23:15:01.5Z",
        "stopped_at": "2026-11-22T23:15:02.25Z",
        "note": null,
        "directories": [{"path": "", "mode": 448}, {"path": "base", "mode": 448}],
        "tablespaces": [],
        "generated": [{"path": "backup_label", "hex": "5354415254"}],
        "control_file": {"path": "global/pg_control", "hex": "c0ffee"},
        "damage": [],
        "damaged_pages": 0
    })
}

/// The files of the backup. Two relation files, one with a hole and a short last page, and text.
pub fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let page = |n: u32| -> Vec<u8> {
        (0..PAGE / 4).flat_map(|i| (n * 1000 + i / 8).to_le_bytes()).collect()
    };
    let mut first: Vec<u8> = (0..70).flat_map(page).collect();
    first[3 * PAGE as usize..5 * PAGE as usize].fill(0);
    first.truncate(69 * PAGE as usize + 100);
    BTreeMap::from([
        ("PG_VERSION", b"18\n".to_vec()),
        ("base/5/1259", first),
        ("base/5/1260", page(900)),
        ("global/empty", Vec::new()),
    ])
}

/// A raw extent, and the same in every codec.
pub fn raw_extent() -> Vec<u8> {
    b"All work and no play makes Jack a dull boy. ".repeat(30)
}

/// Transform 200 of the tests: bytes in reverse.
pub struct Reverse;

impl Reorder for Reverse {
    fn id(&self) -> u8 {
        200
    }
    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        out.extend(raw.iter().rev());
        true
    }
    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), String> {
        if split.len() != out.len() {
            return Err("another length".to_owned());
        }
        out.copy_from_slice(split);
        out.reverse();
        Ok(())
    }
}

/// Transforms that undo what the vectors use.
pub fn transforms() -> Transforms {
    Transforms::new(vec![Arc::new(Reverse)])
}

/// A decompressor for the vectors.
pub fn decompressor() -> Decompressor {
    Decompressor::new(transforms())
}

/// A compressed extent: head and payload, not sealed.
pub fn extent(policy: Compression, transform: bool) -> Vec<u8> {
    let transforms = if transform { transforms() } else { Transforms::default() };
    let mut out = Vec::new();
    Compressor::new(policy, &transforms).compress(&raw_extent(), transform, &mut out);
    out
}

/// The plain lease; the object lies under number 7.
pub fn lease_json() -> &'static str {
    concat!(
        r#"{"holder":{"host":"db1","boot":"3f1c8a52-0000-4000-8000-000000000001","#,
        r#""pid_namespace":"pid:[4026531836]","pid":4242,"process_start":981234},"#,
        r#""token":"8888888888888888","purpose":"backup","since":"2026-11-22T23:15:01Z","#,
        r#""renewed":"2026-11-22T23:16:01Z","released":false}"#
    )
}

/// The lease, sealed with salt 16 times 0x88.
pub fn lease() -> Vec<u8> {
    let cluster = CLUSTER.parse().expect("a name");
    let scope = Scope::object(repository_id(), &cluster, "lease/000000000007");
    let mut body = vec![1];
    let index = keyring().index;
    index.seal_single(&scope, BoxKind::Lease, lease_json().as_bytes(), &Fixed(0x88), &mut body);
    body
}

/// The plain note of who reads.
pub fn reading_json() -> String {
    let id = backup_id();
    [
        r#"{"holder":{"host":"db1","boot":"3f1c8a52-0000-4000-8000-000000000001","#,
        r#""pid_namespace":"pid:[4026531836]","pid":4242,"process_start":981234},"#,
        r#""purpose":"restore","backups":[""#,
        &id.to_string(),
        r#""],"since":"2026-11-22T23:15:01Z"}"#,
    ]
    .concat()
}

/// The note, sealed with salt 16 times 0x99.
pub fn reading() -> Vec<u8> {
    let cluster = CLUSTER.parse().expect("a name");
    let scope = Scope::object(repository_id(), &cluster, "reading/20261123T001501Z-99999999");
    let mut body = vec![1];
    let index = keyring().index;
    let plain = reading_json();
    index.seal_single(&scope, BoxKind::Reading, plain.as_bytes(), &Fixed(0x99), &mut body);
    body
}

/// The event that is recorded.
pub fn fact() -> Fact {
    Fact::BackupRemoved { id: backup_id(), reason: "older than 30 days".to_owned() }
}

/// Opens the repository in `store`; its random bytes are all `byte`.
pub fn open(store: &MemoryStore, byte: u8) -> Cluster {
    let repository = Repository::open(Arc::new(store.clone()), keyring(), Arc::new(Fixed(byte)));
    repository.expect("the vectors are a repository").cluster(CLUSTER.parse().expect("a name"))
}

/// Opens a store that holds single objects and no marker: it is given one.
pub fn open_unmarked(store: &MemoryStore) -> Cluster {
    open_unmarked_with(store, 0)
}

/// The same, with random bytes that are all `byte`.
pub fn open_unmarked_with(store: &MemoryStore, byte: u8) -> Cluster {
    put_keys_beside(store);
    open(store, byte)
}

/// Puts the keys where there are objects already, which [`Repository::create`] refuses.
fn put_keys_beside(store: &MemoryStore) {
    let keys = MemoryStore::new();
    put_keys(&keys);
    for (key, body) in keys.snapshot() {
        store.put(&key, &body).expect("a key");
    }
}

/// The keys of the objects by the names of their vectors.
pub fn names() -> Vec<(&'static str, Key)> {
    let id = backup_id();
    let list = [
        ("marker", "repository.json".to_owned()),
        ("slot-open", "keys/slots/open".to_owned()),
        ("slot-passphrase", "keys/slots/passphrase".to_owned()),
        ("recipients", "keys/recipients".to_owned()),
        ("pack-content", format!("clusters/main/data/{id}/000000")),
        ("pack-index", format!("clusters/main/data/{id}/000001")),
        ("manifest", format!("clusters/main/backups/{id}")),
        (
            "log-file",
            "clusters/main/wal/7312345678901234567/00000001/00000001000000000000002A".to_owned(),
        ),
        (
            "log-tail",
            "clusters/main/wal/7312345678901234567/00000001/\
             00000001000000000000002B.tail.00002000-00003000"
                .to_owned(),
        ),
        ("event", "clusters/main/journal/20261122T231501.000000Z-77777777".to_owned()),
        ("reading", "clusters/main/reading/20261123T001501Z-99999999".to_owned()),
        ("lease", "clusters/main/lease/000000000007".to_owned()),
    ];
    list.into_iter().map(|(name, key)| (name, Key::new(key).expect("a key"))).collect()
}

/// Makes the whole repository anew, and the plain map part and chunk of its index pack.
pub fn make() -> (MemoryStore, MapPart, Vec<FileEntry>) {
    let store = MemoryStore::new();
    put_keys(&store);
    let (part, entries) = put_backup(&open(&store, 0x5a));
    let cluster = open(&store, 0x66);
    let pushed =
        cluster.push_log(&log_place(), &log_content(), Compression::Auto, now(), log_facts());
    pushed.expect("a log file");
    let cluster = open(&store, 0x67);
    let (place, content) = (tail_place(), tail_content());
    let pushed = cluster.push_tail(&place, &content, Compression::Auto, now(), log_facts());
    pushed.expect("a tail");
    open(&store, 0x77).record(now(), fact()).expect("an event");
    let (_, reading_key) =
        names().into_iter().find(|(name, _)| *name == "reading").expect("a note");
    store.put(&reading_key, &reading()).expect("a note");
    let (_, lease_key) = names().pop().expect("the last is the lease");
    store.put(&lease_key, &lease()).expect("a lease");
    (store, part, entries)
}

/// Marker, slots and recipients.
pub fn put_keys(store: &MemoryStore) {
    let made =
        Repository::create(Arc::new(store.clone()), &Protection::Open, now(), Arc::new(Fixed(1)));
    made.expect("a repository");
    // The marker stays; the keys are random in part (age's own generator) and give way to ours.
    for name in ["keys/slots/first", "keys/recipients"] {
        store.delete(&Key::new(name).expect("a key")).expect("deleted");
    }
    let keyring = keyring();
    let passphrase = Secret::new(PASSPHRASE.to_owned());
    let slots = [("open", Protection::Open), ("passphrase", Protection::Passphrase(&passphrase))];
    for (name, protection) in slots {
        keyring.add_slot(store, name, &protection, &Fixed(0x33)).expect("a slot");
    }
    keyring.store_recipients(store, &Fixed(0x44)).expect("recipients");
}

fn put_backup(cluster: &Cluster) -> (MapPart, Vec<FileEntry>) {
    let id = backup_id();
    let writer =
        BackupWriter::begin(cluster, id, PAGE, Compression::Auto, transforms()).expect("begun");
    let mut extents = writer.extent_writer();
    let mut entries = Vec::new();
    for (path, content) in files() {
        let relation = path.starts_with("base/");
        let mut part = PartWriter::new();
        for page in content.chunks(PAGE as usize) {
            part.add(&mut extents, page, relation && page.len() == PAGE as usize).expect("added");
        }
        let parts = if content.is_empty() { Vec::new() } else { vec![part] };
        entries.push(FileEntry {
            path: path.to_owned(),
            size_bytes: content.len() as u64,
            mode: 0o600,
            first_page: relation.then_some(0),
            parts: extents.finish_parts(parts).expect("finished"),
        });
    }
    extents.close().expect("closed");
    let (mut used, mut builder) = (Usage::default(), ChunkBuilder::default());
    for entry in &entries {
        used.add(entry);
        builder.add(entry, PAGE);
    }
    let plain = builder.finish();
    let at = writer.put_index(BoxKind::TableChunk, &plain).expect("stored");
    used.add_chunk(at);
    let digest = cluster.hasher().page(&plain);
    let reader = lifeboat_repo::reader::IndexReader::new(cluster, PAGE);
    let finished = writer.finish_packs().expect("durable");
    let size = files().values().map(|f| f.len() as u64).sum();
    let totals = Totals {
        files: 4,
        size_bytes: ByteCount(size),
        pages: 72,
        pages_new: 70,
        pages_refreshed: 0,
        read_bytes: ByteCount(size),
        new_bytes: ByteCount(0),
    };
    let manifest = Manifest {
        id,
        cluster: CLUSTER.to_owned(),
        compared_with: None,
        began_at: now(),
        ended_at: now(),
        page_bytes: PAGE,
        chunks: vec![ChunkRef::new(at, 4, digest)],
        data_keys: BTreeMap::new(),
        packs: BTreeMap::new(),
        totals,
        facts: backup_facts(),
    };
    finished.commit(manifest, &used, None).expect("listed");
    let part = reader.part(&entries[1].parts[0], 70).expect("a part");
    (part, entries)
}

/// The plain map part, as in its box.
pub fn encode_part(part: &MapPart) -> Vec<u8> {
    let mut plain = Vec::new();
    encode_boxed_part(part, PAGE, &mut plain);
    plain
}

/// The plain chunk, as in its box.
pub fn encode_chunk(entries: &[FileEntry]) -> Vec<u8> {
    let mut builder = ChunkBuilder::default();
    entries.iter().for_each(|entry| builder.add(entry, PAGE));
    builder.finish()
}
