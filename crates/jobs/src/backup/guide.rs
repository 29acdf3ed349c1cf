//! Which pages a backup reads: what the server says changed, what the file has grown by, and the
//! share of the rest whose turn it is. Decides without reading anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lifeboat_engine::{ChangeMap, Changed, Content, Lsn, PageFormat, SourceFile};
use lifeboat_repo::{BackupId, FileEntry, PART_PAGES};

use super::known::LOST;

/// A rotating share of all parts of page maps.
///
/// The parts that are due depend on path, part and counter alone, so whatever failed, vanished or
/// was taken on another host in between, `of` sweeps that follow one another have read everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// Which sweep this is.
    pub counter: u64,
    /// How many it takes to read everything; 1 reads everything each time.
    pub of: u32,
}

impl Sweep {
    /// Whether it is this part's turn.
    fn is_due(self, path: &str, part: u64) -> bool {
        let hash = blake3::hash(path.as_bytes());
        let [a, b, c, d, ..] = *hash.as_bytes();
        let own = u64::from(u32::from_le_bytes([a, b, c, d])).wrapping_add(part);
        let of = u64::from(self.of.max(1));
        own % of == self.counter % of
    }
}

/// What is known without reading.
pub struct Guide {
    /// What the server says.
    pub map: Box<dyn ChangeMap>,
    /// From where on it says so.
    pub from: Lsn,
    /// Up to where.
    pub to: Lsn,
    /// Whose turn it is.
    pub sweep: Sweep,
    /// Where the backups ended that stored the pages of the earlier one.
    pub stops: BTreeMap<BackupId, Lsn>,
    /// Files in which the earlier backup met damaged pages: they are looked at again.
    pub doubtful: BTreeSet<String>,
}

/// What of one part is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// All of it, and nothing is expected of it.
    Everything,
    /// Nothing: it is the earlier part.
    Nothing,
    /// Some of it.
    Some {
        /// Pages that changed or are new: ascending, not touching, counted from the file's first.
        changed: Vec<Range<u32>>,
        /// The others are read as well, and have to be what they were.
        sweep: bool,
    },
}

/// What of one file may be left out, for all its parts.
pub struct FileGuide {
    changed: Option<Vec<Range<u32>>>,
    known_pages: u32,
    pages: u32,
    /// It shrank, and the server said so: what is left is read, and has to be what it was.
    cut: bool,
}

impl Guide {
    /// What is known of a file of which the earlier backup has `known`.
    pub fn file(&self, file: &SourceFile, known: Option<&FileEntry>, page_bytes: u32) -> FileGuide {
        let unknown = FileGuide { changed: None, known_pages: 0, pages: 0, cut: false };
        let Some(known) = known else { return unknown };
        let Content::Pages { first_page } = file.content else { return unknown };
        let page = u64::from(page_bytes);
        let whole =
            |size: u64| u32::try_from(size / page).ok().filter(|_| size.is_multiple_of(page));
        let (Some(known_pages), Some(pages)) = (whole(known.size_bytes), whole(file.size_bytes))
        else {
            return unknown;
        };
        // A size that shrank unseen is no sign of a server whose word can be taken.
        let cut = pages < known_pages;
        if known.first_page != Some(first_page)
            || cut && !self.map.was_cut(file)
            || self.doubtful.contains(&file.path)
        {
            return unknown;
        }
        match self.map.of(file) {
            Changed::Everything => unknown,
            Changed::Pages(changed) => {
                FileGuide { changed: Some(changed), known_pages, pages, cut }
            }
        }
    }

    /// What to read of one part.
    pub fn part(&self, file: &SourceFile, guide: &FileGuide, part: u64) -> Plan {
        let Some(all) = &guide.changed else { return Plan::Everything };
        let first = (part * u64::from(PART_PAGES)).min(u64::from(guide.pages)) as u32;
        let end = guide.pages.min(first.saturating_add(PART_PAGES));
        let known_end = guide.known_pages.clamp(first, end);
        let mut changed: Vec<Range<u32>> = Vec::new();
        let from = all.partition_point(|range| range.end <= first);
        for range in all[from..].iter().take_while(|range| range.start < known_end) {
            changed.push(range.start.max(first)..range.end.min(known_end));
        }
        if known_end < end {
            match changed.last_mut() {
                Some(last) if last.end == known_end => last.end = end,
                _ => changed.push(known_end..end),
            }
        }
        // Of a file that shrank nothing is left unread: a page that was lost is told all the same.
        let sweep = guide.cut || self.sweep.is_due(&file.path, part);
        if changed.is_empty() && !sweep { Plan::Nothing } else { Plan::Some { changed, sweep } }
    }
}

