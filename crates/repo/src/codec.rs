//! Compression of extents: what is sealed says how it was made smaller.
//!
//! Format: docs/format/extent.md.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zstd::zstd_safe::CParameter;

use crate::error::RepoError;

/// Largest extent before compression, in bytes: 32 pages of 32 KiB.
pub const EXTENT_BYTES_MAX: usize = 1 << 20;
/// Codec, transform and raw length in front of every extent's payload.
pub const HEAD_BYTES: usize = 6;

/// How extents are compressed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compression {
    /// Per extent the cheapest codec that loses next to nothing.
    #[default]
    Auto,
    /// zstd at this level, 1 to 19.
    Zstd(i32),
    /// LZ4, for hosts that are short of processor time.
    Lz4,
    /// Stored as it is.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::Lz4 => f.write_str("lz4"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for Compression {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "lz4" => Ok(Self::Lz4),
            "none" => Ok(Self::None),
            _ => text
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok())
                .filter(|level| (1..=19).contains(level))
                .map(Self::Zstd)
                .ok_or_else(|| {
                    format!("`{text}` is not a compression: auto, zstd:1 to zstd:19, lz4 or none")
                }),
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

/// A reversible reordering of an extent's bytes before compression. The repository knows only
/// its number; who knows the bytes provides it.
pub trait Reorder: Send + Sync {
    /// Number of the transform in the format, 1 to 255.
    fn id(&self) -> u8;
    /// Appends the reordered bytes; false (and `out` unchanged) to decline.
    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool;
    /// Replaces the content of `out`, which is as long as the original, by the original bytes; the
    /// text says what is wrong.
    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), String>;
}

/// Transforms by number.
#[derive(Clone, Default)]
pub struct Transforms(Vec<Arc<dyn Reorder>>);

impl Transforms {
    /// These transforms; the first is the one to write.
    pub fn new(transforms: Vec<Arc<dyn Reorder>>) -> Self {
        Self(transforms)
    }

    fn by_id(&self, id: u8) -> Option<&dyn Reorder> {
        self.0.iter().find(|t| t.id() == id).map(AsRef::as_ref)
    }
}

/// Numbers of codecs in the format; never re-used.
const STORED: u8 = 0;
const ZSTD: u8 = 1;
const LZ4: u8 = 2;

/// Compresses extents; one per thread, contexts and buffers are re-used.
pub struct Compressor {
    policy: Compression,
    transform: Option<Arc<dyn Reorder>>,
    /// Whether reordering pays before LZ4 too.
    reorder_for_lz4: bool,
    zstd: zstd::bulk::Compressor<'static>,
    level: i32,
    split: Vec<u8>,
    /// Where LZ4 compresses to: it writes to bytes that have a value, and these keep theirs.
    lz4: Vec<u8>,
    probe: Probe,
}

/// Which level `auto` takes: tried out on every [`PROBE_EVERY`]th extent.
#[derive(Debug, Default, Clone, Copy)]
struct Probe {
    /// Extents until the next trial.
    next: u32,
    /// Level of the extents until then.
    level: i32,
}

/// How often `auto` tries the higher level.
const PROBE_EVERY: u32 = 16;
/// The level that `auto` begins with.
const LEVEL_FAST: i32 = 1;
/// The level that `auto` takes where it pays. Measured on split pages: it pays on documents
/// (2.7 % of the raw bytes), hardly on other tables (0.7 %), and not on indexes.
const LEVEL_SMALL: i32 = 3;
/// Shortest match that `auto` looks for in files of the log, in bytes.
const LOG_MATCH_BYTES_MIN: u32 = 5;
/// Positions that `auto` remembers in files of the log, as a power of two: 16 KiB of them, which
/// stay in the processor's nearest cache.
const LOG_HASH_LOG: u32 = 12;
/// Share of the raw bytes that the higher level must save: 1/64, about 1.5 %.
const PAYS_SHARE: usize = 64;

impl Compressor {
    /// A compressor for this policy, with the first of the transforms for pages.
    pub fn new(policy: Compression, transforms: &Transforms) -> Self {
        let level = match policy {
            Compression::Zstd(level) => level,
            _ => 1,
        };
        Self {
            policy,
            transform: transforms.0.first().cloned(),
            reorder_for_lz4: false,
            zstd: zstd::bulk::Compressor::new(level).expect("zstd has memory for a context"),
            level,
            split: Vec::new(),
            lz4: Vec::new(),
            probe: Probe::default(),
        }
    }

