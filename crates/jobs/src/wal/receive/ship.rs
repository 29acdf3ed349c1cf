//! Makes what was received durable: pieces of the segment under way, and finished segments.

use lifeboat_engine::{
    Engine, LogFacts, LogFile, LogFollower, LogPart, Lsn, SegmentName, SegmentNo, SegmentSize,
    SystemId, TimelineId,
};
use lifeboat_repo::{Cluster, Compression, LogPlace, PushOutcome, RepoError, TailPlace};
use lifeboat_units::{ByteCount, Clock, Timestamp};

use super::error::ReceiveError;
use crate::facts::ArchivedFacts;
use crate::wal::place::place;
use crate::wal::push::RESTORE_POINTS_MAX;

/// So many new pieces of a segment are joined into one.
pub const PIECES_JOINED: usize = 128;

/// Bytes of the log as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The bytes; they follow what was given before.
    pub bytes: Vec<u8>,
    /// When the server's log went no further than these bytes, by its own clock; `None` when it
    /// went on beyond them.
    pub complete_at: Option<Timestamp>,
}

/// What was made durable, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shipped {
    /// A finished segment; `None` when it was there already.
    Segment(SegmentName, Option<ByteCount>),
    /// A piece of the segment under way.
    Piece(SegmentName, ByteCount),
}

/// Housekeeping that no commit need wait for: done by [`Chore::run`], in the order it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chore {
    /// Store this first: pieces joined into one.
    join: Option<Joined>,
    /// Then remove these.
    remove: Vec<TailPlace>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Joined {
    place: TailPlace,
    content: Vec<u8>,
    facts: serde_json::Value,
}

impl Chore {
    /// Does it. A failure harms nothing: what is left over is removed when its segment expires.
    pub fn run(
        &self,
        cluster: &Cluster,
        compression: Compression,
        now: Timestamp,
    ) -> Result<(), RepoError> {
        if let Some(Joined { place, content, facts }) = &self.join
            && let PushOutcome::Different { .. } =
                cluster.push_tail(place, content, compression, now, facts.clone())?
        {
            let name = place.object().name;
            return Err(RepoError::damaged(name, "it is there with other content"));
        }
        self.remove.iter().try_for_each(|piece| cluster.remove_tail(piece))
    }
}

/// What the shipper needs of its surroundings; a part of [`crate::Ports`] that threads can share.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    /// The cluster's part of the repository.
    pub cluster: &'a Cluster,
    /// What knows the log.
    pub engine: &'a dyn Engine,
    /// The time.
    pub clock: &'a dyn Clock,
    /// How to compress.
    pub compression: Compression,
}

/// Takes the log of one timeline in order from the start of a segment, and stores it.
///
/// Holds the segment under way in memory. What [`Shipper::durable`] says is in the repository: in
/// a finished segment, or in pieces without a hole from their segment's first byte on. A failure
/// of the store loses nothing: [`Shipper::ship`] goes on where it was.
pub struct Shipper<'a> {
    tools: Tools<'a>,
    system: SystemId,
    timeline: TimelineId,
    size: SegmentSize,
    number: SegmentNo,
    /// The segment under way, padded with zeros; `filled` bytes of it were received.
    content: Vec<u8>,
    filled: usize,
    /// Received and not yet part of `content`.
    waiting: Vec<u8>,
    complete_at: Option<Timestamp>,
    /// The same, once all that waits is part of `content`: until then it vouches for too much.
    complete_after: Option<Timestamp>,
    facts: LogFacts,
    follower: Box<dyn LogFollower + 'a>,
    /// Pieces of this segment that are stored and agree with what was received.
    pieces: Vec<TailPlace>,
    /// Pieces that an earlier run stored, with their digests: to be compared.
    earlier: Vec<(TailPlace, String)>,
    /// So many bytes of this segment are durable.
    durable: u32,
    chores: Vec<Chore>,
}

