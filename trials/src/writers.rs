//! A write load with a log of what the server acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use lifeboat_testkit::scratch::ScratchServer;
use postgres::{Client, NoTls};

/// One row that a client wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its key.
    pub id: u64,
    /// Its transaction.
    pub xid: u32,
    /// Count of the shared ticker before the statement was sent.
    pub sent: u64,
    /// Count of the shared ticker after the commit was acknowledged; `None` when it was not: then
    /// nobody knows whether it was committed.
    pub acknowledged: Option<u64>,
}

/// A moment in the load.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// Ticker before the moment: what was acknowledged by then happened before it.
    pub before: u64,
    /// Ticker after the moment: what was sent later happened after it.
    pub after: u64,
}

/// Clients that insert until they are stopped, and survive a server that dies.
pub struct Writers {
    ticker: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<Written>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Makes the table `journal` and starts `clients` clients.
    pub fn start(server: &ScratchServer, clients: u64) -> Self {
        server.execute(
            "CREATE TABLE IF NOT EXISTS journal (id bigint PRIMARY KEY, filler text NOT NULL)",
        );
        let writers = Self {
            ticker: Arc::default(),
            stop: Arc::default(),
            log: Arc::default(),
            threads: Vec::new(),
        };
        writers.and_start(server, clients)
    }

    fn and_start(mut self, server: &ScratchServer, clients: u64) -> Self {
        for client in 0..clients {
            let conninfo = server.conninfo();
            let (ticker, stop, log) =
                (Arc::clone(&self.ticker), Arc::clone(&self.stop), Arc::clone(&self.log));
            self.threads.push(std::thread::spawn(move || {
                let mut id = client << 40;
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut session) = Client::connect(&conninfo, NoTls) else {
                        std::thread::sleep(Duration::from_millis(50));
                        continue;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        id += 1;
                        let written = insert(&mut session, id, &ticker);
                        let lost = written.acknowledged.is_none();
                        log.lock().expect("no writer panics").push(written);
                        if lost {
                            break;
                        }
                    }
                }
            }));
        }
        self
    }

    /// Runs something that marks a moment, such as reading the server's position.
    pub fn mark<T>(&self, moment: impl FnOnce() -> T) -> (Mark, T) {
        let before = self.ticker.fetch_add(1, Ordering::SeqCst);
        let value = moment();
        let after = self.ticker.fetch_add(1, Ordering::SeqCst);
        (Mark { before, after }, value)
    }

    /// What was written so far.
    pub fn log(&self) -> Vec<Written> {
        self.log.lock().expect("no writer panics").clone()
    }

    /// Stops all clients and gives what they wrote.
    pub fn stop(mut self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no writer panics");
        }
        self.log()
    }
}

fn insert(session: &mut Client, id: u64, ticker: &AtomicU64) -> Written {
    let sent = ticker.fetch_add(1, Ordering::SeqCst);
    let key = id as i64;
    // The filler makes rows of different sizes, some of them compressed or out of line.
    let answer = session.query_one(
        "INSERT INTO journal SELECT i, repeat(md5(i::text), 1 + (i % 40)::int) FROM (SELECT $1::bigint i) x \
         RETURNING (pg_current_xact_id()::text::numeric % 4294967296)::bigint",
        &[&key],
    );
    match answer {
        Ok(row) => {
            let acknowledged = Some(ticker.fetch_add(1, Ordering::SeqCst));
            Written { id, xid: row.get::<_, i64>(0) as u32, sent, acknowledged }
        }
        Err(_) => Written { id, xid: 0, sent, acknowledged: None },
    }
}

/// Compares the rows of a restored `journal` with the log.
///
/// - Every row acknowledged before `mark.before` must be there.
/// - No row sent after `mark.after` may be there.
/// - Rows under way in between, and those never acknowledged, may be there or not.
#[track_caller]
pub fn assert_rows_before(mark: Mark, log: &[Written], restored: &[u64], what: &str) {
    let there: std::collections::HashSet<u64> = restored.iter().copied().collect();
    let must = |w: &&Written| w.acknowledged.is_some_and(|a| a <= mark.before);
    let must_not = |w: &&Written| w.sent >= mark.after;
    let missing: Vec<_> = log.iter().filter(must).filter(|w| !there.contains(&w.id)).collect();
    let extra: Vec<_> = log.iter().filter(must_not).filter(|w| there.contains(&w.id)).collect();
    let musts = log.iter().filter(must).count();
    assert!(musts > 0, "{what}: nothing was acknowledged before the moment: it tests nothing");
    assert!(
        missing.is_empty(),
        "{what}: {} of {musts} rows are missing: {missing:?}",
        missing.len()
    );
    assert!(extra.is_empty(), "{what}: {} rows too many: {extra:?}", extra.len());
}
