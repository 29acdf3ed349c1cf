//! What a running server's WAL summaries say changed since an earlier backup.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::{Changes, ClusterIdentity, Lsn, Since, TimelineId};
use lifeboat_units::pause_after;

use super::error::LiveError;
use super::server::lsn;
use super::session::Session;
use crate::summary::file::{self, SummaryError};
use crate::summary::map::SummaryMap;
use crate::summary::range::{self, SummaryName};
use crate::summary::table::BlockTable;

/// Where summaries lie. Source: `OpenWalSummaryFile` in `src/backend/backup/walsummary.c`.
const SUMMARIES: &str = "pg_wal/summaries";
/// First version with summaries.
const SUMMARIES_MAJOR: u32 = 17;
/// A summarizer that has read nothing for so long is stuck. The server itself waits as long, in
/// `WaitForWalSummarization` in `src/backend/postmaster/walsummarizer.c`; the summarizer of a quiet
/// server sleeps up to half a minute, and the checkpoint of a backup wakes it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Shortest and longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

/// Reads the summaries from the start of an earlier backup up to `to`, waiting for the last of them.
///
/// Errors only when the server cannot be asked any more; whatever else is in the way is a reason
/// to read everything.
pub fn since(
    session: &mut Session,
    directory: &Path,
    identity: &ClusterIdentity,
    since: &Since,
    to: Lsn,
) -> Result<Changes, LiveError> {
    Ok(match known(session, directory, since, to)? {
        Ok(table) => Changes::Known(Box::new(SummaryMap::new(table, identity))),
        Err(because) => Changes::Unknown { because },
    })
}

fn known(
    session: &mut Session,
    directory: &Path,
    since: &Since,
    to: Lsn,
) -> Result<Result<BlockTable, String>, LiveError> {
    if session.major() < SUMMARIES_MAJOR {
        return Ok(Err("WAL summaries are there from PostgreSQL 17 on".into()));
    }
    let on = "SELECT current_setting('summarize_wal') = 'on'";
    if !session.ask("reading summarize_wal", on, &[])?.get::<_, bool>(0) {
        return Ok(Err("summarize_wal is off".into()));
    }
    let place = directory.join(SUMMARIES);
    let names = match wait(session, &place, since, to)? {
        Ok(names) => names,
        Err(because) => return Ok(Err(because)),
    };
    let mut table = BlockTable::default();
    for name in names {
        let path = place.join(name.to_string());
        if let Err(error) = read(&path, &mut table) {
            return Ok(Err(format!("WAL summary `{name}` cannot be used: {}", chain(&error))));
        }
    }
    Ok(Ok(table))
}

fn read(path: &PathBuf, table: &mut BlockTable) -> Result<(), SummaryError> {
    let source = File::open(path).map_err(SummaryError::Read)?;
    file::read(BufReader::with_capacity(64 << 10, source), table)
}

fn chain(error: &SummaryError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Waits until summaries cover the range; why they never will, if they do not.
fn wait(
    session: &mut Session,
    place: &Path,
    since: &Since,
    to: Lsn,
) -> Result<Result<Vec<SummaryName>, String>, LiveError> {
    let began = Instant::now();
    let mut moved = began;
    let mut pending = Lsn(0);
    loop {
        // Asked first: what is summarized by now is listed below.
        let state = match state(session) {
            Err(error @ LiveError::Privilege { .. }) => return Ok(Err(error.to_string())),
            other => other?,
        };
        let names = match list(place) {
            Ok(names) => names,
            Err(error) => {
                return Ok(Err(format!("`{}` cannot be listed: {error}", place.display())));
            }
        };
        let missing = match range::covering(&names, since.timeline, since.start, to) {
            Ok(names) => return Ok(Ok(names)),
            Err(missing) => missing,
        };
        if let Some(because) = state.never(since.timeline, missing, to) {
            return Ok(Err(because));
        }
        if state.pending > pending {
            (pending, moved) = (state.pending, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            return Ok(Err(format!(
                "the WAL summarizer stands still at {} and is needed up to {to}",
                state.pending
            )));
        }
        std::thread::sleep(pause_after(began.elapsed(), PAUSES));
    }
}

/// How far the summarizer is.
struct State {
    timeline: TimelineId,
    summarized: Lsn,
    pending: Lsn,
    running: bool,
}

impl State {
    /// Why the position `missing` will never be summarized; `None` when it may yet be.
    fn never(&self, timeline: TimelineId, missing: Lsn, to: Lsn) -> Option<String> {
        if self.timeline == timeline && (self.summarized > missing || self.summarized >= to) {
            return Some(format!(
                "WAL summaries are missing from {missing} on: they were removed, or not made \
                 (wal_summary_keep_time, wal_level, summarize_wal)"
            ));
        }
        (!self.running).then(|| "the WAL summarizer is not running".to_owned())
    }
}

fn state(session: &mut Session) -> Result<State, LiveError> {
    let row = session.ask(
        "asking how far WAL is summarized",
        "SELECT summarized_tli::int8, summarized_lsn::text, pending_lsn::text, \
         coalesce(summarizer_pid, 0) > 0 FROM pg_catalog.pg_get_wal_summarizer_state()",
        &[],
    )?;
    Ok(State {
        timeline: TimelineId(u32::try_from(row.get::<_, i64>(0)).unwrap_or(0)),
        summarized: lsn(&row.get::<_, String>(1))?,
        pending: lsn(&row.get::<_, String>(2))?,
        running: row.get(3),
    })
}

fn list(place: &Path) -> io::Result<Vec<SummaryName>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(place)? {
        // What is being written has another name, and what is none is not ours.
        names.extend(entry?.file_name().to_str().and_then(|name| name.parse::<SummaryName>().ok()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_passed_over_is_not_waited_for() {
        let state = |summarized, running| State {
            timeline: TimelineId(1),
            summarized: Lsn(summarized),
            pending: Lsn(summarized),
            running,
        };
        let never = |state: State| state.never(TimelineId(1), Lsn(100), Lsn(200));
        assert_eq!(never(state(90, true)), None);
        assert_eq!(never(state(100, true)), None, "the next file begins here");
        assert!(never(state(101, true)).is_some_and(|why| why.contains("missing from 0/64 on")));
        assert!(never(state(90, false)).is_some_and(|why| why.contains("not running")));
        let elsewhere = State { timeline: TimelineId(2), ..state(500, true) };
        assert_eq!(never(elsewhere), None);
    }
}
