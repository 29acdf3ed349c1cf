//! Reads files, checks pages, and hands them to the repository's writers.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifeboat_engine::{Content, PageFormat, SourceFile};
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::writer::{Compared, EXTENT_PAGES, ExtentWriter, PartWriter};
use lifeboat_repo::{BackupId, MapPart, PART_PAGES, PartRef};
use lifeboat_units::{Clock, Progress, Work};
use rustix::fs::SeekFrom;

use super::error::BackupError;
use super::guide::{Difference, Guide, Plan};
use super::known::{HOLE, KnownPages};
use super::table::Stretch;
use super::tasks::{PartTask, SmallFile, Task, part_sizes};
use crate::facts::{DAMAGE_LISTED_MAX, DamagedPage};

/// Pages read at once.
const READ_PAGES: u32 = EXTENT_PAGES;
/// How often a damaged page is read again before it counts as damaged.
const REREADS: u32 = 5;

/// What all threads share.
pub struct Shared<'a> {
    /// The data directory.
    pub root: &'a Path,
    /// Checks pages.
    pub format: &'a dyn PageFormat,
    /// Size of a page, in bytes.
    pub page_bytes: u32,
    /// Reads the earlier backup's maps.
    pub index: &'a IndexReader,
    /// Who hears how far it is.
    pub progress: &'a dyn Progress,
    /// Waits between two readings of a damaged page.
    pub clock: &'a dyn Clock,
    /// Pages that may still be stored anew only to keep restores fast.
    pub refresh_budget: &'a AtomicU64,
    /// Judges what the sweep finds; `None` when everything is read.
    pub guide: Option<&'a Guide>,
    /// Every page of the earlier backup was right: one that is the same is right as well.
    pub proven_before: bool,
    /// What the earlier backup found wrong.
    pub known: &'a KnownPages,
}

impl Shared<'_> {
    /// The earlier backup's part, and whether to store its pages anew because reading them has
    /// become slow.
    pub fn previous(
        &self,
        known: Option<&(PartRef, u32)>,
    ) -> Result<(Option<(PartRef, MapPart)>, bool), BackupError> {
        let Some((reference, part)) = self.earlier(known)? else { return Ok((None, false)) };
        let pages = u64::from(part.pages());
        let refresh = is_fragmented(&part)
            && self
                .refresh_budget
                .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(pages))
                .is_ok();
        Ok((Some((reference, part)), refresh))
    }

    /// The earlier backup's part.
    pub fn earlier(
        &self,
        known: Option<&(PartRef, u32)>,
    ) -> Result<Option<(PartRef, MapPart)>, BackupError> {
        let Some((reference, pages)) = known else { return Ok(None) };
        Ok(Some((reference.clone(), self.index.part(reference, *pages)?)))
    }
}

/// One thread.
pub struct Worker<'a> {
    shared: &'a Shared<'a>,
    extents: ExtentWriter<'a>,
    buffer: Vec<u8>,
    /// Of the pages in the buffer.
    hashes: Vec<u64>,
}

/// A part that is being written, with what was found on the way.
struct Writing {
    part: PartWriter,
    stretch: Stretch,
}

impl<'a> Worker<'a> {
    /// A thread's state.
    pub fn new(shared: &'a Shared<'a>, extents: ExtentWriter<'a>) -> Self {
        let buffer = vec![0; (READ_PAGES * shared.page_bytes) as usize];
        Self { shared, extents, buffer, hashes: Vec::new() }
    }

    /// Does one task: for every file of it what was found, `None` when it had vanished.
    pub fn run(&mut self, task: &Task<'_>) -> Result<Vec<Option<Stretch>>, BackupError> {
        match task {
            Task::Group(files) => self.group(files),
            Task::Part(part) => Ok(vec![self.part(part)?]),
        }
    }

    /// Ends the thread's work.
    pub fn close(self) -> Result<(), BackupError> {
        Ok(self.extents.close()?)
    }

