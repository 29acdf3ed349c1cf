//! Pages that an earlier backup found wrong, and that are named again until they are something else.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::facts::{BackupFacts, DamagedPage};

/// What is said of a page that was lost. A later backup knows by these words what a fault was.
pub const LOST: &str = "it was lost: all zeros now, and nothing in the WAL says why";
/// What is said of the first of several, at the end.
pub const HOLE: &str = "pages from here on became a hole";

/// What is added to what is said of a damaged page when checksums, which told it, are switched off or
/// on. Nothing in the page can clear it then: while they are off the server changes it as it is, and
/// `pg_checksums --enable` gives it a checksum that fits. A later backup knows it by these words.
const SWITCHED: &str = "; found before checksums were switched, which cannot vouch for it now";

/// What an earlier backup found wrong.
#[derive(Debug, Default)]
pub struct KnownPages {
    /// Zeros, and nothing in the WAL said why. Nothing in the page tells.
    pub lost: Pages,
    /// Damaged.
    damaged: Pages,
}

impl KnownPages {
    /// What the sweep of the earlier backup, or of one before it, found lost, and not only missed in
    /// what the server told; and what was damaged. `checksums` are on or off now.
    pub fn of(earlier: &BackupFacts, checksums: bool) -> Self {
        let faults = earlier.reading.iter().flat_map(|reading| &reading.faults);
        let lost = faults.filter(|fault| fault.what == LOST || fault.what.ends_with(HOLE));
        let damaged = Pages::of(earlier.damage.iter());
        let mut known = Self { lost: Pages::of(lost), damaged };
        known.checksums_switched(earlier.identity.checksums != checksums);
        known
    }

    fn checksums_switched(&mut self, switched: bool) {
        let all = self.damaged.0.values_mut().flat_map(BTreeMap::values_mut);
        all.filter(|what| switched && !what.ends_with(SWITCHED))
            .for_each(|what| what.push_str(SWITCHED));
    }

    /// Those among these pages of a file that were damaged and are not mended.
    ///
    /// - `unchanged` says that all of them are what they were, or zeros: those are never better.
    /// - Another page that looks right is mended, unless checksums were switched since.
    pub fn still_damaged(
        &self,
        path: &str,
        pages: Range<u32>,
        unchanged: bool,
    ) -> impl Iterator<Item = DamagedPage> {
        let known = self.damaged.still(path, pages);
        known.filter(move |page| unchanged || page.what.ends_with(SWITCHED))
    }
}

/// Pages by file and number, with what is wrong.
#[derive(Debug, Default)]
pub struct Pages(BTreeMap<String, BTreeMap<u32, String>>);

impl Pages {
    fn of<'a>(pages: impl Iterator<Item = &'a DamagedPage>) -> Self {
        let mut all = Self::default();
        for page in pages {
            let file = all.0.entry(page.path.clone()).or_default();
            file.insert(page.page, page.what.clone());
        }
        all
    }

    /// Those among these pages of a file, which are what they were.
    ///
    /// - `pages` counts within the file.
    pub fn still(&self, path: &str, pages: Range<u32>) -> impl Iterator<Item = DamagedPage> {
        let found = self.0.get(path).map(|file| file.range(pages)).into_iter().flatten();
        found.map(move |(page, what)| DamagedPage {
            path: path.to_owned(),
            page: *page,
            what: what.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_checksums_were_switched_no_other_content_mends_a_page() {
        let page = |what: &str| DamagedPage { path: "base/1/7".into(), page: 3, what: what.into() };
        let known = |what: &str, switched: bool| {
            let mut known =
                KnownPages { damaged: Pages::of([page(what)].iter()), ..Default::default() };
            known.checksums_switched(switched);
            known
        };
        let still = |known: &KnownPages, unchanged| {
            known
                .still_damaged("base/1/7", 0..9, unchanged)
                .map(|page| page.what)
                .collect::<Vec<_>>()
        };
        let before = known("its checksum is wrong", false);
        assert_eq!(still(&before, true), ["its checksum is wrong"]);
        assert!(still(&before, false).is_empty(), "another page that looks right");
        let switched = known("its checksum is wrong", true);
        let [said] = &still(&switched, false)[..] else { panic!("it is named") };
        assert!(said.starts_with("its checksum is wrong; found before"), "{said}");
        // By the backups after it as well, and said once.
        assert_eq!(still(&known(said, true), false)[..], *std::slice::from_ref(said));
        assert_eq!(still(&known(said, false), false)[..], *std::slice::from_ref(said));
        assert!(
            still(&switched, true).len() == 1 && switched.damaged.still("x", 0..9).count() == 0
        );
    }
}
