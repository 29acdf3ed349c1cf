//! A segment that is not finished, as far as pieces of it are in the repository.

use lifeboat_engine::{Lsn, SegmentNo, SegmentSize};
use lifeboat_repo::{Cluster, LogHead, LogPlace, RepoError, TailPlace, assemble};
use serde::Serialize;

/// How often pieces are listed again that vanished while they were read: a receiver joins them,
/// or finishes the segment.
const TRIES: u32 = 20;

/// An unfinished segment: what its pieces hold from its first byte on without a hole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// Bytes that are there from the segment's start on.
    pub bytes: u32,
    /// How many pieces there are, also of what lies beyond a hole.
    pub pieces: u64,
    /// Their size on storage, in bytes.
    pub stored_bytes: u64,
    /// The piece that reaches furthest: its facts tell of all that is there.
    #[serde(skip)]
    pub last: TailPlace,
}

impl Tail {
    /// What these pieces of one segment hold; `None` when its first bytes are missing.
    pub(crate) fn of(pieces: &[(TailPlace, u64)]) -> Option<Self> {
        let mut order: Vec<&TailPlace> = pieces.iter().map(|(place, _)| place).collect();
        order.sort_unstable();
        let mut last: Option<&TailPlace> = None;
        for piece in order {
            let end = last.map_or(0, |l| l.to);
            if piece.from > end {
                break;
            }
            if piece.to > end {
                last = Some(piece);
            }
        }
        let last = last?.clone();
        Some(Self {
            bytes: last.to,
            pieces: pieces.len() as u64,
            stored_bytes: pieces.iter().map(|(_, stored)| stored).sum(),
            last,
        })
    }

    /// The position after its last byte.
    pub fn end(&self, number: SegmentNo, size: SegmentSize) -> Lsn {
        Lsn(number.start(size).0 + u64::from(self.bytes).min(size.bytes()))
    }

    /// Whether nothing of the segment is missing.
    pub fn is_whole(&self, size: SegmentSize) -> bool {
        u64::from(self.bytes) >= size.bytes()
    }
}

/// The pieces of one segment, with their stored sizes in bytes.
pub(crate) fn pieces(
    cluster: &Cluster,
    segment: &LogPlace,
) -> Result<Vec<(TailPlace, u64)>, RepoError> {
    let logs = cluster.logs_of(&segment.system, segment.timeline)?;
    let pieces = logs.iter().filter_map(|log| {
        let place = TailPlace::parse(&log.place).filter(|tail| tail.of == *segment)?;
        Some((place, log.stored_bytes))
    });
    Ok(pieces.collect())
}

/// What is noted beside a segment, finished or not: the finished one counts, else the piece that
/// reaches furthest.
///
/// Errors: [`RepoError::is_not_found`] when neither is there.
pub(crate) fn head(cluster: &Cluster, segment: &LogPlace) -> Result<LogHead, RepoError> {
    let mut tries = 0;
    loop {
        let missing = match cluster.log_head(segment) {
            Err(error) if error.is_not_found() => error,
            other => return other,
        };
        let Some(tail) = Tail::of(&pieces(cluster, segment)?) else { return Err(missing) };
        match cluster.tail_head(&tail.last) {
            Err(error) if error.is_not_found() && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// What an unfinished segment holds from its first byte on, and the facts of it; `None` when
/// there are no pieces.
///
/// Beside a receiver at work pieces vanish while they are read, because it joins them. What was
/// read counts all the same: the next listing is read only as far as it is new.
///
/// Errors: pieces that contradict each other are damage; pieces that vanish again and again are
/// [`RepoError::is_not_found`].
pub fn read(
    cluster: &Cluster,
    segment: &LogPlace,
) -> Result<Option<(serde_json::Value, Vec<u8>)>, RepoError> {
    let mut read = Pieces::default();
    let mut tries = 0;
    loop {
        let listed = pieces(cluster, segment)?;
        let Some(tail) = Tail::of(&listed) else { return Ok(None) };
        // What lies beyond a hole counts for nothing.
        let wanted = listed.iter().map(|(place, _)| place).filter(|place| place.to <= tail.bytes);
        let vanished = read.add(cluster, wanted)?;
        let whole = assemble(&read.contents)
            .map_err(|error| RepoError::damaged(segment.name.as_str(), error.to_string()))?;
        match (read.facts_at(whole.len()), vanished) {
            (Some(facts), _) if whole.len() >= tail.bytes as usize => {
                return Ok(Some((facts, whole)));
            }
            (_, Some(error)) if tries == TRIES => return Err(error),
            (_, Some(_)) => tries += 1,
            (_, None) => {
                return Err(RepoError::damaged(segment.name.as_str(), "its pieces do not fit"));
            }
        }
    }
}

/// Pieces of one segment that were read.
#[derive(Default)]
struct Pieces {
    contents: Vec<(TailPlace, Vec<u8>)>,
    facts: Vec<serde_json::Value>,
}

impl Pieces {
    /// Reads what is new. Gives the error of a piece that is no longer there.
    fn add<'a>(
        &mut self,
        cluster: &Cluster,
        wanted: impl Iterator<Item = &'a TailPlace>,
    ) -> Result<Option<RepoError>, RepoError> {
        let mut vanished = None;
        for place in wanted {
            if self.contents.iter().any(|(known, _)| known == place) {
                continue;
            }
            match cluster.read_tail(place) {
                Ok((head, content)) => {
                    self.contents.push((place.clone(), content));
                    self.facts.push(head.facts);
                }
                Err(error) if error.is_not_found() => vanished = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(vanished)
    }

    /// The facts of a piece that ends there.
    fn facts_at(&self, end: usize) -> Option<serde_json::Value> {
        let ends = |(place, _): &(TailPlace, Vec<u8>)| place.to as usize == end;
        self.contents.iter().position(ends).map(|at| self.facts[at].clone())
    }
}

/// Fills an unfinished segment up with zeros, and hides what lies from `end` on: a server in
/// recovery takes zeros for the end of the WAL.
pub(crate) fn pad(
    mut content: Vec<u8>,
    number: SegmentNo,
    size: SegmentSize,
    end: Option<Lsn>,
) -> Vec<u8> {
    if let Some(end) = end {
        let keep = end.0.saturating_sub(number.start(size).0).min(content.len() as u64);
        content.truncate(keep as usize);
    }
    content.resize(size.bytes() as usize, 0);
    content
}
