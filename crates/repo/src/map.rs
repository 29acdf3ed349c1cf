//! Page maps: for every page of a file its hash, and the extent in which it lies.
//!
//! Format: docs/format/page-map.md. A map is made of parts of [`PART_PAGES`] pages, so that a
//! change rewrites little.

use std::collections::HashMap;

use crate::codec::EXTENT_BYTES_MAX;
use crate::error::RepoError;
use crate::id::BackupId;
use crate::pack::{BOX_BYTES_MAX, BoxRef, PACK_BYTES_MAX, PackId};
use crate::wire::{Reader, put_signed, put_varint};

/// Pages in one part of a map: 64 MiB of a database with pages of 8 KiB.
pub const PART_PAGES: u32 = 8192;
/// What stands for the hash of a page of zeros. No other page has it: see [`page_hash`].
pub const ZERO_PAGE: u64 = 0;

/// Keeps [`ZERO_PAGE`] free: the one hash in 2^64 that would collide moves by one.
pub fn page_hash(raw: u64) -> u64 {
    if raw == ZERO_PAGE { 1 } else { raw }
}

/// Sessions that a map refers to, each written once.
#[derive(Debug, Default, Clone)]
pub struct Sessions {
    list: Vec<BackupId>,
    places: HashMap<BackupId, u64>,
}

impl Sessions {
    /// The number of a session in this table; added if it is new.
    pub(crate) fn place(&mut self, id: BackupId) -> u64 {
        *self.places.entry(id).or_insert_with(|| {
            self.list.push(id);
            (self.list.len() - 1) as u64
        })
    }

    /// Reads the number of a session and gives the session.
    pub(crate) fn read(&self, reader: &mut Reader<'_>) -> Result<BackupId, RepoError> {
        let place = reader.varint()?;
        let id = usize::try_from(place).ok().and_then(|place| self.list.get(place));
        id.copied().ok_or_else(|| reader.damaged("it names a session that is not in its list"))
    }

    /// Appends the table.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.list.len() as u64);
        self.list.iter().for_each(|id| out.extend_from_slice(id.as_bytes()));
    }

    /// Reads a table.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, RepoError> {
        let count = reader.count(BackupId::BYTES, "the number of sessions")?;
        let mut sessions = Self::default();
        for _ in 0..count {
            let bytes = reader.take(BackupId::BYTES)?;
            let id = BackupId::from_bytes(bytes)
                .ok_or_else(|| reader.damaged("a session has an impossible name"))?;
            sessions.place(id);
        }
        if sessions.list.len() == count {
            Ok(sessions)
        } else {
            Err(reader.damaged("a session is named twice"))
        }
    }
}

/// Consecutive pages that lie one after the other in one extent, or that are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many pages.
    pub pages: u32,
    /// Where the first of them lies.
    pub source: Source,
}

/// Where pages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: they are zero.
    Zero,
    /// In an extent.
    Extent {
        /// Which of the part's extents.
        index: u32,
        /// Offset in the extent before compression, in bytes.
        offset: u32,
    },
}

/// One part of a page map: up to [`PART_PAGES`] pages of one file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct MapPart {
    /// Hash of every page, [`ZERO_PAGE`] for pages of zeros.
    pub hashes: Vec<u64>,
    /// Where the pages lie; together as many as there are hashes.
    pub runs: Vec<Run>,
    /// The extents that the runs refer to; each is used.
    pub extents: Vec<BoxRef>,
}

impl MapPart {
    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// Whether all pages are zero.
    pub fn is_zero(&self) -> bool {
        self.extents.is_empty()
    }

