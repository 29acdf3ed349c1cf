//! Pieces of WAL come back as they were: made-up ones, damaged ones, those of real servers.

#[path = "pure_support/mod.rs"]
mod support;

use std::fs;

use lifeboat_engine::Transform;
use lifeboat_postgres::log_transform::SplitRecords;
use proptest::prelude::*;
use support::{Noise, Scratch, binaries};

/// Splits and joins; returns the split form, if there is one.
fn round_trip(piece: &[u8]) -> Option<Vec<u8>> {
    let mut split = b"before".to_vec();
    if !SplitRecords.split(piece, &mut split) {
        assert_eq!(split, b"before");
        return None;
    }
    let split = split.split_off(6);
    // What lies there does not matter.
    let mut joined = vec![0xA5; piece.len()];
    SplitRecords.join(&split, &mut joined).unwrap();
    assert!(joined == *piece, "the piece did not come back as it was");
    Some(split)
}

/// Where a made-up piece begins in the WAL.
const BASE: u64 = 0x16_B300_0000;

/// A piece as a server would write it: records of a few kinds, each a little different from the
/// one before, some of them longer than a page.
#[derive(Debug, Clone, Copy)]
struct Recipe {
    seed: u64,
    page_bytes: usize,
    pages: usize,
    /// Whether it is the first of a segment.
    first: bool,
    /// Bytes in which a record from an earlier piece goes on.
    continued: usize,
    body_bytes_max: usize,
    /// One in so many records is intact, and yet not as a server writes it; 0 for none.
    odd_one_in: usize,
}

fn piece(recipe: Recipe) -> Vec<u8> {
    let Recipe { seed, page_bytes, pages, .. } = recipe;
    let mut noise = Noise(seed | 1);
    let kinds: Vec<Vec<u8>> = (0..1 + noise.below(6))
        .map(|_| (0..noise.below(recipe.body_bytes_max + 1)).map(|_| noise.next() as u8).collect())
        .collect();
    let mut writer = Writer { bytes: Vec::new(), recipe, left: recipe.continued };
    writer.put(&vec![7; recipe.continued]);
    writer.pad();
    let (mut xid, mut previous) = (noise.next() as u32, BASE - 100);
    while writer.bytes.len() < pages * page_bytes {
        let kind = noise.below(kinds.len());
        let mut body = kinds[kind].clone();
        for _ in 0..noise.below(6) {
            let length = body.len().max(1);
            body.get_mut(noise.below(length)).into_iter().for_each(|byte| *byte ^= 0x55);
        }
        xid = xid.wrapping_add([0, 0, 1, 1, 1, 100_000][noise.below(6)]);
        let mut header = Vec::with_capacity(24);
        header.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
        header.extend_from_slice(&(if noise.below(8) == 0 { 0 } else { xid }).to_le_bytes());
        let odd = recipe.odd_one_in > 0 && noise.below(recipe.odd_one_in) == 0;
        let (link, unused) = match odd {
            true if noise.below(2) == 0 => (previous + 8, [0, 0]),
            true => (previous, [0, 7]),
            false => (previous, [0, 0]),
        };
        header.extend_from_slice(&link.to_le_bytes());
        header.extend_from_slice(&[kind as u8 * 16, kind as u8 % 3, unused[0], unused[1]]);
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&body);
        digest.update(&header);
        header.extend_from_slice(&(digest.finalize() as u32).to_le_bytes());
        header.extend_from_slice(&body);
        writer.left = 0;
        writer.begin_page();
        previous = BASE + writer.bytes.len() as u64;
        writer.left = header.len();
        writer.put(&header);
        writer.pad();
    }
    writer.bytes.truncate(pages * page_bytes);
    writer.bytes
}

/// Lays records across pages.
struct Writer {
    bytes: Vec<u8>,
    recipe: Recipe,
    /// Bytes of the record that are not written yet.
    left: usize,
}

impl Writer {
    fn begin_page(&mut self) {
        let at = self.bytes.len();
        if !at.is_multiple_of(self.recipe.page_bytes) {
            return;
        }
        let long = at == 0 && self.recipe.first;
        let info = u16::from(self.left > 0) | u16::from(long) << 1 | 4;
        self.bytes.extend_from_slice(&0xD118u16.to_le_bytes());
        self.bytes.extend_from_slice(&info.to_le_bytes());
        self.bytes.extend_from_slice(&3u32.to_le_bytes());
        self.bytes.extend_from_slice(&(BASE + at as u64).to_le_bytes());
        self.bytes.extend_from_slice(&(self.left as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&[1; 16]);
        }
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.begin_page();
        while !bytes.is_empty() {
            self.begin_page();
            let room = self.recipe.page_bytes - self.bytes.len() % self.recipe.page_bytes;
            let part = bytes.split_off(..room.min(bytes.len())).unwrap();
            self.bytes.extend_from_slice(part);
            self.left -= part.len();
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

fn recipes() -> impl Strategy<Value = Recipe> {
    let long = prop_oneof![Just(40usize), Just(300), Just(600), Just(9000)];
    let begin = (any::<bool>(), prop_oneof![2 => Just(0usize), 1 => 1..3000usize]);
    (any::<u64>(), 10u32..=16, 2usize..12, begin, long).prop_map(
        |(seed, power, pages, (first, continued), body_bytes_max)| Recipe {
            seed,
            page_bytes: 1 << power,
            pages: pages.min(1 << (20 - power)),
            first,
            continued,
            body_bytes_max,
            odd_one_in: 0,
        },
    )
}

fn hits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10)
}

fn hit(bytes: &mut [u8], hits: Vec<(prop::sample::Index, u8)>, within: usize) {
    for (at, value) in hits {
        bytes[at.index(within.min(bytes.len()))] = value;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Law: what a server writes comes back, and is shorter by what follows from the rest.
    #[test]
    fn records_come_back(recipe in recipes()) {
        let piece = piece(recipe);
        let split = round_trip(&piece);
        let room = recipe.pages * (recipe.page_bytes - 24);
        if recipe.continued + 2 * (24 + recipe.body_bytes_max) + 100 < room {
            prop_assert!(split.is_some_and(|split| split.len() < piece.len() + 40));
        }
    }

    /// Law: records that a server would not write come back as they are.
    #[test]
    fn odd_records_come_back(recipe in recipes(), odd_one_in in 1usize..20) {
        round_trip(&piece(Recipe { odd_one_in, ..recipe }));
    }

    /// Law: damaged pieces come back with their damage.
    #[test]
    fn any_bytes_come_back(recipe in recipes(), hits in hits(), near in any::<bool>()) {
        let mut piece = piece(recipe);
        let within = if near { 200 } else { piece.len() };
        hit(&mut piece, hits, within);
        round_trip(&piece);
    }

    /// Law: columns that nobody wrote are refused or joined to something, without panic.
    #[test]
    fn damaged_columns_are_refused_or_harmless(
        recipe in recipes(), hits in hits(), near in any::<bool>(), short in 0usize..3,
    ) {
        let piece = piece(recipe);
        if let Some(mut split) = round_trip(&piece) {
            let within = if near { 40 } else { split.len() };
            hit(&mut split, hits, within);
            split.truncate(split.len() - short);
            let _ = SplitRecords.join(&split, &mut vec![0; piece.len()]);
        }
    }

    /// Law: random bytes are no columns, whatever length is claimed.
    #[test]
    fn random_columns_are_refused_or_harmless(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2000),
        length in 0usize..20,
        power in 9u8..18,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = power;
        }
        let _ = SplitRecords.join(&bytes, &mut vec![0; length * 1024]);
    }

