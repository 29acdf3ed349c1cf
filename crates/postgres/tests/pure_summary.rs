//! Summary files that no server wrote: cut, flipped, lying, and random ones.

use std::collections::BTreeSet;
use std::ops::Range;

use lifeboat_postgres::summary::Fork;
use lifeboat_postgres::summary::file::{self, MAGIC, SummaryError};
use lifeboat_postgres::summary::table::BlockTable;
use proptest::prelude::*;

/// What a file says of one fork.
#[derive(Debug, Clone)]
struct Said {
    fork: Fork,
    limit: u32,
    blocks: BTreeSet<u32>,
}

/// Writes a file as a server does.
fn encode(forks: &[Said]) -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    for Said { fork, limit, blocks } in forks {
        let chunks = blocks.last().map_or(0, |last| last / 65_536 + 1);
        let fields = [fork.tablespace, fork.database, fork.relation, fork.fork, *limit, chunks];
        fields.iter().for_each(|field| out.extend_from_slice(&field.to_le_bytes()));
        let mut bodies: Vec<Vec<u16>> = Vec::new();
        for chunk in 0..chunks {
            let first = chunk * 65_536;
            let list: Vec<u16> =
                blocks.range(first..=first + 65_535).map(|b| (b - first) as u16).collect();
            bodies.push(if list.len() < 4096 {
                list
            } else {
                let mut bits = vec![0u16; 4096];
                list.iter().for_each(|b| bits[usize::from(b / 16)] |= 1 << (b % 16));
                bits
            });
        }
        bodies.iter().for_each(|b| out.extend_from_slice(&(b.len() as u16).to_le_bytes()));
        bodies.iter().flatten().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }
    out.extend_from_slice(&[0; 24]);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &out) as u32;
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn read(bytes: &[u8]) -> Result<BlockTable, SummaryError> {
    let mut table = BlockTable::default();
    file::read(bytes, &mut table)?;
    Ok(table)
}

fn blocks(ranges: Vec<Range<u32>>) -> BTreeSet<u32> {
    ranges.into_iter().flatten().collect()
}

prop_compose! {
    fn said()(tablespace in 1663u32..1665, database in 0u32..3, relation in 1u32..4, fork in 0u32..3,
              limit in prop_oneof![Just(u32::MAX), 0u32..200_000],
              few in proptest::collection::btree_set(0u32..200_000, 0..50),
              many in proptest::option::of((0u32..150_000, 1u32..9_000, 1usize..3))) -> Said {
        let mut blocks = few;
        if let Some((from, length, step)) = many {
            blocks.extend((from..from + length).step_by(step));
        }
        Said { fork: Fork { tablespace, database, relation, fork }, limit, blocks }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Law: several files together say what each of them says.
    #[test]
    fn tables_add_up(files in proptest::collection::vec(proptest::collection::vec(said(), 0..4), 0..4)) {
        let mut table = BlockTable::default();
        for said in &files {
            file::read(encode(said).as_slice(), &mut table).unwrap();
        }
        let all: Vec<&Said> = files.iter().flatten().collect();
        for fork in all.iter().map(|said| said.fork) {
            let of = || all.iter().filter(|said| said.fork == fork);
            let limit = of().map(|said| said.limit).min().filter(|limit| *limit < u32::MAX);
            prop_assert_eq!(table.limit_of(fork), limit);
            for within in [0..200_000u32, 65_000..66_000, 7..8, 131_072..131_072] {
                let ranges = table.changed(fork, within.clone());
                prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
                let touched = of().flat_map(|said| said.blocks.iter().copied());
                let mut expected: BTreeSet<u32> = touched.filter(|b| within.contains(b)).collect();
                expected.extend(within.clone().filter(|b| limit.is_some_and(|l| *b >= l)));
                prop_assert_eq!(blocks(ranges), expected);
            }
        }
        let unknown = Fork { tablespace: 9, database: 9, relation: 9, fork: 0 };
        prop_assert!(table.changed(unknown, 0..9).is_empty() && !table.names(unknown));
    }

    /// Law: no bytes make the reader panic, and none that are not whole are taken.
    #[test]
    fn nonsense_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
        let mut bytes = bytes;
        bytes.splice(0..bytes.len().min(4), MAGIC.to_le_bytes());
        prop_assert!(read(&bytes).is_err());
    }
}

fn fork(relation: u32) -> Fork {
    Fork { tablespace: 1663, database: 5, relation, fork: 0 }
}

fn example() -> Vec<u8> {
    let dense = (70_000..75_000).collect();
    encode(&[
        Said { fork: fork(7), limit: u32::MAX, blocks: BTreeSet::from([1, 2, 65_536]) },
        Said { fork: fork(8), limit: 3, blocks: BTreeSet::new() },
        Said { fork: fork(9), limit: u32::MAX, blocks: dense },
    ])
}

#[test]
#[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
fn every_cut_and_every_flip_is_noticed() {
    let good = example();
    let table = read(&good).unwrap();
    assert_eq!(table.changed(fork(7), 0..100_000), [1..3, 65_536..65_537]);
    assert_eq!(table.changed(fork(9), 0..100_000), [70_000..75_000]);
    for cut in 0..good.len() {
        assert!(read(&good[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            assert!(read(&bad).is_err(), "byte {at}");
        }
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert!(matches!(read(&longer), Err(SummaryError::Claim(_))));
}

#[test]
fn claims_are_checked_before_space_is_taken() {
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    for field in [1663u32, 5, 7, 0, u32::MAX, u32::MAX] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    assert!(matches!(read(&bytes), Err(SummaryError::Claim(_))), "chunks");
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&4097u16.to_le_bytes());
    assert!(matches!(read(&bytes), Err(SummaryError::Claim(_))), "a chunk");
    assert!(matches!(read(b"not a summary"), Err(SummaryError::Magic(_))));
    assert!(matches!(read(b""), Err(SummaryError::Short)));
}
