//! Reads a stream of files and cuts it into tasks.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lifeboat_engine::{Arriving, Content, Directory, FileStream, Sent, SourceFile, StreamEnd};
use lifeboat_repo::writer::EXTENT_PAGES;
use lifeboat_repo::{FileEntry, PART_PAGES, PartRef};
use lifeboat_units::{Progress, Work};

use super::entries::Entries;
use crate::backup::error::BackupError;
use crate::backup::tasks::part_sizes;

/// A file of which at most this much comes shares a task with its neighbours, in bytes.
const SMALL_BYTES_MAX: u64 = 512 << 10;
/// What comes of the small files of one task, together, in bytes.
const GROUP_BYTES_MAX: usize = 2 << 20;
/// Small files of one task.
const GROUP_FILES_MAX: usize = 256;

/// Work for one thread.
pub enum Task {
    /// Several small files.
    Group(Vec<SmallFile>),
    /// One part of the page map of a large file.
    Part(PartTask),
    /// A part, or a whole file, that is as it was; nothing is left to be done.
    Kept(PartTask),
}

/// A file whose bytes are all here.
pub struct SmallFile {
    /// The only part of it; `None` for a file without bytes.
    pub part: PartTask,
    /// What came.
    pub bytes: Vec<u8>,
}

/// One part of a file.
pub struct PartTask {
    /// Number of the file in the stream.
    pub file_number: u64,
    /// The file.
    pub file: Arc<SourceFile>,
    /// Which part.
    pub number: u64,
    /// How many parts the file has.
    pub parts: u64,
    /// Length of this part, in bytes.
    pub bytes: u64,
    /// What the earlier backup knows of this part, and how many pages it had.
    pub previous: Option<(PartRef, u32)>,
    /// Pages within this part that come, ascending; `None` when all do.
    pub sent: Option<Vec<u32>>,
    /// What comes, in whole buffers; nothing for small files.
    pub data: Option<Receiver<Vec<u8>>>,
}

/// Buffers that go round between the reading thread and the others: they bound the memory.
pub struct Buffers {
    /// Buffers that nobody uses.
    pub free: Receiver<Vec<u8>>,
    /// How many more may be made.
    pub left: usize,
    /// Size of each, in bytes.
    pub bytes: usize,
}

impl Buffers {
    /// Buffers of together about `memory_bytes`, and where they are to be given back.
    pub fn new(memory_bytes: usize, page_bytes: u32) -> (Self, Sender<Vec<u8>>) {
        let bytes = (EXTENT_PAGES * page_bytes) as usize;
        let (back, free) = unbounded();
        (Self { free, left: memory_bytes / bytes, bytes }, back)
    }

    /// A buffer; `None` when nobody is left who could give one back.
    fn take(&mut self) -> Option<Vec<u8>> {
        if let Ok(buffer) = self.free.try_recv() {
            return Some(buffer);
        }
        if self.left > 0 {
            self.left -= 1;
            return Some(vec![0; self.bytes]);
        }
        self.free.recv().ok()
    }
}

/// The reading thread.
pub struct Cutter<'a> {
    /// What is read.
    pub stream: Box<dyn FileStream>,
    /// The earlier backup's files.
    pub known: &'a Entries,
    /// Where tasks go.
    pub tasks: Sender<Task>,
    /// What bounds the memory.
    pub buffers: Buffers,
    /// Size of a page, in bytes.
    pub page_bytes: u32,
    /// Who hears how far it is.
    pub progress: &'a dyn Progress,
}

/// Nobody listens any more: whoever failed has said why.
struct Deserted;

/// What the reading thread leaves.
pub struct Read {
    /// Directories, as they came.
    pub directories: Vec<Directory>,
    /// The end of the stream; `None` when the others gave up first.
    pub end: Option<StreamEnd>,
}

enum Stopped {
    Failed(BackupError),
    Deserted,
}

impl<E: Into<BackupError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Deserted> for Stopped {
    fn from(_: Deserted) -> Self {
        Self::Deserted
    }
}

