//! Decides whether what a server says of its changes may be relied upon.

use std::collections::{BTreeMap, BTreeSet};

use lifeboat_engine::{BackupStart, Changes, ClusterIdentity, Lsn, Origin, Since};
use lifeboat_repo::{BackupId, Manifest};

use super::error::BackupError;
use super::guide::{Guide, Sweep};
use super::table::Swept;
use crate::facts::{BackupFacts, Reading, Way};

/// How a backup is going to find what changed.
pub struct Chosen {
    /// What is known without reading; `None` when everything is read.
    pub guide: Option<Guide>,
    way: Way,
    because: String,
    /// The earlier backup's sweep, or this one's.
    sweep: u64,
    /// Where the backups ended that stored the earlier one's pages.
    stops: BTreeMap<BackupId, Lsn>,
    /// What the server told spans these positions; only without a guide.
    told: Option<(Lsn, Lsn)>,
}

impl Chosen {
    fn everything(earlier: Option<&BackupFacts>, way: Way, because: impl Into<String>) -> Self {
        let reading = earlier.and_then(|facts| facts.reading.as_ref());
        let sweep = reading.map_or(0, |r| r.sweep);
        let stops = reading.map(|r| r.stops.clone()).unwrap_or_default();
        Self { guide: None, way, because: because.into(), sweep, stops, told: None }
    }

    /// There is nothing to compare with.
    pub fn nothing_earlier() -> Self {
        Self::everything(None, Way::First, "there is no earlier backup to compare with")
    }

    /// The server sends all files, or what changed since the earlier backup up to `differences`.
    pub fn streamed(earlier: &BackupFacts, differences: Option<Lsn>, because: String) -> Self {
        let Some(to) = differences else {
            return Self::everything(Some(earlier), Way::Hashes, because);
        };
        let because = "the server sent what had changed";
        let told = Some((earlier.start_lsn, to));
        Self { told, ..Self::everything(Some(earlier), Way::Hints, because) }
    }

    /// Everything is read after all: the sweep met pages that must not have changed.
    pub fn distrust(&mut self) {
        self.guide = None;
        self.way = Way::Hashes;
        self.because = "the sweep met pages that had changed unseen".into();
    }

    /// What goes into the manifest of a backup that refers to what the backups `used` stored, itself
    /// among them, and that ended at `stop`.
    pub fn reading(
        &self,
        swept: Swept,
        used: &BTreeSet<BackupId>,
        (id, stop): (BackupId, Lsn),
    ) -> Reading {
        let mut stops = self.stops.clone();
        stops.insert(id, stop);
        stops.retain(|backup, _| used.contains(backup));
        let guide = self.guide.as_ref();
        Reading {
            way: self.way,
            because: self.because.clone(),
            from_lsn: guide.map(|g| g.from).or(self.told.map(|told| told.0)),
            to_lsn: guide.map(|g| g.to).or(self.told.map(|told| told.1)),
            sweep: guide.map_or(self.sweep, |g| g.sweep.counter),
            sweep_of: guide.map(|g| g.sweep.of),
            swept_pages: swept.pages,
            hint_only_pages: swept.hint_only,
            faults: swept.faults,
            faulty_pages: swept.faulty,
            lost_pages: swept.lost,
            stops,
        }
    }
}

/// Asks the server what changed, if its answer may count. Whatever is in doubt is read.
pub fn choose(
    origin: &mut dyn Origin,
    identity: &ClusterIdentity,
    start: &BackupStart,
    previous: Option<&Manifest>,
    (full_read, sweep_of): (bool, u32),
) -> Result<Chosen, BackupError> {
    let Some(previous) = previous else {
        return Ok(Chosen::nothing_earlier());
    };
    let facts = BackupFacts::of(previous)?;
    // Positions in another system's WAL mean nothing in this one's.
    let known = (facts.identity.system_id == identity.system_id).then_some(&facts);
    let by_hashes = |because: String| Chosen::everything(known, Way::Hashes, because);
    if full_read {
        return Ok(by_hashes("--full-read asks for it".into()));
    }
    if let Some(because) = doubt(&facts, identity, Some(start)) {
        return Ok(by_hashes(because));
    }
    let since = Since { timeline: start.timeline, start: facts.start_lsn };
    let map = match origin.changes(&since)? {
        Changes::Unknown { because } => return Ok(by_hashes(because)),
        Changes::Known(map) => map,
    };
    let counter = facts.reading.as_ref().map_or(0, |r| r.sweep).wrapping_add(1);
    let stops = facts.reading.as_ref().map(|r| r.stops.clone()).unwrap_or_default();
    Ok(Chosen {
        way: Way::Hints,
        because: "the server says what changed".into(),
        sweep: counter,
        stops: stops.clone(),
        told: None,
        guide: Some(Guide {
            map,
            from: facts.start_lsn,
            to: start.lsn,
            sweep: Sweep { counter, of: sweep_of },
            stops,
            doubtful: facts.damage.iter().map(|d| d.path.clone()).collect::<BTreeSet<_>>(),
        }),
    })
}

