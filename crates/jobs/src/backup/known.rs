//! Pages that an earlier backup found wrong, and that are named again until they are something else.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::facts::{BackupFacts, DamagedPage};

/// What is said of a page that was lost. A later backup knows by these words what a fault was.
pub const LOST: &str = "it was lost: all zeros now, and nothing in the WAL says why";
/// What is said of the first of several, at the end.
pub const HOLE: &str = "pages from here on became a hole";

/// What an earlier backup found wrong.
#[derive(Debug, Default)]
pub struct KnownPages {
    /// Zeros, and nothing in the WAL said why. Nothing in the page tells.
    pub lost: Pages,
    /// Damaged. As long as it is the same page it is damaged, also where checksums, which told it,
    /// were switched off meanwhile.
    pub damaged: Pages,
}

impl KnownPages {
    /// What the sweep of the earlier backup, or of one before it, found lost, and not only missed in
    /// what the server told; and what was damaged.
    pub fn of(earlier: &BackupFacts) -> Self {
        let faults = earlier.reading.iter().flat_map(|reading| &reading.faults);
        let lost = faults.filter(|fault| fault.what == LOST || fault.what.ends_with(HOLE));
        Self { lost: Pages::of(lost), damaged: Pages::of(earlier.damage.iter()) }
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
