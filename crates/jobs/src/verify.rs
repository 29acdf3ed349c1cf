//! Reads everything back and checks it.
//!
//! | module | what it does |
//! |---|---|
//! | [`report`] | what was read, and what is wrong |
//! | `survey` | what is stored, and what of it is referred to |
//! | `walk` | walks the file tables of all backups side by side |
//! | `window` | checks a stretch of the walk, pack by pack |
//! | `wal` | reads the WAL back, and looks for what is missing |
//! | `journal` | tells a backup that vanished from one that expired |

pub mod error;
pub mod report;

mod context;
mod findings;
mod journal;
mod keys;
mod survey;
mod wal;
mod walk;
mod window;

pub use error::VerifyError;
pub use report::{Counts, Finding, FindingKind, VerifyReport};

use std::sync::Mutex;

use lifeboat_repo::BackupId;
use lifeboat_units::{Stage, Work};

use crate::inventory::Inventory;
use crate::ports::Ports;
use context::{Context, Counters};
use findings::Findings;
use window::Checker;

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifySettings {
    /// These backups and the WAL that makes them consistent; `None` for all that is there.
    pub backups: Option<Vec<BackupId>>,
    /// Threads that read and check.
    pub jobs: usize,
}

/// Reads back and checks everything that is referred to: seals, digests, every page's hash.
///
/// Damage is a finding in the report. An error means that it could not be found out. Needs the
/// private key. The file tables of all backups are walked side by side, so that what they share
/// is read once, and memory does not grow with the database; see `verify/walk.rs`.
pub fn run(ports: &Ports<'_>, settings: &VerifySettings) -> Result<VerifyReport, VerifyError> {
    let began = ports.clock.monotonic();
    let context = Context {
        ports,
        jobs: settings.jobs,
        findings: Findings::default(),
        notes: Mutex::default(),
        count: Counters::default(),
    };
    let inventory = Inventory::load(ports.cluster, ports.engine)?;
    let stored = survey::packs(&context)?;
    let backups = survey::chosen(&context, &inventory, settings.backups.as_deref())?;
    let keys = keys::unwrap(&context, &backups)?;
    let (packs, waste) = survey::usage(&context, &inventory, &backups, &stored);
    let logs: u64 = inventory.logs.iter().map(|log| log.stored_bytes).sum();
    let total: u64 = packs.iter().filter_map(|pack| stored.get(pack)).sum();
    ports.progress.stage(Stage::Verifying, Some(Work::Bytes(total + logs)));
    let listed = survey::listed(&inventory);
    let events = journal::check(&context, &listed)?;
    let checker = Checker::new(&context, keys);
    walk::walk(&context, &backups, |window| checker.check(&window))?;
    wal::check(&context, &inventory, &backups, settings.backups.is_some(), &events)?;
    let (waste_packs, waste_bytes) = waste;
    let counts = Counts {
        backups: backups.len() as u64,
        packs: packs.len() as u64,
        waste_packs,
        waste_bytes,
        ..context.count.read()
    };
    Ok(VerifyReport {
        cluster: ports.cluster.name().to_string(),
        counts,
        findings: context.findings.take(),
        notes: context.notes.into_inner().unwrap_or_else(|e| e.into_inner()),
        seconds: ports.clock.monotonic().saturating_sub(began).as_secs_f64(),
    })
}
