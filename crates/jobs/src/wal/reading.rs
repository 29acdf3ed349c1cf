//! Keeps in the repository what a recovery still reads.

use std::fs;
use std::path::Path;

use lifeboat_engine::LogFile;
use lifeboat_repo::reading::until_of;
use lifeboat_repo::{BackupId, ReadPurpose, Reading};
use lifeboat_units::Note;
use serde::{Deserialize, Serialize};

use super::state::{RecoveryState, write_private};
use crate::inventory::chain;
use crate::ports::Ports;

/// Lies in the root of a restored data directory until its recovery is over: names the note in the
/// repository that keeps what the recovery reads.
pub const READING_FILE: &str = "lifeboat.reading";

/// What [`READING_FILE`] holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotedReading {
    /// The note's name.
    pub note: String,
    /// The backup from which recovery began.
    pub backup: BackupId,
}

impl NotedReading {
    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("texts always serialise")
    }

    /// Reads the file in a data directory; `None` when there is none.
    pub fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(READING_FILE)).ok()?).ok()
    }
}

/// Renews the note of a recovery when it is due. Called with each file that was fetched; costs a look
/// at a small file.
///
/// - Only for files that the plan of the restore names: what follows them is newer than what any
///   rule lets go, and a standby that was made from a backup must not keep it for ever.
/// - A failure is a warning: recovery goes on, and the note that is there counts for hours.
pub fn read_on(ports: &Ports<'_>, directory: &Path, state: Option<&RecoveryState>, file: LogFile) {
    if !state.is_some_and(|state| state.needs(file)) {
        return;
    }
    let Some(noted) = NotedReading::read(directory) else { return };
    let purpose = ReadPurpose::Recovery;
    let young = purpose.holds().saturating_sub(purpose.renewed_every());
    let now = ports.clock.now();
    let due = now.checked_add(young).ok();
    if until_of(&noted.note).zip(due).is_none_or(|(until, due)| until > due) {
        return;
    }
    if let Err(error) = renew(ports, directory, &noted) {
        ports.progress.warn(&Note::new(format!(
            "the note that this recovery reads could not be renewed: {}",
            chain(&*error)
        )));
    }
}

fn renew(
    ports: &Ports<'_>,
    directory: &Path,
    old: &NotedReading,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let backups = [old.backup];
    let reading = Reading::begin(ports.cluster, ReadPurpose::Recovery, &backups, ports.clock)?;
    let new = NotedReading { note: reading.name().to_owned(), backup: old.backup };
    write_private(directory, &directory.join(READING_FILE), &new.encode())?;
    reading.leave();
    Ok(ports.cluster.end_reading(&old.note)?)
}
