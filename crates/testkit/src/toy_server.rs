//! A toy server: page files in a real directory, a log in segments, and an [`Origin`] that backs
//! it up while it goes on writing. One timeline; records never lie across two segments.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_engine::{
    BackupStart, BackupStop, ChangeMap, Changed, Changes, ClusterIdentity, Content, Directory,
    EngineError, GeneratedFile, Listing, Lsn, Origin, SegmentName, SegmentSwitch, Since,
    SourceFile, SystemId, TimelineId,
};
use lifeboat_units::{Clock, Timestamp};

use crate::toy::{self, ToyError};
use crate::toy_log::{self, BODY_OFFSET, Change, Files, Logged, PAGE_BYTES, Record, Replayed};
use crate::toy_recovery::LABEL_FILE;

/// A server without connections: who has it writes.
pub struct ToyServer {
    directory: PathBuf,
    system: SystemId,
    /// The page files as they are now.
    files: Files,
    /// Every record there ever was: the model that restores are compared with.
    history: Vec<Logged>,
    /// First record of the current segment in the history.
    segment_from: usize,
    next: Lsn,
    ready: VecDeque<SegmentName>,
    next_xid: u32,
}

impl ToyServer {
    /// Makes an empty server in a directory.
    pub fn create(directory: &Path, system: SystemId) -> io::Result<Self> {
        toy::data_directory(directory, &toy::identity(system, PAGE_BYTES as u32))?;
        fs::create_dir_all(directory.join("base/1"))?;
        Ok(Self {
            directory: directory.to_owned(),
            system,
            files: Files::new(),
            history: Vec::new(),
            segment_from: 0,
            next: Lsn((toy::SEGMENT_BYTES + BODY_OFFSET) as u64),
            ready: VecDeque::new(),
            next_xid: 100,
        })
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Every record there ever was, oldest first.
    pub fn history(&self) -> &[Logged] {
        &self.history
    }

    /// The page files as they are now.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The page files after the first so many records.
    pub fn files_after(&self, records: usize) -> Files {
        let mut replayed = Replayed::default();
        self.history[..records].iter().for_each(|logged| replayed.replay(&logged.record));
        replayed.files
    }

    /// Changes pages and commits; gives the transaction's number.
    pub fn transaction(&mut self, changes: Vec<Change>, at: Timestamp) -> io::Result<u32> {
        for change in changes {
            // Log first, as every database does.
            if let Record::Change(change) = self.log(Record::Change(change), at)? {
                self.write(&change)?;
            }
        }
        let xid = self.next_xid;
        self.next_xid += 1;
        // Times in the log have microseconds.
        let at = Timestamp::from_microsecond(at.as_microsecond()).map_err(io::Error::other)?;
        self.log(Record::Commit { xid, at }, at)?;
        Ok(xid)
    }

    /// Makes a restore point.
    pub fn restore_point(&mut self, name: &str, at: Timestamp) -> io::Result<()> {
        let at = Timestamp::from_microsecond(at.as_microsecond()).map_err(io::Error::other)?;
        self.log(Record::Point { name: name.to_owned(), at }, at).map(drop)
    }

    /// Finishes the current segment at this time; it then waits to be archived.
    pub fn switch(&mut self, written: Timestamp) -> io::Result<SegmentName> {
        if self.segment_from == self.history.len() {
            self.log(Record::Filler, written)?;
        }
        let records = &self.history[self.segment_from..];
        let number = records[0].start.segment(toy::segment_size());
        let name = SegmentName::new(TimelineId(1), number, toy::segment_size());
        let mut segment = toy::segment(self.system, name, &toy_log::facts(records));
        assert_eq!(segment[BODY_OFFSET - 1], 0, "facts fit before the records");
        let mut at = BODY_OFFSET;
        for logged in records {
            let bytes = toy_log::encode(&logged.record);
            segment[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        fs::write(self.segment_path(name), segment)?;
        // As the file system would say, had it the server's clock.
        let file = fs::File::options().write(true).open(self.segment_path(name))?;
        file.set_modified(written.into())?;
        self.ready.push_back(name);
        self.segment_from = self.history.len();
        self.next = Lsn(number.end(toy::segment_size()).0 + BODY_OFFSET as u64);
        Ok(name)
    }

    /// Where a finished segment lies until it is archived.
    pub fn segment_path(&self, name: SegmentName) -> PathBuf {
        self.directory.join("pg_wal").join(name.to_string())
    }

    /// The oldest segment that waits to be archived.
    pub fn ready(&self) -> Option<SegmentName> {
        self.ready.front().copied()
    }

    /// The oldest waiting segment is archived: it may go.
    pub fn archived(&mut self) -> io::Result<()> {
        match self.ready.pop_front() {
            Some(name) => fs::remove_file(self.segment_path(name)),
            None => Ok(()),
        }
    }

    /// Logs a record, and gives it as it was logged: a page begins with the end of its record.
    fn log(&mut self, mut record: Record, at: Timestamp) -> io::Result<Record> {
        let length = toy_log::encode(&record).len() as u64;
        let start =
            self.next.0 - self.next.segment(toy::segment_size()).start(toy::segment_size()).0;
        // 8 bytes stay free, so that the end of the records is seen.
        if start + length + 8 > toy::SEGMENT_BYTES as u64 {
            self.switch(at)?;
        }
        let end = Lsn(self.next.0 + length);
        if let Record::Change(Change::Page { bytes, .. }) = &mut record {
            bytes[..8].copy_from_slice(&end.0.to_le_bytes());
        }
        self.history.push(Logged { start: self.next, end, record: record.clone() });
        self.next = end;
        Ok(record)
    }

    fn write(&mut self, change: &Change) -> io::Result<()> {
        toy_log::apply(change, &mut self.files);
        let (Change::Page { file, .. } | Change::Truncate { file, .. } | Change::Remove { file }) =
            change;
        let path = self.directory.join(toy_log::path(*file));
        let open = || fs::File::options().create(true).truncate(false).write(true).open(&path);
        match change {
            Change::Page { page, bytes, .. } => {
                open()?.write_all_at(bytes, u64::from(*page) * PAGE_BYTES as u64)
            }
            Change::Truncate { pages, .. } => {
                open()?.set_len(u64::from(*pages) * PAGE_BYTES as u64)
            }
            Change::Remove { .. } => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn listing(&self) -> io::Result<Listing> {
        let directory = |path: &str| Directory { path: path.to_owned(), mode: 0o700 };
        let mut files = Vec::new();
        for entry in fs::read_dir(self.directory.join("base/1"))? {
            let entry = entry?;
            files.push(SourceFile {
                path: format!("base/1/{}", entry.file_name().to_string_lossy()),
                size_bytes: entry.metadata()?.len(),
                mode: 0o600,
                content: Content::Pages { first_page: 0 },
            });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Listing {
            root: self.directory.clone(),
            directories: ["", "base", "base/1", "global", "pg_wal"].map(directory).to_vec(),
            files,
            tablespaces: Vec::new(),
            left_out: Vec::new(),
        })
    }
}

/// A server that several hold.
pub type SharedServer = Arc<Mutex<ToyServer>>;

/// Locks a server.
pub fn lock(server: &SharedServer) -> MutexGuard<'_, ToyServer> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where in its course a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Backup mode was entered.
    Started,
    /// Files are listed and not yet read.
    Listed,
    /// The session is kept alive.
    KeepAlive,
    /// All files are read.
    Copied,
    /// Backup mode was left.
    Stopped,
}

/// A toy server as a backup sees it.
pub struct ToyOrigin<'a> {
    /// The server.
    pub server: SharedServer,
    /// Its data directory.
    pub directory: PathBuf,
    /// The server's clock.
    pub clock: &'a dyn Clock,
    /// What happens meanwhile. May lock the server.
    pub meanwhile: Box<dyn FnMut(Moment) + Send + 'a>,
    /// Runs the archiver; whether it fails is its own affair.
    pub archiver: Box<dyn FnMut() + Send + 'a>,
    /// What it says of its changes.
    pub hints: Hints,
    start: Option<Lsn>,
}

/// What a toy server says of its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hints {
    /// All that its log says.
    True,
    /// Nothing.
    None,
    /// All but what concerns this file.
    Forget(u32),
}

fn failed(error: io::Error) -> EngineError {
    EngineError::new(ToyError::Io(error))
}

impl<'a> ToyOrigin<'a> {
    /// A quiet server, whose archiver `archiver` runs.
    pub fn new(
        server: &SharedServer,
        clock: &'a dyn Clock,
        archiver: impl FnMut() + Send + 'a,
    ) -> Self {
        let directory = lock(server).directory.clone();
        let (server, archiver) = (Arc::clone(server), Box::new(archiver));
        let (meanwhile, hints) = (Box::new(|_| {}), Hints::True);
        Self { server, directory, clock, meanwhile, archiver, hints, start: None }
    }

    /// A server that says this of its changes.
    pub fn with_hints(mut self, hints: Hints) -> Self {
        self.hints = hints;
        self
    }

    /// A server at which something happens while it is backed up.
    pub fn with_meanwhile(mut self, meanwhile: impl FnMut(Moment) + Send + 'a) -> Self {
        self.meanwhile = Box::new(meanwhile);
        self
    }
}

/// What the log says of each file: the pages, and from which page on it was cut.
#[derive(Default)]
struct ToyChanges(BTreeMap<String, (BTreeSet<u32>, u32)>);

impl ToyChanges {
    fn note(&mut self, change: &Change, forget: Option<u32>) {
        let (Change::Page { file, .. } | Change::Truncate { file, .. } | Change::Remove { file }) =
            change;
        if forget == Some(*file) {
            return;
        }
        let (pages, limit) =
            self.0.entry(toy_log::path(*file)).or_insert_with(|| (BTreeSet::new(), u32::MAX));
        match change {
            Change::Page { page, .. } => drop(pages.insert(*page)),
            Change::Truncate { pages, .. } => *limit = (*limit).min(*pages),
            Change::Remove { .. } => *limit = 0,
        }
    }
}

impl ChangeMap for ToyChanges {
    fn of(&self, file: &SourceFile) -> Changed {
        let Some((pages, limit)) = self.0.get(&file.path) else { return Changed::NOTHING };
        let mut ranges: Vec<std::ops::Range<u32>> = Vec::new();
        let single = pages.range(..*limit).map(|page| *page..*page + 1);
        for range in single.chain((*limit < u32::MAX).then_some(*limit..u32::MAX)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        Changed::Pages(ranges)
    }
}

impl Origin for ToyOrigin<'_> {
    fn identity(&mut self) -> Result<ClusterIdentity, EngineError> {
        Ok(toy::identity(lock(&self.server).system, PAGE_BYTES as u32))
    }

    fn version(&mut self) -> Result<String, EngineError> {
        Ok("1".to_owned())
    }

    fn data_directory(&self) -> &Path {
        &self.directory
    }

    fn server_time(&mut self) -> Result<Timestamp, EngineError> {
        Ok(self.clock.now())
    }

    fn switch_segment(&mut self) -> Result<SegmentSwitch, EngineError> {
        let segment = lock(&self.server).switch(self.clock.now()).map_err(failed)?;
        (self.archiver)();
        Ok(SegmentSwitch { segment })
    }

    fn archiver_failure(&mut self, _awaited: SegmentName) -> Result<Option<String>, EngineError> {
        Ok(lock(&self.server).ready().map(|segment| segment.to_string()))
    }

    fn start(&mut self, _label: &str) -> Result<BackupStart, EngineError> {
        let lsn = {
            let mut server = lock(&self.server);
            server.log(Record::Filler, self.clock.now()).map_err(failed)?;
            server.history.last().map_or(server.next, |logged| logged.start)
        };
        self.start = Some(lsn);
        (self.meanwhile)(Moment::Started);
        Ok(BackupStart { lsn, timeline: TimelineId(1), at: self.clock.now() })
    }

    fn listing(&mut self) -> Result<Listing, EngineError> {
        let listing = lock(&self.server).listing().map_err(failed)?;
        (self.meanwhile)(Moment::Listed);
        Ok(listing)
    }

    fn changes(&mut self, since: &Since) -> Result<Changes, EngineError> {
        let forget = match self.hints {
            Hints::None => return Ok(Changes::Unknown { because: "it does not tell".into() }),
            Hints::True => None,
            Hints::Forget(file) => Some(file),
        };
        let to = self.start.ok_or_else(|| failed(io::Error::other("no backup runs")))?;
        let mut map = ToyChanges::default();
        for logged in &lock(&self.server).history {
            if let Record::Change(change) = &logged.record
                && (since.start..to).contains(&logged.start)
            {
                map.note(change, forget);
            }
        }
        Ok(Changes::Known(Box::new(map)))
    }

    fn keep_alive(&mut self) -> Result<(), EngineError> {
        (self.meanwhile)(Moment::KeepAlive);
        Ok(())
    }

    fn control_file(&mut self) -> Result<GeneratedFile, EngineError> {
        (self.meanwhile)(Moment::Copied);
        let bytes = fs::read(self.directory.join(toy::CONTROL_FILE)).map_err(failed)?;
        Ok(GeneratedFile { path: toy::CONTROL_FILE.to_owned(), bytes })
    }

    fn stop(&mut self) -> Result<BackupStop, EngineError> {
        let start = self.start.take().ok_or_else(|| failed(io::Error::other("no backup runs")))?;
        let lsn = {
            let mut server = lock(&self.server);
            server.log(Record::BackupEnd(start), self.clock.now()).map_err(failed)?;
            let end = server.next;
            server.switch(self.clock.now()).map_err(failed)?;
            end
        };
        let at = self.clock.now();
        (self.meanwhile)(Moment::Stopped);
        (self.archiver)();
        let label =
            GeneratedFile { path: LABEL_FILE.to_owned(), bytes: start.to_string().into_bytes() };
        Ok(BackupStop { lsn, timeline: TimelineId(1), at, files: vec![label] })
    }

    fn abort(&mut self) {
        self.start = None;
    }
}
