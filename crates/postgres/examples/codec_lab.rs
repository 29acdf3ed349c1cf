//! Measures codecs on the relation files of a data directory (of a server that is stopped).
//!
//! `cargo run --release -p lifeboat-postgres --example codec_lab -- DIRECTORY [PAGES]`
//!
//! Prints, per class of files and codec, how small extents of PAGES pages become, and how fast
//! one core compresses and restores them. Each result is compared with what went in.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::Transform;
use lifeboat_postgres::page::{HEADER_BYTES, PageHeader};
use lifeboat_postgres::transform::SplitPages;
use zstd::bulk::{Compressor, Decompressor};

const PAGE_BYTES: usize = 8192;

/// Files of one kind, whole pages only.
type Classes = BTreeMap<&'static str, Vec<Vec<u8>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("a data directory, please")?);
    let pages: usize = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let mut classes = Classes::new();
    collect(&directory.join("base"), &mut classes)?;
    let mut totals: BTreeMap<String, Measure> = BTreeMap::new();
    for (class, files) in &classes {
        let bytes: usize = files.iter().map(Vec::len).sum();
        println!("{class}: {} files, {:.1} MB", files.len(), bytes as f64 / 1e6);
        let split = split_speed(files, pages);
        println!("  split {:.2} GB/s, join {:.2} GB/s", split.0, split.1);
        for codec in Codec::all() {
            let measure = codec.measure(files, pages)?;
            println!("  {:<14} {measure}", codec.name());
            totals.entry(codec.name()).or_default().add(&measure);
        }
    }
    println!("all");
    for (name, measure) in &totals {
        println!("  {name:<14} {measure}");
    }
    Ok(())
}

/// Reads the relation files below a directory, sorted into classes by their first page.
fn collect(directory: &Path, classes: &mut Classes) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, classes)?;
            continue;
        }
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !name.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let mut bytes = fs::read(&path)?;
        bytes.truncate(bytes.len() / PAGE_BYTES * PAGE_BYTES);
        if !bytes.is_empty() {
            classes.entry(class(name, &bytes)).or_default().push(bytes);
        }
    }
    Ok(())
}

fn class(name: &str, bytes: &[u8]) -> &'static str {
    let header = PageHeader::parse(bytes);
    let special = header.map_or(0, |header| usize::from(header.special));
    let large = bytes.len() > 8 << 20;
    match (name.contains('_'), special, large) {
        (true, _, _) => "fork",
        (_, PAGE_BYTES, true) if row_bytes(bytes) > 1000 => "heap, large, long rows",
        (_, PAGE_BYTES, true) if row_bytes(bytes) > 300 => "heap, large, middling rows",
        (_, PAGE_BYTES, true) => "heap, large, short rows",
        (_, PAGE_BYTES, false) => "heap, small",
        (_, _, true) => "index, large",
        (_, _, false) => "index, small",
    }
}

/// Mean room of the first page's rows.
fn row_bytes(page: &[u8]) -> usize {
    let Some(header) = PageHeader::parse(page) else { return 0 };
    let rows = (usize::from(header.lower).saturating_sub(HEADER_BYTES) / 4).max(1);
    usize::from(header.special.saturating_sub(header.upper)) / rows
}

/// Gigabytes per second of splitting and of joining, over all extents.
fn split_speed(files: &[Vec<u8>], pages: usize) -> (f64, f64) {
    let transform = SplitPages::new(PAGE_BYTES as u32);
    let (mut split, mut joined) = (Vec::new(), Vec::new());
    let (mut there, mut back, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for extent in files.iter().flat_map(|file| file.chunks(pages * PAGE_BYTES)) {
        split.clear();
        let start = Instant::now();
        let done = transform.split(extent, &mut split);
        there += start.elapsed();
        if done {
            joined.resize(extent.len(), 0);
            let start = Instant::now();
            transform.join(&split, &mut joined).expect("our own");
            back += start.elapsed();
            assert!(joined == extent, "a page did not come back as it was");
            bytes += extent.len();
        }
    }
    (bytes as f64 / there.as_secs_f64() / 1e9, bytes as f64 / back.as_secs_f64() / 1e9)
}

#[derive(Clone, Copy)]
enum Coder {
    Zstd(i32),
    Lz4,
}

#[derive(Clone, Copy)]
struct Codec {
    coder: Coder,
    split: bool,
}

/// What one codec made of some files.
#[derive(Default)]
struct Measure {
    raw_bytes: usize,
    stored_bytes: usize,
    compress: Duration,
    restore: Duration,
}

impl Measure {
    fn add(&mut self, other: &Self) {
        self.raw_bytes += other.raw_bytes;
        self.stored_bytes += other.stored_bytes;
        self.compress += other.compress;
        self.restore += other.restore;
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raw = self.raw_bytes as f64;
        write!(
            f,
            "{:>11} bytes, ratio {:>6.2}, compress {:>5.0} MB/s, restore {:>5.0} MB/s",
            self.stored_bytes,
            raw / self.stored_bytes as f64,
            raw / self.compress.as_secs_f64() / 1e6,
            raw / self.restore.as_secs_f64() / 1e6
        )
    }
}

impl Codec {
    fn all() -> Vec<Self> {
        let coders = [Coder::Zstd(-1), Coder::Zstd(1), Coder::Zstd(2), Coder::Zstd(3), Coder::Lz4];
        let both = |coder| [false, true].map(|split| Self { coder, split });
        coders.into_iter().flat_map(both).collect()
    }

    fn name(self) -> String {
        let coder = match self.coder {
            Coder::Zstd(level) => format!("zstd:{level}"),
            Coder::Lz4 => "lz4".to_owned(),
        };
        if self.split { format!("split+{coder}") } else { coder }
    }

    fn measure(self, files: &[Vec<u8>], pages: usize) -> Result<Measure, Box<dyn Error>> {
        let transform = SplitPages::new(PAGE_BYTES as u32);
        let level = if let Coder::Zstd(level) = self.coder { level } else { 1 };
        let (mut compressor, mut decompressor) = (Compressor::new(level)?, Decompressor::new()?);
        let mut measure = Measure::default();
        let (mut split, mut stored, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let mut restored = Vec::new();
        for extent in files.iter().flat_map(|file| file.chunks(pages * PAGE_BYTES)) {
            let start = Instant::now();
            split.clear();
            let is_split = self.split && transform.split(extent, &mut split);
            let source = if is_split { &split[..] } else { extent };
            match self.coder {
                Coder::Zstd(_) => {
                    stored.resize(zstd::zstd_safe::compress_bound(source.len()), 0);
                    let length = compressor.compress_to_buffer(source, &mut stored[..])?;
                    stored.truncate(length);
                }
                Coder::Lz4 => stored = lz4_flex::block::compress(source),
            }
            measure.compress += start.elapsed();
            measure.raw_bytes += extent.len();
            measure.stored_bytes += stored.len().min(extent.len());
            let start = Instant::now();
            plain.resize(source.len(), 0);
            match self.coder {
                Coder::Zstd(_) => {
                    decompressor.decompress_to_buffer(&stored, &mut plain[..])?;
                }
                Coder::Lz4 => {
                    lz4_flex::block::decompress_into(&stored, &mut plain)?;
                }
            }
            restored.resize(extent.len(), 0);
            if is_split {
                transform.join(&plain, &mut restored)?;
            }
            measure.restore += start.elapsed();
            let result = if is_split { &restored } else { &plain };
            assert!(result == extent, "an extent did not come back as it was");
        }
        Ok(measure)
    }
}
