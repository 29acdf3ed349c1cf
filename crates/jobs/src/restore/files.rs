//! Writes the files of a backup on threads: extents are read once for all files of a task, every
//! page is checked against its hash before it is written. Over a file that is there, only the
//! pages that differ are read and written.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};
use lifeboat_repo::PageHasher;
use lifeboat_repo::codec::Decompressor;
use lifeboat_repo::map::{Source as PageSource, page_hash};
use lifeboat_repo::reader::{ContentReader, IndexReader, ReadBuffers};
use lifeboat_repo::{BoxRef, Manifest, MapPart, PART_PAGES, RepoError};
use lifeboat_units::Work;

use super::compare::{Comparer, make_zero, runs};
use super::error::RestoreError;
use super::place::{Owner, failed};
use super::tasks::{Stretch, Tasks};
use crate::ports::Ports;

/// What is restored.
pub struct Source<'a> {
    /// The backup.
    pub manifest: &'a Manifest,
    /// Reads its pages.
    pub reader: &'a ContentReader,
    /// Threads.
    pub jobs: usize,
    /// Files that are there are compared page by page.
    pub delta: bool,
    /// Devices on which everything is made durable in the end; files on others are synced one by one.
    pub barriers: &'a [u64],
}

/// What was done to files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes written, holes left out.
    pub bytes: u64,
    /// Local pages that were compared.
    pub pages_compared: u64,
    /// Pages written, or made a hole because they are to be zeros.
    pub pages_written: u64,
    /// Bytes of extents and maps that were read from the repository.
    pub fetched_bytes: u64,
}

/// Owners may read and write what is being written, whatever they may in the end.
const WRITABLE: u32 = 0o600;

impl Written {
    fn add(&mut self, other: Self) {
        let Self { bytes, pages_compared, pages_written, fetched_bytes } = other;
        self.bytes += bytes;
        self.pages_compared += pages_compared;
        self.pages_written += pages_written;
        self.fetched_bytes += fetched_bytes;
    }
}

/// Writes all files below `into`.
pub fn write_files(
    ports: &Ports<'_>,
    into: &Path,
    owner: Owner,
    source: Source<'_>,
) -> Result<Written, RestoreError> {
    let (mut written, mut closed) = (Written::default(), Vec::new());
    let index = IndexReader::new(ports.cluster, source.manifest.page_bytes);
    let shared = Shared {
        ports,
        into,
        owner,
        source: &source,
        index: &index,
        failed: AtomicBool::new(false),
    };
    let jobs = source.jobs.max(1);
    std::thread::scope(|scope| {
        let (sender, receiver) = bounded::<Vec<Stretch>>(jobs * 4);
        let threads: Vec<_> = (0..jobs)
            .map(|_| {
                let (receiver, shared) = (receiver.clone(), &shared);
                scope.spawn(move || {
                    let mut writer = Writer::new(shared);
                    let written = receiver.iter().try_for_each(|group| writer.write(&group));
                    written.inspect_err(|_| shared.failed.store(true, Ordering::Relaxed))?;
                    writer.written.fetched_bytes = writer.buffers.fetched_bytes();
                    Ok::<_, RestoreError>((writer.written, writer.closed))
                })
            })
            .collect();
        drop(receiver);
        let sent = send_all(&shared, sender);
        for thread in threads {
            let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (done, of_thread) = done?;
            written.add(done);
            closed.extend(of_thread);
        }
        sent
    })?;
    for (path, mode) in closed {
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .map_err(|source| failed("set the mode of", &path, source))?;
    }
    written.fetched_bytes += index.fetched_bytes();
    Ok(written)
}

struct Shared<'a> {
    ports: &'a Ports<'a>,
    into: &'a Path,
    owner: Owner,
    source: &'a Source<'a>,
    index: &'a IndexReader,
    /// A thread has an error to tell: the others leave the rest.
    failed: AtomicBool,
}

/// Sends the file table as tasks. Ends quietly when nobody takes them any more: then a thread has an
/// error to tell.
fn send_all(shared: &Shared<'_>, sender: Sender<Vec<Stretch>>) -> Result<(), RestoreError> {
    let mut tasks = Tasks::new(sender, shared.source.jobs.max(1));
    for chunk in &shared.source.manifest.chunks {
        for file in shared.index.chunk(chunk)? {
            if shared.ports.cancel.is_cancelled() {
                return Err(RestoreError::Cancelled);
            }
            if tasks.add(file).is_err() {
                return Ok(());
            }
        }
    }
    let _ = tasks.finish();
    Ok(())
}

/// A file that is being written, and its map part.
struct Open {
    path: PathBuf,
    file: File,
    /// Nothing else makes it durable.
    needs_sync: bool,
    size_bytes: u64,
    first_page: u64,
    part: MapPart,
    /// For each page of the part whether it must be written; `None` for a file that is new, and
    /// zeros so far.
    differs: Option<Vec<bool>>,
}

/// Pages that a task wants from an extent.
struct Wanted {
    open: usize,
    /// First page within the part.
    page: u32,
    pages: u32,
    /// Where it lies in the extent, in bytes.
    offset: usize,
}

