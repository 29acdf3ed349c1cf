//! What `lifeboat restore --delta` says of the directory that was there.

use lifeboat_jobs::restore::{DeltaPlan, DeltaReport, RestoreReport, SET_ASIDE};

use crate::ui::{Page, counted};

/// What will be done to the directory.
pub(crate) fn render(delta: &DeltaPlan, page: &mut Page) {
    let found = &delta.differences;
    let what = if delta.unfinished { "an unfinished restore" } else { "a data directory" };
    page.line(format!(
        "delta over {what}: {} compared page by page ({} of another size), {} missing",
        counted(found.files_present, "file"),
        found.files_resized,
        counted(found.files_missing, "file"),
    ));
    if found.files_removed + found.directories_removed > 0 {
        let directories = match found.directories_removed {
            0 => String::new(),
            n => format!(" and {n} directories"),
        };
        let more = if found.removed.len() as u64 == found.files_removed { "" } else { ", …" };
        let (files, names) = (counted(found.files_removed, "file"), found.removed.join(", "));
        page.line(format!("removed: {files}{directories} that the backup has not ({names}{more})"));
    }
    for link in &found.links_replaced {
        page.line(format!("the link {link} gives way; what it leads to is left alone"));
    }
    if let (Some(first), Some(last)) = (delta.set_aside.first(), delta.set_aside.last()) {
        let note = page.note();
        let count = delta.set_aside.len();
        let names = if count == 1 { first.clone() } else { format!("{first} to {last}") };
        page.line(format!(
            "{note} the repository does not have {} of this directory's WAL ({names}): moved to \
             {SET_ASIDE}",
            counted(count as u64, "file"),
        ));
    }
    for place in &delta.left_alone {
        let note = page.note();
        page.line(format!("{note} the tablespace in {} is not used any more", place.display()));
    }
}

/// What was done.
pub(crate) fn done(report: &RestoreReport, delta: &DeltaReport) -> String {
    format!(
        "{} of {} pages differed, {} fetched; {} removed",
        delta.pages_written,
        delta.pages_compared,
        report.fetched_bytes,
        counted(delta.files_removed, "file"),
    )
}