    fn group(&mut self, files: &[SmallFile<'_>]) -> Result<Vec<Option<Stretch>>, BackupError> {
        let mut stretches = Vec::with_capacity(files.len());
        let (mut places, mut parts) = (Vec::new(), Vec::new());
        for SmallFile { file, known, plan } in files {
            let previous = known
                .clone()
                .and_then(|entry| part_sizes(entry, self.shared.page_bytes).pop_front());
            if *plan == Plan::Nothing {
                stretches.push(Some(self.unchanged(file, 0, previous)));
                continue;
            }
            let found = self.stretch(file, 0, previous.as_ref(), plan)?;
            let place = stretches.len();
            stretches.push(found.map(|Writing { part, stretch }| {
                if part.pages() > 0 {
                    places.push(place);
                    parts.push(part);
                }
                stretch
            }));
        }
        for (place, part) in places.into_iter().zip(self.extents.finish_parts(parts)?) {
            if let Some(stretch) = &mut stretches[place] {
                stretch.parts.push(part);
            }
        }
        Ok(stretches)
    }

    fn part(&mut self, task: &PartTask<'_>) -> Result<Option<Stretch>, BackupError> {
        if task.plan == Plan::Nothing {
            return Ok(Some(self.unchanged(task.file, task.number, task.previous.clone())));
        }
        let previous = task.previous.as_ref();
        let Some(writing) = self.stretch(task.file, task.number, previous, &task.plan)? else {
            return Ok(None);
        };
        let Writing { part, mut stretch } = writing;
        if part.pages() > 0 {
            stretch.parts = self.extents.finish_parts(vec![part])?;
        }
        Ok(Some(stretch))
    }

    /// A part that is what it was: neither the file nor the earlier part is opened.
    fn unchanged(
        &self,
        file: &SourceFile,
        number: u64,
        previous: Option<(PartRef, u32)>,
    ) -> Stretch {
        let bytes = stretch_bytes(file, number, self);
        self.shared.progress.advance(Work::Bytes(bytes));
        let parts = previous.into_iter().map(|(part, _)| part).collect();
        Stretch { bytes, parts, ..Stretch::default() }
    }

    /// Reads up to one part of a file. `None` when the file is gone.
    fn stretch(
        &mut self,
        file: &SourceFile,
        number: u64,
        known: Option<&(PartRef, u32)>,
        plan: &Plan,
    ) -> Result<Option<Writing>, BackupError> {
        let path = self.shared.root.join(&file.path);
        let source = match File::open(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shared.progress.advance(Work::Bytes(stretch_bytes(file, number, self)));
                return Ok(None);
            }
            Err(source) => return Err(BackupError::Read { path, source }),
        };
        let (previous, refresh) = self.shared.previous(known)?;
        let part_bytes = u64::from(PART_PAGES) * u64::from(self.shared.page_bytes);
        let range = number * part_bytes..file.size_bytes.min((number + 1) * part_bytes);
        let (changed, sweep) = match plan {
            // Pages that are stored anew only to keep restores fast have to be read.
            Plan::Some { changed, sweep } => (Some(changed.as_slice()), *sweep || refresh),
            Plan::Everything | Plan::Nothing => (None, true),
        };
        let mut reading = Reading {
            changed,
            sweep,
            file,
            path,
            source,
            range,
            writing: Writing {
                part: PartWriter::with_previous(previous, refresh),
                stretch: Stretch::default(),
            },
        };
        reading.run(self)?;
        Ok(Some(reading.writing))
    }
}

fn stretch_bytes(file: &SourceFile, number: u64, worker: &Worker<'_>) -> u64 {
    let part_bytes = u64::from(PART_PAGES) * u64::from(worker.shared.page_bytes);
    file.size_bytes.saturating_sub(number * part_bytes).min(part_bytes)
}

/// Whether a part lies in many more extents than its pages fill.
fn is_fragmented(part: &MapPart) -> bool {
    let stored = part.hashes.iter().filter(|h| **h != lifeboat_repo::map::ZERO_PAGE).count();
    part.extents.len() > 2 * stored.div_ceil(EXTENT_PAGES as usize) + 16
}

/// A stretch of a file that is being read.
struct Reading<'f> {
    /// Pages that may have changed, counted from the file's first; `None` when any may have.
    changed: Option<&'f [std::ops::Range<u32>]>,
    /// Whether the other pages are read as well.
    sweep: bool,
    file: &'f SourceFile,
    path: PathBuf,
    source: File,
    range: std::ops::Range<u64>,
    writing: Writing,
}

