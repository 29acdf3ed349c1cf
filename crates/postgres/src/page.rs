//! Pages of relations: their header and their checksum.
//!
//! Source: `PageHeaderData` in PostgreSQL `src/include/storage/bufpage.h`, `PageIsVerified` in
//! `src/backend/storage/page/bufpage.c`, `src/include/storage/checksum_impl.h`. The same in
//! versions 14 to 18.

use lifeboat_engine::{ClusterIdentity, Lsn, PageFormat, PageVerdict};

use crate::bytes::{array, u16_at, u32_at};

/// Size of a page's header in bytes: `SizeOfPageHeaderData` in `bufpage.h`.
pub const HEADER_BYTES: usize = 24;

/// `PG_PAGE_LAYOUT_VERSION` in `bufpage.h`, the low byte of `pd_pagesize_version`.
const LAYOUT_VERSION: u16 = 4;

/// `PD_VALID_FLAG_BITS` in `bufpage.h`.
const FLAG_BITS: u16 = 0x0007;

/// `MAXIMUM_ALIGNOF` of every platform on which PostgreSQL is packaged.
pub(crate) const ALIGNMENT: usize = 8;

/// Offset and size of `pd_checksum`.
const CHECKSUM: std::ops::Range<usize> = 8..10;

/// The fields of `PageHeaderData`, as they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// `pd_lsn`: end of the WAL record that changed the page last.
    pub lsn: Lsn,
    /// `pd_checksum`
    pub checksum: u16,
    /// `pd_flags`
    pub flags: u16,
    /// `pd_lower`: where the line pointers end.
    pub lower: u16,
    /// `pd_upper`: where the tuples begin. 0 in a page that was never initialised.
    pub upper: u16,
    /// `pd_special`: where the access method's own space begins.
    pub special: u16,
    /// `pd_pagesize_version`: page size plus layout version.
    pub size_and_version: u16,
    /// `pd_prune_xid`
    pub prune_xid: u32,
}

impl PageHeader {
    /// Reads the header; `None` when `page` is shorter than one.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = page.first_chunk()?;
        Some(Self {
            // xlogid, then xrecoff: `PageXLogRecPtr` is two 32-bit halves, the upper one first.
            lsn: Lsn(u64::from(u32_at(header, 0)?) << 32 | u64::from(u32_at(header, 4)?)),
            checksum: u16_at(header, 8)?,
            flags: u16_at(header, 10)?,
            lower: u16_at(header, 12)?,
            upper: u16_at(header, 14)?,
            special: u16_at(header, 16)?,
            size_and_version: u16_at(header, 18)?,
            prune_xid: u32_at(header, 20)?,
        })
    }

    /// Whether a server would take a page with this header.
    ///
    /// - Units: `page_bytes` is the cluster's page size.
    /// - Source: `PageIsVerified`, and `PageGetPageSize`, which it leaves to later.
    pub fn is_sane(&self, page_bytes: usize) -> bool {
        let special = usize::from(self.special);
        self.flags & !FLAG_BITS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && special <= page_bytes
            && special.is_multiple_of(ALIGNMENT)
            && usize::from(self.size_and_version & 0xFF00) == page_bytes
            && self.size_and_version & 0x00FF == LAYOUT_VERSION
    }
}

/// End of the WAL record that changed this page last; `None` when `page` is no page.
pub fn page_lsn(page: &[u8]) -> Option<Lsn> {
    PageHeader::parse(page).map(|header| header.lsn)
}

/// Checks pages of one cluster.
#[derive(Debug, Clone, Copy)]
pub struct PgPageFormat {
    page_bytes: usize,
    checksums: bool,
}

impl PgPageFormat {
    /// For a cluster with this page size, in bytes, and with checksums or without.
    pub fn new(page_bytes: u32, checksums: bool) -> Self {
        Self { page_bytes: page_bytes as usize, checksums }
    }

    /// For the cluster that is described.
    pub fn of(identity: &ClusterIdentity) -> Self {
        Self::new(identity.page_bytes, identity.checksums)
    }
}

impl PageFormat for PgPageFormat {
    fn check(&self, number: u32, page: &[u8]) -> PageVerdict {
        let Some(header) = PageHeader::parse(page) else {
            return PageVerdict::BadHeader;
        };
        // `PageIsNew`: only then a look at all bytes can save the page.
        if header.upper == 0 {
            return match is_zero(page) {
                true => PageVerdict::Zero,
                false => PageVerdict::BadHeader,
            };
        }
        if page.len() != self.page_bytes || !header.is_sane(self.page_bytes) {
            return PageVerdict::BadHeader;
        }
        if self.checksums {
            let computed = checksum(number, page);
            if computed != header.checksum {
                return PageVerdict::BadChecksum { computed, stored: header.checksum };
            }
        }
        PageVerdict::Valid
    }

