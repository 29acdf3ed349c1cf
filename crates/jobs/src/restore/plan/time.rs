//! Targets by time: what vouches for a moment, and which history it belongs to.

use lifeboat_engine::{RecoveryTarget, SegmentName};
use lifeboat_units::Timestamp;

use super::cut::cut_lenient;
use super::{Chosen, Planner, utc};
use crate::inventory::Backup;
use crate::restore::path::Way;
use crate::restore::target::{Finder, WRITING_LAG};
use crate::restore::{RestoreError, TimelineChoice};

impl<'a> Planner<'a> {
    /// Plans a restore of the last commit at or before a moment.
    pub(super) fn reach_time(&mut self, at: Timestamp) -> Result<Chosen<'a>, RestoreError> {
        let words = utc(at);
        let (backup, way) =
            self.newest(|b| b.facts.stopped_at <= at).map_err(|e| e.with(&words))?;
        self.refuse_forked(&words, at, backup, &way)?;
        let reach = way.reach(backup);
        let gap = reach.gap;
        let segments = cut_lenient(backup, reach)?;
        let (last_commit, end) = self.end_of(backup, &segments)?;
        // A commit across a segment's end may be the one that passes the moment: then the server
        // decides, and says so if it was not.
        let passed = last_commit.is_some_and(|last| last > at)
            || self.hidden_commit(at, backup, &segments)?;
        if !passed {
            if let Some((first, last, count)) = gap {
                return Err(RestoreError::Gap { first, last, count });
            }
            self.refuse_beyond(&words, at, backup, &segments)?;
        }
        let landing = match (passed, last_commit) {
            (true, _) => format!("the last commit at or before {words}"),
            (false, last) => format!(
                "{}, the end of the WAL: no transaction ended after {}",
                end.map_or_else(String::new, |l| l.to_string()),
                last.map_or_else(|| "the backup".to_owned(), utc)
            ),
        };
        let mut segments = segments;
        if passed {
            self.trim_to_time(&mut segments, backup, at)?;
        }
        Ok(Chosen {
            backup,
            way,
            segments,
            because: format!("it is the newest that ended before {words}"),
            landing,
            landing_lsn: if passed { None } else { end },
            last_commit,
            recover_to: if passed { RecoveryTarget::Time(at) } else { RecoveryTarget::Latest },
        })
    }

    /// A moment after the last commit is the end of the WAL, if the server wrote to the last
    /// segment later than that moment: nothing happened in between. Otherwise nobody can know.
    fn refuse_beyond(
        &self,
        words: &str,
        at: Timestamp,
        backup: &Backup,
        segments: &[SegmentName],
    ) -> Result<(), RestoreError> {
        let finder = Finder::new(self.ports, backup.facts.identity.system_id);
        let covered = match segments.last() {
            Some(last) => finder.covered_until(*last)?,
            None => backup.facts.stopped_at,
        };
        if at <= covered {
            return Ok(());
        }
        Err(RestoreError::TooLate {
            target: words.to_owned(),
            last: format!("written {}", utc(covered)),
        })
    }

    /// Leaves out segments that begin after the target: replay does not need them.
    fn trim_to_time(
        &self,
        segments: &mut Vec<SegmentName>,
        backup: &Backup,
        at: Timestamp,
    ) -> Result<(), RestoreError> {
        let finder = Finder::new(self.ports, backup.facts.identity.system_id);
        // Recovery ends at the first commit after the target: the first segment with one is the
        // last that is needed. Found from the end, where it most often is.
        let mut keep = segments.len();
        for (i, segment) in segments.iter().enumerate().rev() {
            match finder.facts(*segment)?.1.and_then(|f| f.last_commit) {
                Some(last) if last > at => keep = i + 1,
                Some(_) => break,
                None => {}
            }
        }
        let (_, least) = backup.segments();
        let size = backup.facts.identity.log_segment;
        let least = segments.iter().take_while(|s| s.number(size) <= Some(least)).count();
        segments.truncate(keep.max(least));
        Ok(())
    }

    /// Where an older timeline went on after a newer one had left it, moments of both lie side by
    /// side: one between the fork and what was first committed on the newer must say which
    /// history it means. Judged by whole segments, so a little around the fork is refused too.
    fn refuse_forked(
        &self,
        words: &str,
        at: Timestamp,
        backup: &Backup,
        way: &Way<'_>,
    ) -> Result<(), RestoreError> {
        if self.request.timeline != TimelineChoice::Latest {
            return Ok(());
        }
        let finder = Finder::new(self.ports, backup.facts.identity.system_id);
        let facts = |name| Ok::<_, RestoreError>(finder.facts(name)?.1.unwrap_or_default());
        for pair in way.timelines(backup).windows(2) {
            let (old, new) = (pair[0], pair[1]);
            let Some(fork) = way.fork(old, backup.facts.identity.log_segment) else { continue };
            let from = facts(fork.left)?.first_commit;
            let until = finder.last_commit(&[fork.left, fork.old_last])?;
            let begins = match fork.new_second {
                Some(second) => facts(second)?.first_commit,
                None => None,
            };
            let on_old = from.is_none_or(|from| at >= from) && until.is_some_and(|end| at <= end);
            if on_old && begins.is_none_or(|first| at < first) {
                return Err(RestoreError::Forked { target: words.to_owned(), new, old });
            }
        }
        Ok(())
    }

    /// Whether a commit near the end lies across two segments, so that its time is not known, and
    /// may be later than the moment.
    fn hidden_commit(
        &self,
        at: Timestamp,
        backup: &Backup,
        segments: &[SegmentName],
    ) -> Result<bool, RestoreError> {
        let finder = Finder::new(self.ports, backup.facts.identity.system_id);
        let Some((last, whole)) = segments.split_last() else { return Ok(false) };
        // What lies before a commit was committed before it, or hardly later.
        let hardly_later = |first: Timestamp| first.saturating_add(WRITING_LAG).ok();
        let first = finder.facts(*last)?.1.and_then(|facts| facts.first_commit);
        if first.and_then(hardly_later).is_some_and(|latest| latest < at) {
            return Ok(false);
        }
        for segment in whole.iter().rev() {
            let Some(facts) = finder.facts(*segment)?.1 else { continue };
            if facts.cut_off {
                return Ok(true);
            }
            if facts.commits > 0 {
                break;
            }
        }
        Ok(false)
    }
}