impl Reading<'_> {
    fn run(&mut self, worker: &mut Worker<'_>) -> Result<(), BackupError> {
        let sparse =
            self.source.metadata().is_ok_and(|data| data.blocks() * 512 + 65_536 < data.size());
        let mut offset = self.range.start;
        while offset < self.range.end {
            let (until, unchanged) = self.run_from(offset, worker.shared.page_bytes);
            if unchanged && !self.sweep {
                let pages = ((until - offset) / u64::from(worker.shared.page_bytes)) as u32;
                // Pages that are not there are no unchanged ones: the plan goes by their number.
                let kept = self.writing.part.keep(&worker.extents, pages);
                let bytes = u64::from(kept) * u64::from(worker.shared.page_bytes);
                worker.shared.progress.advance(Work::Bytes(bytes));
                offset += bytes;
                if kept == pages {
                    continue;
                }
            }
            if sparse {
                let next = self.skip_hole(offset, until, unchanged, worker);
                if next > offset {
                    offset = next;
                    continue;
                }
            }
            let wanted = (until - offset).min(worker.buffer.len() as u64) as usize;
            let read = read_full(&self.source, &mut worker.buffer[..wanted], offset)
                .map_err(|source| BackupError::Read { path: self.path.clone(), source })?;
            self.writing.stretch.read_bytes += read as u64;
            self.pages(worker, offset, read, unchanged)?;
            worker.shared.progress.advance(Work::Bytes(read as u64));
            offset += read as u64;
            if read < wanted {
                self.writing.stretch.short = true;
                break;
            }
        }
        self.writing.stretch.bytes = offset.min(self.range.end) - self.range.start;
        self.writing.stretch.pages_new = self.writing.part.pages_new();
        Ok(())
    }

    /// Up to where the pages from `offset` on are all said to be unchanged, or all not.
    fn run_from(&self, offset: u64, page_bytes: u32) -> (u64, bool) {
        let Some(changed) = self.changed else { return (self.range.end, false) };
        let page = (offset / u64::from(page_bytes)) as u32;
        let next = changed.partition_point(|range| range.end <= page);
        let (until, unchanged) = match changed.get(next) {
            Some(range) if range.start <= page => (range.end, false),
            Some(range) => (range.start, true),
            None => return (self.range.end, true),
        };
        ((u64::from(until) * u64::from(page_bytes)).min(self.range.end), unchanged)
    }

    /// Takes whole pages of a hole before `end` as zero without reading them; gives the offset to
    /// go on at.
    fn skip_hole(&mut self, offset: u64, end: u64, unchanged: bool, worker: &Worker<'_>) -> u64 {
        let page = u64::from(worker.shared.page_bytes);
        let data = match rustix::fs::seek(&self.source, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data up to the end of the file, if the file still reaches there.
            Err(rustix::io::Errno::NXIO) => {
                self.source.metadata().map_or(offset, |data| data.size().max(offset))
            }
            Err(_) => return offset, // the file system does not know holes
        };
        let until = data.min(end);
        let pages = if until == self.range.end && data >= self.range.end {
            (until - offset).div_ceil(page)
        } else {
            (until - offset) / page
        };
        let differ = self.writing.part.add_zeros(&worker.extents, pages as u32);
        if unchanged && worker.shared.guide.is_some() {
            let swept = &mut self.writing.stretch.swept;
            swept.pages += pages;
            swept.faulty += u64::from(differ);
            swept.lost += u64::from(differ);
            if differ > 0 {
                let (path, first) = (self.file.path.clone(), (offset / page) as u32);
                let what = format!("{differ} of the {pages} {HOLE}");
                swept.faults.push(DamagedPage { path, page: first, what });
            }
        }
        let first = (offset / page) as u32;
        let still = worker.shared.known.lost.still(&self.file.path, first..first + pages as u32);
        self.writing.stretch.swept.add_faults(still);
        self.still_damaged(worker.shared, first..first + pages as u32, true);
        let next = (offset + pages * page).min(end);
        worker.shared.progress.advance(Work::Bytes(next - offset));
        next
    }

    /// Adds the pages in the buffer's first `read` bytes.
    fn pages(
        &mut self,
        worker: &mut Worker<'_>,
        offset: u64,
        read: usize,
        unchanged: bool,
    ) -> Result<(), BackupError> {
        let page_bytes = worker.shared.page_bytes as usize;
        worker.extents.hash_pages(&worker.buffer[..read], &mut worker.hashes);
        for (number, start) in (0..read).step_by(page_bytes).enumerate() {
            let end = (start + page_bytes).min(read);
            let whole = end - start == page_bytes;
            let mut looked = self.writing.part.look(&worker.extents, worker.hashes[number]);
            let mut is_page = false;
            if let Content::Pages { first_page } = self.file.content
                && whole
            {
                is_page = true;
                let within = ((offset + start as u64) / page_bytes as u64) as u32;
                let page = &mut worker.buffer[start..end];
                let known = worker.shared.proven_before && looked.is_same();
                if !known && self.check(worker.shared, page, first_page, within)? {
                    looked = looked.again(&worker.extents, page);
                }
                let unchanged = looked.is_same() || looked.is_zero();
                self.still_damaged(worker.shared, within..within + 1, unchanged);
            }
            if looked.is_zero() && looked.is_same() {
                let within = ((offset + start as u64) / page_bytes as u64) as u32;
                let still = worker.shared.known.lost.still(&self.file.path, within..within + 1);
                self.writing.stretch.swept.add_faults(still);
            }
            let page = &worker.buffer[start..end];
            let part = &mut self.writing.part;
            let compared = part.add_looked(&mut worker.extents, page, is_page, looked)?;
            if unchanged && is_page {
                self.writing.stretch.swept.pages += 1;
                if let Compared::Differs(stored_by) = compared {
                    let within = ((offset + start as u64) / page_bytes as u64) as u32;
                    self.differs(worker.shared, &worker.buffer[start..end], within, stored_by);
                }
            }
        }
        Ok(())
    }

    /// Names pages again that were damaged and are not mended, whatever can be told of them now.
    fn still_damaged(&mut self, shared: &Shared<'_>, pages: Range<u32>, unchanged: bool) {
        let damage = &mut self.writing.stretch.damage;
        // One that was found damaged just now is named already.
        if damage.last().is_none_or(|damaged| damaged.page != pages.start) {
            damage.extend(shared.known.still_damaged(&self.file.path, pages, unchanged));
        }
    }

    /// A page differs of which nothing said so.
    fn differs(
        &mut self,
        shared: &Shared<'_>,
        page: &[u8],
        within: u32,
        stored_by: Option<BackupId>,
    ) {
        let Some(guide) = shared.guide else { return };
        let path = &self.file.path;
        let stretch = &mut self.writing.stretch;
        if stretch.damage.last().is_some_and(|damaged| damaged.page == within) {
            return; // reported as the damage that it is
        }
        match guide.judge(shared.format, page, stored_by) {
            Difference::Later => {}
            Difference::HintOnly => stretch.swept.hint_only += 1,
            Difference::Fault(what) => {
                stretch.swept.faulty += 1;
                stretch.swept.lost += u64::from(shared.format.changed_at(page).is_none());
                if stretch.swept.faults.len() < DAMAGE_LISTED_MAX {
                    let path = path.clone();
                    stretch.swept.faults.push(DamagedPage { path, page: within, what });
                }
            }
        }
    }

    /// Checks a page; one that looks damaged is read again, for the server may have been writing
    /// it. If it changed it is accepted: the WAL holds a full image of it. Says whether it did.
    fn check(
        &mut self,
        shared: &Shared<'_>,
        page: &mut [u8],
        first_page: u32,
        within: u32,
    ) -> Result<bool, BackupError> {
        let number = first_page.wrapping_add(within);
        let mut verdict = shared.format.check(number, page);
        if !verdict.is_damage() {
            return Ok(false);
        }
        let first = page.to_vec();
        let offset = u64::from(within) * page.len() as u64;
        let mut changed = false;
        for attempt in 0..REREADS {
            shared.clock.sleep(Duration::from_millis(u64::from(attempt) * 20));
            let read = read_full(&self.source, page, offset)
                .map_err(|source| BackupError::Read { path: self.path.clone(), source })?;
            if read < page.len() {
                // The file was truncated meanwhile, and replay truncates it again.
                self.writing.stretch.unproven += 1;
                return Ok(true);
            }
            changed |= page != first.as_slice();
            verdict = shared.format.check(number, page);
            if !verdict.is_damage() {
                return Ok(changed);
            }
        }
        if changed {
            self.writing.stretch.unproven += 1;
            return Ok(true);
        }
        let what = match verdict {
            lifeboat_engine::PageVerdict::BadChecksum { computed, stored } => {
                format!("its checksum is {stored:04x}, its content gives {computed:04x}")
            }
            _ => "its header is none of a page".to_owned(),
        };
        let path = self.file.path.clone();
        self.writing.stretch.damage.push(DamagedPage { path, page: within, what });
        Ok(false)
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
