//! One stream: receives, hands over to the thread that ships, and acknowledges what is durable.
//!
//! Three threads: this one has the server's connection and never waits for the store, except when
//! too much is under way; one ships, in order; one does the housekeeping that nobody waits for.

use std::sync::mpsc::{self, Receiver as Inbox, RecvTimeoutError, Sender};
use std::time::Duration;

use lifeboat_engine::{LogSource, Lsn, SegmentSize, SourceError, SourceEvent};
use lifeboat_units::{ByteCount, Cancel, Explain, Retry};

use super::gap::Gap;
use super::session::{Opening, StreamEnd, stream_end};
use super::ship::{Batch, Chore, Shipped, Shipper, Tools};
use super::{ReceiveError, ReceiveEvent, ReceiveSettings, Receiver};
use crate::inventory::chain;

/// No more than so many bytes wait for the store, beside those that are being stored.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// The server is told so often where the receiver is, even when nothing changed; it counts the
/// receiver as lost after `wal_sender_timeout` (60 seconds unless set).
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// A connection on which nothing came for so long is given up: the server answers reports.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest wait before somebody's wish to stop is noticed.
const ATTENTION: Duration = Duration::from_millis(200);
/// How long connection and shipping thread are waited for in turn while something is under way.
const GLANCE: Duration = Duration::from_millis(1);
/// How long a synchronous receiver waits for what is under way before it looks at the connection.
const GROUP: Duration = Duration::from_millis(20);
/// What lies ready in the connection is put together up to so many bytes.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// First pause before a store that failed is asked again; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Progress is said so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// What the other threads say.
enum Done {
    /// All that was handed over is durable.
    Shipped(Option<Lsn>, Vec<Shipped>),
    /// The store failed; it is tried again.
    Trouble(Option<Lsn>, Vec<Shipped>, String),
    /// It is not tried again.
    Failed(ReceiveError),
    /// Housekeeping failed, which harms nothing.
    Chore(String),
}

