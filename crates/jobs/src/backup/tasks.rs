//! Cuts a listing into tasks, each with what the earlier backup knew of the same files.

use std::collections::VecDeque;

use lifeboat_engine::SourceFile;
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{FileEntry, Manifest, PART_PAGES, PartRef, RepoError};

use super::guide::{Guide, Plan};

/// A file up to this size shares a task, and its extents, with its neighbours, in bytes.
const SMALL_BYTES_MAX: u64 = 512 << 10;
/// Small files of one task, together, in bytes.
const GROUP_BYTES_MAX: u64 = 4 << 20;
/// Small files of one task.
const GROUP_FILES_MAX: usize = 256;

/// Work for one thread.
pub enum Task<'a> {
    /// Several small files.
    Group(Vec<SmallFile<'a>>),
    /// One part of the page map of a large file.
    Part(PartTask<'a>),
}

/// A file of one part.
pub struct SmallFile<'a> {
    /// The file.
    pub file: &'a SourceFile,
    /// What the earlier backup knows of it.
    pub known: Option<FileEntry>,
    /// What of it is read.
    pub plan: Plan,
}

/// One part of a large file.
pub struct PartTask<'a> {
    /// The file.
    pub file: &'a SourceFile,
    /// Which part.
    pub number: u64,
    /// Whether it is the file's last.
    pub last: bool,
    /// What the earlier backup knows of this part, and how many pages it had.
    pub previous: Option<(PartRef, u32)>,
    /// What of it is read.
    pub plan: Plan,
}

/// Gives tasks in the order of the files.
pub struct Tasks<'a> {
    files: std::iter::Peekable<std::slice::Iter<'a, SourceFile>>,
    previous: Previous<'a>,
    guide: Option<&'a Guide>,
    page_bytes: u32,
    parts: VecDeque<PartTask<'a>>,
}

impl<'a> Tasks<'a> {
    /// Tasks for these files (sorted by path). Without a guide everything is read.
    pub fn new(
        files: &'a [SourceFile],
        previous: Option<(&'a IndexReader, &'a Manifest)>,
        guide: Option<&'a Guide>,
        page_bytes: u32,
    ) -> Self {
        let previous = Previous { from: previous, next_chunk: 0, files: VecDeque::new() };
        let files = files.iter().peekable();
        Self { files, previous, guide, page_bytes, parts: VecDeque::new() }
    }

    /// The next task.
    pub fn next(&mut self) -> Result<Option<Task<'a>>, RepoError> {
        if let Some(part) = self.parts.pop_front() {
            return Ok(Some(Task::Part(part)));
        }
        let Some(first) = self.files.next() else { return Ok(None) };
        let known = self.previous.find(&first.path)?;
        if first.size_bytes > SMALL_BYTES_MAX {
            self.cut(first, known);
            return Ok(self.parts.pop_front().map(Task::Part));
        }
        let mut bytes = first.size_bytes;
        let mut group = vec![self.small(first, known)];
        while let Some(file) = self.files.next_if(|f| f.size_bytes <= SMALL_BYTES_MAX) {
            bytes += file.size_bytes;
            let known = self.previous.find(&file.path)?;
            group.push(self.small(file, known));
            if bytes >= GROUP_BYTES_MAX || group.len() >= GROUP_FILES_MAX {
                break;
            }
        }
        Ok(Some(Task::Group(group)))
    }

    fn small(&self, file: &'a SourceFile, known: Option<FileEntry>) -> SmallFile<'a> {
        let plan = match self.guide {
            None => Plan::Everything,
            Some(guide) => guide.part(file, &guide.file(file, known.as_ref(), self.page_bytes), 0),
        };
        SmallFile { file, known, plan }
    }

    fn cut(&mut self, file: &'a SourceFile, known: Option<FileEntry>) {
        let guided = self.guide.map(|g| (g, g.file(file, known.as_ref(), self.page_bytes)));
        let count = lifeboat_repo::table::part_count(file.size_bytes, self.page_bytes);
        let mut old = known.map_or_else(VecDeque::new, |entry| part_sizes(entry, self.page_bytes));
        for number in 0..count {
            let previous = old.pop_front();
            let plan = match &guided {
                None => Plan::Everything,
                Some((guide, found)) => guide.part(file, found, number),
            };
            let last = number + 1 == count;
            self.parts.push_back(PartTask { file, number, last, previous, plan });
        }
    }
}

/// The parts of a file, each with its number of pages.
pub fn part_sizes(entry: FileEntry, page_bytes: u32) -> VecDeque<(PartRef, u32)> {
    let mut left = entry.pages(page_bytes);
    entry
        .parts
        .into_iter()
        .map(|part| {
            let pages = left.min(u64::from(PART_PAGES)) as u32;
            left -= u64::from(pages);
            (part, pages)
        })
        .collect()
}

/// The earlier backup's file table, read along in the order of the paths.
struct Previous<'a> {
    from: Option<(&'a IndexReader, &'a Manifest)>,
    next_chunk: usize,
    files: VecDeque<FileEntry>,
}

impl Previous<'_> {
    /// What the earlier backup knows of `path`. Paths must be asked for in ascending order.
    fn find(&mut self, path: &str) -> Result<Option<FileEntry>, RepoError> {
        let Some((reader, manifest)) = self.from else { return Ok(None) };
        loop {
            while let Some(file) = self.files.front() {
                match file.path.as_str().cmp(path) {
                    std::cmp::Ordering::Less => drop(self.files.pop_front()),
                    std::cmp::Ordering::Equal => return Ok(self.files.pop_front()),
                    std::cmp::Ordering::Greater => return Ok(None),
                }
            }
            let Some(chunk) = manifest.chunks.get(self.next_chunk) else { return Ok(None) };
            self.next_chunk += 1;
            self.files = reader.chunk(chunk)?.into();
        }
    }
}
