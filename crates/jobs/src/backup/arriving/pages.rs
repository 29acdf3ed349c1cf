//! Checks the pages that arrive, and hands them to the repository's writers.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;
use lifeboat_engine::{Content, PageVerdict};
use lifeboat_repo::PartRef;
use lifeboat_repo::writer::{ExtentWriter, PartWriter};
use lifeboat_units::Work;

use super::cut::{PartTask, SmallFile, Task};
use super::suspects::Suspect;
use crate::backup::error::BackupError;
use crate::backup::table::{Stretch, Swept};
use crate::backup::worker::Shared;
use crate::facts::DamagedPage;

/// What came of one part of a file.
pub struct Done {
    /// The part.
    pub part: PartTask,
    /// What was found.
    pub stretch: Stretch,
    /// Pages that look damaged.
    pub suspects: Vec<Suspect>,
}

/// What the threads share beside what all backups do.
pub struct Arrival<'a> {
    /// As for a backup that reads files.
    pub shared: &'a Shared<'a>,
    /// How many pages looked damaged.
    pub suspects: &'a AtomicU64,
}

/// One thread.
pub struct Worker<'a> {
    arrival: &'a Arrival<'a>,
    extents: ExtentWriter<'a>,
    back: Sender<Vec<u8>>,
    /// Of the pages that are being added.
    hashes: Vec<u64>,
}

/// A part that is being written.
struct Writing {
    part: PartTask,
    writer: PartWriter,
    /// Pages that come: how many of `part.sent` are done.
    sent_done: usize,
    arrived_bytes: u64,
    suspects: Vec<Suspect>,
    /// Pages that were damaged before, and are the same.
    damage: Vec<DamagedPage>,
    swept: Swept,
}

impl<'a> Worker<'a> {
    /// A thread's state.
    pub fn new(arrival: &'a Arrival<'a>, extents: ExtentWriter<'a>, back: Sender<Vec<u8>>) -> Self {
        Self { arrival, extents, back, hashes: Vec::new() }
    }

    /// Does one task. `None` when the stream broke off in its middle: the reading thread says why.
    pub fn run(&mut self, task: Task) -> Result<Option<Vec<Done>>, BackupError> {
        match task {
            Task::Group(files) => self.group(files).map(Some),
            Task::Part(part) => self.part(part),
            Task::Kept(part) => Ok(Some(vec![kept(part)])),
        }
    }

    /// Ends the thread's work.
    pub fn close(self) -> Result<(), BackupError> {
        Ok(self.extents.close()?)
    }

    fn group(&mut self, files: Vec<SmallFile>) -> Result<Vec<Done>, BackupError> {
        let mut done = Vec::with_capacity(files.len());
        let (mut places, mut writers) = (Vec::new(), Vec::new());
        for SmallFile { part, bytes } in files {
            let mut writing = self.begin(part)?;
            writing.take(self, &bytes)?;
            writing.end(self);
            let (finished, writer) = writing.split();
            if writer.pages() > 0 {
                places.push(done.len());
                writers.push(writer);
            }
            done.push(finished);
        }
        for (place, part) in places.into_iter().zip(self.extents.finish_parts(writers)?) {
            done[place].stretch.parts.push(part);
        }
        Ok(done)
    }

    fn part(&mut self, mut part: PartTask) -> Result<Option<Vec<Done>>, BackupError> {
        let Some(data) = part.data.take() else { return Ok(None) };
        let mut left = match &part.sent {
            None => part.bytes,
            Some(pages) => pages.len() as u64 * u64::from(self.arrival.shared.page_bytes),
        };
        let mut writing = self.begin(part)?;
        while left > 0 {
            let Ok(buffer) = data.recv() else { return Ok(None) };
            left = left.saturating_sub(buffer.len() as u64);
            writing.take(self, &buffer)?;
            let _ = self.back.send(buffer); // the reading thread may have all it needs
        }
        writing.end(self);
        let (mut done, writer) = writing.split();
        if writer.pages() > 0 {
            done.stretch.parts = self.extents.finish_parts(vec![writer])?;
        }
        Ok(Some(vec![done]))
    }

    fn begin(&mut self, part: PartTask) -> Result<Writing, BackupError> {
        let (previous, refresh) = match &part.sent {
            None => self.arrival.shared.previous(part.previous.as_ref())?,
            // Pages that do not come cannot be stored anew.
            Some(_) => (self.arrival.shared.earlier(part.previous.as_ref())?, false),
        };
        let writer = PartWriter::with_previous(previous, refresh);
        Ok(Writing {
            part,
            writer,
            sent_done: 0,
            arrived_bytes: 0,
            suspects: Vec::new(),
            damage: Vec::new(),
            swept: Swept::default(),
        })
    }
}

