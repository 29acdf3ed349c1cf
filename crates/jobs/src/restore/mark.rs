//! The mark of an unfinished restore: lies in every directory that a restore is writing, from
//! before the first byte until after the last.
//!
//! It names the data directory and the digest of the control file that comes last. A directory
//! with a mark and another control file is no unfinished one: either the restore had changed
//! nothing yet, or a server has run on it since. It must not be cleared.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lifeboat_engine::{SystemId, TargetState};
use serde::{Deserialize, Serialize};

use super::RESTORING_MARK;
use super::error::RestoreError;
use super::place::failed;
use crate::facts::BackupFacts;
use crate::ports::Ports;

/// First line of a mark, for whoever finds one.
const WORDS: &str = "lifeboat is restoring into this directory, or was cut short doing so.";

/// What a mark says, on its second line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The data directory: for a tablespace, the one to which it belongs.
    pub directory: PathBuf,
    /// Whose data are restored.
    pub system: SystemId,
    /// Digest of the control file that is written last, hexadecimal.
    pub control: String,
    /// What lay there before was not a restore's own: a tablespace may hold more.
    pub delta: bool,
}

impl Mark {
    /// The mark of a restore.
    pub fn of(ports: &Ports<'_>, directory: &Path, facts: &BackupFacts, delta: bool) -> Self {
        let control = facts.control_file.bytes().unwrap_or_default();
        Self {
            directory: directory.to_owned(),
            system: facts.identity.system_id,
            control: digest(ports, &control),
            delta,
        }
    }

    /// The file's content.
    pub fn text(&self) -> String {
        let line = serde_json::to_string(self).unwrap_or_default();
        format!("{WORDS}\n{line}\n")
    }

    /// Reads the mark in a directory; `None` when there is none, or one that tells nothing.
    pub fn read(place: &Path) -> Result<Option<Self>, RestoreError> {
        let path = place.join(RESTORING_MARK);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().nth(1).and_then(|line| serde_json::from_str(line).ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path, source)),
        }
    }
}

fn digest(ports: &Ports<'_>, bytes: &[u8]) -> String {
    let digest = ports.cluster.hasher().digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What lies at a data directory's place. A mark beside a control file that is not the restore's
/// own does not make it unfinished.
pub fn state_of_directory(ports: &Ports<'_>, place: &Path) -> Result<TargetState, RestoreError> {
    let state = ports.engine.inspect_target(place)?;
    if state == TargetState::Unfinished
        && let Some(mark) = Mark::read(place)?
        && is_used(ports, place, &mark)?
    {
        return Ok(TargetState::DataDirectory);
    }
    Ok(state)
}

/// What lies at a tablespace's place. A mark counts as long as the data directory that it names
/// has no control file of its own.
pub fn state_of_tablespace(ports: &Ports<'_>, place: &Path) -> Result<TargetState, RestoreError> {
    let state = ports.engine.inspect_target(place)?;
    if state == TargetState::Unfinished
        && let Some(mark) = Mark::read(place)?
        && is_used(ports, &mark.directory, &mark)?
    {
        return Ok(TargetState::Other("a tablespace of another data directory"));
    }
    Ok(state)
}

/// Whether a data directory has a control file other than the one that the restore was to write.
fn is_used(ports: &Ports<'_>, directory: &Path, mark: &Mark) -> Result<bool, RestoreError> {
    let path = directory.join(ports.engine.control_file_path());
    match fs::read(&path) {
        Ok(bytes) => Ok(digest(ports, &bytes) != mark.control),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(source) => Err(failed("read", &path, source)),
    }
}
