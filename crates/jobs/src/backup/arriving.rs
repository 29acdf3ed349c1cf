//! Copies a backup that arrives as a stream: one thread reads and cuts, others check, compare,
//! compress and seal, and the file table is put in order at the end.

mod cut;
mod entries;
mod pages;
mod suspects;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use lifeboat_engine::{ClusterIdentity, Directory, FileStream, StreamEnd};
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{BackupWriter, Manifest};

use super::error::BackupError;
use super::known::KnownPages;
use super::table::{OpenFile, Stretch, Table, TableWriter};
use super::worker::Shared;
use crate::ports::Ports;
use cut::{Buffers, Cutter, Read, Task};
use entries::Entries;
use pages::{Arrival, Done, Worker};

pub use suspects::{Suspect, judge};

/// Tasks that may wait for a thread, for each of them.
const TASKS_PER_THREAD: usize = 2;
/// What may wait for a thread, in bytes: half a part of a page map for each, so that while one
/// part comes in the one before can be finished.
const WAITING_BYTES_PER_THREAD: usize = 32 << 20;
/// The same for all threads together, in bytes.
const WAITING_BYTES_MAX: usize = 128 << 20;
/// How often the session and the lease are looked after.
const TICK: Duration = Duration::from_millis(200);

/// What arrives, and what it is compared with.
pub struct Arriving<'a> {
    /// The files.
    pub stream: Box<dyn FileStream>,
    /// Ends the stream from outside.
    pub stop: &'a (dyn Fn() + Send + Sync),
    /// How the data are laid out.
    pub identity: &'a ClusterIdentity,
    /// The earlier backup.
    pub previous: Option<&'a Manifest>,
    /// Pages that are the same as the earlier backup's need no check.
    pub proven_before: bool,
    /// What the earlier backup found wrong.
    pub known: &'a KnownPages,
    /// About how much comes, in bytes, when that is known.
    pub total_bytes: Option<u64>,
}

/// What has arrived.
pub struct Arrived {
    /// The file table.
    pub table: Table,
    /// Directories, sorted by path.
    pub directories: Vec<Directory>,
    /// Pages that look damaged.
    pub suspects: Vec<Suspect>,
    /// What came at the end.
    pub end: StreamEnd,
}

/// Takes all of a stream.
pub fn collect(
    ports: &Ports<'_>,
    writer: &BackupWriter,
    what: Arriving<'_>,
    jobs: usize,
    mut housekeeping: impl FnMut() -> Result<(), BackupError>,
) -> Result<Arrived, BackupError> {
    let page_bytes = what.identity.page_bytes;
    let jobs = jobs.max(1);
    let format = ports.engine.page_format(what.identity);
    let index = IndexReader::new(ports.cluster, page_bytes);
    let known = match what.previous {
        Some(manifest) => Entries::of(&index, manifest)?,
        None => Entries::new(page_bytes),
    };
    let pages = what.total_bytes.unwrap_or(0) / u64::from(page_bytes);
    let refresh_budget = AtomicU64::new(super::collect::refresh_budget(pages));
    let shared = Shared {
        root: std::path::Path::new(""),
        format: format.as_ref(),
        page_bytes,
        index: &index,
        progress: ports.progress,
        clock: ports.clock,
        refresh_budget: &refresh_budget,
        guide: None,
        proven_before: what.proven_before,
        known: what.known,
    };
    let suspects = AtomicU64::new(0);
    let arrival = Arrival { shared: &shared, suspects: &suspects };
    let mut files = Files::new(ports, writer, what.previous, page_bytes);
    let stop = what.stop;
    let read = std::thread::scope(|scope| {
        let (task_sender, task_receiver) = bounded::<Task>(jobs * TASKS_PER_THREAD);
        let (done_sender, done_receiver) = unbounded::<Result<Vec<Done>, BackupError>>();
        let memory = (jobs * WAITING_BYTES_PER_THREAD).min(WAITING_BYTES_MAX);
        let (buffers, back) = Buffers::new(memory, page_bytes);
        let threads: Vec<_> = (0..jobs)
            .map(|_| {
                let worker = Worker::new(&arrival, writer.extent_writer(), back.clone());
                let (tasks, done) = (task_receiver.clone(), done_sender.clone());
                scope.spawn(move || work(worker, &tasks, &done))
            })
            .collect();
        drop((task_receiver, done_sender, back));
        let cutter = Cutter {
            stream: what.stream,
            known: &known,
            tasks: task_sender,
            buffers,
            page_bytes,
            progress: ports.progress,
        };
        let cutter = scope.spawn(move || cutter.run());
        let gathered = files.gather(&done_receiver, &mut housekeeping);
        if gathered.is_err() {
            stop();
        }
        drop(done_receiver);
        let read = cutter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut closed = Ok(());
        for thread in threads {
            let thread = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            closed = closed.and(thread);
        }
        gathered.and(closed)?;
        read
    })?;
    let Read { mut directories, end: Some(end) } = read else {
        // The others give up only with an error of their own, which was returned above.
        return Err(BackupError::Stream { path: String::new(), what: "not all of it" });
    };
    directories.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let (table, suspects) = files.finish()?;
    Ok(Arrived { table, directories, suspects, end })
}