impl Cutter<'_> {
    /// Reads all of it.
    pub fn run(mut self) -> Result<Read, BackupError> {
        let mut directories = Vec::new();
        match self.files(&mut directories) {
            Ok(()) => {
                let end = self.stream.finish()?;
                Ok(Read { directories, end: Some(end) })
            }
            Err(Stopped::Deserted) => Ok(Read { directories, end: None }),
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    fn files(&mut self, directories: &mut Vec<Directory>) -> Result<(), Stopped> {
        let (mut group, mut group_bytes) = (Vec::new(), 0);
        let mut file_number = 0;
        while let Some(entry) = self.stream.arrive()? {
            let (file, sent) = match entry {
                Arriving::Directory(directory) => {
                    directories.push(directory);
                    continue;
                }
                Arriving::File { file, sent } => (Arc::new(file), sent),
            };
            file_number += 1;
            let known = self.known.find(&file.path)?;
            let comes = match &sent {
                Sent::Whole => file.size_bytes,
                Sent::Pages(pages) => pages.len() as u64 * u64::from(self.page_bytes),
            };
            let one_part = file.size_bytes <= self.part_bytes();
            let mut parts = self.parts(file_number, &file, sent, known)?;
            if comes <= SMALL_BYTES_MAX && one_part && !is_kept(&parts, self.page_bytes) {
                let part = parts.swap_remove(0);
                let mut bytes = vec![0; comes as usize];
                if self.stream.read(&mut bytes)? < bytes.len() {
                    return Err(short(&file).into());
                }
                group_bytes += bytes.len();
                group.push(SmallFile { part, bytes });
                if group_bytes >= GROUP_BYTES_MAX || group.len() >= GROUP_FILES_MAX {
                    self.send(Task::Group(std::mem::take(&mut group)))?;
                    group_bytes = 0;
                }
            } else {
                for part in parts {
                    self.part(part)?;
                }
            }
        }
        if group.is_empty() { Ok(()) } else { Ok(self.send(Task::Group(group))?) }
    }

    fn part_bytes(&self) -> u64 {
        u64::from(PART_PAGES) * u64::from(self.page_bytes)
    }

    /// The parts of a file: at least one.
    fn parts(
        &self,
        file_number: u64,
        file: &Arc<SourceFile>,
        sent: Sent,
        known: Option<FileEntry>,
    ) -> Result<Vec<PartTask>, BackupError> {
        let known = known.filter(|entry| is_same_kind(entry, file));
        let pages = match sent {
            Sent::Whole => None,
            Sent::Pages(pages) if known.is_some() => Some(pages),
            Sent::Pages(_) => {
                let what = "changes of a file that the earlier backup does not have";
                return Err(BackupError::Stream { path: file.path.clone(), what });
            }
        };
        let parts = file.size_bytes.div_ceil(self.part_bytes()).max(1);
        let mut old = known.map(|entry| part_sizes(entry, self.page_bytes)).unwrap_or_default();
        let mut rest = pages.as_deref();
        let cut = |number: u64| {
            let from = number * self.part_bytes();
            let sent = rest.map(|all| {
                let end = (number + 1) * u64::from(PART_PAGES);
                let (now, later) = all.split_at(all.partition_point(|p| u64::from(*p) < end));
                rest = Some(later);
                let first = (number * u64::from(PART_PAGES)) as u32;
                now.iter().map(|page| page - first).collect()
            });
            PartTask {
                file_number,
                file: Arc::clone(file),
                number,
                parts,
                bytes: (file.size_bytes - from).min(self.part_bytes()),
                previous: old.pop_front(),
                sent,
                data: None,
            }
        };
        Ok((0..parts).map(cut).collect())
    }

    /// Hands a part to a thread and reads on for it.
    fn part(&mut self, mut part: PartTask) -> Result<(), Stopped> {
        let mut left = match &part.sent {
            None => part.bytes,
            Some(pages) => pages.len() as u64 * u64::from(self.page_bytes),
        };
        if is_kept(std::slice::from_ref(&part), self.page_bytes) {
            self.progress.advance(Work::Bytes(part.bytes));
            return Ok(self.send(Task::Kept(part))?);
        }
        let file = Arc::clone(&part.file);
        let (sender, receiver) = unbounded();
        part.data = Some(receiver);
        self.send(Task::Part(part))?;
        while left > 0 {
            let mut buffer = self.buffers.take().ok_or(Deserted)?;
            buffer.resize(left.min(self.buffers.bytes as u64) as usize, 0);
            if self.stream.read(&mut buffer)? < buffer.len() {
                return Err(short(&file).into());
            }
            left -= buffer.len() as u64;
            sender.send(buffer).map_err(|_| Deserted)?;
        }
        Ok(())
    }

    fn send(&self, task: Task) -> Result<(), Deserted> {
        self.tasks.send(task).map_err(|_| Deserted)
    }
}

fn short(file: &SourceFile) -> BackupError {
    BackupError::Stream { path: file.path.clone(), what: "less than its size" }
}

/// Whether nothing of these parts came, and all of it is as it was.
fn is_kept(parts: &[PartTask], page_bytes: u32) -> bool {
    parts.iter().all(|part| {
        let pages = part.bytes / u64::from(page_bytes);
        part.sent.as_ref().is_some_and(Vec::is_empty)
            && part.previous.as_ref().is_some_and(|(_, old)| u64::from(*old) == pages)
    })
}

/// Whether a page of the one can stand for a page of the other.
fn is_same_kind(entry: &FileEntry, file: &SourceFile) -> bool {
    match file.content {
        Content::Pages { first_page } => entry.first_page == Some(first_page),
        Content::Bytes => entry.first_page.is_none(),
    }
}
