//! How a backup found what had changed, in words.

use lifeboat_jobs::facts::{Reading, Way};
use lifeboat_repo::Totals;

use crate::ui::{Page, counted};

/// One line: how much was read, and why.
pub(crate) fn line(totals: &Totals, reading: Option<&Reading>) -> String {
    let read = format!("{} of {}", totals.read_bytes, totals.size_bytes);
    let Some(reading) = reading else { return read };
    match (reading.way, reading.from_lsn, reading.to_lsn, reading.sweep_of) {
        (Way::Hints, Some(from), Some(to), Some(of)) => format!(
            "{read}: WAL summaries from {from} to {to}; the sweep checked 1/{of} of the rest"
        ),
        (Way::First, ..) => format!("{read}: {}", reading.because),
        _ => format!("{read}, compared by hashes: {}", reading.because),
    }
}

/// The pages that changed unseen, if there were any.
pub(crate) fn faults(page: &mut Page, reading: Option<&Reading>) {
    let Some(reading) = reading.filter(|reading| reading.faulty_pages > 0) else { return };
    let cross = page.cross();
    page.line(format!(
        "{cross} {} had changed, or were lost, of which the server said nothing:",
        counted(reading.faulty_pages, "page")
    ));
    for fault in reading.faults.iter().take(20) {
        page.line(format!("  {} page {}: {}", fault.path, fault.page, fault.what));
    }
    page.line("  this backup read everything instead, and so will the next one");
    if reading.lost_pages > 0 {
        page.line("  no earlier good backup is expired because of this one");
    }
}