/// A thread: tasks in, results out, until there are no more or nobody listens.
fn work(
    mut worker: Worker<'_>,
    tasks: &Receiver<Task>,
    done: &Sender<Result<Vec<Done>, BackupError>>,
) -> Result<(), BackupError> {
    for task in tasks {
        let result = match worker.run(task) {
            Ok(Some(result)) => Ok(result),
            Ok(None) => return Ok(()),
            Err(error) => Err(error),
        };
        let failed = result.is_err();
        if done.send(result).is_err() || failed {
            return Ok(());
        }
    }
    worker.close()
}

/// Files that have arrived, or are about to.
struct Files<'a> {
    table: TableWriter<'a>,
    entries: Entries,
    /// Large files some of whose parts are done.
    open: HashMap<u64, BTreeMap<u64, Stretch>>,
    suspects: Vec<Suspect>,
}

impl<'a> Files<'a> {
    fn new(
        ports: &Ports<'a>,
        writer: &'a BackupWriter,
        previous: Option<&Manifest>,
        page_bytes: u32,
    ) -> Self {
        let table = TableWriter::new(writer, ports.cluster, page_bytes, previous);
        let entries = Entries::new(page_bytes);
        Self { table, entries, open: HashMap::new(), suspects: Vec::new() }
    }

    /// Takes results until there are no more.
    fn gather(
        &mut self,
        done: &Receiver<Result<Vec<Done>, BackupError>>,
        housekeeping: &mut impl FnMut() -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        loop {
            match done.recv_timeout(TICK) {
                Ok(result) => result?.into_iter().for_each(|done| self.take(done)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            housekeeping()?;
        }
    }

    fn take(&mut self, done: Done) {
        let Done { part, mut stretch, suspects } = done;
        self.table.count(&mut stretch);
        self.suspects.extend(suspects);
        let parts = self.open.entry(part.file_number).or_default();
        parts.insert(part.number, stretch);
        if parts.len() as u64 == part.parts {
            let mut file = OpenFile::new(&part.file);
            for (_, stretch) in self.open.remove(&part.file_number).into_iter().flatten() {
                file.append(stretch);
            }
            self.entries.push(file.entry);
        }
    }

    /// Writes the table in the order of the paths.
    fn finish(mut self) -> Result<(Table, Vec<Suspect>), BackupError> {
        let twice = |path| BackupError::Stream { path, what: "the same file twice" };
        self.entries.sort().map_err(twice)?;
        for entry in self.entries.iter() {
            self.table.put(&entry?)?;
        }
        Ok((self.table.finish()?, self.suspects))
    }
}
