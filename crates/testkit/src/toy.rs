//! An engine so simple that whole histories run in memory: [`ToyEngine`], its log, and tiny
//! backups written by hand.
//!
//! - A segment of the log is 1 MiB: [`SEGMENT_MAGIC`], system (8 bytes), timeline (4), number (8),
//!   all little-endian, then the length (4) and the text (JSON) of its [`LogFacts`], then zeros.
//! - A history file is text: `timeline<TAB>position` on each line, oldest first.
//! - The control file (`global/toy_control`) is a [`ClusterIdentity`] as JSON.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use lifeboat_engine::{
    Ancestor, Ancestry, ClusterIdentity, Engine, EngineError, Landing, LogFacts, LogFile, LogPart,
    Lsn, PageFormat, PageVerdict, RecoveryMark, RecoverySettings, SegmentName, SegmentNo,
    SegmentSize, StartRequest, SystemId, TargetState, TimelineId, Transform,
};
use lifeboat_repo::crypt::BoxKind;
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::table::ChunkBuilder;
use lifeboat_repo::writer::Usage;
use lifeboat_repo::{
    BackupId, BackupWriter, ChunkRef, Cluster, Compression, FileEntry, Manifest, PartRef,
    PartWriter, Protection, Reorder, Repository, SystemEntropy, Totals, Transforms,
};
use lifeboat_repo::{PART_PAGES, RepoError};
use lifeboat_store::Store;
use lifeboat_units::{ByteCount, Code, Explain, Progress, Retry, Timestamp};

use crate::toy_log::Record;

/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"TOYLOG\x00\x01";
/// Bytes of a segment: the smallest size that there is.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// Where the control file lies.
pub const CONTROL_FILE: &str = "global/toy_control";
/// Where the toy server leaves its notes of what is to be archived.
const ARCHIVE_STATUS: &str = "pg_wal/archive_status";
/// Says that a directory recovers.
pub const RECOVERY_MARK: &str = "recovery.signal";
/// Says that a directory recovers for ever.
pub const STANDBY_MARK: &str = "standby.signal";

/// What the toy engine refuses.
#[derive(Debug, thiserror::Error)]
pub enum ToyError {
    /// Something is not as it should be.
    #[error("toy: {0}")]
    Refused(String),
    /// A file cannot be used.
    #[error("toy: cannot use a file")]
    Io(#[source] io::Error),
}

impl Explain for ToyError {
    fn code(&self) -> Code {
        Code("LB-TOY-001")
    }
    fn retry(&self) -> Retry {
        Retry::Never
    }
    fn help(&self) -> Option<String> {
        None
    }
}

fn refused(text: impl Into<String>) -> EngineError {
    EngineError::new(ToyError::Refused(text.into()))
}

/// An engine without a server: pages are any bytes, the log is what [`segment`] writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct ToyEngine;

struct ToyPages;

impl PageFormat for ToyPages {
    fn check(&self, _number: u32, page: &[u8]) -> PageVerdict {
        if page.iter().all(|b| *b == 0) { PageVerdict::Zero } else { PageVerdict::Valid }
    }

    /// A page begins with the end of its record.
    fn changed_at(&self, page: &[u8]) -> Option<Lsn> {
        let at = page.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        at.filter(|at| *at > 0).map(Lsn)
    }
}

/// The size of a toy segment.
pub fn segment_size() -> SegmentSize {
    SegmentSize::new(SEGMENT_BYTES as u64).expect("1 MiB is the smallest size")
}

/// The identity of a toy system with pages of this size.
pub fn identity(system: SystemId, page_bytes: u32) -> ClusterIdentity {
    ClusterIdentity {
        system_id: system,
        major: 1,
        catalog_version: 1,
        page_bytes,
        pages_per_file: 1024,
        log_segment: segment_size(),
        checksums: false,
    }
}

/// A segment of the log with these facts in it.
pub fn segment(system: SystemId, name: SegmentName, facts: &LogFacts) -> Vec<u8> {
    let number = name.number(segment_size()).expect("names are made with this size");
    let mut bytes = SEGMENT_MAGIC.to_vec();
    bytes.extend_from_slice(&system.0.to_le_bytes());
    bytes.extend_from_slice(&name.timeline.0.to_le_bytes());
    bytes.extend_from_slice(&number.0.to_le_bytes());
    let text = serde_json::to_vec(facts).expect("facts always serialise");
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&text);
    assert!(bytes.len() <= SEGMENT_BYTES, "facts fit into a segment");
    bytes.resize(SEGMENT_BYTES, 0);
    bytes
}

