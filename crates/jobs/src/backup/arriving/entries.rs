//! Entries of a file table in a packed form that can be searched and put in order.
//!
//! Files arrive in the order in which the server's file system lists them; the table wants them
//! in the order of their paths. A small file costs about 150 bytes here.

use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::table::{ChunkBuilder, decode_chunk};
use lifeboat_repo::{FileEntry, Manifest, RepoError};

/// Memory is taken in pieces of this size, in bytes, so that nothing is ever moved.
const BLOCK_BYTES: usize = 1 << 20;
/// The path that is written into an entry's body: the real one stands before it.
const STAND_IN: &str = "x";

/// Packed entries.
pub struct Entries {
    page_bytes: u32,
    blocks: Vec<Vec<u8>>,
    /// Block and offset of every entry.
    places: Vec<(u32, u32)>,
}

impl Entries {
    /// No entries yet.
    pub fn new(page_bytes: u32) -> Self {
        Self { page_bytes, blocks: Vec::new(), places: Vec::new() }
    }

    /// All entries of an earlier backup, in the order of their paths.
    pub fn of(reader: &IndexReader, manifest: &Manifest) -> Result<Self, RepoError> {
        let mut entries = Self::new(manifest.page_bytes);
        for chunk in &manifest.chunks {
            for entry in reader.chunk(chunk)? {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// Adds an entry.
    pub fn push(&mut self, mut entry: FileEntry) {
        let path = std::mem::replace(&mut entry.path, STAND_IN.to_owned());
        let mut builder = ChunkBuilder::default();
        builder.add(&entry, self.page_bytes);
        let body = builder.finish();
        let bytes = 6 + path.len() + body.len();
        if self.blocks.last().is_none_or(|block| block.len() + bytes > BLOCK_BYTES) {
            self.blocks.push(Vec::with_capacity(bytes.max(BLOCK_BYTES)));
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        self.places.push((number as u32, block.len() as u32));
        block.extend_from_slice(&(path.len() as u16).to_le_bytes());
        block.extend_from_slice(&(body.len() as u32).to_le_bytes());
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(&body);
    }

    /// Path and body of an entry.
    fn record(&self, (block, offset): (u32, u32)) -> (&[u8], &[u8]) {
        let record = &self.blocks[block as usize][offset as usize..];
        let path = usize::from(u16::from_le_bytes([record[0], record[1]]));
        let body = u32::from_le_bytes([record[2], record[3], record[4], record[5]]) as usize;
        let (path, rest) = record[6..].split_at(path);
        (path, &rest[..body])
    }

    fn entry(&self, place: (u32, u32)) -> Result<FileEntry, RepoError> {
        let (path, body) = self.record(place);
        let path = String::from_utf8_lossy(path).into_owned();
        let found = decode_chunk("an entry in memory", body, self.page_bytes)?.pop();
        let found = found.ok_or_else(|| RepoError::Damaged {
            object: "an entry in memory".to_owned(),
            what: "it is empty".to_owned(),
        })?;
        Ok(FileEntry { path, ..found })
    }

    /// The entry of a path. Only when entries were added in the order of their paths.
    pub fn find(&self, path: &str) -> Result<Option<FileEntry>, RepoError> {
        let by_path = |place: &(u32, u32)| self.record(*place).0.cmp(path.as_bytes());
        match self.places.binary_search_by(by_path) {
            Ok(at) => self.entry(self.places[at]).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Every entry in the order in which they were added, or were put.
    pub fn iter(&self) -> impl Iterator<Item = Result<FileEntry, RepoError>> {
        self.places.iter().map(|place| self.entry(*place))
    }

    /// Puts the entries in the order of their paths; gives a path that is there twice.
    pub fn sort(&mut self) -> Result<(), String> {
        let mut places = std::mem::take(&mut self.places);
        places.sort_unstable_by(|a, b| self.record(*a).0.cmp(self.record(*b).0));
        let twice = places.windows(2).find(|two| self.record(two[0]).0 == self.record(two[1]).0);
        if let Some(two) = twice {
            return Err(String::from_utf8_lossy(self.record(two[0]).0).into_owned());
        }
        self.places = places;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_repo::PartRef;

    use super::*;

    fn entry(path: &str, size_bytes: u64) -> FileEntry {
        let parts = vec![PartRef::Zero; size_bytes.div_ceil(64 << 20) as usize];
        FileEntry { path: path.to_owned(), size_bytes, mode: 0o600, first_page: Some(7), parts }
    }

    #[test]
    fn entries_come_back_in_order_and_are_found() {
        let mut entries = Entries::new(8192);
        let paths: Vec<String> = (0..20_000u32)
            .map(|i| format!("base/{}/{}", i % 7, i.wrapping_mul(2_654_435_761)))
            .collect();
        paths.iter().for_each(|path| entries.push(entry(path, 8192)));
        entries.sort().unwrap();
        let mut sorted = paths;
        sorted.sort();
        let back: Vec<FileEntry> = entries.iter().map(Result::unwrap).collect();
        assert_eq!(back.len(), sorted.len());
        assert!(back.iter().map(|e| &e.path).eq(sorted.iter()));
        assert_eq!(entries.find(&sorted[77]).unwrap(), Some(entry(&sorted[77], 8192)));
        assert_eq!(entries.find("base/1/none").unwrap(), None);
    }

    #[test]
    fn a_path_that_comes_twice_is_named() {
        let mut entries = Entries::new(8192);
        for path in ["b", "a", "b"] {
            entries.push(entry(path, 0));
        }
        assert_eq!(entries.sort(), Err("b".to_owned()));
    }
}
