//! One connection, up to where the stream begins.

use lifeboat_engine::{
    Ancestry, LogFile, LogSource, Lsn, SegmentSize, SlotState, SourceError, SourceIdentity,
    TimelineId,
};
use lifeboat_repo::{Fact, PushOutcome, RepoError};

use super::begin::{Begin, Known};
use super::gap::{Gap, Missed, removed};
use super::ship::{Shipper, Tools};
use super::{End, ReceiveError, ReceiveEvent, Receiver};
use crate::facts::ArchivedFacts;
use crate::inventory::{Inventory, chain};
use crate::succession;
use crate::wal::place::place;

type Say<'s> = &'s mut dyn FnMut(ReceiveEvent);

/// How a stream ended, when it was not by a failure.
pub(super) enum StreamEnd {
    /// Somebody asked to stop.
    Stopped,
    /// The server went on with another timeline.
    Timeline(TimelineId, Lsn),
    /// The server no longer has what was asked for.
    Removed(String),
    /// The server gave the slot up, or it was dropped.
    Slot(SourceError),
}

fn failed(error: SourceError) -> ReceiveError {
    ReceiveError::Source(error.into_inner())
}

impl Receiver<'_> {
    /// Connects, and receives until the connection ends.
    pub(super) fn session(
        &mut self,
        source: &mut dyn LogSource,
        say: Say<'_>,
    ) -> Result<End, ReceiveError> {
        let server = source.connect().map_err(failed)?;
        say(ReceiveEvent::Connected {
            server: server.server.clone(),
            system: server.system,
            timeline: server.timeline,
            end: server.end,
        });
        self.check_system(&server)?;
        let past = self.histories(source, &server, say)?;
        let inventory = Inventory::load(self.ports.cluster, self.ports.engine)
            .map_err(ReceiveError::Inventory)?;
        refuse_behind(&inventory, &server)?;
        let slot = self.slot(source, &server, say)?;
        let events = self.gaps_recorded(say)?;
        let known = Known {
            inventory: &inventory,
            events: &events,
            system: server.system,
            size: server.segment,
            past: &past,
            slot,
            end: server.end,
        };
        for (timeline, left_at, stored_to) in known.left_behind() {
            if !self.told_behind.contains(&timeline) {
                self.told_behind.push(timeline);
                say(ReceiveEvent::LeftBehind { timeline, left_at, stored_to });
            }
        }
        let wanted = known.wanted();
        let beyond = self.missed.as_ref().filter(|missed| missed.wanted == wanted);
        let certain = known.certain(beyond.map_or(wanted.number, |missed| missed.beyond));
        let is_lost = |missed: &Missed| missed.wanted == wanted && certain.number > wanted.number;
        let missed = self.missed.take().filter(is_lost);
        let lost = |missed: &Missed| Gap::of(&known, wanted, certain.number, &missed.why);
        let gap = missed.as_ref().map(lost);
        let begin = match gap {
            Some(_) => certain,
            None => known.to_be_compared(wanted).unwrap_or(wanted),
        };
        let after_gap = gap.is_some();
        let ended = self.receive_from(source, &server, begin, gap, say);
        if !self.streamed {
            self.missed = missed; // whatever happened, it is still lost
        }
        match ended? {
            StreamEnd::Stopped => Ok(End::Stopped),
            StreamEnd::Timeline(to, at) => {
                say(ReceiveEvent::Switched { from: begin.timeline, to, at });
                Ok(End::Again)
            }
            StreamEnd::Slot(error) => self.replace_slot(source, &server, error, say),
            // The server removes faster than it is asked.
            StreamEnd::Removed(why) if after_gap => {
                self.missed = Some(Missed { wanted, beyond: certain.number, why: why.clone() });
                Err(removed(why))
            }
            StreamEnd::Removed(why) => {
                if certain.number > wanted.number {
                    self.missed = Some(Missed { wanted, beyond: wanted.number, why });
                    Ok(End::Again)
                } else if begin != wanted {
                    // Only the comparison is missed: the finished segment is what counts.
                    let server = source.connect().map_err(failed)?;
                    self.again(source, &server, wanted, say)
                } else {
                    Err(removed(why))
                }
            }
        }
    }

    fn again(
        &mut self,
        source: &mut dyn LogSource,
        server: &SourceIdentity,
        begin: Begin,
        say: Say<'_>,
    ) -> Result<End, ReceiveError> {
        match self.receive_from(source, server, begin, None, say)? {
            StreamEnd::Stopped => Ok(End::Stopped),
            _ => Ok(End::Again),
        }
    }

    fn receive_from(
        &mut self,
        source: &mut dyn LogSource,
        server: &SourceIdentity,
        begin: Begin,
        gap: Option<Gap>,
        say: Say<'_>,
    ) -> Result<StreamEnd, ReceiveError> {
        let tools = Tools {
            cluster: self.ports.cluster,
            engine: self.ports.engine,
            clock: self.ports.clock,
            compression: self.settings.compression,
        };
        let Begin { timeline, number } = begin;
        let shipper = Shipper::begin(tools, server.system, timeline, server.segment, number)
            .map_err(ReceiveError::Repo)?;
        let from = number.start(server.segment);
        match source.start(&self.settings.slot, timeline, from) {
            Ok(()) => {}
            Err(error) => return stream_end(error),
        }
        say(ReceiveEvent::Streaming { timeline, from });
        let opening = Opening { from, size: server.segment, server_end: server.end, gap };
        self.stream(source, tools, shipper, opening, say)
    }

    /// Refuses a system that is not the one received before, or not the cluster's.
    fn check_system(&mut self, server: &SourceIdentity) -> Result<(), ReceiveError> {
        let found = server.system;
        if let Some(expected) = self.system.filter(|expected| *expected != found) {
            return Err(ReceiveError::Foreign { found, expected });
        }
        match succession::current(self.ports.cluster).map_err(ReceiveError::Repo)? {
            Some(current) if current.system != found => Err(ReceiveError::OtherSystem {
                cluster: self.ports.cluster.name().to_string(),
                found,
                expected: current.system,
            }),
            _ => {
                self.system = Some(found);
                Ok(())
            }
        }
    }

    /// Stores the history files of the server's timeline and its ancestors, before any segment of
    /// them: a server in recovery stops its search for the newest timeline at the first that is
    /// missing.
    fn histories(
        &self,
        source: &mut dyn LogSource,
        server: &SourceIdentity,
        say: Say<'_>,
    ) -> Result<Ancestry, ReceiveError> {
        if server.timeline.0 <= 1 {
            return Ok(Ancestry::root(server.timeline));
        }
        let bytes = source.history(server.timeline).map_err(failed)?;
        let past = self.parse(server.timeline, &bytes)?;
        for older in past.ancestors.iter().map(|a| a.timeline).filter(|t| t.0 > 1) {
            let history = place(server.system, LogFile::History(older));
            if self.ports.cluster.has_log(&history).map_err(ReceiveError::Repo)? {
                continue;
            }
            match source.history(older) {
                Ok(bytes) => self.store_history(server, older, &bytes, say)?,
                Err(error) => say(ReceiveEvent::Note {
                    message: format!(
                        "{} does not give the history of timeline {older}, and the repository \
                         has none: {}",
                        server.server,
                        chain(&error.into_inner())
                    ),
                }),
            }
        }
        self.store_history(server, server.timeline, &bytes, say)?;
        Ok(past)
    }

    fn parse(&self, timeline: TimelineId, bytes: &[u8]) -> Result<Ancestry, ReceiveError> {
        let parsed = self.ports.engine.parse_history(timeline, bytes);
        parsed.map_err(|source| ReceiveError::History { timeline, source })
    }

    fn store_history(
        &self,
        server: &SourceIdentity,
        timeline: TimelineId,
        bytes: &[u8],
        say: Say<'_>,
    ) -> Result<(), ReceiveError> {
        let facts = ArchivedFacts {
            system: None,
            segment: None,
            log: None,
            written_at: None,
            ancestry: Some(self.parse(timeline, bytes)?),
        };
        let outcome = self
            .ports
            .cluster
            .push_log(
                &place(server.system, LogFile::History(timeline)),
                bytes,
                self.settings.compression,
                self.ports.clock.now(),
                serde_json::to_value(&facts).expect("facts always serialise"),
            )
            .map_err(ReceiveError::Repo)?;
        match outcome {
            PushOutcome::Stored { .. } => say(ReceiveEvent::History { timeline }),
            PushOutcome::AlreadyThere => {}
            PushOutcome::Different { .. } => {
                return Err(ReceiveError::HistoryDiverged { timeline });
            }
        }
        Ok(())
    }

    /// What the server keeps for the slot, which is made if that was asked for. One that keeps
    /// nothing is made anew: until the first report nothing would be kept for it.
    fn slot(
        &mut self,
        source: &mut dyn LogSource,
        server: &SourceIdentity,
        say: Say<'_>,
    ) -> Result<SlotState, ReceiveError> {
        let slot = &self.settings.slot;
        let found = source.slot(slot).map_err(failed)?;
        let replaced = match found {
            SlotState::Missing if self.settings.create_slot => false,
            SlotState::Missing => {
                let server = server.server.clone();
                return Err(ReceiveError::SlotMissing { slot: slot.clone(), server });
            }
            SlotState::Present { keeps_from: None, .. }
                if self.settings.create_slot && !self.made_slot =>
            {
                true
            }
            SlotState::Present { .. } | SlotState::Untold => return Ok(found),
        };
        if replaced {
            source.drop_slot(slot).map_err(failed)?;
        }
        source.create_slot(slot).map_err(failed)?;
        self.made_slot = true;
        say(ReceiveEvent::SlotCreated { slot: slot.clone(), replaced });
        source.slot(slot).map_err(failed)
    }

    fn replace_slot(
        &mut self,
        source: &mut dyn LogSource,
        server: &SourceIdentity,
        error: SourceError,
        say: Say<'_>,
    ) -> Result<End, ReceiveError> {
        let slot = self.settings.slot.clone();
        // Once until the next pause: what does not help is not done again and again.
        let may_make = self.settings.create_slot && !std::mem::replace(&mut self.made_slot, true);
        match error {
            SourceError::SlotMissing(_) if may_make => {
                source.connect().map_err(failed)?;
                source.create_slot(&slot).map_err(failed)?;
                say(ReceiveEvent::SlotCreated { slot, replaced: false });
                Ok(End::Again)
            }
            other if self.settings.create_slot && !may_make => Err(failed(other)),
            SourceError::SlotMissing(_) => {
                Err(ReceiveError::SlotMissing { slot, server: server.server.clone() })
            }
            SourceError::SlotLost(_) if may_make => {
                source.connect().map_err(failed)?;
                source.drop_slot(&slot).map_err(failed)?;
                source.create_slot(&slot).map_err(failed)?;
                say(ReceiveEvent::SlotCreated { slot, replaced: true });
                Ok(End::Again)
            }
            SourceError::SlotLost(source) => {
                Err(ReceiveError::SlotLost { slot, server: server.server.clone(), source })
            }
            other => Err(failed(other)),
        }
    }

    /// Gaps that the journal tells of.
    fn gaps_recorded(&self, say: Say<'_>) -> Result<Vec<Fact>, ReceiveError> {
        let keys = self.ports.cluster.journal_keys().map_err(ReceiveError::Repo)?;
        let mut facts = Vec::new();
        for (_, read) in self.ports.cluster.read_events(keys) {
            match read {
                Ok(recorded) => facts.push(recorded.event.fact),
                Err(error @ RepoError::Damaged { .. }) => {
                    say(ReceiveEvent::Note { message: chain(&error) });
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(ReceiveError::Repo(error)),
            }
        }
        facts.retain(|fact| matches!(fact, Fact::LogGap { .. }));
        Ok(facts)
    }
}

/// Where a stream begins.
pub(super) struct Opening {
    /// The start of a segment.
    pub from: Lsn,
    pub size: SegmentSize,
    /// How far the server's WAL went before.
    pub server_end: Lsn,
    /// What is lost before `from`, to be recorded.
    pub gap: Option<Gap>,
}

/// What the failure to stream means.
pub(super) fn stream_end(error: SourceError) -> Result<StreamEnd, ReceiveError> {
    match error {
        SourceError::Removed(error) => Ok(StreamEnd::Removed(chain(&error))),
        slot @ (SourceError::SlotMissing(_) | SourceError::SlotLost(_)) => {
            Ok(StreamEnd::Slot(slot))
        }
        SourceError::Failed(error) => Err(ReceiveError::Source(error)),
    }
}

/// Refuses a server that writes an older timeline than one that is known: it was left behind by a
/// failover.
fn refuse_behind(inventory: &Inventory, server: &SourceIdentity) -> Result<(), ReceiveError> {
    match inventory.newest_timeline(server.system) {
        Some(newest) if newest > server.timeline => Err(ReceiveError::Behind {
            server: server.server.clone(),
            found: server.timeline,
            newest,
        }),
        _ => Ok(()),
    }
}