/// A part that is as it was.
fn kept(part: PartTask) -> Done {
    let parts: Vec<PartRef> = part.previous.iter().map(|(part, _)| part.clone()).collect();
    let stretch = Stretch { bytes: part.bytes, parts, ..Stretch::default() };
    Done { part, stretch, suspects: Vec::new() }
}

impl Writing {
    /// Adds what arrived: whole pages, or the short end of a file.
    fn take(&mut self, worker: &mut Worker<'_>, bytes: &[u8]) -> Result<(), BackupError> {
        let shared = worker.arrival.shared;
        worker.extents.hash_pages(bytes, &mut worker.hashes);
        for (number, page) in bytes.chunks(shared.page_bytes as usize).enumerate() {
            if let Some(sent) = &self.part.sent {
                let next = sent.get(self.sent_done).copied().unwrap_or(u32::MAX);
                self.sent_done += 1;
                self.keep(worker, next);
            }
            let looked = self.writer.look(&worker.extents, worker.hashes[number]);
            let mut is_page = false;
            if let Content::Pages { first_page } = self.part.file.content
                && page.len() == shared.page_bytes as usize
            {
                is_page = true;
                if !(shared.proven_before && looked.is_same()) {
                    self.check(worker.arrival, page, first_page);
                }
                let within = self.within();
                // What looks damaged now is looked at again, and named then.
                if self.suspects.last().is_none_or(|page| page.page != within) {
                    let (path, pages) = (&self.part.file.path, within..within + 1);
                    let unchanged = looked.is_same() || looked.is_zero();
                    self.damage.extend(shared.known.still_damaged(path, pages, unchanged));
                }
            }
            if looked.is_zero() && looked.is_same() {
                let within = self.within();
                let still = shared.known.lost.still(&self.part.file.path, within..within + 1);
                self.swept.add_faults(still);
            }
            self.writer.add_looked(&mut worker.extents, page, is_page, looked)?;
        }
        self.arrived_bytes += bytes.len() as u64;
        shared.progress.advance(Work::Bytes(bytes.len() as u64));
        Ok(())
    }

    /// Takes over pages up to `next`; where the file was shorter, they are zero.
    fn keep(&mut self, worker: &Worker<'_>, next: u32) {
        let end = self.part.bytes.div_ceil(u64::from(worker.arrival.shared.page_bytes)) as u32;
        let missing = next.min(end).saturating_sub(self.writer.pages());
        let kept = self.writer.keep(&worker.extents, missing);
        self.writer.add_zeros(&worker.extents, missing - kept);
        let bytes = u64::from(missing) * u64::from(worker.arrival.shared.page_bytes);
        worker.arrival.shared.progress.advance(Work::Bytes(bytes));
    }

    /// Takes over the pages after the last that came.
    fn end(&mut self, worker: &Worker<'_>) {
        if self.part.sent.is_some() {
            self.keep(worker, u32::MAX);
        }
    }

    /// Number of the next page within the file.
    fn within(&self) -> u32 {
        let part_first = self.part.number * u64::from(lifeboat_repo::PART_PAGES);
        (part_first + u64::from(self.writer.pages())) as u32
    }

    fn check(&mut self, arrival: &Arrival<'_>, page: &[u8], first_page: u32) {
        let within = self.within();
        let format = arrival.shared.format;
        let verdict = format.check(first_page.wrapping_add(within), page);
        if !verdict.is_damage() {
            return;
        }
        let what = match verdict {
            PageVerdict::BadChecksum { computed, stored } => {
                format!("its checksum is {stored:04x}, its content gives {computed:04x}")
            }
            _ => "its header is none of a page".to_owned(),
        };
        let number = arrival.suspects.fetch_add(1, Ordering::Relaxed);
        self.suspects.push(Suspect {
            path: self.part.file.path.clone(),
            page: within,
            number: first_page.wrapping_add(within),
            bytes: (number < super::suspects::LOOKS_MAX).then(|| page.into()),
            changed_at: format.changed_at(page),
            what,
        });
    }

    fn split(self) -> (Done, PartWriter) {
        let stretch = Stretch {
            bytes: self.part.bytes,
            pages_new: self.writer.pages_new(),
            read_bytes: self.arrived_bytes,
            swept: self.swept,
            damage: self.damage,
            ..Stretch::default()
        };
        (Done { part: self.part, stretch, suspects: self.suspects }, self.writer)
    }
}
