//! What to push next, and what is stale: decisions without input or output.

use std::collections::HashSet;
use std::time::Duration;

use lifeboat_engine::LogFile;

/// Files that one thread pushes behind one barrier, at most.
const BATCH_FILES_MAX: usize = 8;
/// First pause after a failure; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause after a failure: a call that comes meanwhile ends it anyway.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Sorts files in the order in which the server asks for them: histories first, then by name.
///
/// Source: `ready_file_comparator` in PostgreSQL `src/backend/postmaster/pgarch.c`.
pub fn by_need(files: &mut [LogFile]) {
    files.sort_by_cached_key(|file| need(*file));
}

/// What comes first is less.
pub fn need(file: LogFile) -> (bool, String) {
    (!matches!(file, LogFile::History(_)), file.to_string())
}

/// How many of `waiting` files one of `jobs` threads takes: half of what falls to it, so that who
/// is through first takes of the rest, and the first in need do not wait for a long batch.
pub fn share(waiting: usize, jobs: usize) -> usize {
    waiting.div_ceil(2 * jobs.max(1)).clamp(1, BATCH_FILES_MAX)
}

/// Which of the files that the spool knows no longer wait: their entries are stale.
///
/// The spool must have been listed *before* the server's notes were: a file whose entry was there
/// and whose note is not there later was seen by the server, or vanished.
pub fn stale(known: &[LogFile], waiting: &HashSet<LogFile>) -> Vec<LogFile> {
    known.iter().filter(|file| !waiting.contains(file)).copied().collect()
}

/// How long a file rests after so many failures in a row.
pub fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

/// Which files to give up, given all that wait in order of need: the oldest segments, until the
/// rest is within the limit. Only segments are worth it.
pub fn excess(waiting: &[LogFile], segment_bytes: u64, limit_bytes: u64) -> Vec<LogFile> {
    let segments = waiting.iter().filter(|file| matches!(file, LogFile::Segment(_)));
    let limit = limit_bytes.checked_div(segment_bytes).unwrap_or(u64::MAX);
    let count = segments.clone().count();
    let over = count.saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    segments.take(over).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<LogFile> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn histories_come_first_and_all_else_by_name() {
        let mut given = files(&[
            "000000020000000000000005",
            "000000010000000000000005.partial",
            "00000002.history",
            "000000010000000000000004",
            "000000010000000000000004.00000028.backup",
        ]);
        by_need(&mut given);
        let expected = files(&[
            "00000002.history",
            "000000010000000000000004",
            "000000010000000000000004.00000028.backup",
            "000000010000000000000005.partial",
            "000000020000000000000005",
        ]);
        assert_eq!(given, expected);
    }

    #[test]
    fn shares_are_small_for_few_and_bounded_for_many() {
        for (waiting, jobs, expected) in
            [(0, 2, 1), (1, 2, 1), (4, 2, 1), (5, 2, 2), (16, 2, 4), (1000, 2, 8), (5, 0, 3)]
        {
            assert_eq!(share(waiting, jobs), expected, "{waiting} files, {jobs} threads");
        }
    }

    #[test]
    fn what_no_longer_waits_is_stale() {
        let known = files(&["000000010000000000000001", "000000010000000000000002"]);
        let waiting = HashSet::from([known[1]]);
        assert_eq!(stale(&known, &waiting), known[..1]);
        assert_eq!(stale(&known, &HashSet::new()), known);
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let seconds = |n| pause(n).as_secs();
        assert_eq!([1, 2, 3, 7, 40].map(seconds), [1, 2, 4, 60, 60]);
    }

    #[test]
    fn only_the_oldest_segments_beyond_the_limit_are_given_up() {
        let waiting = files(&[
            "00000002.history",
            "000000010000000000000001",
            "000000010000000000000001.00000028.backup",
            "000000010000000000000002",
            "000000010000000000000003",
        ]);
        let segment = 16 << 20;
        assert_eq!(excess(&waiting, segment, 3 * segment), []);
        assert_eq!(excess(&waiting, segment, 3 * segment - 1), [waiting[1]]);
        assert_eq!(excess(&waiting, segment, 0), [waiting[1], waiting[3], waiting[4]]);
        assert_eq!(excess(&waiting, 0, 0), []);
    }
}
