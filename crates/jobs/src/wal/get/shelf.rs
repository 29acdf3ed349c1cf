//! What lies fetched ahead and what is on its way. Pure: decides, and touches no file.

use std::collections::BTreeMap;

use lifeboat_engine::SegmentName;

use super::lookahead::Lookahead;

/// Tells one fetch from an earlier one of the same segment; part of the file's name.
pub(super) type Ticket = u64;

/// One fetched file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Item {
    pub segment: SegmentName,
    pub ticket: Ticket,
}

impl Item {
    /// The name of its file.
    pub fn file_name(self) -> String {
        format!("{}.{}", self.segment, self.ticket)
    }
}

/// What to tell somebody who asks for a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is there, whole and checked. Whoever asked owns the file from now on.
    Take(Item),
    /// It is on its way.
    Wait,
    /// Not from here. Says nothing about whether it is archived.
    No,
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    /// The file is there.
    Whole,
    /// It is not archived, or not yet. What follows it is not looked for until somebody asks.
    NotThere,
    /// It is damaged, or could not be read: whoever needs it finds out and says so.
    Failed,
    /// It could not be written. Nothing more is fetched.
    NoRoom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Coming(Ticket),
    Ready(Ticket),
    NotThere,
    Failed,
}

/// The state of a fetcher.
#[derive(Debug)]
pub(super) struct Shelf {
    lookahead: Lookahead,
    asked: SegmentName,
    ahead: Vec<SegmentName>,
    places: BTreeMap<SegmentName, Place>,
    /// Fetches under way whose result nobody wants any more; their files still take room.
    unwanted: Vec<Ticket>,
    /// Given away last, perhaps not yet moved.
    given: Option<Item>,
    tickets: Ticket,
    no_room: bool,
}

impl Shelf {
    /// Begins behind a segment that was just served.
    pub fn new(lookahead: Lookahead, served: SegmentName) -> Self {
        let ahead = lookahead.after(served);
        Self {
            lookahead,
            asked: served,
            ahead,
            places: BTreeMap::new(),
            unwanted: Vec::new(),
            given: None,
            tickets: 0,
            no_room: false,
        }
    }

    /// Somebody asks for a segment. Gives the answer, and the files that are to be removed: what
    /// lies on another timeline, before the segment, or too far behind it.
    pub fn ask(&mut self, segment: SegmentName) -> (Answer, Vec<Item>) {
        self.asked = segment;
        self.ahead = self.lookahead.after(segment);
        let mut removed: Vec<Item> = self.given.take().into_iter().collect();
        let (ahead, unwanted) = (&self.ahead, &mut self.unwanted);
        self.places.retain(|name, place| {
            let kept = *name == segment || ahead.contains(name);
            match place {
                Place::Ready(ticket) if !kept => {
                    removed.push(Item { segment: *name, ticket: *ticket });
                }
                Place::Coming(ticket) if !kept => unwanted.push(*ticket),
                // It may have been archived since.
                Place::NotThere => return false,
                Place::Failed => return kept && *name != segment,
                _ => {}
            }
            kept
        });
        (self.answer(segment), removed)
    }

    /// The answer as it is now, for somebody who asked and waits.
    pub fn answer(&mut self, segment: SegmentName) -> Answer {
        match self.places.get(&segment) {
            Some(Place::Ready(ticket)) => {
                let item = Item { segment, ticket: *ticket };
                self.places.remove(&segment);
                self.given = Some(item);
                Answer::Take(item)
            }
            Some(Place::Coming(_)) => Answer::Wait,
            _ => Answer::No,
        }
    }

    /// What to fetch next, if there is anything, and room for it.
    pub fn next(&mut self) -> Option<Item> {
        if self.no_room || self.on_disk() >= self.lookahead.segments {
            return None;
        }
        for segment in &self.ahead {
            match self.places.get(segment) {
                None => {
                    self.tickets += 1;
                    self.places.insert(*segment, Place::Coming(self.tickets));
                    return Some(Item { segment: *segment, ticket: self.tickets });
                }
                Some(Place::NotThere) => return None,
                Some(_) => {}
            }
        }
        None
    }

    /// A fetch ended. False when its file is to be removed.
    #[must_use]
    pub fn done(&mut self, item: Item, fetch: Fetch) -> bool {
        self.no_room |= fetch == Fetch::NoRoom;
        if let Some(at) = self.unwanted.iter().position(|ticket| *ticket == item.ticket) {
            self.unwanted.swap_remove(at);
            return false;
        }
        let place = match fetch {
            Fetch::Whole => Place::Ready(item.ticket),
            Fetch::NotThere => Place::NotThere,
            Fetch::Failed | Fetch::NoRoom => Place::Failed,
        };
        self.places.insert(item.segment, place);
        fetch == Fetch::Whole
    }

    /// The segment that was asked for last.
    pub fn asked(&self) -> SegmentName {
        self.asked
    }