    /// A compressor for files of the log, with the first of the transforms for them. That one is for
    /// every codec: what it leaves is less than half, and LZ4 is faster with it than without.
    ///
    /// `auto` is the cheapest level of zstd here, with matches from 5 bytes on instead of 7, because
    /// log records repeat short things, and with a table of 2^12 positions instead of 2^14, because
    /// they repeat what was near. Measured in pieces of 1 MiB, MB and milliseconds for a segment of
    /// 16 MiB, after the transform of PostgreSQL's records:
    ///
    /// | WAL of | level 3, whole | level 1 | 5 bytes, 2^12 | 6 bytes, 2^12 | LZ4 |
    /// |---|---|---|---|---|---|
    /// | pgbench, a seventh are page images | 2.33, 14.0 | 2.39, 10.3 | 2.42, 9.6 | 2.41, 9.3 | 3.1, 6.7 |
    /// | loading and indexing, four fifths | 0.98, 10.3 | 1.12, 9.4 | 1.00, 8.3 | 1.14, 8.1 | 2.0, 5.8 |
    pub fn for_logs(policy: Compression, transforms: &Transforms) -> Self {
        let level = match policy {
            Compression::Auto => Compression::Zstd(LEVEL_FAST),
            other => other,
        };
        let mut made = Self::new(level, transforms);
        made.reorder_for_lz4 = true;
        if policy == Compression::Auto {
            for parameter in
                [CParameter::MinMatch(LOG_MATCH_BYTES_MIN), CParameter::HashLog(LOG_HASH_LOG)]
            {
                made.zstd.set_parameter(parameter).expect("zstd allows 3 to 7 bytes and 6 to 30");
            }
        }
        made
    }

    /// Appends an extent (head and payload) for `raw` to `out`.
    ///
    /// - Shape: `raw` has at most [`EXTENT_BYTES_MAX`] bytes; `reorder` says that it is what the
    ///   transform is for, whole pages or a piece of a log file.
    pub fn compress(&mut self, raw: &[u8], reorder: bool, out: &mut Vec<u8>) {
        assert!(raw.len() <= EXTENT_BYTES_MAX, "an extent is cut before it is compressed");
        let start = out.len();
        let mut split = std::mem::take(&mut self.split);
        split.clear();
        let reorder = match self.policy {
            Compression::Auto | Compression::Zstd(_) => reorder,
            Compression::Lz4 => reorder && self.reorder_for_lz4,
            Compression::None => false,
        };
        let transform = self
            .transform
            .as_ref()
            .filter(|_| reorder)
            .filter(|t| t.split(raw, &mut split))
            .map_or(0, |t| t.id());
        let body: &[u8] = if transform == 0 { raw } else { &split };
        let codec = match self.policy {
            Compression::None => STORED,
            Compression::Lz4 => LZ4,
            Compression::Auto if !worth_trying(raw) => STORED,
            Compression::Auto | Compression::Zstd(_) => ZSTD,
        };
        write_head(out, codec, transform, raw.len());
        match codec {
            ZSTD => self.zstd(body, raw.len(), out),
            LZ4 => self.lz4_into(body, out),
            _ => {}
        }
        self.split = split;
        // Stored as it is where the codec did not help; without the transform, for it helps
        // only what follows it.
        if codec == STORED || out.len() - start >= HEAD_BYTES + raw.len() {
            out.truncate(start);
            write_head(out, STORED, 0, raw.len());
            out.extend_from_slice(raw);
        }
    }

    /// Says that what follows is of another kind: `auto` tries its levels anew.
    pub fn next_file(&mut self) {
        self.probe = Probe::default();
    }

