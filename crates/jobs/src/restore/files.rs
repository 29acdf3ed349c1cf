//! Writes the files of a backup on threads: extents are read once for all files of a task, every
//! page is checked against its hash before it is written.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::bounded;
use lifeboat_repo::codec::Decompressor;
use lifeboat_repo::crypt::PageHasher;
use lifeboat_repo::map::{Source as PageSource, page_hash};
use lifeboat_repo::reader::{ContentReader, IndexReader, ReadBuffers};
use lifeboat_repo::{BoxRef, FileEntry, Manifest, MapPart, PART_PAGES, PartRef, RepoError};
use lifeboat_units::Work;

use super::error::RestoreError;
use super::place::{Owner, failed};
use crate::ports::Ports;

/// Files of one task, at most.
const GROUP_FILES_MAX: usize = 256;
/// Bytes of one task of small files, about.
const GROUP_BYTES_MAX: u64 = 8 << 20;

/// What is restored.
pub struct Source<'a> {
    /// The backup.
    pub manifest: &'a Manifest,
    /// Reads its pages.
    pub reader: &'a ContentReader,
    /// Threads.
    pub jobs: usize,
}

/// One stretch of a file: a map part, or the whole of a file without pages.
struct Stretch {
    path: String,
    mode: u32,
    size_bytes: u64,
    part: Option<(u64, PartRef)>,
}

/// Writes all files below `into`; gives the bytes written, holes left out.
pub fn write_files(
    ports: &Ports<'_>,
    into: &Path,
    owner: Owner,
    source: Source<'_>,
) -> Result<u64, RestoreError> {
    let written = AtomicU64::new(0);
    let index = IndexReader::new(ports.cluster, source.manifest.page_bytes);
    let shared = Shared { ports, into, owner, source: &source, index: &index, written: &written };
    let jobs = source.jobs.max(1);
    std::thread::scope(|scope| {
        let (sender, receiver) = bounded::<Vec<Stretch>>(jobs * 4);
        let threads: Vec<_> = (0..jobs)
            .map(|_| {
                let (receiver, shared) = (receiver.clone(), &shared);
                scope.spawn(move || {
                    let mut writer = Writer::new(shared);
                    receiver.iter().try_for_each(|group| writer.write(&group))
                })
            })
            .collect();
        drop(receiver);
        let sent = send_all(&shared, &sender);
        drop(sender);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        sent
    })?;
    Ok(written.load(Ordering::Relaxed))
}

struct Shared<'a> {
    ports: &'a Ports<'a>,
    into: &'a Path,
    owner: Owner,
    source: &'a Source<'a>,
    index: &'a IndexReader,
    written: &'a AtomicU64,
}

/// Cuts the file table into tasks. Ends quietly when nobody takes them any more: then a thread
/// has an error to tell.
fn send_all(
    shared: &Shared<'_>,
    sender: &crossbeam_channel::Sender<Vec<Stretch>>,
) -> Result<(), RestoreError> {
    let (mut group, mut bytes) = (Vec::new(), 0);
    for chunk in &shared.source.manifest.chunks {
        for file in shared.index.chunk(chunk)? {
            if shared.ports.cancel.is_cancelled() {
                return Err(RestoreError::Cancelled);
            }
            let large =
                file.parts.len() > 1 || matches!(file.parts.first(), Some(PartRef::Boxed { .. }));
            if !large {
                bytes += file.size_bytes;
                group.extend(stretches(file));
                if bytes >= GROUP_BYTES_MAX || group.len() >= GROUP_FILES_MAX {
                    bytes = 0;
                    if sender.send(std::mem::take(&mut group)).is_err() {
                        return Ok(());
                    }
                }
                continue;
            }
            for stretch in stretches(file) {
                if sender.send(vec![stretch]).is_err() {
                    return Ok(());
                }
            }
        }
    }
    let _ = sender.send(group);
    Ok(())
}

fn stretches(file: FileEntry) -> Vec<Stretch> {
    let FileEntry { path, size_bytes, mode, parts, .. } = file;
    let stretch = |part| Stretch { path: path.clone(), mode, size_bytes, part };
    if parts.is_empty() {
        return vec![stretch(None)];
    }
    parts.into_iter().enumerate().map(|(n, part)| stretch(Some((n as u64, part)))).collect()
}

/// A file that is being written, and its map part.
struct Open {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    first_page: u64,
    part: MapPart,
}

