//! Pieces of a log file that is not finished yet.
//!
//! Format: docs/format/log-tail.md. A piece is laid out as a log file is, under a name that says
//! which bytes it holds, so that one listing of a timeline finds whole files and pieces at once.

use lifeboat_units::Timestamp;

use crate::codec::Compression;
use crate::error::RepoError;
use crate::id::hex;
use crate::logs::{LogHead, LogPlace, PushOutcome};
use crate::repository::Cluster;

/// Between the file's name and the bytes that a piece holds.
const MARK: &str = ".tail.";

/// Where a piece of an unfinished log file belongs, and which of its bytes it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TailPlace {
    /// The log file that it is a piece of.
    pub of: LogPlace,
    /// Offset of its first byte in that file.
    pub from: u32,
    /// Offset after its last byte; greater than `from`.
    pub to: u32,
}

impl TailPlace {
    /// The piece that an archived object is; `None` when it is none.
    pub fn parse(place: &LogPlace) -> Option<Self> {
        let (file, range) = place.name.split_once(MARK)?;
        let (from, to) = range.split_once('-')?;
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let of = LogPlace { name: file.to_owned(), ..place.clone() };
        let tail = Self { of, from: number(from)?, to: number(to)? };
        (tail.from < tail.to && tail.object() == *place).then_some(tail)
    }

    /// The place of its object: the file's, with the bytes behind the name.
    pub fn object(&self) -> LogPlace {
        let name = format!("{}{MARK}{:08X}-{:08X}", self.of.name, self.from, self.to);
        LogPlace { name, ..self.of.clone() }
    }

    /// How many bytes it holds.
    pub fn length(&self) -> u32 {
        self.to.saturating_sub(self.from)
    }
}

/// Pieces that do not make one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// Two pieces hold different bytes for the same stretch.
    #[error("pieces of {file} contradict each other at byte {at}")]
    Contradiction {
        /// The file.
        file: String,
        /// Offset of the first byte that differs.
        at: u32,
    },
}

/// Puts pieces together: what they hold from the first byte of the file on, without a hole.
///
/// - Shape: pieces of one file with their content, in any order; content as long as the name says
///   ([`Cluster::read_tail`] checks it). What lies beyond a hole is left out.
/// - Errors: pieces that overlap and differ; which of them is right cannot be told.
pub fn assemble(pieces: &[(TailPlace, Vec<u8>)]) -> Result<Vec<u8>, TailError> {
    let mut order: Vec<&(TailPlace, Vec<u8>)> = pieces.iter().collect();
    order.sort_by_key(|(place, _)| (place.from, place.to));
    let mut whole: Vec<u8> = Vec::new();
    for (place, content) in order {
        let from = place.from as usize;
        if from > whole.len() {
            break;
        }
        let known = &whole[from..];
        if let Some(at) = known.iter().zip(content).position(|(a, b)| a != b) {
            let file = place.of.name.clone();
            return Err(TailError::Contradiction { file, at: place.from + at as u32 });
        }
        let new = known.len().min(content.len());
        whole.extend_from_slice(&content[new..]);
    }
    Ok(whole)
}

impl Cluster {
    /// Stores a piece of an unfinished log file; it is durable when this returns.
    ///
    /// - Shape: `content` is as long as the place says; anything else is damage.
    /// - The same piece again is [`PushOutcome::AlreadyThere`], another content under its name
    ///   is [`PushOutcome::Different`] and changes nothing.
    pub fn push_tail(
        &self,
        place: &TailPlace,
        content: &[u8],
        compression: Compression,
        archived_at: Timestamp,
        facts: serde_json::Value,
    ) -> Result<PushOutcome, RepoError> {
        let object = place.object();
        let key = object.key(self)?;
        if place.length() as usize != content.len() || content.is_empty() {
            return Err(RepoError::damaged(key.as_str(), "it is not as long as its name says"));
        }
        let mut writer = self.log_writer(compression);
        // Not asked first, unlike a whole file: a piece is new nearly always, and a commit waits.
        self.put_log(&self.encode_whole_log(&object, content, &mut writer, archived_at, facts)?)
    }