/// Why what a server says since an earlier backup does not count; `None` when it may. Where this
/// backup starts is not known before the server is asked for one over the network.
pub fn doubt(
    earlier: &BackupFacts,
    identity: &ClusterIdentity,
    start: Option<&BackupStart>,
) -> Option<String> {
    let theirs = &earlier.identity;
    if theirs.system_id != identity.system_id {
        return Some("another system continues the cluster since the earlier backup".into());
    }
    if theirs.checksums != identity.checksums {
        let now = if identity.checksums { "on" } else { "off" };
        return Some(format!("checksums were switched {now} since the earlier backup"));
    }
    if (theirs.catalog_version, theirs.pages_per_file)
        != (identity.catalog_version, identity.pages_per_file)
    {
        return Some("the server was built anew since the earlier backup".into());
    }
    if let Some(start) = start
        && earlier.timeline != start.timeline
    {
        return Some(format!(
            "the server went from timeline {} to {} since the earlier backup",
            earlier.timeline, start.timeline
        ));
    }
    // A standby's restart point can lie before the end of the earlier backup, whose pages may
    // then be newer than this one.
    if let Some(start) = start
        && earlier.stop_lsn > start.lsn
    {
        let (stop, start): (Lsn, Lsn) = (earlier.stop_lsn, start.lsn);
        return Some(format!("the earlier backup ends at {stop}, after this one begins ({start})"));
    }
    if earlier.reading.as_ref().is_some_and(|reading| reading.faulty_pages > 0) {
        return Some("the earlier backup's sweep met pages that had changed unseen".into());
    }
    if earlier.damaged_pages > earlier.damage.len() as u64 {
        return Some("the earlier backup met more damaged pages than it lists".into());
    }
    None
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::{SegmentSize, SystemId, TimelineId};
    use lifeboat_units::Timestamp;

    use super::*;
    use crate::facts::{DamagedPage, StoredFile};

    fn earlier() -> BackupFacts {
        BackupFacts {
            engine: "toy".into(),
            server_version: "1".into(),
            identity: ClusterIdentity {
                system_id: SystemId(7),
                major: 18,
                catalog_version: 1,
                page_bytes: 8192,
                pages_per_file: 131_072,
                log_segment: SegmentSize::DEFAULT,
                checksums: true,
            },
            timeline: TimelineId(2),
            start_lsn: Lsn(100),
            stop_lsn: Lsn(200),
            started_at: Timestamp::UNIX_EPOCH,
            stopped_at: Timestamp::UNIX_EPOCH,
            note: None,
            directories: Vec::new(),
            tablespaces: Vec::new(),
            generated: Vec::new(),
            control_file: StoredFile::new("global/pg_control", b""),
            damage: Vec::new(),
            damaged_pages: 0,
            proven: false,
            reading: None,
        }
    }

    fn start(timeline: u32, lsn: u64) -> BackupStart {
        let timeline = TimelineId(timeline);
        BackupStart { lsn: Lsn(lsn), timeline, at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn pages_are_proven_for_the_checksums_that_they_were_checked_with() {
        let proven = BackupFacts { proven: true, ..earlier() };
        let with = |checksums| ClusterIdentity { checksums, ..earlier().identity };
        assert!(proven.proves(&with(true)) && !proven.proves(&with(false)));
        assert!(!earlier().proves(&with(true)));
    }

    #[test]
    fn what_breaks_the_line_from_the_earlier_backup_voids_every_hint() {
        let good = earlier();
        let identity = good.identity.clone();
        let why = |facts: &BackupFacts, identity: &ClusterIdentity, timeline, lsn| {
            doubt(facts, identity, Some(&start(timeline, lsn))).unwrap_or_default()
        };
        assert_eq!(why(&good, &identity, 2, 200), "");
        let off = ClusterIdentity { checksums: false, ..identity.clone() };
        assert!(why(&good, &off, 2, 300).contains("checksums were switched off"));
        assert!(why(&good, &identity, 3, 300).contains("timeline 2 to 3"));
        assert!(why(&good, &identity, 1, 300).contains("timeline 2 to 1"));
        assert!(why(&good, &identity, 2, 199).contains("after this one begins"));
        let upgraded = ClusterIdentity { system_id: SystemId(8), ..identity.clone() };
        assert!(why(&good, &upgraded, 2, 300).contains("another system"));
        let built = ClusterIdentity { pages_per_file: 1, ..identity.clone() };
        assert!(why(&good, &built, 2, 300).contains("built anew"));
        let many = BackupFacts { damaged_pages: 1, ..earlier() };
        assert!(why(&many, &identity, 2, 300).contains("more damaged pages"));
        let page = DamagedPage { path: "base/1/7".into(), page: 3, what: String::new() };
        let listed = BackupFacts { damaged_pages: 1, damage: vec![page], ..earlier() };
        assert_eq!(why(&listed, &identity, 2, 300), "");
        let chosen = Chosen::everything(None, Way::Hashes, "");
        let id = "20261122T231501Z-00000001".parse().unwrap();
        let swept = Swept { faulty: 1, ..Swept::default() };
        let reading = chosen.reading(swept, &BTreeSet::from([id]), (id, Lsn(9)));
        assert_eq!(reading.stops, BTreeMap::from([(id, Lsn(9))]));
        let faulty = BackupFacts { reading: Some(reading), ..earlier() };
        assert!(why(&faulty, &identity, 2, 300).contains("changed unseen"));
    }
}