impl<'a> Shipper<'a> {
    /// A shipper that begins at the start of a segment. Looks for pieces that an earlier run, or
    /// another receiver, stored of it.
    pub fn begin(
        tools: Tools<'a>,
        system: SystemId,
        timeline: TimelineId,
        size: SegmentSize,
        number: SegmentNo,
    ) -> Result<Self, RepoError> {
        let mut shipper = Self {
            tools,
            system,
            timeline,
            size,
            number,
            content: vec![0; size.bytes() as usize],
            filled: 0,
            waiting: Vec::new(),
            complete_at: None,
            complete_after: None,
            facts: LogFacts::default(),
            follower: tools.engine.follow_log(SegmentName::new(timeline, number, size)),
            pieces: Vec::new(),
            earlier: Vec::new(),
            durable: 0,
            chores: Vec::new(),
        };
        let segment = shipper.place();
        for (piece, _) in super::super::tail::pieces(tools.cluster, &segment)? {
            match tools.cluster.tail_head(&piece) {
                Ok(head) => shipper.earlier.push((piece, head.digest)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        shipper.earlier.sort_unstable();
        Ok(shipper)
    }

    fn name(&self) -> SegmentName {
        SegmentName::new(self.timeline, self.number, self.size)
    }

    fn place(&self) -> LogPlace {
        place(self.system, LogFile::Segment(self.name()))
    }

    /// The position up to which everything is durable; `None` while nothing that was received is
    /// known to be.
    pub fn durable(&self) -> Option<Lsn> {
        let start = self.number.start(self.size);
        (self.durable > 0 || self.filled == 0).then(|| Lsn(start.0 + u64::from(self.durable)))
    }

    /// How far pieces of an earlier run reach, as long as they were not compared: what is stored
    /// beyond what the server sends.
    pub fn earlier_end(&self) -> Option<Lsn> {
        let end = self.earlier.iter().map(|(piece, _)| u64::from(piece.to)).max()?;
        Some(Lsn(self.number.start(self.size).0 + end))
    }

    /// Housekeeping that came up.
    pub fn take_chores(&mut self) -> Vec<Chore> {
        std::mem::take(&mut self.chores)
    }

    /// Takes bytes that follow what was taken before. Stores nothing.
    pub fn take(&mut self, batch: Batch) {
        if self.waiting.is_empty() {
            self.waiting = batch.bytes;
        } else {
            self.waiting.extend_from_slice(&batch.bytes);
        }
        self.complete_after = batch.complete_at;
    }

    /// Makes everything durable that was taken.
    ///
    /// Errors: after one that is to be tried again, call it again. What it told of before is durable
    /// all the same.
    pub fn ship(&mut self, tell: &mut dyn FnMut(Shipped)) -> Result<(), ReceiveError> {
        loop {
            let room = self.content.len() - self.filled;
            let more = room.min(self.waiting.len());
            if self.waiting.len() == more {
                self.complete_at = self.complete_after.take().or(self.complete_at);
            }
            if more > 0 {
                self.content[self.filled..self.filled + more]
                    .copy_from_slice(&self.waiting[..more]);
                self.waiting.drain(..more);
                self.filled += more;
                self.check_beginning()?;
            }
            self.compare_earlier()?;
            if self.filled < self.content.len() {
                return self.ship_piece(tell);
            }
            self.finish(tell)?;
        }
    }

    /// Refuses a segment that is of another system, as soon as its first page says so.
    fn check_beginning(&self) -> Result<(), ReceiveError> {
        const FIRST_PAGE: usize = 8192;
        if self.filled < FIRST_PAGE {
            return Ok(());
        }
        let name = self.name();
        let origin = self.tools.engine.segment_origin(name, received(&self.content, self.filled));
        match origin {
            Ok((system, size)) if system == self.system && size == self.size => Ok(()),
            Ok((found, _)) => Err(ReceiveError::Foreign { found, expected: self.system }),
            Err(source) => Err(ReceiveError::NoSegment { segment: name, source }),
        }
    }

    /// Compares what an earlier run stored with what came now, as far as it came.
    fn compare_earlier(&mut self) -> Result<(), ReceiveError> {
        let filled = self.filled as u32;
        let (ready, later) =
            std::mem::take(&mut self.earlier).into_iter().partition(|(p, _)| p.to <= filled);
        self.earlier = later;
        let ready: Vec<(TailPlace, String)> = ready;
        for (piece, digest) in ready {
            let bytes = &self.content[piece.from as usize..piece.to as usize];
            if self.tools.cluster.log_digest(bytes) != digest {
                return Err(ReceiveError::Contradiction { piece: piece.object().name });
            }
            self.pieces.push(piece);
        }
        let known: Vec<(TailPlace, u64)> = self.pieces.iter().map(|p| (p.clone(), 0)).collect();
        if let Some(tail) = super::super::tail::Tail::of(&known) {
            self.durable = self.durable.max(tail.bytes);
        }
        Ok(())
    }

    fn archived_facts(&self) -> serde_json::Value {
        let mut log = self.facts.clone();
        log.restore_points.truncate(RESTORE_POINTS_MAX);
        // Where the server went on beyond this, nothing is known about the time after the last
        // commit here.
        let nothing_known = log.last_commit.unwrap_or(Timestamp::UNIX_EPOCH);
        let facts = ArchivedFacts {
            system: Some(self.system),
            segment: Some(self.size),
            log: Some(log),
            written_at: Some(self.complete_at.unwrap_or(nothing_known)),
            ancestry: None,
        };
        serde_json::to_value(&facts).expect("facts always serialise")
    }

    fn ship_piece(&mut self, tell: &mut dyn FnMut(Shipped)) -> Result<(), ReceiveError> {
        let to = self.filled as u32;
        // Nothing is added to a tail of an earlier run before it was compared.
        if to <= self.durable || self.earlier.iter().any(|(piece, _)| piece.to > to) {
            return Ok(());
        }
        self.facts.clone_from(self.follower.facts(received(&self.content, self.filled)));
        let piece = TailPlace { of: self.place(), from: self.durable, to };
        let bytes = &self.content[piece.from as usize..piece.to as usize];
        let outcome = self.tools.cluster.push_tail(
            &piece,
            bytes,
            self.tools.compression,
            self.tools.clock.now(),
            self.archived_facts(),
        );
        let name = self.name();
        let stored = match outcome {
            Ok(PushOutcome::Stored { stored_bytes }) => stored_bytes,
            Ok(PushOutcome::AlreadyThere) => 0,
            Ok(PushOutcome::Different { .. }) => {
                return Err(ReceiveError::Contradiction { piece: piece.object().name });
            }
            Err(source) => return Err(ReceiveError::Store { segment: name, source }),
        };
        self.durable = to;
        self.pieces.push(piece);
        tell(Shipped::Piece(name, ByteCount(stored)));
        self.join();
        Ok(())
    }

    /// Joins the newest pieces once there are many: back to one that is more than twice as long as
    /// all after it, so that every byte is stored again only a few times.
    fn join(&mut self) {
        let mut order = self.pieces.clone();
        order.sort_unstable();
        if order.len() < PIECES_JOINED {
            return;
        }
        let mut first = order.len();
        let mut length = 0;
        while first > 0 {
            let piece = &order[first - 1];
            let joined = order.len() - first;
            if joined >= PIECES_JOINED / 2 && u64::from(piece.length()) > 2 * length {
                break;
            }
            length += u64::from(piece.length());
            first -= 1;
        }
        let joined = order.split_off(first);
        let Some(from) = joined.iter().map(|p| p.from).min() else { return };
        let place = TailPlace { of: self.place(), from, to: self.durable };
        let content = self.content[from as usize..self.durable as usize].to_vec();
        let facts = self.archived_facts();
        let remove = joined.into_iter().filter(|piece| *piece != place).collect();
        self.chores
            .push(Chore { join: Some(Joined { place: place.clone(), content, facts }), remove });
        order.push(place);
        self.pieces = order;
    }

    /// Stores the finished segment, and begins the next.
    fn finish(&mut self, tell: &mut dyn FnMut(Shipped)) -> Result<(), ReceiveError> {
        let name = self.name();
        if let Some((piece, _)) = self.earlier.first() {
            // Longer than a segment can be.
            return Err(ReceiveError::Contradiction { piece: piece.object().name });
        }
        self.facts.clone_from(self.follower.facts(received(&self.content, self.filled)));
        let outcome = self.tools.cluster.push_log(
            &self.place(),
            &self.content,
            self.tools.compression,
            self.tools.clock.now(),
            self.archived_facts(),
        );
        let stored = match outcome {
            Ok(PushOutcome::Stored { stored_bytes }) => Some(ByteCount(stored_bytes)),
            Ok(PushOutcome::AlreadyThere) => None,
            Ok(PushOutcome::Different { .. }) => {
                return Err(ReceiveError::Diverged { segment: name });
            }
            Err(source) => return Err(ReceiveError::Store { segment: name, source }),
        };
        let remove = std::mem::take(&mut self.pieces);
        if !remove.is_empty() {
            self.chores.push(Chore { join: None, remove });
        }
        tell(Shipped::Segment(name, stored));
        self.number = self.number.next();
        self.content.fill(0);
        self.filled = 0;
        self.durable = 0;
        self.facts = LogFacts::default();
        self.follower = self.tools.engine.follow_log(self.name());
        Ok(())
    }
}

impl std::fmt::Debug for Shipper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipper")
            .field("segment", &self.name())
            .field("filled", &self.filled)
            .field("durable", &self.durable)
            .field("earlier", &self.earlier.len())
            .finish_non_exhaustive()
    }
}

/// What was received of a segment.
fn received(content: &[u8], filled: usize) -> LogPart<'_> {
    LogPart { size: content.len(), from: 0, bytes: &content[..filled] }
}