    /// `pd_lsn`; `None` for a page of zeros. A page that was initialised and never logged says 0.
    fn changed_at(&self, page: &[u8]) -> Option<Lsn> {
        PageHeader::parse(page).filter(|header| header.upper != 0).map(|header| header.lsn)
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// `N_SUMS` in `checksum_impl.h`: as many sums run side by side.
const SUMS: usize = 32;

/// Bytes that one round takes.
const ROUND_BYTES: usize = SUMS * 4;

/// `FNV_PRIME` in `checksum_impl.h`.
const PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets` in `checksum_impl.h`.
#[rustfmt::skip]
const BASE: [u32; SUMS] = [
    0x5B1F_36E9, 0xB852_5960, 0x02AB_50AA, 0x1DE6_6D2A, 0x79FF_467A, 0x9BB9_F8A3, 0x217E_7CD2, 0x83E1_3D2C,
    0xF8D4_474F, 0xE39E_B970, 0x42C6_AE16, 0x9932_16FA, 0x7B09_3B5D, 0x98DA_FF3C, 0xF718_902A, 0x0B1C_9CDB,
    0xE58F_764B, 0x1876_36BC, 0x5D7B_3BB1, 0xE73D_E7DE, 0x92BE_C979, 0xCCA6_C0B2, 0x304A_0979, 0x85AA_43D4,
    0x7831_25BB, 0x6CA8_EAA2, 0xE407_EAC6, 0x4B5C_FC3E, 0x9FBF_8C76, 0x15CA_20BE, 0xF2CA_9FD3, 0x959B_D756,
];

/// The checksum that belongs into `pd_checksum` of this page.
///
/// - Units: `number` counts pages over all segment files of the relation fork.
/// - Shape: `page` is a whole page; bytes after the last multiple of 128 are not looked at
///   (page sizes are multiples).
/// - Source: `pg_checksum_page` in `src/include/storage/checksum_impl.h`.
/// - Checked by: `pages_of_a_real_cluster_are_valid_and_damage_is_found_as_pg_checksums_finds_it`.
pub fn checksum(number: u32, page: &[u8]) -> u16 {
    let folded = sums(page).iter().fold(number, |all, sum| all ^ sum);
    (folded % 65_535 + 1) as u16
}

/// The sums over a page, with the widest instructions that the processor has.
///
/// The same code, compiled once more: without AVX2 there is no multiplication of eight 32-bit
/// numbers at once, and a backup would spend more time here than on reading.
fn sums(page: &[u8]) -> [u32; SUMS] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked whether it has the instructions.
        #[expect(unsafe_code, reason = "instructions beyond the baseline are chosen at run time")]
        return unsafe { sums_avx2(page) };
    }
    sums_plain(page)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sums_avx2(page: &[u8]) -> [u32; SUMS] {
    sums_plain(page)
}

#[inline(always)]
fn sums_plain(page: &[u8]) -> [u32; SUMS] {
    let mut sums = BASE;
    let (rounds, _) = page.as_chunks::<ROUND_BYTES>();
    if let Some((first, rest)) = rounds.split_first() {
        // The sum is taken as if the field that holds it were zero.
        let mut head = *first;
        head[CHECKSUM].fill(0);
        mix(&mut sums, &words(&head));
        for round in rest {
            mix(&mut sums, &words(round));
        }
    }
    mix(&mut sums, &[0; SUMS]);
    mix(&mut sums, &[0; SUMS]);
    sums
}

/// One round, `CHECKSUM_COMP`. Written so that the compiler makes vector instructions of it.
#[inline(always)]
fn mix(sums: &mut [u32; SUMS], values: &[u32; SUMS]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

#[inline(always)]
fn words(round: &[u8; ROUND_BYTES]) -> [u32; SUMS] {
    std::array::from_fn(|i| u32::from_le_bytes(array(round, i * 4).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as `PageInit` makes it, with a checksum.
    fn fresh(number: u32, page_bytes: usize) -> Vec<u8> {
        let mut page = vec![0; page_bytes];
        for (at, value) in [(12, 24), (14, page_bytes), (16, page_bytes), (18, page_bytes | 4)] {
            page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        }
        let sum = checksum(number, &page);
        page[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn fresh_pages_of_every_size_are_valid() {
        for page_bytes in [1024, 2048, 4096, 8192, 16384, 32768] {
            let format = PgPageFormat::new(page_bytes, true);
            let page = fresh(7, page_bytes as usize);
            assert_eq!(format.check(7, &page), PageVerdict::Valid);
            assert!(format.check(8, &page).is_damage(), "a page in another's place");
        }
    }

    #[test]
    fn a_zero_page_is_valid_only_when_all_of_it_is_zero() {
        let format = PgPageFormat::new(8192, true);
        let mut page = vec![0; 8192];
        assert_eq!(format.check(0, &page), PageVerdict::Zero);
        for at in [0, 100, 8191] {
            page[at] = 1;
            assert_eq!(format.check(0, &page), PageVerdict::BadHeader);
            page[at] = 0;
        }
    }

    #[test]
    fn every_single_changed_byte_is_noticed() {
        let format = PgPageFormat::new(8192, true);
        let good = fresh(3, 8192);
        for at in 0..8192 {
            let mut page = good.clone();
            page[at] ^= 0x40;
            assert!(format.check(3, &page).is_damage(), "byte {at}");
        }
    }

    #[test]
    fn sums_are_the_same_with_every_kind_of_instructions() {
        let mut page = fresh(3, 8192);
        for (at, byte) in page.iter_mut().enumerate().skip(24) {
            *byte = (at * at % 251) as u8;
        }
        assert_eq!(sums(&page), sums_plain(&page));
    }

    #[test]
    fn without_checksums_only_the_header_is_judged() {
        let format = PgPageFormat::new(8192, false);
        let mut page = fresh(3, 8192);
        page[5000] = 1;
        assert_eq!(format.check(99, &page), PageVerdict::Valid);
        page[11] = 0x80; // a flag that does not exist
        assert_eq!(format.check(99, &page), PageVerdict::BadHeader);
        assert_eq!(format.check(0, &page[..10]), PageVerdict::BadHeader);
        assert_eq!(format.check(0, &fresh(0, 4096)), PageVerdict::BadHeader);
    }
}
