//! Recovery of the toy engine: what a restored directory is told, and replay of the log.

use std::fs;
use std::io;
use std::path::Path;

use lifeboat_engine::{Lsn, RecoverySettings, RecoveryTarget, SegmentName, TimelineId};
use lifeboat_units::Timestamp;

use crate::toy;
use crate::toy_log::{self, Files, Record, Replayed};

/// What recovery is told lies here.
pub const SETTINGS_FILE: &str = "toy.recovery";
/// Where replay of a backup begins lies here.
pub const LABEL_FILE: &str = "toy_label";

/// Writes what recovery is to do.
pub(crate) fn write_settings(directory: &Path, settings: &RecoverySettings) -> io::Result<()> {
    let target = match &settings.target {
        RecoveryTarget::Latest => "latest".to_owned(),
        RecoveryTarget::Immediate => "immediate".to_owned(),
        RecoveryTarget::Time(at) => format!("time {at}"),
        RecoveryTarget::Lsn(lsn) => format!("lsn {lsn}"),
        RecoveryTarget::Xid(xid) => format!("xid {xid}"),
        RecoveryTarget::Name(name) => format!("name {name}"),
    };
    fs::write(directory.join(SETTINGS_FILE), format!("{target}\n{settings:?}\n"))
}

fn read_target(directory: &Path) -> Result<RecoveryTarget, String> {
    let text = fs::read_to_string(directory.join(SETTINGS_FILE)).map_err(|e| e.to_string())?;
    let line = text.lines().next().unwrap_or_default();
    let (kind, value) = line.split_once(' ').unwrap_or((line, ""));
    let bad = |_| format!("`{line}` is no target");
    Ok(match kind {
        "latest" => RecoveryTarget::Latest,
        "immediate" => RecoveryTarget::Immediate,
        "time" => RecoveryTarget::Time(value.parse::<Timestamp>().map_err(|e| e.to_string())?),
        "lsn" => RecoveryTarget::Lsn(value.parse::<Lsn>().map_err(|e| e.to_string())?),
        "xid" => RecoveryTarget::Xid(value.parse::<u32>().map_err(|e| e.to_string())?),
        "name" => RecoveryTarget::Name(value.to_owned()),
        _ => return Err(bad(())),
    })
}

/// The page files of a data directory.
pub fn files(directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory.join("base/1"))? {
        let entry = entry?;
        let name = format!("base/1/{}", entry.file_name().to_string_lossy());
        files.insert(name, fs::read(entry.path())?);
    }
    Ok(files)
}

/// Recovers a restored directory as a server does, and gives its content. The directory itself
/// stays as it is.
///
/// - `fetch` gives one segment by name; `None` is the end of the archive.
/// - Targets as in PostgreSQL (`xlogrecovery.c`, `recoveryStopsBefore`, `recoveryStopsAfter`): by
///   time before the first commit that is later; by position after the first record that begins
///   at or after it; by number and name after the record.
/// - Errors: the end of the archive before the backup is consistent, or before the target.
pub fn recover(
    directory: &Path,
    mut fetch: impl FnMut(SegmentName) -> Result<Option<Vec<u8>>, String>,
) -> Result<Files, String> {
    if !directory.join(toy::CONTROL_FILE).exists() {
        return Err("there is no control file".to_owned());
    }
    let target = read_target(directory)?;
    let label = fs::read_to_string(directory.join(LABEL_FILE)).map_err(|e| e.to_string())?;
    let start: Lsn = label.trim().parse().map_err(|_| format!("label {label:?}"))?;
    let mut replay = Replay {
        replayed: Replayed::from(files(directory).map_err(|e| e.to_string())?),
        start,
        target,
        consistent: false,
    };
    let mut number = start.segment(toy::segment_size());
    loop {
        let name = SegmentName::new(TimelineId(1), number, toy::segment_size());
        let Some(segment) = fetch(name)? else { break };
        for logged in toy_log::records(name, &segment) {
            if logged.start >= start && replay.step(&logged)? {
                return Ok(replay.replayed.files);
            }
        }
        number = number.next();
    }
    match (replay.consistent, &replay.target) {
        (false, _) => Err("the log ended before the backup was consistent".to_owned()),
        (true, RecoveryTarget::Latest) => Ok(replay.replayed.files),
        (true, target) => Err(format!("the log ended before {target:?}")),
    }
}

struct Replay {
    replayed: Replayed,
    start: Lsn,
    target: RecoveryTarget,
    consistent: bool,
}

impl Replay {
    /// Replays one record; true when it is the end.
    fn step(&mut self, logged: &toy_log::Logged) -> Result<bool, String> {
        if let (RecoveryTarget::Time(until), Record::Commit { at, .. }) =
            (&self.target, &logged.record)
            && at > until
        {
            return self.at_end();
        }
        self.replayed.replay(&logged.record);
        if logged.record == Record::BackupEnd(self.start) {
            self.consistent = true;
            if self.target == RecoveryTarget::Immediate {
                return Ok(true);
            }
        }
        let reached = match (&self.target, &logged.record) {
            (RecoveryTarget::Lsn(lsn), _) => logged.start >= *lsn,
            (RecoveryTarget::Xid(wanted), Record::Commit { xid, .. }) => wanted == xid,
            (RecoveryTarget::Name(wanted), Record::Point { name, .. }) => wanted == name,
            _ => false,
        };
        if reached { self.at_end() } else { Ok(false) }
    }

    fn at_end(&self) -> Result<bool, String> {
        if self.consistent {
            Ok(true)
        } else {
            Err("the target lies before the backup is consistent".to_owned())
        }
    }
}