    /// The digest that a head gives for this content (hexadecimal).
    pub fn log_digest(&self, content: &[u8]) -> String {
        hex(&self.hasher().digest(content))
    }

    /// What is known about a piece without opening its content.
    pub fn tail_head(&self, place: &TailPlace) -> Result<LogHead, RepoError> {
        let head = self.log_head(&place.object())?;
        check_length(place, &head)?;
        Ok(head)
    }

    /// Reads a piece, checks its digest and length, and gives its content.
    ///
    /// Errors: [`RepoError::is_not_found`] only when it is certainly not there; a piece goes away
    /// when a longer one or the finished file took its place.
    pub fn read_tail(&self, place: &TailPlace) -> Result<(LogHead, Vec<u8>), RepoError> {
        let (head, content) = self.read_log(&place.object())?;
        check_length(place, &head)?;
        Ok((head, content))
    }

    /// The pieces of one timeline's unfinished files, sorted by file, then by first byte.
    pub fn tails_of(&self, system: &str, timeline: u32) -> Result<Vec<TailPlace>, RepoError> {
        let logs = self.logs_of(system, timeline)?;
        let mut tails: Vec<TailPlace> =
            logs.iter().filter_map(|log| TailPlace::parse(&log.place)).collect();
        tails.sort_unstable();
        Ok(tails)
    }

    /// Removes a piece.
    pub fn remove_tail(&self, place: &TailPlace) -> Result<(), RepoError> {
        self.remove_log(&place.object())
    }
}

fn check_length(place: &TailPlace, head: &LogHead) -> Result<(), RepoError> {
    if head.size_bytes == u64::from(place.length()) {
        Ok(())
    } else {
        let what = "it is not as long as its name says";
        Err(RepoError::damaged(place.object().relative(), what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(from: u32, to: u32) -> TailPlace {
        let of = LogPlace { system: "7".to_owned(), timeline: 1, name: "0".repeat(24) };
        TailPlace { of, from, to }
    }

    fn piece(from: u32, bytes: &[u8]) -> (TailPlace, Vec<u8>) {
        (place(from, from + bytes.len() as u32), bytes.to_vec())
    }

    #[test]
    fn a_name_reads_back_and_is_written_one_way_only() {
        let tail = place(0x1F_0000, 0x4000_0000);
        let object = tail.object();
        assert!(object.name.ends_with(".tail.001F0000-40000000"), "{}", object.name);
        assert_eq!(TailPlace::parse(&object), Some(tail.clone()));
        for range in ["001f0000-40000000", "1F0000-40000000", "40000000-001F0000", "0-1", ""] {
            let name = format!("{}.tail.{range}", tail.of.name);
            assert_eq!(TailPlace::parse(&LogPlace { name, ..tail.of.clone() }), None, "{range}");
        }
        assert_eq!(TailPlace::parse(&tail.of), None);
    }

    #[test]
    fn pieces_in_any_order_make_what_follows_without_a_hole() {
        let pieces = [piece(6, b"ghi"), piece(0, b"abc"), piece(2, b"cdef"), piece(10, b"k")];
        assert_eq!(assemble(&pieces).unwrap(), b"abcdefghi");
        assert_eq!(assemble(&pieces[..1]).unwrap(), b"");
        let inside = [piece(0, b"abcdef"), piece(1, b"bc"), piece(3, b"defgh")];
        assert_eq!(assemble(&inside).unwrap(), b"abcdefgh");
    }

    #[test]
    fn pieces_that_contradict_each_other_are_refused() {
        let pieces = [piece(0, b"abcd"), piece(2, b"cXef")];
        let error = assemble(&pieces).unwrap_err();
        assert_eq!(error, TailError::Contradiction { file: "0".repeat(24), at: 3 });
    }
}
