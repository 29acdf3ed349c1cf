//! What recovery is given of a segment that is not finished.

use lifeboat_engine::{Ancestry, LogFile, LogPart, Lsn, SegmentName, SystemId};
use lifeboat_repo::RepoError;

use super::error::GetError;
use super::place::place;
use super::state::RecoveryState;
use super::tail;
use crate::facts::ArchivedFacts;
use crate::inventory::chain;
use crate::ports::Ports;

/// Hides what a recovery must not see of a finished segment: it was unfinished when the restore
/// was planned, and what was planned ends there.
pub(super) fn cut(state: Option<&RecoveryState>, file: LogFile, mut content: Vec<u8>) -> Vec<u8> {
    let Some((end, length)) = state.and_then(|s| Some((s.cuts(file)?, content.len() as u64)))
    else {
        return content;
    };
    // Segments are as long as their size, which divides every segment's start.
    if length > 0 {
        content[(end.0 % length) as usize..].fill(0);
    }
    content
}

/// An unfinished segment, filled up with zeros, for a recovery that is to reach the end of what
/// was received; `None` when there is nothing of it, or this recovery gets no unfinished segment.
///
/// - Served to a restored server that is to come up by itself. A directory that was not restored by
///   lifeboat waits for the finished segment, as a standby does.
/// - On the timeline where recovery is to end; on one that was left, only what lies before the
///   position at which it was.
/// - Errors: the plan counts on more of it than is there.
pub(super) fn tail(
    ports: &Ports<'_>,
    system: SystemId,
    file: LogFile,
    state: Option<&RecoveryState>,
) -> Result<Option<Vec<u8>>, GetError> {
    let (LogFile::Segment(name), Some(state)) = (file, state) else { return Ok(None) };
    let failed = |source| GetError::Repo { file: file.to_string(), source };
    let damaged = |what: String| GetError::Damaged {
        file: file.to_string(),
        source: RepoError::damaged(file.to_string(), what),
    };
    let read = tail::read(ports.cluster, &place(system, file));
    let read = match read {
        Ok(read) => read,
        Err(source @ RepoError::Damaged { .. }) => {
            return Err(GetError::Damaged { file: file.to_string(), source });
        }
        Err(source) => return Err(failed(source)),
    };
    let Some((facts, content)) = read else { return Ok(None) };
    let facts: ArchivedFacts =
        serde_json::from_value(facts).map_err(|e| damaged(format!("its facts: {e}")))?;
    let size = facts.segment.ok_or_else(|| damaged("it is no segment".to_owned()))?;
    let Some(number) = name.number(size) else { return Ok(None) };
    let there = Lsn(number.start(size).0 + content.len() as u64);
    let planned = state.tail_to.filter(|_| state.needed.last().is_some_and(|r| r.last == name));
    if planned.is_some_and(|planned| there < planned) {
        return Err(GetError::NeededMissing { file: file.to_string() });
    }
    let left_at = left_at(ports, system, name, state).map_err(failed)?;
    let end = [state.cuts(file), left_at].into_iter().flatten().min();
    let padded = tail::pad(content, number, size, end);
    match ports.engine.segment_origin(name, LogPart::whole(&padded)) {
        Ok((found, _)) if found == system => Ok(Some(padded)),
        Ok((found, _)) => Err(damaged(format!("it is of system {found}, not {system}"))),
        // Not even its first page: nothing can be replayed.
        Err(_) if planned.is_none() => Ok(None),
        Err(error) => Err(damaged(chain(&error))),
    }
}

/// Where the segment's timeline was left, on the way to the timeline where recovery is to end.
fn left_at(
    ports: &Ports<'_>,
    system: SystemId,
    name: SegmentName,
    state: &RecoveryState,
) -> Result<Option<Lsn>, RepoError> {
    let Some(end) = state.end_timeline().filter(|end| *end != name.timeline) else {
        return Ok(None);
    };
    let history = place(system, LogFile::History(end));
    let (_, bytes) = ports.cluster.read_log(&history)?;
    let past: Ancestry = ports
        .engine
        .parse_history(end, &bytes)
        .map_err(|error| RepoError::damaged(history.name, chain(&error)))?;
    // A timeline that is not on the way has nothing that recovery may see.
    let left = past.ancestors.iter().find(|a| a.timeline == name.timeline).map(|a| a.left_at);
    Ok(Some(left.unwrap_or_default()))
}