/// The name of a segment.
pub fn segment_name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::new(TimelineId(timeline), SegmentNo(number), segment_size())
}

/// A history file of these ancestors.
pub fn history(ancestors: &[(u32, Lsn)]) -> Vec<u8> {
    let lines = ancestors.iter().map(|(timeline, left_at)| format!("{timeline}\t{left_at}\n"));
    lines.collect::<String>().into_bytes()
}

/// Makes a data directory that tells this identity, with a log directory in it.
pub fn data_directory(directory: &Path, identity: &ClusterIdentity) -> io::Result<()> {
    fs::create_dir_all(directory.join("global"))?;
    fs::create_dir_all(directory.join("pg_wal"))?;
    fs::write(directory.join(CONTROL_FILE), serde_json::to_vec(identity)?)
}

/// Pieces of the log back to front, so that whoever reads one without undoing that is found out.
struct Turned;

/// How the log files of toy servers are reordered before compression.
pub fn log_transforms() -> Transforms {
    Transforms::new(vec![Arc::new(Turned)])
}

impl Reorder for Turned {
    fn id(&self) -> u8 {
        201
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

impl Engine for ToyEngine {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn page_format(&self, _identity: &ClusterIdentity) -> Box<dyn PageFormat> {
        Box::new(ToyPages)
    }

    fn page_transforms(&self, _page_bytes: u32) -> Vec<Box<dyn Transform>> {
        Vec::new()
    }

    fn parse_history(&self, timeline: TimelineId, bytes: &[u8]) -> Result<Ancestry, EngineError> {
        let text = std::str::from_utf8(bytes).map_err(|e| refused(e.to_string()))?;
        let line = |line: &str| -> Option<Ancestor> {
            let (timeline, left_at) = line.split_once('\t')?;
            let timeline = TimelineId(timeline.parse().ok()?);
            Some(Ancestor { timeline, left_at: left_at.parse().ok()? })
        };
        let ancestors = text.lines().map(line).collect::<Option<Vec<_>>>();
        let ancestors = ancestors.ok_or_else(|| refused("a line of a history is none"))?;
        Ok(Ancestry { timeline, ancestors })
    }

    fn segment_origin(
        &self,
        name: SegmentName,
        segment: LogPart<'_>,
    ) -> Result<(SystemId, SegmentSize), EngineError> {
        let size_bytes = segment.size;
        let segment = segment.bytes;
        if size_bytes != SEGMENT_BYTES || segment[..8] != SEGMENT_MAGIC {
            return Err(refused(format!("{name} is no segment, or cut short")));
        }
        let u64_at = |at: usize| u64::from_le_bytes(segment[at..at + 8].try_into().expect("8"));
        let timeline = u32::from_le_bytes(segment[16..20].try_into().expect("4"));
        if Some(SegmentNo(u64_at(20))) != name.number(segment_size())
            || TimelineId(timeline) != name.timeline
        {
            return Err(refused(format!("{name} holds another segment")));
        }
        Ok((SystemId(u64_at(8)), segment_size()))
    }

    fn log_facts(&self, _name: SegmentName, segment: &[u8]) -> LogFacts {
        let length = segment.get(28..32).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let text = length.and_then(|length| segment.get(32..32 + length as usize));
        text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    fn find_transaction(
        &self,
        name: SegmentName,
        segment: &[u8],
        wanted: u32,
    ) -> Option<(Lsn, Timestamp)> {
        crate::toy_log::records(name, segment).iter().find_map(|logged| match logged.record {
            Record::Commit { xid, at } if xid == wanted => Some((logged.end, at)),
            _ => None,
        })
    }

    fn directory_identity(&self, directory: &Path) -> Result<ClusterIdentity, EngineError> {
        let bytes = fs::read(directory.join(CONTROL_FILE))
            .map_err(|error| EngineError::new(ToyError::Io(error)))?;
        serde_json::from_slice(&bytes).map_err(|e| refused(e.to_string()))
    }

    fn inspect_target(&self, directory: &Path) -> Result<TargetState, EngineError> {
        match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(TargetState::Missing),
            Err(error) => Err(EngineError::new(ToyError::Io(error))),
            // As in `lifeboat_jobs::restore::RESTORING_MARK`.
            Ok(_) if directory.join("lifeboat.restoring").exists() => Ok(TargetState::Unfinished),
            Ok(_) if directory.join(CONTROL_FILE).exists() => Ok(TargetState::DataDirectory),
            Ok(mut entries) => Ok(match entries.next() {
                None => TargetState::Empty,
                Some(_) => TargetState::Other("a directory with other files"),
            }),
        }
    }

    fn recovery_mark(&self, directory: &Path) -> Option<RecoveryMark> {
        let marked = |name: &str| directory.join(name).exists();
        match (marked(STANDBY_MARK), marked(RECOVERY_MARK)) {
            (true, _) => Some(RecoveryMark::Standby),
            (_, true) => Some(RecoveryMark::Once),
            _ => None,
        }
    }

    fn control_file_path(&self) -> &'static str {
        CONTROL_FILE
    }

    /// As PostgreSQL does it: an empty file `<name>.ready` for each.
    fn waiting_logs(&self, directory: &Path) -> Result<Vec<LogFile>, EngineError> {
        let failed = |error| EngineError::new(ToyError::Io(error));
        let mut files = Vec::new();
        match fs::read_dir(directory.join(ARCHIVE_STATUS)) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(failed)?.file_name();
                    let stem = name.to_str().and_then(|name| name.strip_suffix(".ready"));
                    files.extend(stem.and_then(|stem| stem.parse::<LogFile>().ok()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(files)
    }

    fn waiting_directory(&self) -> &'static str {
        ARCHIVE_STATUS
    }

    fn log_directory(&self) -> &'static str {
        "pg_wal"
    }

    fn configure_recovery(
        &self,
        directory: &Path,
        settings: &RecoverySettings,
    ) -> Result<(), EngineError> {
        crate::toy_recovery::write_settings(directory, settings)
            .map_err(|error| EngineError::new(ToyError::Io(error)))
    }

    fn start_and_recover(
        &self,
        _request: &StartRequest,
        _progress: &dyn Progress,
    ) -> Result<Landing, EngineError> {
        Err(refused("there is no server to start"))
    }

    fn stop(&self, _directory: &Path, _major: u32) -> Result<(), EngineError> {
        Ok(())
    }
}

/// A repository without a passphrase in `store`, and its cluster `main`.
pub fn repository(store: Arc<dyn Store>, now: Timestamp) -> Cluster {
    let entropy = Arc::new(SystemEntropy);
    let made = Repository::create(store, &Protection::Open, now, entropy);
    let cluster = made.expect("the store is empty").cluster("main".parse().expect("a name"));
    cluster.with_log_transforms(log_transforms())
}

/// The cluster `main` of a repository whose keys `like` has, through another store.
pub fn reopen(like: &Cluster, store: Arc<dyn Store>) -> Result<Cluster, RepoError> {
    let keyring = like.repository().keyring().clone();
    let repository = Repository::open(store, keyring, Arc::new(SystemEntropy))?;
    let cluster = repository.cluster(like.name().clone());
    Ok(cluster.with_log_transforms(like.log_transforms().clone()))
}

/// A backup to be written by hand.
pub struct ToyBackup<'a> {
    /// Its identifier.
    pub id: BackupId,
    /// Size of a page.
    pub page_bytes: u32,
    /// Files, by path in ascending order, with their content.
    pub files: &'a [(&'a str, Vec<u8>)],
    /// The backup to compare with.
    pub previous: Option<&'a Manifest>,
    /// What the job would note.
    pub facts: serde_json::Value,
}

