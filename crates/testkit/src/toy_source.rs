//! A toy server that streams its log: what it has, what it forgets, and when it cuts the line is
//! drawn from a number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_engine::{
    EngineError, LogFacts, LogSource, Lsn, SegmentNo, SlotState, SourceError, SourceEvent,
    SourceIdentity, SystemId, TimelineId,
};
use lifeboat_units::{ByteCount, Cancel, Code, Explain, Retry, Timestamp};

use crate::SimClock;
use crate::toy::{self, SEGMENT_BYTES};

/// The toy server's words for why it does not stream.
#[derive(Debug, thiserror::Error)]
#[error("toy server: {0}")]
struct Refused(&'static str);

impl Explain for Refused {
    fn code(&self) -> Code {
        Code("LB-TOY-002")
    }
    fn retry(&self) -> Retry {
        Retry::Later
    }
    fn help(&self) -> Option<String> {
        None
    }
}

fn refused(why: &'static str) -> EngineError {
    EngineError::new(Refused(why))
}

/// A log on some timelines. Clones are one server.
#[derive(Debug, Clone)]
pub struct ToyStreamer(Arc<Mutex<State>>);

/// Sees every report: timeline, what is said to be durable.
type Watch = Box<dyn FnMut(TimelineId, Lsn) + Send>;

struct State {
    system: SystemId,
    /// What each timeline holds, from [`ToyStreamer::BASE`] on.
    timelines: BTreeMap<u32, Vec<u8>>,
    /// Where a timeline left the one before.
    forks: BTreeMap<u32, Lsn>,
    slot: Option<Option<Lsn>>,
    /// A slot that would have to keep more is given up.
    keeps_max: Option<u64>,
    /// A slot that was given up cannot be used, as since PostgreSQL 18.
    strict: bool,
    /// Where the last checkpoint began.
    checkpoint: Lsn,
    /// Everything before it was removed.
    kept_from: Lsn,
    /// For so many connections more: so many bytes are written before each, and a checkpoint.
    busy: (u32, usize),
    /// Calls until the line is cut; `None` for never.
    cut_after: Option<u32>,
    random: u64,
    stream: Option<(TimelineId, Lsn)>,
    watch: Option<Watch>,
    /// How often in a row there was nothing to send.
    quiet: u32,
    /// Set once there was nothing to send for long.
    stop: Option<(SimClock, Cancel)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl ToyStreamer {
    /// The first segment of every log.
    pub const BASE: SegmentNo = SegmentNo(1);

    /// A server with an empty log on timeline 1, and a slot that keeps all of it.
    pub fn new(system: SystemId, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            system,
            timelines: BTreeMap::from([(1, Vec::new())]),
            forks: BTreeMap::new(),
            slot: Some(Some(base())),
            keeps_max: None,
            strict: false,
            checkpoint: base(),
            kept_from: base(),
            busy: (0, 0),
            cut_after: None,
            random: seed | 1,
            stream: None,
            watch: None,
            quiet: 0,
            stop: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes so many bytes more to the newest timeline.
    pub fn write(&self, bytes: usize) {
        self.state().write(bytes);
    }

    /// The newest timeline ends where the one after it begins: `back` bytes before its end.
    pub fn promote(&self, back: usize) {
        let mut state = self.state();
        let (old, length) = state.newest();
        let at = Lsn(base().0 + (length.saturating_sub(back)) as u64);
        state.forks.insert(old + 1, at);
        // What lies before the switch is copied, segment by segment; each says its own timeline.
        let (system, keep) = (state.system, (at.0 - base().0) as usize);
        let first = keep / SEGMENT_BYTES * SEGMENT_BYTES;
        let mut copy = state.timelines[&old][..keep].to_vec();
        header(&mut copy, system, old + 1, first);
        state.timelines.insert(old + 1, copy);
    }

    /// A server with the same log and slot, and a stream of its own.
    pub fn twin(&self, seed: u64) -> Self {
        let state = self.state();
        Self(Arc::new(Mutex::new(State {
            system: state.system,
            timelines: state.timelines.clone(),
            forks: state.forks.clone(),
            slot: state.slot,
            keeps_max: state.keeps_max,
            strict: state.strict,
            checkpoint: state.checkpoint,
            kept_from: state.kept_from,
            busy: (0, 0),
            cut_after: None,
            random: seed | 1,
            stream: None,
            watch: None,
            quiet: 0,
            stop: None,
        })))
    }

    /// The line is cut after so many calls.
    pub fn cut_after(&self, calls: u32) {
        self.state().cut_after = Some(calls);
    }

    /// Forgets what lies before the segment of the end; the slot is gone if `slot`.
    pub fn forget(&self, slot: bool) {
        let mut state = self.state();
        let (_, length) = state.newest();
        let whole = length / SEGMENT_BYTES * SEGMENT_BYTES;
        state.kept_from = Lsn(base().0 + whole as u64);
        state.checkpoint = Lsn(base().0 + length as u64);
        if slot {
            state.slot = None;
        }
        state.stream = None;
    }

    /// A slot that holds back more than so many bytes is given up by the next checkpoint; if
    /// `strict`, it cannot be used from then on.
    pub fn keep_at_most(&self, bytes: u64, strict: bool) {
        let mut state = self.state();
        (state.keeps_max, state.strict) = (Some(bytes), strict);
    }

    /// Before each of the next connections so much is written, and a checkpoint made.
    pub fn busy(&self, connections: u32, bytes: usize) {
        self.state().busy = (connections, bytes);
    }

    /// Removes what lies before the checkpoint, except what the slot keeps; gives the slot up when
    /// that is too much.
    pub fn checkpoint(&self) {
        self.state().checkpoint();
    }

    /// What a timeline holds up to a position, segment by segment, as far as it is its own.
    pub fn content(&self, timeline: TimelineId, number: SegmentNo, to: Lsn) -> Vec<u8> {
        let state = self.state();
        let log = &state.timelines[&timeline.0];
        let from = ((number.0 - Self::BASE.0) as usize) * SEGMENT_BYTES;
        let to = ((to.0 - base().0) as usize).min(from + SEGMENT_BYTES).min(log.len());
        log.get(from..to).unwrap_or_default().to_vec()
    }

    /// Where the newest timeline ends, and which it is.
    pub fn end(&self) -> (TimelineId, Lsn) {
        let (timeline, length) = self.state().newest();
        (TimelineId(timeline), Lsn(base().0 + length as u64))
    }

    /// Calls `watch` for every report that says something is durable.
    pub fn watch(&self, watch: impl FnMut(TimelineId, Lsn) + Send + 'static) {
        self.state().watch = Some(Box::new(watch));
    }

    /// Asks the receiver to stop once it has had all there is. Time passes while it waits.
    pub fn stop_when_quiet(&self, clock: SimClock, cancel: Cancel) {
        let mut state = self.state();
        state.quiet = 0;
        state.stop = Some((clock, cancel));
    }

    /// The timeline on which a segment is received by who ends on `timeline`.
    pub fn timeline_of(&self, number: SegmentNo, timeline: TimelineId) -> TimelineId {
        let state = self.state();
        let left = |(fork, at): (&u32, &Lsn)| {
            (number < at.segment(toy::segment_size())).then_some(TimelineId(fork - 1))
        };
        state.forks.range(..=timeline.0).find_map(left).unwrap_or(timeline)
    }
}

fn base() -> Lsn {
    ToyStreamer::BASE.start(toy::segment_size())
}

/// Gives the segment at `first` the header that says its timeline.
fn header(log: &mut [u8], system: SystemId, timeline: u32, first: usize) {
    let number = ToyStreamer::BASE.0 + (first / SEGMENT_BYTES) as u64;
    let name = toy::segment_name(timeline, number);
    let whole = toy::segment(system, name, &LogFacts::default());
    let until = log.len().min(first + HEADER_BYTES);
    if let Some(begin) = log.get_mut(first..until) {
        let length = begin.len();
        begin.copy_from_slice(&whole[..length]);
    }
}

/// The receiver is asked to stop after so many empty answers.
const QUIET_MAX: u32 = 40;

/// Bytes of a segment that are its header; what follows is random.
const HEADER_BYTES: usize = 4096;

impl State {
    fn newest(&self) -> (u32, usize) {
        let (timeline, log) = self.timelines.last_key_value().expect("there is timeline 1");
        (*timeline, log.len())
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn write(&mut self, bytes: usize) {
        let (timeline, length) = self.newest();
        let mut more = vec![0; bytes];
        more.chunks_mut(8).for_each(|chunk| {
            let random = self.random().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        });
        let system = self.system;
        let log = self.timelines.get_mut(&timeline).expect("the newest");
        log.extend_from_slice(&more);
        let first = length / SEGMENT_BYTES * SEGMENT_BYTES;
        let mut at = first;
        while at < log.len() {
            // Of a segment that was there only what was added of the header changes: the same.
            header(log, system, timeline, at);
            at += SEGMENT_BYTES;
        }
    }

    fn checkpoint(&mut self) {
        let size = toy::segment_size();
        let end = Lsn(base().0 + self.newest().1 as u64);
        let back = |at: Lsn| (end.segment(size).0 - at.segment(size).0) * size.bytes();
        let kept =
            self.slot.flatten().filter(|at| self.keeps_max.is_none_or(|max| back(*at) <= max));
        if self.slot.is_some() {
            self.slot = Some(kept);
        }
        let from = kept.map_or(end, |kept| kept.min(end)).segment(size).start(size);
        self.kept_from = self.kept_from.max(from);
        self.checkpoint = end;
    }

    fn cut(&mut self) -> Result<(), SourceError> {
        if let Some(left) = &mut self.cut_after {
            if *left == 0 {
                self.cut_after = None;
                self.stream = None;
                return Err(SourceError::Failed(refused("the line was cut")));
            }
            *left -= 1;
        }
        Ok(())
    }
}

impl LogSource for ToyStreamer {
    fn connect(&mut self) -> Result<SourceIdentity, SourceError> {
        let mut state = self.state();
        state.cut()?;
        state.stream = None;
        if state.busy.0 > 0 {
            state.busy.0 -= 1;
            let bytes = state.busy.1;
            state.write(bytes);
            state.checkpoint();
        }
        let (timeline, length) = state.newest();
        Ok(SourceIdentity {
            server: "toy".to_owned(),
            system: state.system,
            timeline: TimelineId(timeline),
            end: Lsn(base().0 + length as u64),
            segment: toy::segment_size(),
        })
    }

    fn history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, SourceError> {
        let mut state = self.state();
        state.cut()?;
        let ancestors: Vec<(u32, Lsn)> =
            state.forks.range(..=timeline.0).map(|(fork, at)| (fork - 1, *at)).collect();
        Ok(toy::history(&ancestors))
    }

    fn slot(&mut self, _name: &str) -> Result<SlotState, SourceError> {
        let mut state = self.state();
        state.cut()?;
        Ok(match state.slot {
            Some(keeps_from) => {
                let keeps_bytes_max = state.keeps_max.map(ByteCount);
                SlotState::Present { keeps_from, keeps_bytes_max }
            }
            None => SlotState::Missing,
        })
    }

    fn create_slot(&mut self, _name: &str) -> Result<(), SourceError> {
        let mut state = self.state();
        state.cut()?;
        // As PostgreSQL does: from the last checkpoint on.
        state.slot = Some(Some(state.checkpoint.max(state.kept_from)));
        Ok(())
    }

    fn drop_slot(&mut self, _name: &str) -> Result<(), SourceError> {
        let mut state = self.state();
        state.cut()?;
        state.slot = None;
        Ok(())
    }

    fn start(&mut self, _: &str, timeline: TimelineId, from: Lsn) -> Result<(), SourceError> {
        let mut state = self.state();
        state.cut()?;
        if state.slot.is_none() {
            return Err(SourceError::SlotMissing(refused("no slot")));
        }
        if state.strict && state.slot == Some(None) {
            return Err(SourceError::SlotLost(refused("the slot was given up")));
        }
        if from < state.kept_from {
            return Err(SourceError::Removed(refused("it was removed")));
        }
        state.stream = Some((timeline, from));
        Ok(())
    }

    fn next(&mut self, _wait: Duration) -> Result<SourceEvent, SourceError> {
        let mut state = self.state();
        state.cut()?;
        let Some((timeline, at)) = state.stream else {
            return Err(SourceError::Failed(refused("there is no stream")));
        };
        let most = 1 + (state.random() % 300_000) as usize;
        let (newest, newest_length) = state.newest();
        let log = &state.timelines[&timeline.0];
        let from = (at.0 - base().0) as usize;
        let left_at = state.forks.get(&(timeline.0 + 1)).copied();
        let end = left_at.map_or(log.len(), |left| (left.0 - base().0) as usize);
        if from >= end {
            if let Some(left_at) = left_at {
                state.stream = None;
                return Ok(SourceEvent::TimelineEnded {
                    next: TimelineId(timeline.0 + 1),
                    at: left_at,
                });
            }
            state.quiet += 1;
            if let Some((clock, cancel)) = &state.stop {
                clock.advance(Duration::from_millis(50));
                if state.quiet > QUIET_MAX {
                    cancel.cancel();
                }
            }
            drop(state);
            std::thread::yield_now();
            return Ok(SourceEvent::Quiet);
        }
        let bytes = log[from..end.min(from + most)].to_vec();
        state.quiet = 0;
        state.stream = Some((timeline, Lsn(at.0 + bytes.len() as u64)));
        let server_end = match newest == timeline.0 {
            true => Lsn(base().0 + newest_length as u64),
            false => Lsn(base().0 + end as u64),
        };
        Ok(SourceEvent::Log { at, bytes, server_end, server_time: Timestamp::UNIX_EPOCH })
    }

    fn report(&mut self, received: Lsn, durable: Option<Lsn>) -> Result<(), SourceError> {
        let mut state = self.state();
        state.cut()?;
        let Some((timeline, _)) = state.stream else { return Ok(()) };
        let Some(durable) = durable else { return Ok(()) };
        assert!(durable <= received, "{durable} is durable, {received} was received");
        if let Some(slot) = &mut state.slot {
            *slot = Some(durable);
        }
        let watch = state.watch.take();
        drop(state);
        if let Some(mut watch) = watch {
            watch(timeline, durable);
            self.state().watch = Some(watch);
        }
        Ok(())
    }
}