/// Pages that a task wants from an extent.
struct Wanted {
    open: usize,
    run: lifeboat_repo::map::Run,
    page: u32,
    offset: usize,
}

/// One thread.
struct Writer<'a> {
    shared: &'a Shared<'a>,
    hasher: PageHasher,
    buffers: ReadBuffers,
}

impl<'a> Writer<'a> {
    fn new(shared: &'a Shared<'a>) -> Self {
        let transforms = shared.ports.transforms(shared.source.manifest.page_bytes);
        Self {
            shared,
            hasher: shared.ports.cluster.hasher(),
            buffers: ReadBuffers::new(Decompressor::new(transforms)),
        }
    }

    fn write(&mut self, group: &[Stretch]) -> Result<(), RestoreError> {
        if self.shared.ports.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled);
        }
        let open = group.iter().map(|s| self.open(s)).collect::<Result<Vec<_>, _>>()?;
        let (extents, wanted) = gather(&open);
        let (shared, hasher) = (self.shared, self.hasher);
        let page_bytes = shared.source.manifest.page_bytes as usize;
        let reading = shared.source.reader.extents(&extents, &mut self.buffers, |i, raw| {
            wanted[i].iter().try_for_each(|w| place(&open[w.open], w, raw, hasher, page_bytes))
        });
        reading.map_err(|error| blame(shared, &open, error))?;
        for (stretch, open) in group.iter().zip(&open) {
            let done = done_bytes(stretch, open, page_bytes);
            shared.ports.progress.advance(Work::Bytes(done));
        }
        let bytes: u64 =
            wanted.iter().flatten().map(|w| u64::from(w.run.pages) * page_bytes as u64).sum();
        shared.written.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Opens the file of a stretch at its full size; what is not written stays a hole.
    fn open(&self, stretch: &Stretch) -> Result<Open, RestoreError> {
        let path = self.shared.into.join(&stretch.path);
        let create = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            if file.metadata()?.len() != stretch.size_bytes {
                file.set_len(stretch.size_bytes)?;
            }
            file.set_permissions(Permissions::from_mode(stretch.mode & 0o7777))?;
            self.shared.owner.give(&file)?;
            Ok(file)
        };
        let file = create().map_err(|source| failed("write", &path, source))?;
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
        Ok(Open { path, file, size_bytes: stretch.size_bytes, first_page, part })
    }
}

fn done_bytes(stretch: &Stretch, open: &Open, page_bytes: usize) -> u64 {
    let from = open.first_page * page_bytes as u64;
    let reach = u64::from(open.part.pages()) * page_bytes as u64;
    reach.min(stretch.size_bytes.saturating_sub(from))
}

/// Every extent that is wanted, once, and what is wanted of it.
fn gather(open: &[Open]) -> (Vec<BoxRef>, Vec<Vec<Wanted>>) {
    let mut places: HashMap<BoxRef, usize> = HashMap::new();
    let (mut extents, mut wanted) = (Vec::new(), Vec::<Vec<Wanted>>::new());
    for (number, open) in open.iter().enumerate() {
        let mut page = 0;
        for run in &open.part.runs {
            if let PageSource::Extent { index, offset } = run.source {
                let at = open.part.extents[index as usize];
                let place = *places.entry(at).or_insert_with(|| {
                    extents.push(at);
                    wanted.push(Vec::new());
                    extents.len() - 1
                });
                wanted[place].push(Wanted {
                    open: number,
                    run: *run,
                    page,
                    offset: offset as usize,
                });
            }
            page += run.pages;
        }
    }
    (extents, wanted)
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
    raw: &[u8],
    hasher: PageHasher,
    page_bytes: usize,
) -> Result<(), Failure> {
    let first = open.first_page + u64::from(wanted.page);
    let at = first * page_bytes as u64;
    let length = (wanted.run.pages as usize * page_bytes)
        .min(usize::try_from(open.size_bytes.saturating_sub(at)).unwrap_or(usize::MAX));
    let damaged = |what: String| Failure::Page {
        open: open.path.clone(),
        error: RepoError::damaged(format!("page {first} of `{}`", open.path.display()), what),
    };
    let Some(bytes) = raw.get(wanted.offset..wanted.offset + length) else {
        return Err(damaged("its extent is too short".to_owned()));
    };
    for (i, page) in bytes.chunks(page_bytes).enumerate() {
        if page_hash(hasher.page(page)) != open.part.hashes[wanted.page as usize + i] {
            return Err(damaged(format!("page {} does not have its hash", first + i as u64)));
        }
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
