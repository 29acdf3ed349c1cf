//! Where tablespaces go.

use std::path::{Path, PathBuf};

use lifeboat_engine::TargetState;

use super::RestoreRequest;
use super::delta::is_own_tablespace;
use super::error::RestoreError;
use super::mark::state_of_tablespace;
use crate::facts::BackupFacts;
use crate::ports::Ports;

/// A tablespace and where it was.
pub struct MappedTablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it was.
    pub was: PathBuf,
    /// Where it is to be.
    pub location: PathBuf,
}

/// Checks the mapping of tablespaces: each old place must be one of the backup's, each new place
/// absolute, empty or new (or, for a delta, the data directory's own), and none within another.
pub fn map_tablespaces(
    ports: &Ports<'_>,
    request: &RestoreRequest,
    facts: &BackupFacts,
) -> Result<Vec<MappedTablespace>, RestoreError> {
    let bad = |path: &Path, why: &str| RestoreError::Tablespace {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    for (was, _) in &request.tablespaces {
        if !facts.tablespaces.iter().any(|t| t.location == *was) {
            return Err(bad(was, "is none of the backup's"));
        }
    }
    let mut mapped: Vec<MappedTablespace> = Vec::new();
    for tablespace in &facts.tablespaces {
        let was = tablespace.location.clone();
        let location = request
            .tablespaces
            .iter()
            .find(|(old, _)| *old == was)
            .map_or_else(|| was.clone(), |(_, new)| new.clone());
        if !location.is_absolute() {
            return Err(bad(&location, "must be an absolute path"));
        }
        let into = std::path::absolute(&request.into).unwrap_or_else(|_| request.into.clone());
        if location.starts_with(&into) || into.starts_with(&location) {
            return Err(bad(&location, "and the data directory would lie within each other"));
        }
        ports.cluster.refuse_within(&location)?;
        let nested = |other: &MappedTablespace| {
            location.starts_with(&other.location) || other.location.starts_with(&location)
        };
        if mapped.iter().any(nested) {
            return Err(bad(&location, "would lie within another tablespace"));
        }
        match state_of_tablespace(ports, &location)? {
            TargetState::Missing | TargetState::Empty | TargetState::Unfinished => {}
            TargetState::Other(_) if request.delta && is_own_tablespace(&into, &location)? => {}
            _ => return Err(bad(&location, "is not empty")),
        }
        mapped.push(MappedTablespace { oid: tablespace.oid, was, location });
    }
    Ok(mapped)
}
