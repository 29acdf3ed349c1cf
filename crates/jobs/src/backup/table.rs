//! Writes the file table as results come in, and counts.

use lifeboat_engine::SourceFile;
use lifeboat_repo::crypt::BoxKind;
use lifeboat_repo::table::ChunkBuilder;
use lifeboat_repo::writer::Usage;
use lifeboat_repo::{
    BackupWriter, ChunkRef, Cluster, FileEntry, Manifest, PartRef, RepoError, Totals,
};
use lifeboat_units::ByteCount;
use std::collections::HashMap;

use crate::facts::{DAMAGE_LISTED_MAX, DamagedPage};

/// What one task found out about a file, or a part of one.
#[derive(Debug, Default)]
pub struct Stretch {
    /// Bytes that were there (less than listed when the file shrank).
    pub bytes: u64,
    /// Whether the file ended before where it was to be read.
    pub short: bool,
    /// Map parts of what was read.
    pub parts: Vec<PartRef>,
    /// Pages stored anew, and how many of those had not changed.
    pub pages_new: (u64, u64),
    /// Pages that were damaged.
    pub damage: Vec<DamagedPage>,
    /// Pages that were accepted although they were not seen to be right.
    pub unproven: u64,
    /// Bytes that were read from disk.
    pub read_bytes: u64,
    /// What the sweep found.
    pub swept: Swept,
}

/// What a sweep found in pages of which nothing said that they had changed.
#[derive(Debug, Default, Clone)]
pub struct Swept {
    /// Pages that were compared.
    pub pages: u64,
    /// Of those, pages that differ in what needs no log record.
    pub hint_only: u64,
    /// Of those, pages that must not differ.
    pub faults: Vec<DamagedPage>,
    /// How many of those.
    pub faulty: u64,
    /// How many of these are zeros now.
    pub lost: u64,
}

impl Swept {
    /// Counts pages that were found lost before, and still are.
    pub fn add_faults(&mut self, faults: impl Iterator<Item = DamagedPage>) {
        for fault in faults {
            self.faulty += 1;
            self.lost += 1;
            if self.faults.len() < DAMAGE_LISTED_MAX {
                self.faults.push(fault);
            }
        }
    }

    fn add(&mut self, more: Self) {
        self.pages += more.pages;
        self.hint_only += more.hint_only;
        self.faulty += more.faulty;
        self.lost += more.lost;
        let room = DAMAGE_LISTED_MAX.saturating_sub(self.faults.len());
        self.faults.extend(more.faults.into_iter().take(room));
    }
}

/// The finished table.
pub struct Table {
    /// Chunks in order.
    pub chunks: Vec<ChunkRef>,
    /// What they refer to.
    pub usage: Usage,
    /// Sums.
    pub totals: Totals,
    /// Damaged pages.
    pub damage: Vec<DamagedPage>,
    /// How many pages were damaged.
    pub damaged_pages: u64,
    /// How many were accepted although they were not seen to be right.
    pub unproven: u64,
    /// What the sweep found.
    pub swept: Swept,
}

impl Table {
    /// Whether all pages that were read were right.
    pub fn is_proven(&self) -> bool {
        self.damaged_pages == 0 && self.unproven == 0
    }

    /// Counts damaged pages, and lists as many as there is room for.
    pub fn add_damage(&mut self, pages: &[DamagedPage]) {
        self.damaged_pages += pages.len() as u64;
        let room = DAMAGE_LISTED_MAX.saturating_sub(self.damage.len());
        self.damage.extend(pages.iter().take(room).cloned());
    }
}

/// A table that is being written. Files come in order.
pub struct TableWriter<'a> {
    writer: &'a BackupWriter,
    cluster: &'a Cluster,
    page_bytes: u32,
    /// Chunks of the earlier backup by digest: an equal chunk is used again.
    known: HashMap<u64, ChunkRef>,
    builder: ChunkBuilder,
    open: Option<OpenFile>,
    table: Table,
}

/// A large file whose parts are coming in.
pub struct OpenFile {
    /// The file as far as it is known.
    pub entry: FileEntry,
    cut_short: bool,
    vanished: bool,
}

