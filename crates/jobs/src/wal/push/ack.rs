//! Acknowledgements: what the background pusher leaves for the calls that come after it.
//!
//! Format: docs/format/spool.md. Pure: whether an acknowledgement counts is decided here.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crc::{CRC_64_NVME, Crc};

/// First words of an acknowledgement, with the version of its format.
const TITLE: &str = "lifeboat acknowledgement 1";
/// Longest acknowledgement that is read, in bytes.
pub const ACK_BYTES_MAX: u64 = 4 << 10;

/// With a table: in a process that lives for a millisecond, to ask the processor which instructions
/// it has takes longer than the sum.
static CHECKSUM: Crc<u64> = Crc::<u64>::new(&CRC_64_NVME);

/// By what a file is known again without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    /// Its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length.
    pub size_bytes: u64,
    /// When its content changed last: seconds and nanoseconds, by the file system's clock.
    pub modified: (i64, i64),
    /// When content, name or mode changed last; nobody can set it back.
    pub changed: (i64, i64),
}

impl FileStamp {
    /// The stamp that the file system tells.
    pub fn of(data: &Metadata) -> Self {
        Self {
            device: data.dev(),
            inode: data.ino(),
            size_bytes: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}

/// Why a file may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is durable in the repository.
    Stored,
    /// It was given up because the backlog was over its limit; the gap is recorded.
    GivenUp,
}

/// One file that the server may be told is archived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Why.
    pub kind: Kind,
    /// The file's name.
    pub file: String,
    /// Its system; `-` for a file that was given up unread.
    pub system: String,
    /// To which repository and cluster it went: see [`Target`].
    pub target: Target,
    /// The very file that was read.
    pub stamp: FileStamp,
    /// Keyed digest of what was read (hexadecimal); `-` for a file that was given up unread.
    pub digest: String,
}

/// Which repository and cluster: a checksum over the address and the name. Acknowledgements for
/// one target mean nothing to a call that archives to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(pub u64);

impl Target {
    /// The target of an address of a repository and a cluster in it.
    pub fn of(url: &str, cluster: &str) -> Self {
        Self(CHECKSUM.checksum(format!("{url}\n{cluster}").as_bytes()))
    }
}

/// With which settings a pusher works: a checksum over the configuration's place and the words that
/// override it. A call with others needs a pusher of its own; acknowledgements are as good to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings(pub u64);

impl Settings {
    /// The settings of a configuration and what overrides it, in this order.
    pub fn of(configuration: &Path, overrides: &[String]) -> Self {
        let mut text = configuration.as_os_str().as_encoded_bytes().to_vec();
        for word in overrides {
            text.push(0);
            text.extend_from_slice(word.as_bytes());
        }
        Self(CHECKSUM.checksum(&text))
    }
}

/// What a pusher does, and for whom: it answers no call that wants anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errand {
    /// Where to it pushes.
    pub target: Target,
    /// With which settings.
    pub settings: Settings,
}

impl Ack {
    /// The acknowledgement as a file.
    pub fn encode(&self) -> Vec<u8> {
        let Self { kind, file, system, target, stamp, digest } = self;
        let kind = match kind {
            Kind::Stored => "stored",
            Kind::GivenUp => "given-up",
        };
        let FileStamp { device, inode, size_bytes, modified, changed } = stamp;
        let text = format!(
            "{TITLE}\n{kind}\n{file}\n{system}\n{:016x}\n{device} {inode} {size_bytes} {} {} {} {}\n{digest}\n",
            target.0, modified.0, modified.1, changed.0, changed.1,
        );
        let sum = CHECKSUM.checksum(text.as_bytes());
        format!("{text}{sum:016x}\n").into_bytes()
    }

    /// Reads what [`Ack::encode`] wrote; `None` for anything else, such as what power loss tore.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, sum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let body = &text[..body.len() + 1];
        if sum != format!("{:016x}", CHECKSUM.checksum(body.as_bytes())) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != TITLE {
            return None;
        }
        let kind = match lines.next()? {
            "stored" => Kind::Stored,
            "given-up" => Kind::GivenUp,
            _ => return None,
        };
        let (file, system) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        let target = Target(u64::from_str_radix(lines.next()?, 16).ok()?);
        let mut words = lines.next()?.split(' ');
        let mut natural = || words.next()?.parse::<u64>().ok();
        let (device, inode, size_bytes) = (natural()?, natural()?, natural()?);
        let mut whole = || words.next()?.parse::<i64>().ok();
        let modified = (whole()?, whole()?);
        let changed = (whole()?, whole()?);
        let stamp = FileStamp { device, inode, size_bytes, modified, changed };
        let digest = lines.next()?.to_owned();
        let whole = words.next().is_none() && lines.next().is_none();
        whole.then_some(Self { kind, file, system, target, stamp, digest })
    }

    /// Whether it speaks of this very file, pushed to this target.
    pub fn counts(&self, file: &str, target: Target, stamp: &FileStamp) -> bool {
        self.file == file && self.target == target && self.stamp == *stamp
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ack() -> Ack {
        Ack {
            kind: Kind::Stored,
            file: "000000010000000000000001".to_owned(),
            system: "7000000000000000001".to_owned(),
            target: Target::of("file:///srv/lifeboat", "main"),
            stamp: FileStamp {
                device: 2049,
                inode: 77,
                size_bytes: 16 << 20,
                modified: (1_767_225_600, 123_456_789),
                changed: (1_767_225_600, 223_456_789),
            },
            digest: "ab".repeat(32),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format_page() {
        let text = String::from_utf8(ack().encode()).unwrap();
        assert_eq!(text, include_str!("ack.golden"));
        assert_eq!(Ack::decode(text.as_bytes()), Some(ack()));
    }

    #[test]
    fn it_counts_for_the_very_file_and_target_only() {
        let (ack, stamp) = (ack(), ack().stamp);
        assert!(ack.counts(&ack.file, ack.target, &stamp));
        let other: [(&str, FileStamp); 6] = [
            ("another file system", FileStamp { device: 1, ..stamp }),
            ("another file of that name", FileStamp { inode: 78, ..stamp }),
            ("longer", FileStamp { size_bytes: 1, ..stamp }),
            ("written to", FileStamp { modified: (1_767_225_600, 123_456_790), ..stamp }),
            (
                "written to, second alike",
                FileStamp { modified: (1_767_225_601, 123_456_789), ..stamp },
            ),
            ("touched back", FileStamp { changed: (1_767_225_600, 223_456_790), ..stamp }),
        ];
        for (what, stamp) in other {
            assert!(!ack.counts(&ack.file, ack.target, &stamp), "{what}");
        }
        assert!(!ack.counts("000000010000000000000002", ack.target, &stamp));
        let elsewhere = Target::of("file:///srv/lifeboat", "other");
        assert!(!ack.counts(&ack.file, elsewhere, &stamp));
    }

    proptest! {
        /// Law: what was cut short or changed anywhere is no acknowledgement.
        #[test]
        fn torn_or_changed_it_is_none(cut in 0usize..400, at in 0usize..400, flip in 1u8..=255) {
            let whole = ack().encode();
            prop_assume!(cut < whole.len() && at < whole.len());
            prop_assert_eq!(Ack::decode(&whole[..cut]), None);
            let mut changed = whole.clone();
            changed[at] ^= flip;
            prop_assert_eq!(Ack::decode(&changed), None);
            let mut zeroed = whole;
            zeroed[cut..].fill(0);
            prop_assert_eq!(Ack::decode(&zeroed), None);
        }
    }
}
