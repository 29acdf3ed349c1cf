//! Pages that an earlier backup found lost: zeros now, and nothing in the WAL says why. They are
//! named by every backup until they are something else, as damaged pages are.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::facts::{BackupFacts, DamagedPage};

/// What is said of such a page. A later backup knows by these words what a fault was.
pub const LOST: &str = "it was lost: all zeros now, and nothing in the WAL says why";
/// What is said of the first of several, at the end.
pub const HOLE: &str = "pages from here on became a hole";

/// Such pages, by file and number.
#[derive(Debug, Default)]
pub struct LostPages(BTreeMap<String, BTreeMap<u32, String>>);

impl LostPages {
    /// What the sweep of the earlier backup, or of one before it, found lost, and not only missed in
    /// what the server told.
    pub fn of(earlier: &BackupFacts) -> Self {
        let mut all = Self::default();
        let faults = earlier.reading.iter().flat_map(|reading| &reading.faults);
        for fault in faults.filter(|fault| fault.what == LOST || fault.what.ends_with(HOLE)) {
            let file = all.0.entry(fault.path.clone()).or_default();
            file.insert(fault.page, fault.what.clone());
        }
        all
    }

    /// Those among these pages of a file.
    ///
    /// - `pages` counts within the file; all of them are zeros now.
    pub fn still(&self, path: &str, pages: Range<u32>) -> impl Iterator<Item = DamagedPage> {
        let found = self.0.get(path).map(|file| file.range(pages)).into_iter().flatten();
        found.map(move |(page, what)| DamagedPage {
            path: path.to_owned(),
            page: *page,
            what: what.clone(),
        })
    }
}
