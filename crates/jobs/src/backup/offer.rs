//! Offers an earlier backup to a server that can send differences.

use lifeboat_engine::{ClusterIdentity, Earlier, EarlierFile, Origin};
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{Manifest, RepoError};

use super::error::BackupError;
use super::way::doubt;
use crate::facts::{BackupFacts, Way};
use crate::ports::Ports;

/// Why nothing was offered, if nothing was.
pub type Offered = Result<(), String>;

/// Offers `previous`, when the server takes offers and the backup is fit for it.
pub fn make(
    ports: &Ports<'_>,
    origin: &mut dyn Origin,
    previous: Option<&Manifest>,
    identity: &ClusterIdentity,
    (full_read, sweep_of): (bool, u32),
) -> Result<Offered, BackupError> {
    if !origin.takes_offers() {
        return Ok(Err("the server cannot send differences".to_owned()));
    }
    let Some(previous) = previous else {
        return Ok(Err("there is no backup to compare with".to_owned()));
    };
    if full_read {
        return Ok(Err("--full-read asks for it".to_owned()));
    }
    let facts = BackupFacts::of(previous)?;
    if let Some(why) = doubt(&facts, identity, None) {
        return Ok(Err(why));
    }
    if facts.damaged_pages > 0 {
        // Pages that are not sent would be taken over as they are, repaired or not.
        return Ok(Err("the earlier backup has damaged pages".to_owned()));
    }
    if !was_read_lately(ports, sweep_of)? {
        return Ok(Err(format!("none of the last {} backups read everything", sweep_of - 1)));
    }
    let earlier =
        Earlier { start: facts.start_lsn, stop: facts.stop_lsn, timeline: facts.timeline };
    let reader = IndexReader::new(ports.cluster, previous.page_bytes);
    let mut failed = None;
    let mut files = relations(&reader, previous, &mut failed);
    let result = origin.offer(&earlier, &mut files);
    drop(files);
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(Ok(result?)),
    }
}

/// Whether one of the backups before this one, so few that this one is not the `sweep_of`th,
/// compared everything by its hashes. A stream of differences has no sweep of its own.
fn was_read_lately(ports: &Ports<'_>, sweep_of: u32) -> Result<bool, BackupError> {
    let lately = ports.cluster.backups()?.into_iter().rev().take(sweep_of as usize - 1);
    for id in lately {
        let manifest = match ports.cluster.manifest(id) {
            Ok(manifest) => manifest,
            Err(RepoError::Damaged { .. }) => continue,
            Err(other) => return Err(other.into()),
        };
        let way = BackupFacts::of(&manifest)?.reading.map(|reading| reading.way);
        if way != Some(Way::Hints) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Files of which a part may be taken over: those of relations that have whole pages only.
fn relations<'a>(
    reader: &'a IndexReader,
    manifest: &'a Manifest,
    failed: &'a mut Option<RepoError>,
) -> impl Iterator<Item = EarlierFile> + 'a {
    let chunks = manifest.chunks.iter().map_while(move |chunk| match reader.chunk(chunk) {
        Ok(files) => Some(files),
        Err(error) => {
            *failed = Some(error);
            None
        }
    });
    let page_bytes = u64::from(manifest.page_bytes);
    let whole = move |size: u64| size > 0 && size.is_multiple_of(page_bytes);
    chunks
        .flatten()
        .filter(move |file| file.first_page.is_some() && whole(file.size_bytes))
        .map(|file| (file.path, file.size_bytes))
}
