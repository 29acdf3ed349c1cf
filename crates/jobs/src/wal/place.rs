//! Where files of the log belong: in the repository, and around a data directory.

use std::path::{Path, PathBuf};

use lifeboat_engine::{Engine, LogFile, SystemId};
use lifeboat_repo::LogPlace;

/// Where a file of the log of `system` lies in the repository.
pub(crate) fn place(system: SystemId, file: LogFile) -> LogPlace {
    LogPlace { system: system.to_string(), timeline: file.timeline().0, name: file.to_string() }
}

/// The data directory to which a path in its log directory belongs.
///
/// Servers run their commands in the data directory and give relative paths, so the directory
/// above the log directory and the current one are the same. Of a path by hand the directory
/// above tells more; where the log directory is a link it tells nothing, and the current
/// directory is taken.
pub fn data_directory(engine: &dyn Engine, path: &Path) -> PathBuf {
    let above = path.parent().and_then(Path::parent);
    let above = above.map(|a| if a.as_os_str().is_empty() { Path::new(".") } else { a });
    match above {
        Some(above) if above.join(engine.control_file_path()).exists() => above.to_owned(),
        _ => PathBuf::from("."),
    }
}
