//! Whole histories of a toy server and its repository: real jobs over a store that fails, on a
//! clock that steps, each history drawn from one number.
//!
//! Survives: any store call of any process failing before or after its effect, or torn; the death
//! of a process between any two store calls; writes while files are read; a wall clock that steps
//! by an hour either way; a backup that froze for an hour or more than a day while another host
//! took its lease over and collected; a restore that is cut short and repeated; WAL that arrives
//! between a restore and its recovery; a server that leaves a file out when it says what changed,
//! where the sweep reads everything.
//! Out of scope: a store that loses objects it acknowledged; a server that loses what it
//! committed; timelines; records across two segments (real servers in the trials do both).
//!
//! `make sim SEED=8271` replays one history; `LIFEBOAT_SEED` and `LIFEBOAT_HISTORIES` are read.

#[path = "simulation/acts.rs"]
mod acts;
#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/model.rs"]
mod model;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use acts::Simulation;
use world::random::Random;

/// Histories that are run whatever happens: found something once, or drawn at the beginning.
const SEEDS: [u64; 6] = [1, 2, 3, 8271, 271_828, 3_141_592];
/// Random histories begin until then.
const TIME: Duration = Duration::from_secs(20);
/// Ticks of one history.
const TICKS: u32 = 40;

/// Names the history that failed: several run at a time.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {0} FAILED: replay with `make sim SEED={0}`", self.0);
        }
    }
}

fn run(seed: u64) {
    eprintln!("seed {seed}");
    let _named = Named(seed);
    let mut simulation = Simulation::new(seed);
    for tick in 0..TICKS {
        simulation.tick(tick);
        simulation.check_invariants();
    }
    simulation.settle_then_require_progress();
}

#[test]
fn every_promise_holds_through_histories_of_failure() {
    if let Some(seed) = std::env::var("LIFEBOAT_SEED").ok().filter(|s| !s.is_empty()) {
        return run(seed.parse().expect("LIFEBOAT_SEED is a number"));
    }
    let histories = std::env::var("LIFEBOAT_HISTORIES").ok().and_then(|n| n.parse::<u64>().ok());
    let began = Instant::now();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let random = Mutex::new(Random(now.as_nanos() as u64));
    let (count, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let more =
        |n| n < SEEDS.len() as u64 || histories.map_or(began.elapsed() < TIME, |end| n < end);
    let histories = || loop {
        let number = count.fetch_add(1, Ordering::Relaxed);
        if !more(number) {
            return;
        }
        let known = SEEDS.get(number as usize).copied();
        run(known.unwrap_or_else(|| random.lock().unwrap().below(1_000_000_000)));
        done.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        (0..threads).for_each(|_| drop(scope.spawn(histories)));
    });
    let all = done.load(Ordering::Relaxed);
    eprintln!("{all} histories, {:.1} per second", all as f64 / began.elapsed().as_secs_f64());
}