/// What a difference means that the sweep found in a page of which nothing said that it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It changed after the backup began: replay brings it there.
    Later,
    /// Its last logged change is older than the earlier backup: what differs needed no log record.
    HintOnly,
    /// The hints are wrong, or the page is.
    Fault(String),
}

impl Guide {
    /// Judges a page that differs from what the backup `stored_by` stored of it (`None`: from zeros),
    /// and of which nothing since then said that it changed. It was not found damaged.
    ///
    /// Hint bits change a page and leave the position of its last logged change alone. So a page
    /// that says it changed after the stored copy was read cannot differ by hint bits alone.
    pub fn judge(
        &self,
        format: &dyn PageFormat,
        page: &[u8],
        stored_by: Option<BackupId>,
    ) -> Difference {
        let missed = |at: Lsn| {
            Difference::Fault(format!(
                "it changed at {at}, and what the server says of its changes leaves that out"
            ))
        };
        match format.changed_at(page) {
            None => Difference::Fault(LOST.to_owned()),
            Some(at) if at > self.to => Difference::Later,
            Some(at) if at > self.from => missed(at),
            // Initialised, and never logged since.
            Some(Lsn(0)) => Difference::HintOnly,
            Some(at) => match stored_by {
                Some(backup) if self.stops.get(&backup).is_none_or(|stop| at <= *stop) => {
                    Difference::HintOnly
                }
                _ => missed(at),
            },
        }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What changed, and to how many pages the file was cut.
    struct Fixed(Changed, Option<u64>);

    impl ChangeMap for Fixed {
        fn of(&self, _: &SourceFile) -> Changed {
            self.0.clone()
        }

        fn was_cut(&self, file: &SourceFile) -> bool {
            self.1.is_some_and(|pages| pages * 8192 <= file.size_bytes)
        }
    }

    fn guide(changed: Changed, sweep: Sweep) -> Guide {
        let map = Box::new(Fixed(changed, None));
        let (stops, doubtful) = (BTreeMap::from([(stored(), Lsn(50))]), BTreeSet::new());
        Guide { map, from: Lsn(100), to: Lsn(200), sweep, stops, doubtful }
    }

    fn stored() -> BackupId {
        "20261122T231501Z-00000001".parse().unwrap()
    }

    fn file(pages: u64) -> SourceFile {
        SourceFile {
            path: "base/1/7".into(),
            size_bytes: pages * 8192,
            mode: 0o600,
            content: Content::Pages { first_page: 0 },
        }
    }

    fn entry(pages: u64) -> FileEntry {
        let size_bytes = pages * 8192;
        FileEntry {
            path: "base/1/7".into(),
            size_bytes,
            mode: 0o600,
            first_page: Some(0),
            parts: Vec::new(),
        }
    }

    const NEVER: Sweep = Sweep { counter: 0, of: u32::MAX };

    #[test]
    fn a_file_that_cannot_be_the_earlier_one_is_read_as_a_whole() {
        let guide = guide(Changed::NOTHING, NEVER);
        let plan = |file: &SourceFile, known: Option<&FileEntry>| {
            guide.part(file, &guide.file(file, known, 8192), 0)
        };
        assert_eq!(plan(&file(9), Some(&entry(9))), Plan::Nothing);
        assert_eq!(plan(&file(9), None), Plan::Everything, "not known");
        assert_eq!(plan(&file(8), Some(&entry(9))), Plan::Everything, "shrank");
        let short = FileEntry { size_bytes: 8 * 8192 + 1, ..entry(9) };
        assert_eq!(plan(&file(9), Some(&short)), Plan::Everything, "ended within a page");
        let other = FileEntry { first_page: Some(131_072), ..entry(9) };
        assert_eq!(plan(&file(9), Some(&other)), Plan::Everything, "another segment");
        let bytes = SourceFile { content: Content::Bytes, ..file(9) };
        assert_eq!(plan(&bytes, Some(&entry(9))), Plan::Everything, "no relation");
        let grown = plan(&file(11), Some(&entry(9)));
        assert_eq!(grown, Plan::Some { changed: vec![9..11], sweep: false });
    }

    #[test]
    fn of_a_file_that_was_cut_everything_is_read_and_expected_to_be_what_it_was() {
        let mut guide = guide(Changed::Pages(vec![2..3]), NEVER);
        let plan = |guide: &Guide, pages| {
            guide.part(&file(pages), &guide.file(&file(pages), Some(&entry(9)), 8192), 0)
        };
        assert_eq!(plan(&guide, 8), Plan::Everything, "nobody says that it was cut");
        guide.map = Box::new(Fixed(Changed::Pages(vec![2..3]), Some(8)));
        assert_eq!(plan(&guide, 8), Plan::Some { changed: vec![2..3], sweep: true });
        assert_eq!(plan(&guide, 7), Plan::Everything, "it is shorter than that");
        guide.map = Box::new(Fixed(Changed::NOTHING, Some(8)));
        assert_eq!(plan(&guide, 8), Plan::Some { changed: vec![], sweep: true });
        assert_eq!(plan(&guide, 9), Plan::Nothing, "it has the length that it had");
    }

    #[test]
    fn a_file_with_damage_in_the_earlier_backup_is_read_as_a_whole() {
        let mut guide = guide(Changed::NOTHING, NEVER);
        guide.doubtful.insert("base/1/7".into());
        let known = guide.file(&file(9), Some(&entry(9)), 8192);
        assert_eq!(guide.part(&file(9), &known, 0), Plan::Everything);
    }

    #[test]
    fn a_difference_is_judged_by_when_the_page_says_it_changed() {
        struct At(Option<Lsn>);
        impl PageFormat for At {
            fn check(&self, _: u32, _: &[u8]) -> lifeboat_engine::PageVerdict {
                lifeboat_engine::PageVerdict::Valid
            }
            fn changed_at(&self, _: &[u8]) -> Option<Lsn> {
                self.0
            }
        }
        let guide = guide(Changed::NOTHING, NEVER);
        let judge = |at: Option<u64>| guide.judge(&At(at.map(Lsn)), &[], Some(stored()));
        assert_eq!(judge(Some(0)), Difference::HintOnly);
        // The stored copy was read after this change.
        assert_eq!(judge(Some(50)), Difference::HintOnly);
        // It was not, and no backup since has read the page.
        assert!(matches!(judge(Some(51)), Difference::Fault(_)));
        assert!(matches!(judge(Some(100)), Difference::Fault(_)));
        assert!(matches!(judge(Some(101)), Difference::Fault(_)));
        assert!(matches!(judge(Some(200)), Difference::Fault(_)));
        assert_eq!(judge(Some(201)), Difference::Later);
        assert!(matches!(judge(None), Difference::Fault(_)));
        // Where the backup that stored it is not known any more, nobody is accused.
        let unknown = "20251122T231501Z-00000001".parse().ok();
        assert_eq!(guide.judge(&At(Some(Lsn(99))), &[], unknown), Difference::HintOnly);
        // It was zeros, and is a page that was logged.
        assert!(matches!(guide.judge(&At(Some(Lsn(7))), &[], None), Difference::Fault(_)));
        assert_eq!(guide.judge(&At(Some(Lsn(0))), &[], None), Difference::HintOnly);
    }

    proptest! {
        /// Law: every page that changed or is new is read, whatever the ranges; no other is,
        /// unless the part is due.
        #[test]
        fn what_changed_is_read(
            starts in proptest::collection::btree_set(0u32..20_000, 0..30),
            pages in 1u32..20_000,
            known in 0u32..20_000,
        ) {
            let known = known.min(pages);
            let mut ranges: Vec<Range<u32>> = Vec::new();
            for start in starts {
                match ranges.last_mut() {
                    Some(last) if start <= last.end => last.end = start + 3,
                    _ => ranges.push(start..start + 3),
                }
            }
            let guide = guide(Changed::Pages(ranges.clone()), NEVER);
            let (file, entry) = (file(pages.into()), entry(known.into()));
            let found = guide.file(&file, Some(&entry), 8192);
            for part in 0..u64::from(pages.div_ceil(PART_PAGES)) {
                let first = part as u32 * PART_PAGES;
                let plan = match guide.part(&file, &found, part) {
                    Plan::Some { changed, sweep: false } => changed,
                    Plan::Nothing => Vec::new(),
                    other => panic!("{other:?}"),
                };
                prop_assert!(plan.windows(2).all(|two| two[0].end < two[1].start));
                for page in first..pages.min(first + PART_PAGES) {
                    let changed = page >= known || ranges.iter().any(|r| r.contains(&page));
                    prop_assert_eq!(plan.iter().any(|r| r.contains(&page)), changed, "page {}", page);
                }
            }
        }

        /// Law: `of` sweeps in a row read every part exactly once, and spread the work.
        #[test]
        fn sweeps_in_a_row_read_everything(of in 1u32..40, begin in any::<u32>()) {
            let paths: Vec<String> = (0..400).map(|n| format!("base/5/{n}")).collect();
            for path in &paths[..20] {
                for part in 0..20 {
                    let turns = (0..u64::from(of))
                        .map(|n| Sweep { counter: u64::from(begin) + n, of })
                        .filter(|sweep| sweep.is_due(path, part));
                    prop_assert_eq!(turns.count(), 1);
                }
            }
            let sweep = Sweep { counter: begin.into(), of };
            let due = paths.iter().filter(|path| sweep.is_due(path, 0)).count();
            prop_assert!(due <= 400 / of as usize + 60, "{} of 400 are due", due);
        }
    }
}