    /// zstd at the level that the policy names or, for `auto`, the one that pays.
    fn zstd(&mut self, body: &[u8], raw_len: usize, out: &mut Vec<u8>) {
        match self.policy {
            Compression::Zstd(level) => return self.zstd_into(body, level, out),
            _ if self.probe.next > 0 => {
                self.probe.next -= 1;
                return self.zstd_into(body, self.probe.level, out);
            }
            _ => {}
        }
        let at = out.len();
        self.zstd_into(body, LEVEL_FAST, out);
        let fast = out.len() - at;
        self.zstd_into(body, LEVEL_SMALL, out);
        let small = out.len() - at - fast;
        let pays = fast.saturating_sub(small) > raw_len / PAYS_SHARE;
        self.probe =
            Probe { next: PROBE_EVERY - 1, level: if pays { LEVEL_SMALL } else { LEVEL_FAST } };
        if small < fast {
            out.drain(at..at + fast);
        } else {
            out.truncate(at + fast);
        }
    }

    fn zstd_into(&mut self, body: &[u8], level: i32, out: &mut Vec<u8>) {
        if self.level != level {
            self.zstd.set_compression_level(level).expect("the level was checked");
            self.level = level;
        }
        let at = out.len();
        out.reserve(zstd::zstd_safe::compress_bound(body.len()));
        // A cursor appends, and what it has room for need not be zeroed first.
        let mut behind = Cursor::new(std::mem::take(out));
        behind.set_position(at as u64);
        self.zstd
            .compress_to_buffer(body, &mut behind)
            .expect("the buffer has the size that zstd asks for");
        *out = behind.into_inner();
    }

    fn lz4_into(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let bound = lz4_flex::block::get_maximum_output_size(body.len());
        if self.lz4.len() < bound {
            self.lz4.resize(bound, 0);
        }
        let length = lz4_flex::block::compress_into(body, &mut self.lz4)
            .expect("the buffer has the size that LZ4 asks for");
        out.extend_from_slice(&self.lz4[..length]);
    }
}

fn write_head(out: &mut Vec<u8>, codec: u8, transform: u8, raw_len: usize) {
    out.push(codec);
    out.push(transform);
    out.extend_from_slice(&(raw_len as u32).to_le_bytes());
}

/// Whether the bytes look as if they could be made smaller: random bytes use all values about
/// equally often. Looks at 4 samples of 1 KiB.
fn worth_trying(raw: &[u8]) -> bool {
    const SAMPLE: usize = 1024;
    if raw.len() < 4 * SAMPLE {
        return true;
    }
    let mut counts = [0u32; 256];
    for part in 0..4 {
        let at = (raw.len() - SAMPLE) / 3 * part;
        raw[at..at + SAMPLE].iter().for_each(|b| counts[usize::from(*b)] += 1);
    }
    // Sum of squares: 4096 uniform bytes give about 16 · 4096 + 4096 = 69,600; English text ten
    // times as much. The standard deviation for uniform bytes is near 1,500.
    let squares: u64 = counts.iter().map(|c| u64::from(*c) * u64::from(*c)).sum();
    squares > 76_000
}

/// Decompresses extents; one per thread.
pub struct Decompressor {
    transforms: Transforms,
    zstd: zstd::bulk::Decompressor<'static>,
    split: Vec<u8>,
}

impl Decompressor {
    /// A decompressor that knows these transforms.
    pub fn new(transforms: Transforms) -> Self {
        Self {
            transforms,
            zstd: zstd::bulk::Decompressor::new().expect("zstd has memory for a context"),
            split: Vec::new(),
        }
    }