/// One thread.
struct Writer<'a> {
    shared: &'a Shared<'a>,
    hasher: PageHasher,
    /// Of the pages that are about to be written.
    hashes: Vec<u64>,
    comparer: Comparer,
    buffers: ReadBuffers,
    written: Written,
    /// Files that their owner may not write to in the end, and their modes.
    closed: Vec<(PathBuf, u32)>,
}

impl<'a> Writer<'a> {
    fn new(shared: &'a Shared<'a>) -> Self {
        let transforms = shared.ports.transforms(shared.source.manifest.page_bytes);
        let hasher = shared.ports.cluster.hasher();
        Self {
            shared,
            hasher,
            hashes: Vec::new(),
            comparer: Comparer::new(hasher, shared.source.manifest.page_bytes as usize),
            buffers: ReadBuffers::new(Decompressor::new(transforms)),
            written: Written::default(),
            closed: Vec::new(),
        }
    }

    fn write(&mut self, group: &[Stretch]) -> Result<(), RestoreError> {
        if self.shared.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.shared.ports.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled);
        }
        let mut open = Vec::with_capacity(group.len());
        for stretch in group {
            open.push(self.open(stretch)?);
        }
        let (shared, hasher, hashes) = (self.shared, self.hasher, &mut self.hashes);
        let page_bytes = shared.source.manifest.page_bytes as usize;
        let (extents, wanted) = gather(&open, page_bytes);
        let reading = shared.source.reader.extents(&extents, &mut self.buffers, |i, raw| {
            wanted[i]
                .iter()
                .try_for_each(|w| place(&open[w.open], w, (raw, page_bytes), (hasher, hashes)))
        });
        reading.map_err(|error| blame(shared, &open, error))?;
        let pages: u64 = wanted.iter().flatten().map(|w| u64::from(w.pages)).sum();
        self.written.pages_written += pages;
        self.written.bytes += pages * page_bytes as u64;
        for (stretch, open) in group.iter().zip(&open) {
            self.written.pages_written += zero(open, page_bytes as u64)?;
            if open.needs_sync {
                open.file.sync_data().map_err(|source| failed("sync", &open.path, source))?;
            }
            let done = done_bytes(stretch, open, page_bytes);
            shared.ports.progress.advance(Work::Bytes(done));
        }
        Ok(())
    }

    /// Opens the file of a stretch at its full size, and finds which of its pages are right
    /// already. What is not written stays a hole.
    fn open(&mut self, stretch: &Stretch) -> Result<Open, RestoreError> {
        let path = self.shared.into.join(&stretch.path);
        if stretch.mode & WRITABLE != WRITABLE {
            self.closed.push((path.clone(), stretch.mode & 0o7777));
        }
        let (file, is_new) =
            self.prepare(&path, stretch).map_err(|source| failed("write", &path, source))?;
        let device = file.metadata().map_err(|source| failed("look at", &path, source))?.dev();
        let needs_sync = !self.shared.source.barriers.contains(&device);
        let page_bytes = u64::from(self.shared.source.manifest.page_bytes);
        let (number, part) = match &stretch.part {
            None => (0, MapPart::default()),
            Some((number, part)) => {
                let all = stretch.size_bytes.div_ceil(page_bytes);
                let pages = (all - number * u64::from(PART_PAGES)).min(u64::from(PART_PAGES));
                (*number, self.shared.index.part(part, pages as u32)?)
            }
        };
        let first_page = number * u64::from(PART_PAGES);
        let size_bytes = stretch.size_bytes;
        let mut open = Open { path, file, needs_sync, size_bytes, first_page, part, differs: None };
        if self.shared.source.delta && !is_new {
            let from = first_page * page_bytes;
            let end = size_bytes.min(from + u64::from(open.part.pages()) * page_bytes);
            let differs = self.comparer.differing(&open.file, from, end, &open.part.hashes);
            open.differs = Some(differs.map_err(|error| failed("read", &open.path, error))?);
            self.written.pages_compared += u64::from(open.part.pages());
        }
        Ok(open)
    }

    /// The file of a stretch with its size, mode and owner, and whether it is new.
    fn prepare(&self, path: &Path, stretch: &Stretch) -> io::Result<(File, bool)> {
        let (file, is_new) = if self.shared.source.delta {
            open_or_create(path)?
        } else {
            (options().create(true).truncate(false).open(path)?, true)
        };
        let data = file.metadata()?;
        if data.len() != stretch.size_bytes {
            file.set_len(stretch.size_bytes)?;
        }
        let mode = stretch.mode & 0o7777 | WRITABLE;
        if data.mode() & 0o7777 != mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        if self.shared.owner.lacks(&data) {
            self.shared.owner.give(&file)?;
        }
        Ok((file, is_new))
    }
}

/// How files are opened: never through a link.
pub fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}

/// Opens a file that may be there; true when it is new.
fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    match open_writable(path) {
        Ok(file) => return Ok((file, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match options().create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        // Another thread, with another part of it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options().open(path).map(|file| (file, false))
        }
        Err(error) => Err(error),
    }
}

