//! Finishing WAL segments, and what the server says of archiving them.

use lifeboat_engine::{LogFile, SegmentName, SegmentSize, SegmentSwitch};

use crate::live::error::LiveError;
use crate::live::server::{Archiver, lsn, position};
use crate::live::session::Session;
use crate::live::slots::Slot;

/// Finishes the current segment. When it holds nothing the server would not switch, so
/// something is written first: a transaction that does nothing but have a number.
pub(in crate::live) fn finish(
    session: &mut Session,
    size: SegmentSize,
) -> Result<SegmentSwitch, LiveError> {
    const DOING: &str = "finishing the current WAL segment";
    let (mut timeline, mut at) = position(session, false)?;
    for _ in 0..5 {
        session.ask("writing a little WAL", "SELECT txid_current()", &[])?;
        let row = session.ask(DOING, "SELECT pg_switch_wal()::text", &[])?;
        at = lsn(&row.get::<_, String>(0))?;
        (timeline, _) = position(session, false)?;
        // At a boundary nothing was switched: another switch came between.
        if at != at.segment(size).start(size) {
            let segment = SegmentName::new(timeline, at.segment(size), size);
            return Ok(SegmentSwitch { segment });
        }
    }
    Err(LiveError::NoSwitch { segment: SegmentName::new(timeline, at.segment(size), size) })
}

/// Why the server does not archive, how its archiver failed last, or that it counts the segment that
/// is `awaited` as archived.
pub(in crate::live) fn archiver_failure(
    session: &mut Session,
    awaited: SegmentName,
) -> Result<Option<String>, LiveError> {
    let sql = "SELECT current_setting('archive_mode'), current_setting('archive_command')";
    let row = session.ask("reading how the server archives", sql, &[])?;
    if row.get::<_, &str>(0) == "off" {
        return receiver_trouble(session).map(Some);
    }
    if row.get::<_, &str>(1).is_empty() && !archives_by_library(session)? {
        return Ok(Some("the server does not archive: archive_command is empty".into()));
    }
    let archiver = Archiver::of(session)?;
    if let Some((segment, at)) = archiver.last_failed.as_ref().filter(|_| archiver.is_failing()) {
        let failed = archiver.failed;
        return Ok(Some(format!("archiving {segment} failed at {at} ({failed} failures so far)")));
    }
    Ok(Some(match archiver.last {
        Some((file, at)) if is_from(&file, awaited) => format!(
            "the server counts it as archived (last was {file}, at {at}), so its archive_command \
             succeeds without storing into this repository"
        ),
        // A command that cannot be started, or is killed, ends the archiver and is not counted.
        _ => "the server has not archived it and counts no failure; if that stays so, its \
              archive_command may be one that cannot be started, which its log would tell"
            .to_owned(),
    }))
}

/// Whether an archived file is this segment or a later one.
fn is_from(file: &str, segment: SegmentName) -> bool {
    matches!(file.parse(), Ok(LogFile::Segment(name)) if name >= segment)
}

/// What is to be said of a server that does not archive: somebody may receive its WAL.
fn receiver_trouble(session: &mut Session) -> Result<String, LiveError> {
    const OFF: &str = "the server does not archive: archive_mode is off";
    Ok(match Slot::in_use(session)? {
        Some(Slot { name, behind: Some(behind), .. }) => {
            format!("{OFF}; who receives through slot `{name}` is {behind} behind")
        }
        Some(Slot { name, .. }) => {
            format!("{OFF}; who receives through slot `{name}` has stored nothing")
        }
        None => format!("{OFF}, and nobody receives its WAL through a replication slot"),
    })
}

/// `archive_library` exists since 15.
fn archives_by_library(session: &mut Session) -> Result<bool, LiveError> {
    let sql = "SELECT coalesce(current_setting('archive_library', true), '') <> ''";
    Ok(session.ask("reading how the server archives", sql, &[])?.get(0))
}
