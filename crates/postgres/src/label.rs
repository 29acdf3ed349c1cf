//! `backup_label`: where recovery of a base backup begins.
//!
//! Source: `build_backup_content` in PostgreSQL `src/backend/access/transam/xlogbackup.c` (15 and
//! later; `do_pg_start_backup` in `xlog.c` before), `read_backup_label` in `xlogrecovery.c`.

use std::fmt;

use lifeboat_engine::{Lsn, SegmentName, TimelineId};
use lifeboat_units::{Code, Explain, Retry};

/// A `backup_label` that a server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the backup label is not one: its line `{field}` is missing or out of place")]
pub struct LabelError {
    /// Which line was looked for.
    pub field: &'static str,
}

impl Explain for LabelError {
    fn code(&self) -> Code {
        Code("LB-LBL-001")
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn help(&self) -> Option<String> {
        Some("`backup_label` must be as the server gave it, line for line".to_owned())
    }
}

/// What a `backup_label` says. `Display` writes it as the server does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Redo position: where replay begins.
    pub start: Lsn,
    /// The segment that holds it.
    pub segment: SegmentName,
    /// Where the checkpoint record of the backup's start begins.
    pub checkpoint: Lsn,
    /// How the backup was taken; `streamed` for every backup since version 15.
    pub method: String,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// When it began, in the server's log time zone: `2026-11-22 10:00:00 UTC`. The zone may
    /// be an abbreviation without a certain meaning, so that it stays text.
    pub started_at: String,
    /// The name that was given to the backup; may hold anything, line ends too.
    pub label: String,
    /// Timeline on which it began.
    pub timeline: TimelineId,
    /// Start and timeline of the backup that this one is relative to (since version 17).
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// The lines, in the order in which a server writes and reads them.
const START: &str = "START WAL LOCATION: ";
const CHECKPOINT: &str = "CHECKPOINT LOCATION: ";
const METHOD: &str = "BACKUP METHOD: ";
const FROM: &str = "BACKUP FROM: ";
const TIME: &str = "START TIME: ";
const LABEL: &str = "LABEL: ";
const TIMELINE: &str = "START TIMELINE: ";
const INCREMENTAL: &str = "INCREMENTAL FROM LSN: ";
const INCREMENTAL_TIMELINE: &str = "INCREMENTAL FROM TLI: ";

impl BackupLabel {
    /// Reads a label.
    ///
    /// - Errors when a line is missing or out of order. Never panics.
    /// - Checked by: `labels_of_real_servers_read_and_write_back`.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let mut rest = text;
        let start = line(&mut rest, START)?;
        let (position, file) = start.split_once(" (file ").ok_or(LabelError { field: START })?;
        let file = file.strip_suffix(')').ok_or(LabelError { field: START })?;
        let checkpoint = line(&mut rest, CHECKPOINT)?;
        let method = line(&mut rest, METHOD)?;
        let from_standby = match line(&mut rest, FROM)? {
            "primary" | "master" => false, // `master` up to version 14
            "standby" => true,
            _ => return Err(LabelError { field: FROM }),
        };
        let started_at = line(&mut rest, TIME)?;
        // The label is the user's text: it ends where the last line of that name begins.
        let named = rest.strip_prefix(LABEL).ok_or(LabelError { field: LABEL })?;
        let end = named.rfind(&format!("\n{TIMELINE}")).ok_or(LabelError { field: TIMELINE })?;
        rest = &named[end + 1..];
        let timeline = line(&mut rest, TIMELINE)?;
        let incremental_from = if rest.is_empty() {
            None
        } else {
            let from = parsed(line(&mut rest, INCREMENTAL)?, INCREMENTAL)?;
            let on = line(&mut rest, INCREMENTAL_TIMELINE)?;
            Some((from, TimelineId(parsed(on, INCREMENTAL_TIMELINE)?)))
        };
        Ok(Self {
            start: parsed(position, START)?,
            segment: parsed(file, START)?,
            checkpoint: parsed(checkpoint, CHECKPOINT)?,
            method: method.to_owned(),
            from_standby,
            started_at: started_at.to_owned(),
            label: named[..end].to_owned(),
            timeline: TimelineId(parsed(timeline, TIMELINE)?),
            incremental_from,
        })
    }
}