    /// Replaces the content of `out` by the raw bytes of an extent (head and payload).
    pub fn decompress(
        &mut self,
        object: &str,
        extent: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RepoError> {
        let damaged = |what: &str| RepoError::damaged(object, what);
        let Some((head, payload)) = extent.split_first_chunk::<HEAD_BYTES>() else {
            return Err(damaged("an extent is shorter than its head"));
        };
        let [codec, transform, length @ ..] = *head;
        let raw_len = u32::from_le_bytes(length) as usize;
        if raw_len > EXTENT_BYTES_MAX {
            return Err(damaged("an extent is larger than extents can be"));
        }
        // What is there is overwritten, and need not be zeroed again.
        out.resize(raw_len, 0);
        self.fill(object, codec, transform, payload, out)
    }

    /// Fills `out` with the raw bytes of an extent that is exactly as long.
    pub fn decompress_exactly(
        &mut self,
        object: &str,
        extent: &[u8],
        out: &mut [u8],
    ) -> Result<(), RepoError> {
        let damaged = |what: &str| RepoError::damaged(object, what);
        let Some((head, payload)) = extent.split_first_chunk::<HEAD_BYTES>() else {
            return Err(damaged("an extent is shorter than its head"));
        };
        let [codec, transform, length @ ..] = *head;
        if u32::from_le_bytes(length) as usize != out.len() {
            return Err(damaged("an extent has the wrong length"));
        }
        self.fill(object, codec, transform, payload, out)
    }

    fn fill(
        &mut self,
        object: &str,
        codec: u8,
        transform: u8,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), RepoError> {
        let damaged = |what: &str| RepoError::damaged(object, what);
        if transform == 0 {
            let filled = unpack(&mut self.zstd, codec, payload, out).map_err(damaged)?;
            return match filled == out.len() {
                true => Ok(()),
                false => Err(damaged("an extent has the wrong length")),
            };
        }
        let Some(reorder) = self.transforms.by_id(transform) else {
            return Err(damaged(&format!(
                "an extent uses transform {transform}, which this program does not know"
            )));
        };
        // What was reordered may be a little longer.
        let limit = out.len() + out.len() / 4 + 4096;
        // The scratch keeps its length: what is there is overwritten, and need not be zeroed again.
        if self.split.len() < limit {
            self.split.resize(limit, 0);
        }
        let split = &mut self.split[..limit];
        let length = unpack(&mut self.zstd, codec, payload, split).map_err(damaged)?;
        reorder.join(&split[..length], out).map_err(|why| damaged(&why))
    }
}

/// Writes what `payload` decompresses to at the beginning of `out`, and gives its length.
fn unpack(
    zstd: &mut zstd::bulk::Decompressor<'static>,
    codec: u8,
    payload: &[u8],
    out: &mut [u8],
) -> Result<usize, &'static str> {
    match codec {
        STORED => match out.get_mut(..payload.len()) {
            Some(out) => {
                out.copy_from_slice(payload);
                Ok(payload.len())
            }
            None => Err("an extent is longer than it says"),
        },
        ZSTD => {
            zstd.decompress_to_buffer(payload, out).map_err(|_| "zstd cannot decompress an extent")
        }
        LZ4 => lz4_flex::block::decompress_into(payload, out)
            .map_err(|_| "LZ4 cannot decompress an extent"),
        _ => Err("an extent uses a codec that this program does not know"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(policy: Compression, raw: &[u8]) -> usize {
        let none = Transforms::default();
        let mut out = Vec::new();
        Compressor::new(policy, &none).compress(raw, true, &mut out);
        let mut back = vec![1, 2, 3];
        Decompressor::new(none).decompress("x", &out, &mut back).unwrap();
        assert_eq!(back, raw);
        out.len()
    }

    proptest! {
        /// Law: whatever the policy, what was compressed comes back, and never grows by more
        /// than its head.
        #[test]
        fn every_extent_comes_back(raw in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            for policy in ["auto", "zstd:3", "lz4", "none"] {
                let length = round_trip(policy.parse().unwrap(), &raw);
                prop_assert!(length <= raw.len() + HEAD_BYTES);
            }
        }

        /// Law: no bytes make the decoder panic or give more than an extent can hold.
        #[test]
        fn nonsense_never_panics(extent in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let mut out = Vec::new();
            let _ = Decompressor::new(Transforms::default()).decompress("x", &extent, &mut out);
            prop_assert!(out.len() <= EXTENT_BYTES_MAX);
        }
    }

    #[test]
    fn random_bytes_are_stored_without_trying() {
        let mut random = vec![0; 256 << 10];
        crate::crypt::SystemEntropy.fill(&mut random);
        assert!(!worth_trying(&random));
        let text = b"the quick brown fox jumps over the lazy dog ".repeat(6000);
        assert!(worth_trying(&text));
        assert!(round_trip(Compression::Auto, &text) < text.len() / 10);
    }

    use lifeboat_units::Entropy;

    #[test]
    fn a_policy_reads_back_as_written_and_others_are_refused() {
        for text in ["auto", "zstd:1", "zstd:19", "lz4", "none"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        for text in ["", "zstd", "zstd:0", "zstd:20", "gzip"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
