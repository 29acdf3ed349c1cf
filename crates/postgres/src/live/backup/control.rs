//! Reads the control file of a server that may be writing it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::control::{CONTROL_FILE, ControlError, ControlFile};
use crate::live::error::LiveError;

/// Reads the control file until its checksum holds: the server rewrites it in place, so that one
/// read may see half of each. The same bytes again with a wrong checksum are damage.
pub fn read_control(directory: &Path) -> Result<(Vec<u8>, ControlFile), LiveError> {
    const ATTEMPTS: u32 = 50;
    let path = directory.join(CONTROL_FILE);
    let mut before = Vec::new();
    for attempt in 1.. {
        let bytes =
            fs::read(&path).map_err(|source| LiveError::Read { path: path.clone(), source })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(ControlError::Checksum { .. }) if bytes != before && attempt < ATTEMPTS => {
                before = bytes;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => return Err(LiveError::Control { path, source }),
        }
    }
    Err(LiveError::Order("unreachable: the loop above returns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_that_stays_wrong_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("global")).unwrap();
        let missing = read_control(directory.path()).unwrap_err();
        assert!(matches!(missing, LiveError::Read { .. }));
        // Control version 1300, catalog 202209061 (PostgreSQL 15), nothing else right.
        let mut bytes = vec![0u8; 8192];
        bytes[8..12].copy_from_slice(&1300u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&202_209_061u32.to_le_bytes());
        fs::write(directory.path().join(CONTROL_FILE), bytes).unwrap();
        let damaged = read_control(directory.path()).unwrap_err();
        assert!(matches!(damaged, LiveError::Control { .. }), "{damaged}");
    }
}
