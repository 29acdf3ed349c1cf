//! Finds the pages of a local file that differ from a backup's, by their hashes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use lifeboat_repo::PageHasher;
use lifeboat_repo::map::{ZERO_PAGE, page_hash};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

/// Pages read at once: small enough to stay in a processor's cache until they are hashed.
const READ_PAGES: usize = 32;

/// Compares pages; one per thread.
pub struct Comparer {
    hasher: PageHasher,
    page_bytes: usize,
    buffer: Vec<u8>,
    /// Of the pages in the buffer.
    found: Vec<u64>,
}

impl Comparer {
    /// A comparer for pages of this size.
    pub fn new(hasher: PageHasher, page_bytes: usize) -> Self {
        Self { hasher, page_bytes, buffer: vec![0; READ_PAGES * page_bytes], found: Vec::new() }
    }

    /// Which pages differ.
    ///
    /// - `hashes` are those of the pages from byte `from` on; the file is at least `end` bytes
    ///   long, and its last page may be a short one.
    /// - Holes are zeros and are not read.
    pub fn differing(
        &mut self,
        file: &File,
        from: u64,
        end: u64,
        hashes: &[u64],
    ) -> io::Result<Vec<bool>> {
        let page = self.page_bytes as u64;
        let mut differs: Vec<bool> = hashes.iter().map(|hash| *hash != ZERO_PAGE).collect();
        let mut at = from;
        while let Some(data) = next_data(file, at, end)? {
            let first = ((data.start - from) / page) as usize;
            let last = ((data.end - from).div_ceil(page) as usize).min(hashes.len());
            for start in (first..last).step_by(READ_PAGES) {
                let pages = start..last.min(start + READ_PAGES);
                let offset = from + start as u64 * page;
                let length = (pages.len() as u64 * page).min(end - offset) as usize;
                let buffer = &mut self.buffer[..length];
                file.read_exact_at(buffer, offset)?;
                self.hasher.pages(buffer, self.page_bytes, &mut self.found);
                let read = buffer.chunks(self.page_bytes).zip(&self.found);
                for ((bytes, found), number) in read.zip(pages) {
                    differs[number] = match hashes[number] {
                        ZERO_PAGE => !is_zero(bytes),
                        hash => page_hash(*found) != hash,
                    };
                }
            }
            // Beyond the pages that were read: a page may hold the end of one hole and the
            // beginning of the next.
            at = (from + last as u64 * page).min(end);
        }
        Ok(differs)
    }
}

/// The next bytes of a file that lie in no hole, within a range.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => at, // a file system that knows no holes
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    let hole = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(hole) => hole,
        Err(Errno::INVAL) => end,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..hole.clamp(start + 1, end)))
}

/// Makes a range of a file zeros: a hole where the file system has such.
pub fn make_zero(file: &File, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, range.start, range.end - range.start) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            const ZEROS: [u8; 8192] = [0; 8192];
            let mut at = range.start;
            while at < range.end {
                let length = (range.end - at).min(ZEROS.len() as u64);
                file.write_all_at(&ZEROS[..length as usize], at)?;
                at += length;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|b| *b == 0)
}

/// Runs of `true` among `differs[range]`, as ranges.
pub fn runs(differs: &[bool], range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let begin = (at..range.end).find(|i| differs[*i])?;
        let end = (begin..range.end).find(|i| !differs[*i]).unwrap_or(range.end);
        at = end;
        Some(begin..end)
    })
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
mod tests {
    use super::*;

    #[test]
    fn runs_of_differing_pages_are_found_within_a_range() {
        let differs = [true, false, true, true, false, false, true];
        let found = |range| runs(&differs, range).collect::<Vec<_>>();
        assert_eq!(found(0..7), [0..1, 2..4, 6..7]);
        assert_eq!(found(3..6), [3..4]);
        assert_eq!(found(4..6), []);
        assert_eq!(found(2..2), []);
    }

    #[test]
    fn zeros_are_told_from_what_only_looks_empty() {
        for length in [0, 1, 7, 8, 9, 8192] {
            assert!(is_zero(&vec![0; length]));
            for at in 0..length {
                let mut bytes = vec![0; length];
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{length} {at}");
            }
        }
    }
}