/// Writes a backup: packs, then the manifest. The journal is the caller's.
pub fn write_backup(cluster: &Cluster, toy: ToyBackup<'_>) -> Result<Manifest, RepoError> {
    let page_bytes = toy.page_bytes;
    let backup = BackupWriter::begin(
        cluster,
        toy.id,
        page_bytes,
        Compression::Zstd(1),
        Transforms::default(),
    )?;
    let earlier = toy.previous.map(|m| previous_files(cluster, m)).transpose()?;
    let mut usage = Usage::default();
    let mut builder = ChunkBuilder::default();
    let mut writer = backup.extent_writer();
    let mut totals = Totals::default();
    for (path, content) in toy.files {
        let before = earlier.iter().flatten().find(|f| f.path == *path);
        let mut parts = Vec::new();
        let part_bytes = PART_PAGES as usize * page_bytes as usize;
        for (number, bytes) in content.chunks(part_bytes).enumerate() {
            let previous = before
                .and_then(|f| Some((f.parts.get(number)?.clone(), f)))
                .map(|(part, file)| read_part(cluster, page_bytes, number, part, file))
                .transpose()?;
            let mut part = PartWriter::with_previous(previous, false);
            for page in bytes.chunks(page_bytes as usize) {
                part.add(&mut writer, page, page.len() == page_bytes as usize)?;
            }
            totals.pages += u64::from(part.pages());
            totals.pages_new += part.pages_new().0;
            parts.push(part);
        }
        let file = FileEntry {
            path: (*path).to_owned(),
            size_bytes: content.len() as u64,
            mode: 0o600,
            first_page: Some(0),
            parts: writer.finish_parts(parts)?,
        };
        totals.files += 1;
        totals.size_bytes += ByteCount(content.len() as u64);
        usage.add(&file);
        builder.add(&file, page_bytes);
    }
    writer.close()?;
    let mut chunks = Vec::new();
    if builder.files() > 0 {
        let files = builder.files() as u32;
        let at = backup.put_index(BoxKind::TableChunk, &builder.finish())?;
        usage.add_chunk(at);
        chunks.push(ChunkRef::new(at, files, 0));
    }
    let began_at = toy.id.began_at().expect("a checked identifier");
    let manifest = Manifest {
        id: toy.id,
        cluster: cluster.name().to_string(),
        compared_with: toy.previous.map(|m| m.id),
        began_at,
        ended_at: began_at,
        page_bytes,
        chunks,
        data_keys: Default::default(),
        packs: Default::default(),
        totals,
        facts: toy.facts,
    };
    backup.finish_packs()?.commit(manifest, &usage, toy.previous)
}

fn previous_files(cluster: &Cluster, manifest: &Manifest) -> Result<Vec<FileEntry>, RepoError> {
    let reader = IndexReader::new(cluster, manifest.page_bytes);
    let mut files = Vec::new();
    for chunk in &manifest.chunks {
        files.extend(reader.chunk(chunk)?);
    }
    Ok(files)
}

fn read_part(
    cluster: &Cluster,
    page_bytes: u32,
    number: usize,
    part: PartRef,
    file: &FileEntry,
) -> Result<(PartRef, lifeboat_repo::MapPart), RepoError> {
    let first = number as u64 * u64::from(PART_PAGES);
    let pages = (file.pages(page_bytes) - first).min(u64::from(PART_PAGES)) as u32;
    let map = IndexReader::new(cluster, page_bytes).part(&part, pages)?;
    Ok((part, map))
}

/// The place of a log file in the repository.
pub fn place(system: SystemId, file: LogFile) -> lifeboat_repo::LogPlace {
    lifeboat_repo::LogPlace {
        system: system.to_string(),
        timeline: file.timeline().0,
        name: file.to_string(),
    }
}