    /// Segments that take room on disk, or are about to.
    fn on_disk(&self) -> usize {
        let takes_room = |place: &&Place| matches!(place, Place::Coming(_) | Place::Ready(_));
        let held = self.places.values().filter(takes_room).count();
        held + self.unwanted.len() + usize::from(self.given.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lifeboat_engine::{SegmentNo, SegmentSize, TimelineId};
    use proptest::prelude::*;

    use super::*;

    fn name(timeline: u32, number: u64) -> SegmentName {
        SegmentName::new(TimelineId(timeline), SegmentNo(number), SegmentSize::DEFAULT)
    }

    fn shelf(segments: usize) -> Shelf {
        let lookahead = Lookahead { size: SegmentSize::DEFAULT, segments, state: None };
        Shelf::new(lookahead, name(1, 1))
    }

    #[test]
    fn fetched_in_order_and_given_away_once() {
        let mut shelf = shelf(2);
        let (two, three) = (shelf.next().unwrap(), shelf.next().unwrap());
        assert_eq!((two.segment, three.segment), (name(1, 2), name(1, 3)));
        assert_eq!(shelf.next(), None, "no room");
        assert!(shelf.done(two, Fetch::Whole));
        assert_eq!(shelf.ask(name(1, 2)), (Answer::Take(two), vec![]));
        assert_eq!(shelf.next(), None, "it may not have been moved yet");
        assert_eq!(shelf.ask(name(1, 3)), (Answer::Wait, vec![two]));
        assert_eq!(shelf.next().unwrap().segment, name(1, 4));
        assert!(shelf.done(three, Fetch::Whole));
        assert_eq!(shelf.answer(name(1, 3)), Answer::Take(three));
        assert_eq!(shelf.ask(name(1, 3)), (Answer::No, vec![three]), "asked for again");
    }

    #[test]
    fn what_is_not_there_ends_the_way_until_somebody_asks_again() {
        let mut shelf = shelf(3);
        let two = shelf.next().unwrap();
        assert!(!shelf.done(two, Fetch::NotThere));
        assert_eq!(shelf.next(), None);
        assert_eq!(shelf.ask(name(1, 2)), (Answer::No, vec![]));
        // Whoever asked found it or not; behind it there is something to look for.
        assert_eq!(shelf.next().unwrap().segment, name(1, 3));
    }

    #[test]
    fn a_failure_is_left_to_who_asks_and_does_not_stop_the_rest() {
        let mut shelf = shelf(3);
        let two = shelf.next().unwrap();
        assert!(!shelf.done(two, Fetch::Failed));
        let three = shelf.next().unwrap();
        assert_eq!(three.segment, name(1, 3));
        assert!(!shelf.done(three, Fetch::NoRoom));
        assert_eq!(shelf.next(), None);
        assert_eq!(shelf.ask(name(1, 2)), (Answer::No, vec![]));
        assert_eq!(shelf.next(), None, "the disk is full");
    }

    #[test]
    fn another_timeline_drops_all() {
        let mut shelf = shelf(3);
        let (two, three) = (shelf.next().unwrap(), shelf.next().unwrap());
        assert!(shelf.done(two, Fetch::Whole));
        assert_eq!(shelf.ask(name(2, 2)), (Answer::No, vec![two]));
        assert_eq!(shelf.next().unwrap().segment, name(2, 3));
        assert_eq!(shelf.ask(name(1, 2)), (Answer::No, vec![]));
        assert!(!shelf.done(three, Fetch::Whole), "nobody wants it any more");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(u32, u64),
        Next,
        Done(usize, Fetch),
    }

    fn step() -> impl Strategy<Value = Step> {
        let fetch = prop_oneof![
            8 => Just(Fetch::Whole), 1 => Just(Fetch::NotThere), 1 => Just(Fetch::Failed)
        ];
        prop_oneof![
            3 => (1..3u32, 1..12u64).prop_map(|(t, n)| Step::Ask(t, n)),
            4 => Just(Step::Next),
            4 => (any::<usize>(), fetch).prop_map(|(at, fetch)| Step::Done(at, fetch)),
        ]
    }

    proptest! {
        /// Law: whatever happens in whatever order, what is given away was fetched whole under
        /// that very name and not given before, nothing is forgotten on disk, and there are never
        /// more files than allowed.
        #[test]
        fn only_whole_files_are_given_and_none_is_forgotten(
            capacity in 1..5usize,
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let mut shelf = shelf(capacity);
            // The disk as the fetcher leaves it, and fetches under way.
            let (mut disk, mut under_way) = (BTreeSet::<Item>::new(), Vec::<Item>::new());
            for step in steps {
                match step {
                    Step::Ask(timeline, number) => {
                        let asked = name(timeline, number);
                        let (answer, removed) = shelf.ask(asked);
                        for item in removed {
                            disk.remove(&item);
                        }
                        if let Answer::Take(item) = answer {
                            prop_assert_eq!(item.segment, asked);
                            prop_assert!(disk.contains(&item), "{:?} is not there", item);
                        }
                        let ahead = shelf.lookahead.after(asked);
                        let given = shelf.given;
                        for item in &disk {
                            prop_assert!(ahead.contains(&item.segment) || Some(*item) == given);
                        }
                    }
                    Step::Next => under_way.extend(shelf.next()),
                    Step::Done(at, fetch) if !under_way.is_empty() => {
                        let item = under_way.swap_remove(at % under_way.len());
                        if shelf.done(item, fetch) {
                            prop_assert_eq!(fetch, Fetch::Whole);
                            disk.insert(item);
                        }
                    }
                    Step::Done(..) => {}
                }
                prop_assert!(disk.len() + under_way.len() <= capacity);
            }
        }
    }
}
