//! The write load: rows, and a log of what the server acknowledged, kept by the client.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lifeboat_units::{Cancel, Timestamp};
use postgres::{Client, NoTls};
use serde::Serialize;

use super::lab::failed;
use crate::error::CliError;

/// Sessions that write at the same time.
const WRITERS: i64 = 3;

/// A row that the server acknowledged.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    id: i64,
    begun: Timestamp,
    acknowledged: Timestamp,
}

/// Writers at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<Acknowledged>>>,
}

impl Load {
    /// Starts the writers; they end when they are told to, or when a statement fails.
    pub fn start(conninfo: &str, cancel: Cancel) -> Result<Self, CliError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Self { stop: stop.clone(), writers: Vec::new() };
        for writer in 0..WRITERS {
            let client = Client::connect(conninfo, NoTls);
            let client = client.map_err(|error| failed("a writer cannot connect", error))?;
            let (stop, cancel) = (stop.clone(), cancel.clone());
            let ended = move || stop.load(Ordering::Relaxed) || cancel.is_cancelled();
            load.writers.push(std::thread::spawn(move || write(client, writer, &ended)));
        }
        Ok(load)
    }

    /// Stops the writers, and gives what was acknowledged.
    pub fn stop(mut self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let logs = self.writers.drain(..).filter_map(|writer| writer.join().ok());
        Log(logs.flatten().collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(mut client: Client, writer: i64, ended: &dyn Fn() -> bool) -> Vec<Acknowledged> {
    let mut log = Vec::new();
    let mut id = writer;
    while !ended() {
        let begun = Timestamp::now();
        let customer = id * 7919 % 4096 + 1;
        let sql = format!(
            "BEGIN; INSERT INTO orders (id, customer) VALUES ({id}, {customer}); \
             UPDATE customers SET balance = balance + 1 WHERE id = {customer}; COMMIT"
        );
        if client.batch_execute(&sql).is_err() {
            break; // the table was dropped
        }
        log.push(Acknowledged { id, begun, acknowledged: Timestamp::now() });
        id += WRITERS;
    }
    log
}

/// What the server acknowledged.
pub(super) struct Log(Vec<Acknowledged>);

impl Log {
    /// Compares what was restored to `moment` with what was acknowledged.
    ///
    /// A row acknowledged before it must be there, one begun after it must not. Of the few in
    /// between nobody can say, for the commit itself lies between begin and acknowledgement.
    pub fn compare(&self, conninfo: &str, moment: Timestamp) -> Result<Proof, CliError> {
        let mut client = Client::connect(conninfo, NoTls)
            .map_err(|error| failed("cannot connect to the restored server", error))?;
        let rows = client
            .query("SELECT id FROM orders", &[])
            .map_err(|error| failed("cannot read the restored table", error))?;
        let there: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let before = self.0.iter().filter(|row| row.acknowledged < moment);
        let after = self.0.iter().filter(|row| row.begun > moment);
        Ok(Proof {
            acknowledged_before: before.clone().count(),
            missing: before.filter(|row| !there.contains(&row.id)).count(),
            begun_after: after.clone().count(),
            extra: after.filter(|row| there.contains(&row.id)).count(),
        })
    }
}

/// How what was restored compares with what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Proof {
    /// Rows acknowledged before the moment.
    pub acknowledged_before: usize,
    /// Of these, rows that are not there.
    pub missing: usize,
    /// Rows begun after the moment.
    pub begun_after: usize,
    /// Of these, rows that are there.
    pub extra: usize,
}

impl Proof {
    /// Whether nothing is missing and nothing is too much, and there was something to see.
    pub fn holds(&self) -> bool {
        self.missing == 0 && self.extra == 0 && self.acknowledged_before > 0 && self.begun_after > 0
    }
}