/// Opens a file that is there, also one whose mode forbids writing, such as that of a private key. It
/// is not made anew: another thread may have written its part already.
fn open_writable(path: &Path) -> io::Result<File> {
    match options().open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let data = fs::symlink_metadata(path)?;
            if !data.is_file() {
                return Err(error);
            }
            fs::set_permissions(path, Permissions::from_mode(data.mode() & 0o7777 | WRITABLE))?;
            options().open(path)
        }
        opened => opened,
    }
}

fn done_bytes(stretch: &Stretch, open: &Open, page_bytes: usize) -> u64 {
    let from = open.first_page * page_bytes as u64;
    let reach = u64::from(open.part.pages()) * page_bytes as u64;
    reach.min(stretch.size_bytes.saturating_sub(from))
}

/// Every extent that is wanted, once, and what is wanted of it.
fn gather(open: &[Open], page_bytes: usize) -> (Vec<BoxRef>, Vec<Vec<Wanted>>) {
    let mut places: HashMap<BoxRef, usize> = HashMap::new();
    let (mut extents, mut wanted) = (Vec::new(), Vec::<Vec<Wanted>>::new());
    for (number, open) in open.iter().enumerate() {
        let mut next = 0;
        for run in &open.part.runs {
            let first = next;
            next += run.pages as usize;
            let PageSource::Extent { index, offset } = run.source else { continue };
            for pages in open.to_write(first..next) {
                let at = open.part.extents[index as usize];
                let place = *places.entry(at).or_insert_with(|| {
                    extents.push(at);
                    wanted.push(Vec::new());
                    extents.len() - 1
                });
                wanted[place].push(Wanted {
                    open: number,
                    page: pages.start as u32,
                    pages: pages.len() as u32,
                    offset: offset as usize + (pages.start - first) * page_bytes,
                });
            }
        }
    }
    (extents, wanted)
}

impl Open {
    /// Ranges of pages within a run that are to be written.
    fn to_write(&self, run: Range<usize>) -> Vec<Range<usize>> {
        match &self.differs {
            None => vec![run],
            Some(differs) => runs(differs, run).collect(),
        }
    }
}

/// Makes zeros of pages that are to be zeros and are not; gives how many.
fn zero(open: &Open, page_bytes: u64) -> Result<u64, RestoreError> {
    let Some(differs) = &open.differs else { return Ok(0) };
    let (mut next, mut zeroed) = (0, 0);
    for run in &open.part.runs {
        let first = next;
        next += run.pages as usize;
        if run.source != PageSource::Zero {
            continue;
        }
        for pages in runs(differs, first..next) {
            let at =
                |page: usize| ((open.first_page + page as u64) * page_bytes).min(open.size_bytes);
            make_zero(&open.file, at(pages.start)..at(pages.end))
                .map_err(|source| failed("write", &open.path, source))?;
            zeroed += pages.len() as u64;
        }
    }
    Ok(zeroed)
}

/// An error while placing pages, before it is known to which file it belongs.
enum Failure {
    Repo(RepoError),
    Page { open: PathBuf, error: RepoError },
    Write(RestoreError),
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

/// Checks and writes one run of pages.
fn place(
    open: &Open,
    wanted: &Wanted,
    (raw, page_bytes): (&[u8], usize),
    (hasher, hashes): (PageHasher, &mut Vec<u64>),
) -> Result<(), Failure> {
    let first = open.first_page + u64::from(wanted.page);
    let at = first * page_bytes as u64;
    let length = (wanted.pages as usize * page_bytes)
        .min(usize::try_from(open.size_bytes.saturating_sub(at)).unwrap_or(usize::MAX));
    let damaged = |what: String| Failure::Page {
        open: open.path.clone(),
        error: RepoError::damaged(format!("page {first} of `{}`", open.path.display()), what),
    };
    let Some(bytes) = raw.get(wanted.offset..wanted.offset + length) else {
        return Err(damaged("its extent is too short".to_owned()));
    };
    hasher.pages(bytes, page_bytes, hashes);
    let expected = &open.part.hashes[wanted.page as usize..][..hashes.len()];
    if let Some(i) = hashes.iter().zip(expected).position(|(is, hash)| page_hash(*is) != *hash) {
        return Err(damaged(format!("page {} does not have its hash", first + i as u64)));
    }
    open.file
        .write_all_at(bytes, at)
        .map_err(|source| Failure::Write(failed("write", &open.path, source)))
}

/// Says which file cannot be restored.
fn blame(shared: &Shared<'_>, open: &[Open], failure: Failure) -> RestoreError {
    let (path, source) = match failure {
        Failure::Write(error) => return error,
        Failure::Page { open, error } => (open, error),
        Failure::Repo(error) => (open.first().map(|o| o.path.clone()).unwrap_or_default(), error),
    };
    let file = path.strip_prefix(shared.into).unwrap_or(&path).display().to_string();
    let others = open.len().saturating_sub(1);
    let file = if others > 0 { format!("{file} (or one of {others} beside it)") } else { file };
    RestoreError::Damaged { file, backup: shared.source.manifest.id.to_string(), source }
}