/// Takes the next line off, which must begin so.
fn line<'a>(rest: &mut &'a str, field: &'static str) -> Result<&'a str, LabelError> {
    let (value, after) = rest
        .strip_prefix(field)
        .and_then(|text| text.split_once('\n'))
        .ok_or(LabelError { field })?;
    *rest = after;
    Ok(value)
}

fn parsed<T: std::str::FromStr>(text: &str, field: &'static str) -> Result<T, LabelError> {
    text.parse().map_err(|_| LabelError { field })
}

impl fmt::Display for BackupLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.from_standby { "standby" } else { "primary" };
        writeln!(f, "{START}{} (file {})", self.start, self.segment)?;
        writeln!(f, "{CHECKPOINT}{}", self.checkpoint)?;
        writeln!(f, "{METHOD}{}", self.method)?;
        writeln!(f, "{FROM}{from}")?;
        writeln!(f, "{TIME}{}", self.started_at)?;
        writeln!(f, "{LABEL}{}", self.label)?;
        writeln!(f, "{TIMELINE}{}", self.timeline)?;
        if let Some((lsn, timeline)) = self.incremental_from {
            writeln!(f, "{INCREMENTAL}{lsn}\n{INCREMENTAL_TIMELINE}{timeline}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2026-11-22 23:00:00 UTC\nLABEL: nightly\nSTART TIMELINE: 1\n";

    #[test]
    fn a_label_reads_and_writes_back() {
        let label = BackupLabel::parse(TEXT).unwrap();
        assert_eq!(label.start, Lsn(0x200_0028));
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!(label.segment.to_string(), "000000010000000000000002");
        assert!(label.from_standby);
        assert_eq!((label.label.as_str(), label.timeline), ("nightly", TimelineId(1)));
        assert_eq!(label.incremental_from, None);
        assert_eq!(label.to_string(), TEXT);

        let text = format!("{TEXT}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(&text).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn(0x100_0028), TimelineId(1))));
        assert_eq!(label.to_string(), text);
    }

    #[test]
    fn a_name_with_line_ends_cannot_pose_as_other_lines() {
        let text = TEXT.replace("nightly", "a\nSTART TIMELINE: 7\nLABEL: b");
        let label = BackupLabel::parse(&text).unwrap();
        assert_eq!(label.timeline, TimelineId(1));
        assert_eq!(label.label, "a\nSTART TIMELINE: 7\nLABEL: b");
    }

    #[test]
    fn a_label_without_any_one_line_is_refused() {
        for skip in 0..7 {
            let lines = TEXT.lines().enumerate().filter(|(at, _)| *at != skip);
            let text: String = lines.map(|(_, line)| format!("{line}\n")).collect();
            assert!(BackupLabel::parse(&text).is_err(), "{text}");
        }
        for end in 0..TEXT.len() {
            assert!(BackupLabel::parse(&TEXT[..end]).is_err(), "{end}");
        }
        assert!(BackupLabel::parse(&format!("{TEXT}more\n")).is_err());
    }

    proptest! {
        /// Law: no text makes the decoder panic, and what it accepts writes back and reads again.
        #[test]
        fn damaged_labels_do_no_harm(at in 0..TEXT.len(), with in "[ -~\n]{0,4}") {
            let text = format!("{}{with}{}", &TEXT[..at], &TEXT[(at + 1).min(TEXT.len())..]);
            if let Ok(label) = BackupLabel::parse(&text) {
                prop_assert_eq!(BackupLabel::parse(&label.to_string()), Ok(label));
            }
        }
    }
}