/// Ships what is handed over, until nothing more comes.
fn ship(
    mut shipper: Shipper<'_>,
    tools: Tools<'_>,
    cancel: &Cancel,
    (batches, done, chores): (Inbox<Batch>, Sender<Done>, Sender<Chore>),
) {
    while let Ok(batch) = batches.recv() {
        shipper.take(batch);
        let mut pause = PAUSE_MIN;
        loop {
            let mut told = Vec::new();
            let result = shipper.ship(&mut |shipped| told.push(shipped));
            for chore in shipper.take_chores() {
                let _ = chores.send(chore);
            }
            let durable = shipper.durable();
            let (message, again) = match result {
                Ok(()) => (Done::Shipped(durable, told), false),
                Err(error) if error.retry() == Retry::Never || cancel.is_cancelled() => {
                    (Done::Failed(error), false)
                }
                Err(error) => (Done::Trouble(durable, told, chain(&error)), true),
            };
            let failed = matches!(message, Done::Failed(_));
            if done.send(message).is_err() || failed {
                return;
            }
            if !again {
                break;
            }
            let end = tools.clock.monotonic().saturating_add(pause);
            while !cancel.is_cancelled() && tools.clock.monotonic() < end {
                tools.clock.sleep(ATTENTION.min(pause));
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Does housekeeping until nothing more comes.
fn tidy(tools: Tools<'_>, chores: &Inbox<Chore>, done: &Sender<Done>) {
    while let Ok(chore) = chores.recv() {
        if let Err(error) = chore.run(tools.cluster, tools.compression, tools.clock.now()) {
            let _ = done.send(Done::Chore(chain(&error)));
        }
    }
}

impl Receiver<'_> {
    /// Receives until the stream ends; then everything that came is shipped.
    pub(super) fn stream(
        &mut self,
        source: &mut dyn LogSource,
        tools: Tools<'_>,
        shipper: Shipper<'_>,
        opening: Opening,
        say: &mut dyn FnMut(ReceiveEvent),
    ) -> Result<StreamEnd, ReceiveError> {
        let Opening { from, size, server_end, gap } = opening;
        let cancel = self.ports.cancel;
        std::thread::scope(|scope| {
            let (batches, inbox) = mpsc::channel();
            let (done, answers) = mpsc::channel();
            let (chores, chores_inbox) = mpsc::channel();
            let tidied = done.clone();
            scope.spawn(move || tidy(tools, &chores_inbox, &tidied));
            scope.spawn(move || ship(shipper, tools, cancel, (inbox, done, chores)));
            let now = tools.clock.monotonic();
            let mut stream = Stream {
                settings: self.settings,
                tools,
                cancel,
                source,
                say,
                batches,
                answers,
                pending: Batch::default(),
                size,
                received: from,
                server_end: server_end.max(from),
                gap,
                begun: false,
                durable: Some(from),
                under_way: false,
                shipped_at: now,
                reported_at: now,
                heard_at: now,
                progress_at: now,
                pieces: 0,
                streamed: false,
            };
            let end = stream.run();
            self.streamed |= stream.streamed;
            self.made_slot &= !stream.streamed;
            end
        })
    }
}

struct Stream<'a> {
    settings: &'a ReceiveSettings,
    tools: Tools<'a>,
    cancel: &'a Cancel,
    source: &'a mut dyn LogSource,
    say: &'a mut dyn FnMut(ReceiveEvent),
    batches: Sender<Batch>,
    answers: Inbox<Done>,
    /// Received and not yet handed over.
    pending: Batch,
    size: SegmentSize,
    /// After the last byte that was received.
    received: Lsn,
    server_end: Lsn,
    /// What is lost before the stream's beginning: recorded once WAL comes from there.
    gap: Option<Gap>,
    /// Whether the server has WAL from the beginning on.
    begun: bool,
    durable: Option<Lsn>,
    /// Something was handed over that is not durable yet.
    under_way: bool,
    shipped_at: Duration,
    reported_at: Duration,
    heard_at: Duration,
    progress_at: Duration,
    pieces: u64,
    streamed: bool,
}

impl Stream<'_> {
    fn run(&mut self) -> Result<StreamEnd, ReceiveError> {
        let end = self.serve();
        // What came is worth more in the repository than here, whatever ended the stream.
        self.finish()?;
        match end {
            Ok(StreamEnd::Stopped) => {
                let _ = self.report();
                (self.say)(ReceiveEvent::Stopped { durable: self.durable });
            }
            Ok(StreamEnd::Timeline(..)) => {
                let _ = self.report();
                self.say_progress();
            }
            _ => {}
        }
        end
    }

    fn serve(&mut self) -> Result<StreamEnd, ReceiveError> {
        if self.server_end <= self.received {
            self.begin()?; // there is nothing yet that could have been removed
        }
        loop {
            self.take_answers()?;
            self.hand_over(false);
            if self.cancel.is_cancelled() {
                return Ok(StreamEnd::Stopped);
            }
            self.keep_in_touch()?;
            if let Some(end) = self.receive()? {
                return Ok(end);
            }
        }
    }

    fn now(&self) -> Duration {
        self.tools.clock.monotonic()
    }

    /// Hands over what is pending, when it is time for it and nothing is under way.
    fn hand_over(&mut self, now_or_never: bool) {
        if self.under_way || self.pending.bytes.is_empty() {
            return;
        }
        let began = Lsn(self.received.0 - self.pending.bytes.len() as u64);
        let due = now_or_never
            || self.settings.synchronous
            || began.segment(self.size) != self.received.segment(self.size)
            || self.now().saturating_sub(self.shipped_at) >= self.settings.ship_every;
        if due {
            self.shipped_at = self.now();
            self.under_way = self.batches.send(std::mem::take(&mut self.pending)).is_ok();
        }
    }

    /// Waits for the next thing that happens, no longer than is good.
    fn receive(&mut self) -> Result<Option<StreamEnd>, ReceiveError> {
        if self.pending.bytes.len() >= WAITING_BYTES_MAX {
            // The store is slower than the server: the rest waits there.
            self.wait_for_answer(ATTENTION)?;
            self.heard_at = self.now();
            return Ok(None);
        }
        if self.under_way && self.settings.synchronous {
            // Somebody waits for the answer; what comes meanwhile waits in the connection.
            self.wait_for_answer(GROUP)?;
            if !self.under_way {
                return Ok(None);
            }
        }
        let first = self.source.next(self.patience());
        let mut end = self.note_event(first)?;
        // What lies ready goes along: whoever waits for it waits for this object, not the next.
        while end.is_none()
            && !self.under_way
            && !self.pending.bytes.is_empty()
            && self.pending.bytes.len() < GROUP_BYTES_MAX
        {
            let more = self.source.next(Duration::ZERO);
            if matches!(more, Ok(SourceEvent::Quiet)) {
                break;
            }
            end = self.note_event(more)?;
        }
        Ok(end)
    }

    fn note_event(
        &mut self,
        event: Result<SourceEvent, SourceError>,
    ) -> Result<Option<StreamEnd>, ReceiveError> {
        if !matches!(event, Ok(SourceEvent::Quiet)) {
            self.heard_at = self.now();
        }
        match event {
            Ok(SourceEvent::Log { at, bytes, server_end, server_time }) => {
                if at != self.received {
                    return Err(ReceiveError::OutOfOrder { found: at, expected: self.received });
                }
                self.streamed = true;
                self.begin()?;
                self.received = Lsn(at.0 + bytes.len() as u64);
                self.server_end = server_end.max(self.received);
                if self.pending.bytes.is_empty() {
                    self.pending.bytes = bytes;
                } else {
                    self.pending.bytes.extend_from_slice(&bytes);
                }
                let complete = self.received >= server_end;
                self.pending.complete_at = complete.then_some(server_time);
                Ok(None)
            }
            Ok(SourceEvent::Alive { server_end, server_time, reply }) => {
                self.streamed = true;
                self.server_end = server_end.max(self.received);
                if self.received >= server_end {
                    self.pending.complete_at = Some(server_time);
                }
                if reply {
                    self.report()?;
                }
                Ok(None)
            }
            Ok(SourceEvent::Quiet) => {
                if self.under_way {
                    self.wait_for_answer(GLANCE)?;
                }
                let silent = self.now().saturating_sub(self.heard_at);
                if silent > SILENCE_MAX {
                    return Err(ReceiveError::Silent { seconds: silent.as_secs() });
                }
                Ok(None)
            }
            Ok(SourceEvent::TimelineEnded { next, at }) => Ok(Some(StreamEnd::Timeline(next, at))),
            Err(error) => stream_end(error).map(Some),
        }
    }

    /// How long the connection may be waited for.
    fn patience(&self) -> Duration {
        if self.under_way {
            return GLANCE; // the answer is waited for instead
        }
        if self.pending.bytes.is_empty() {
            return ATTENTION;
        }
        let since = self.now().saturating_sub(self.shipped_at);
        self.settings.ship_every.saturating_sub(since).min(ATTENTION)
    }

    fn wait_for_answer(&mut self, no_longer_than: Duration) -> Result<(), ReceiveError> {
        match self.answers.recv_timeout(no_longer_than) {
            Ok(done) => self.note(done),
            Err(_) => Ok(()),
        }
    }

    fn take_answers(&mut self) -> Result<(), ReceiveError> {
        while let Ok(done) = self.answers.try_recv() {
            self.note(done)?;
        }
        Ok(())
    }

    fn note(&mut self, done: Done) -> Result<(), ReceiveError> {
        match done {
            Done::Shipped(durable, told) => {
                self.under_way = false;
                self.acknowledge(durable, told)
            }
            Done::Trouble(durable, told, why) => {
                (self.say)(ReceiveEvent::Waiting { why });
                self.acknowledge(durable, told)
            }
            Done::Failed(error) => {
                self.under_way = false;
                Err(error)
            }
            Done::Chore(message) => {
                (self.say)(ReceiveEvent::Note { message });
                Ok(())
            }
        }
    }

    /// Tells the server at once what became durable: somebody may wait for it.
    fn acknowledge(
        &mut self,
        durable: Option<Lsn>,
        told: Vec<Shipped>,
    ) -> Result<(), ReceiveError> {
        let advanced = durable > self.durable;
        self.durable = durable;
        for shipped in told {
            match shipped {
                Shipped::Piece(..) => self.pieces += 1,
                Shipped::Segment(segment, stored) => (self.say)(ReceiveEvent::Segment {
                    segment,
                    stored_bytes: stored.unwrap_or(ByteCount(0)),
                }),
            }
        }
        if advanced { self.report() } else { Ok(()) }
    }

    /// The server has WAL from the beginning of the stream on. What is lost before is certain, and
    /// is recorded. Then the server is told at once, so that the slot keeps what comes next; told
    /// earlier, it would set the slot back to what it has not, and give it up for that.
    fn begin(&mut self) -> Result<(), ReceiveError> {
        if self.begun {
            return Ok(());
        }
        if let Some(gap) = self.gap.take() {
            gap.record(self.tools).map_err(ReceiveError::Repo)?;
            (self.say)(gap.event());
        }
        self.begun = true;
        self.report()
    }

    fn report(&mut self) -> Result<(), ReceiveError> {
        self.reported_at = self.now();
        let durable = self.durable.filter(|_| self.begun);
        self.source
            .report(self.received, durable)
            .map_err(|error| ReceiveError::Source(error.into_inner()))
    }

    /// Reports from time to time, and says how far it is.
    fn keep_in_touch(&mut self) -> Result<(), ReceiveError> {
        let now = self.now();
        if now.saturating_sub(self.progress_at) >= PROGRESS_EVERY {
            self.say_progress();
        }
        if now.saturating_sub(self.reported_at) >= REPORT_EVERY {
            return self.report();
        }
        Ok(())
    }

    fn say_progress(&mut self) {
        self.progress_at = self.now();
        (self.say)(ReceiveEvent::Progress {
            received: self.received,
            durable: self.durable,
            behind_bytes: ByteCount(self.server_end.0.saturating_sub(self.received.0)),
            pieces: std::mem::take(&mut self.pieces),
        });
    }

    /// Ships what came and waits until it is durable. A connection that is gone does not matter.
    fn finish(&mut self) -> Result<(), ReceiveError> {
        loop {
            self.hand_over(true);
            if !self.under_way {
                return Ok(());
            }
            let done = match self.answers.recv_timeout(ATTENTION) {
                Ok(done) => done,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.keep_in_touch();
                    continue;
                }
                // The shipping thread failed, said so, and was gone when the last batch came.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            match self.note(done) {
                Err(ReceiveError::Source(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
