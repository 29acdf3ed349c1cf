//! The point of `check` that is about archiving in the background.

use std::path::Path;

use lifeboat_engine::Engine;
use lifeboat_jobs::wal::push::spool::Spool;
use lifeboat_units::ByteCount;

use super::check::Point;
use crate::app::{App, Opened};
use crate::error::CliError;
use crate::ui::counted;

const NAME: &str = "archiving";
/// So many files that wait are worth a word: the server finishes them faster than they go.
const WAITING_MAX: usize = 64;

/// What waits in the data directory, whether a pusher lives, and whether WAL was given up.
pub(crate) fn point(app: &App, opened: &Opened, directory: &Path) -> Result<Point, CliError> {
    let settings = app.settings()?;
    let waiting = app.engine()?.waiting_logs(directory)?.len();
    let spool = Spool::of(directory);
    if spool.answer_wanted(&opened.cluster, &opened.engine)? {
        return Ok(Point::failed(
            NAME,
            "WAL was given up because pg_wal was over wal.backlog-max",
            "lifeboat backup; `lifeboat wal list` names what is missing",
        ));
    }
    let lives = spool.is_locked();
    let how = match (settings.push_in_background, lives) {
        (false, _) => "in the foreground",
        (true, true) => "in the background, a pusher is at work",
        (true, false) => "in the background, no pusher is needed now",
    };
    let limit = match settings.backlog_max {
        Some(bytes) => format!(", given up beyond {}", ByteCount(bytes)),
        None => String::new(),
    };
    let found = format!("{how}; {} waiting{limit}", counted(waiting as u64, "file"));
    if waiting > WAITING_MAX {
        return Ok(Point::note(
            NAME,
            found,
            "the log in `lifeboat.spool` of the data directory tells why; more wal.push-jobs may help",
        ));
    }
    Ok(Point::good(NAME, found))
}