    /// Law: bytes that are no WAL are left as they are.
    #[test]
    fn other_bytes_are_declined(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        prop_assert_eq!(round_trip(&bytes), None);
    }
}

#[test]
fn a_column_with_a_byte_too_many_is_refused() {
    let piece = piece(EXAMPLE);
    let mut split = round_trip(&piece).unwrap();
    split.push(0);
    assert!(SplitRecords.join(&split, &mut vec![0; piece.len()]).is_err());
    split.truncate(split.len() - 2);
    assert!(SplitRecords.join(&split, &mut vec![0; piece.len()]).is_err());
    assert!(SplitRecords.join(&[], &mut []).is_err());
}

/// Records on and across pages of 1 KiB, in the second piece of a segment.
const EXAMPLE: Recipe = Recipe {
    seed: 11,
    page_bytes: 1024,
    pages: 3,
    first: false,
    continued: 21,
    body_bytes_max: 100,
    odd_one_in: 0,
};

#[test]
fn the_format_is_the_one_that_is_documented() {
    let hex = include_str!("../src/vectors/transform-split-records.hex");
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let golden: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let split = round_trip(&piece(EXAMPLE)).unwrap();
    assert_eq!(SplitRecords.id(), 2);
    if golden != split {
        let text: String = split.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("repositories hold another format than this: {text}");
    }
    let mut joined = vec![0; 3072];
    SplitRecords.join(&golden, &mut joined).unwrap();
    assert!(joined == piece(EXAMPLE));
}

/// Every kind of record that is easily had: heap, indexes, sequences, large values, two-phase,
/// messages longer than a piece, images of pages, switches.
const WORK: &str = "
    create table t (id int primary key, body text);
    alter table t alter body set storage external;
    insert into t select i, md5(i::text) from generate_series(1, 20000) i;
    create index on t using hash (id); create index on t using gin (string_to_array(body, 'a'));
    create index on t using brin (id); create index on t using spgist (body);
    create table p (at point); insert into p select point(i, i % 7) from generate_series(1, 3000) i;
    create index on p using gist (at);
    create sequence s; select nextval('s') from generate_series(1, 500);
    do $$ begin for i in 1..2000 loop
      update t set body = 'x' || i where id = i; commit; end loop; end $$;
    begin; delete from t where id < 50; rollback;
    begin; insert into t values (-1, 'a'); savepoint s; insert into t values (-2, 'b');
    prepare transaction 'kept'; commit prepared 'kept';
    checkpoint;
    update t set body = repeat(md5(id::text), 100) where id < 3000;
    select pg_logical_emit_message(true, 'big', repeat('0123456789', 300000));
    select pg_switch_wal();
    vacuum t; insert into t select i, 'after the switch' from generate_series(30001, 31000) i;
    select pg_switch_wal();
";

#[test]
fn wal_of_a_real_cluster_splits_and_joins() {
    for major in [15, 17, 18] {
        let test = "wal_of_a_real_cluster_splits_and_joins";
        let Some(bin) = binaries(test, major) else { continue };
        for options in [&["--wal-segsize=1"][..], &[]] {
            let settings = "max_prepared_transactions = 2\nwal_keep_size = 1GB\n";
            let scratch = Scratch::start(bin.clone(), options, settings);
            scratch.sql(WORK);
            scratch.stop();
            let (mut pieces, mut whole, mut short) = (0, 0, 0);
            for entry in fs::read_dir(scratch.data().join("pg_wal")).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    continue;
                }
                let segment = fs::read(path).unwrap();
                for piece in segment.chunks(1 << 20) {
                    if let Some(split) = round_trip(piece) {
                        pieces += 1;
                        whole += piece.len();
                        short += split.len();
                    }
                }
            }
            assert!(pieces > 20, "{pieces} pieces of {major}");
            assert!(short * 10 < whole * 9, "{short} of {whole} bytes are left on {major}");
        }
    }
}