    /// The packs that hold its pages and the sessions that sealed them, sorted, each once.
    pub fn packs(&self) -> Vec<(PackId, BackupId)> {
        let mut packs: Vec<_> = self.extents.iter().map(|e| (e.pack, e.sealed_by)).collect();
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// Appends the part. `sessions` is written by the caller, in front of it.
    pub fn encode(&self, page_bytes: u32, sessions: &mut Sessions, out: &mut Vec<u8>) {
        put_varint(out, self.hashes.len() as u64);
        self.encode_extents(sessions, out);
        self.encode_runs(page_bytes, out);
        for hash in self.hashes.iter().filter(|h| **h != ZERO_PAGE) {
            out.extend_from_slice(&hash.to_le_bytes());
        }
    }

    fn encode_extents(&self, sessions: &mut Sessions, out: &mut Vec<u8>) {
        put_varint(out, self.extents.len() as u64);
        let mut last: Option<&BoxRef> = None;
        for extent in &self.extents {
            let (pack, end, number) = predict(last);
            put_varint(out, sessions.place(extent.pack.session));
            put_varint(out, sessions.place(extent.sealed_by));
            put_signed(out, i64::from(extent.pack.number) - pack);
            put_signed(out, i64::from(extent.offset) - end);
            put_varint(out, u64::from(extent.length));
            put_signed(out, extent.number.wrapping_sub(number) as i64);
            last = Some(extent);
        }
    }

    fn encode_runs(&self, page_bytes: u32, out: &mut Vec<u8>) {
        put_varint(out, self.runs.len() as u64);
        let mut expected = (0i64, 0i64);
        for run in &self.runs {
            put_varint(out, u64::from(run.pages));
            match run.source {
                Source::Zero => put_varint(out, 0),
                Source::Extent { index, offset } => {
                    let step = i64::from(index) - expected.0;
                    put_varint(out, zigzag(step) + 1);
                    put_signed(out, i64::from(offset) - if step == 0 { expected.1 } else { 0 });
                    expected = (
                        i64::from(index),
                        i64::from(offset) + i64::from(run.pages) * i64::from(page_bytes),
                    );
                }
            }
        }
    }

    /// Reads a part; refuses whatever does not fit together.
    pub fn decode(
        reader: &mut Reader<'_>,
        page_bytes: u32,
        sessions: &Sessions,
    ) -> Result<Self, RepoError> {
        let pages = reader.bounded(u64::from(PART_PAGES), "the number of pages")? as u32;
        let extents = decode_extents(reader, sessions)?;
        let runs = decode_runs(reader, page_bytes, extents.len(), pages)?;
        let mut hashes = Vec::with_capacity(pages as usize);
        for run in &runs {
            match run.source {
                Source::Zero => hashes.resize(hashes.len() + run.pages as usize, ZERO_PAGE),
                Source::Extent { .. } => {
                    let raw = reader.take(run.pages as usize * 8)?;
                    let raw = raw.as_chunks::<8>().0;
                    hashes.extend(raw.iter().map(|bytes| u64::from_le_bytes(*bytes)));
                }
            }
        }
        // Only pages in no extent have the hash of zeros: a reader may go by either.
        let zero_runs: usize =
            runs.iter().filter(|r| r.source == Source::Zero).map(|r| r.pages as usize).sum();
        if hashes.iter().filter(|hash| **hash == ZERO_PAGE).count() != zero_runs {
            return Err(reader.damaged("a page in an extent has the hash of a page of zeros"));
        }
        Ok(Self { hashes, runs, extents })
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// What an extent's pack, offset and number are if it follows the one before.
fn predict(last: Option<&BoxRef>) -> (i64, i64, u64) {
    last.map_or((0, 0, 0), |last| {
        (
            i64::from(last.pack.number),
            i64::from(last.offset) + i64::from(last.length),
            last.number.wrapping_add(1),
        )
    })
}

fn decode_extents(reader: &mut Reader<'_>, sessions: &Sessions) -> Result<Vec<BoxRef>, RepoError> {
    let count = reader.count(6, "the number of extents")?;
    let mut extents: Vec<BoxRef> = Vec::with_capacity(count);
    for _ in 0..count {
        let (pack, end, number) = predict(extents.last());
        let session = sessions.read(reader)?;
        let sealed_by = sessions.read(reader)?;
        let pack = reader.signed()?.checked_add(pack).and_then(|n| u32::try_from(n).ok());
        let offset = reader
            .signed()?
            .checked_add(end)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| u64::from(*n) < PACK_BYTES_MAX);
        let (Some(pack), Some(offset)) = (pack, offset) else {
            return Err(reader.damaged("an extent lies at an impossible place"));
        };
        let length = reader.bounded(u64::from(BOX_BYTES_MAX), "the length of an extent")? as u32;
        let number = number.wrapping_add(reader.signed()? as u64);
        let pack = PackId { session, number: pack };
        extents.push(BoxRef { pack, offset, length, sealed_by, number });
    }
    Ok(extents)
}

fn decode_runs(
    reader: &mut Reader<'_>,
    page_bytes: u32,
    extents: usize,
    pages: u32,
) -> Result<Vec<Run>, RepoError> {
    let count = reader.count(2, "the number of runs")?;
    let mut runs = Vec::with_capacity(count);
    let mut total = 0u64;
    let mut expected = (0i64, 0i64);
    for _ in 0..count {
        let run_pages = reader.bounded(u64::from(pages), "the length of a run")? as u32;
        total += u64::from(run_pages);
        let tag = reader.varint()?;
        let source = if tag == 0 {
            Source::Zero
        } else {
            let raw = tag - 1;
            let step = ((raw >> 1) as i64) ^ -((raw & 1) as i64);
            let base = if step == 0 { expected.1 } else { 0 };
            let index = expected.0.checked_add(step);
            let offset = reader.signed()?.checked_add(base);
            let (Some(index), Some(offset)) = (index, offset) else {
                return Err(reader.damaged("a run lies at an impossible place"));
            };
            if !(0..extents as i64).contains(&index)
                || !(0..EXTENT_BYTES_MAX as i64).contains(&offset)
            {
                return Err(reader.damaged("a run lies outside of its extent"));
            }
            let end = offset + i64::from(run_pages) * i64::from(page_bytes);
            // The last page may be the short end of a file; it begins in the extent all the same.
            if end - i64::from(page_bytes) >= EXTENT_BYTES_MAX as i64 {
                return Err(reader.damaged("a run leads out of its extent"));
            }
            expected = (index, end);
            Source::Extent { index: index as u32, offset: offset as u32 }
        };
        if run_pages == 0 {
            return Err(reader.damaged("a run is empty"));
        }
        runs.push(Run { pages: run_pages, source });
    }
    if total == u64::from(pages) {
        Ok(runs)
    } else {
        Err(reader.damaged("its runs do not add up to its pages"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn session(n: u8) -> BackupId {
        format!("20261122T2315{:02}Z-0000000{}", n % 60, n % 10).parse().unwrap()
    }

    prop_compose! {
        fn extent()(s in 0u8..4, k in 0u8..4, pack in 0u32..9, offset in 8u32..16_000_000,
                    length in 0u32..300_000, number in any::<u64>()) -> BoxRef {
            let pack = PackId { session: session(s), number: pack };
            BoxRef { pack, offset, length, sealed_by: session(k), number }
        }
    }

    prop_compose! {
        fn part()(extents in proptest::collection::vec(extent(), 1..20),
                  shape in proptest::collection::vec((1u32..40, any::<bool>(), 0u32..32), 0..40))
                  -> MapPart {
            let mut part = MapPart { extents, ..MapPart::default() };
            for (i, (pages, zero, slot)) in shape.into_iter().enumerate() {
                let index = (i % part.extents.len()) as u32;
                let source = if zero {
                    Source::Zero
                } else {
                    Source::Extent { index, offset: slot * 8192 }
                };
                part.runs.push(Run { pages, source });
                let hash = if zero { ZERO_PAGE } else { 77 + i as u64 };
                part.hashes.resize(part.hashes.len() + pages as usize, hash);
            }
            part
        }
    }

    proptest! {
        /// Law: every part reads back as it was written.
        #[test]
        fn a_part_reads_back(part in part()) {
            let (mut sessions, mut body) = (Sessions::default(), Vec::new());
            part.encode(8192, &mut sessions, &mut body);
            let mut reader = Reader::new("x", &body);
            prop_assert_eq!(&MapPart::decode(&mut reader, 8192, &sessions).unwrap(), &part);
            reader.finish().unwrap();
        }

        /// Law: no bytes make the decoder panic; what it accepts fits together.
        #[test]
        fn nonsense_is_refused(part in part(), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let (mut sessions, mut body) = (Sessions::default(), Vec::new());
            part.encode(8192, &mut sessions, &mut body);
            let at = at.index(body.len());
            body[at] ^= flip;
            if let Ok(part) = MapPart::decode(&mut Reader::new("x", &body), 8192, &sessions) {
                prop_assert_eq!(
                    part.runs.iter().map(|r| r.pages).sum::<u32>() as usize,
                    part.hashes.len()
                );
            }
        }
    }
}
