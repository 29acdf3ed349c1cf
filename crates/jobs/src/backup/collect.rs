//! Runs the threads, and puts their results into the file table in the order of the files.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use lifeboat_engine::Listing;
use lifeboat_repo::BackupWriter;
use lifeboat_repo::reader::IndexReader;

use super::Copy;
use super::error::BackupError;
use super::table::{Stretch, Table, TableWriter};
use super::tasks::{Task, Tasks};
use super::worker::{Shared, Worker};
use crate::ports::Ports;

/// Tasks that may be under way or waiting to be put in order, for each thread.
const TASKS_PER_THREAD: usize = 8;
/// How often the session and the lease are looked after.
const TICK: Duration = Duration::from_millis(200);
/// Share of the database that one run may store anew only to keep restores fast: 1/50.
const REFRESH_SHARE: u64 = 50;
/// Pages that may be stored anew in any case: one part.
const REFRESH_PAGES_MIN: u64 = 8192;

type Found<'a> = (u64, Task<'a>, Result<Vec<Option<Stretch>>, BackupError>);

/// How many pages one run may store anew only to keep restores fast.
pub fn refresh_budget(pages: u64) -> u64 {
    (pages / REFRESH_SHARE).max(REFRESH_PAGES_MIN)
}

/// Copies all files and writes the table.
pub fn collect(
    ports: &Ports<'_>,
    writer: &BackupWriter,
    (what, listing): (&Copy<'_>, &Listing),
    jobs: usize,
    mut housekeeping: impl FnMut() -> Result<(), BackupError>,
) -> Result<Table, BackupError> {
    let page_bytes = what.identity.page_bytes;
    let jobs = jobs.max(1);
    let format = ports.engine.page_format(what.identity);
    let index = IndexReader::new(ports.cluster, page_bytes);
    let pages: u64 = listing.files.iter().map(|f| f.size_bytes / u64::from(page_bytes)).sum();
    let refresh_budget = AtomicU64::new(refresh_budget(pages));
    let shared = Shared {
        root: &listing.root,
        format: format.as_ref(),
        page_bytes,
        index: &index,
        progress: ports.progress,
        clock: ports.clock,
        refresh_budget: &refresh_budget,
        guide: what.guide,
        proven_before: what.proven_before,
        known: what.known,
    };
    let previous = what.previous.map(|manifest| (&index, manifest));
    let mut tasks = Tasks::new(&listing.files, previous, what.guide, page_bytes);
    let mut table = TableWriter::new(writer, ports.cluster, page_bytes, what.previous);
    let limit = jobs * TASKS_PER_THREAD;
    std::thread::scope(|scope| {
        let (task_sender, task_receiver) = bounded::<(u64, Task<'_>)>(limit);
        let (found_sender, found_receiver) = bounded::<Found<'_>>(limit);
        let threads: Vec<_> = (0..jobs)
            .map(|_| {
                let worker = Worker::new(&shared, writer.extent_writer());
                let (tasks, found) = (task_receiver.clone(), found_sender.clone());
                scope.spawn(move || work(worker, &tasks, &found))
            })
            .collect();
        drop((task_receiver, found_sender));
        let mut order = InOrder::default();
        let mut next_task = 0;
        let mut more = true;
        while more || order.next < next_task {
            while more && next_task - order.next < limit as u64 {
                match tasks.next()? {
                    Some(task) => {
                        // There is room for `limit` tasks: this never waits. It fails only when
                        // all threads are gone, and then one of them has left an error.
                        let _ = task_sender.send((next_task, task));
                        next_task += 1;
                    }
                    None => more = false,
                }
            }
            if order.next == next_task {
                break; // nothing under way and nothing to come
            }
            match found_receiver.recv_timeout(TICK) {
                Ok((number, task, result)) => {
                    order.waiting.insert(number, (task, result?));
                    order.drain(&mut table)?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            housekeeping()?;
        }
        drop(task_sender);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok::<_, BackupError>(())
    })?;
    Ok(table.finish()?)
}

/// A thread: tasks in, results out, until there are no more or nobody listens.
fn work<'a>(
    mut worker: Worker<'_>,
    tasks: &Receiver<(u64, Task<'a>)>,
    found: &Sender<Found<'a>>,
) -> Result<(), BackupError> {
    for (number, task) in tasks {
        let result = worker.run(&task);
        let failed = result.is_err();
        if found.send((number, task, result)).is_err() || failed {
            return Ok(());
        }
    }
    worker.close()
}

/// Results that wait for an earlier one.
#[derive(Default)]
struct InOrder<'a> {
    next: u64,
    waiting: BTreeMap<u64, (Task<'a>, Vec<Option<Stretch>>)>,
}

impl InOrder<'_> {
    fn drain(&mut self, table: &mut TableWriter<'_>) -> Result<(), BackupError> {
        while let Some((task, found)) = self.waiting.remove(&self.next) {
            self.next += 1;
            match task {
                Task::Group(files) => {
                    for (small, stretch) in files.iter().zip(found) {
                        table.add(small.file, stretch, true)?;
                    }
                }
                Task::Part(part) => {
                    for stretch in found {
                        table.add(part.file, stretch, part.last)?;
                    }
                }
            }
        }
        Ok(())
    }
}