impl<'a> TableWriter<'a> {
    /// An empty table.
    pub fn new(
        writer: &'a BackupWriter,
        cluster: &'a Cluster,
        page_bytes: u32,
        previous: Option<&Manifest>,
    ) -> Self {
        let known =
            previous.map(|p| p.chunks.iter().map(|c| (c.digest, *c)).collect()).unwrap_or_default();
        let table = Table {
            chunks: Vec::new(),
            usage: Usage::default(),
            totals: Totals::default(),
            damage: Vec::new(),
            damaged_pages: 0,
            unproven: 0,
            swept: Swept::default(),
        };
        let builder = ChunkBuilder::default();
        Self { writer, cluster, page_bytes, known, builder, open: None, table }
    }

    /// Adds what was found out about the next stretch of `file`; `None` when it had vanished.
    pub fn add(
        &mut self,
        file: &SourceFile,
        stretch: Option<Stretch>,
        last: bool,
    ) -> Result<(), RepoError> {
        let mut open = self.open.take().unwrap_or_else(|| OpenFile::new(file));
        match stretch {
            None => open.vanished = true,
            Some(mut stretch) => {
                self.count(&mut stretch);
                open.append(stretch);
            }
        }
        if !last {
            self.open = Some(open);
            return Ok(());
        }
        if open.vanished { Ok(()) } else { self.put(&open.entry) }
    }

    /// Counts what was found out about a stretch, and takes over what its sweep found.
    pub fn count(&mut self, stretch: &mut Stretch) {
        self.table.swept.add(std::mem::take(&mut stretch.swept));
        let totals = &mut self.table.totals;
        totals.read_bytes += ByteCount(stretch.read_bytes);
        totals.pages_new += stretch.pages_new.0;
        totals.pages_refreshed += stretch.pages_new.1;
        self.table.unproven += stretch.unproven;
        self.table.add_damage(&stretch.damage);
    }

    /// Adds the next file, whole.
    pub fn put(&mut self, entry: &FileEntry) -> Result<(), RepoError> {
        let totals = &mut self.table.totals;
        totals.files += 1;
        totals.size_bytes += ByteCount(entry.size_bytes);
        totals.pages += entry.pages(self.page_bytes);
        self.table.usage.add(entry);
        self.builder.add(entry, self.page_bytes);
        if self.builder.is_full() { self.finish_chunk() } else { Ok(()) }
    }

    fn finish_chunk(&mut self) -> Result<(), RepoError> {
        let files = self.builder.files() as u32;
        if files == 0 {
            return Ok(());
        }
        let plain = self.builder.finish();
        let digest = self.cluster.hasher().page(&plain);
        let chunk = match self.known.get(&digest) {
            Some(known) if known.files == files => *known,
            _ => {
                let at = self.writer.put_index(BoxKind::TableChunk, &plain)?;
                ChunkRef::new(at, files, digest)
            }
        };
        self.table.usage.add_chunk(chunk.at());
        self.table.chunks.push(chunk);
        Ok(())
    }

    /// Closes the table.
    pub fn finish(mut self) -> Result<Table, RepoError> {
        self.finish_chunk()?;
        Ok(self.table)
    }
}

impl OpenFile {
    /// A file of which nothing is known yet.
    pub fn new(file: &SourceFile) -> Self {
        let first_page = match file.content {
            lifeboat_engine::Content::Pages { first_page } => Some(first_page),
            lifeboat_engine::Content::Bytes => None,
        };
        let entry = FileEntry {
            path: file.path.clone(),
            size_bytes: 0,
            mode: file.mode,
            first_page,
            parts: Vec::new(),
        };
        Self { entry, cut_short: false, vanished: false }
    }

    /// Adds the next stretch, unless the file already ended before it: a file that shrank while it was
    /// read is kept up to its first gap, and WAL replay truncates it in the same place.
    pub fn append(&mut self, stretch: Stretch) {
        if self.cut_short {
            return;
        }
        self.entry.size_bytes += stretch.bytes;
        self.entry.parts.extend(stretch.parts);
        self.cut_short = stretch.short;
    }
}
