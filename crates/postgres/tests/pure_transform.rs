//! Split pages join to what they were: made-up pages, damaged pages, real pages.

#[path = "pure_support/mod.rs"]
mod support;

use lifeboat_engine::Transform;
use lifeboat_postgres::transform::SplitPages;
use proptest::prelude::*;
use support::{Noise, Scratch, binaries, relation_files};

/// What goes into a made-up page.
#[derive(Debug, Clone, Copy)]
struct Recipe {
    seed: u64,
    special_bytes: usize,
    /// Room of the largest tuple, in units of 8 bytes.
    tuple_words_max: usize,
    shuffled: bool,
    hole: bool,
}

/// A page with tuples, as `PageAddItem` would lay them out.
fn page(page_bytes: usize, recipe: Recipe) -> Vec<u8> {
    let mut noise = Noise(recipe.seed | 1);
    let mut page = vec![0u8; page_bytes];
    let special = page_bytes - recipe.special_bytes;
    let (mut upper, mut items) = (special, Vec::new());
    // Too short for heap tuples once in a while.
    let is_heap = recipe.special_bytes == 0 && noise.below(16) != 0;
    let shortest = if is_heap { 24 } else { 9 };
    loop {
        let length = shortest + noise.below(recipe.tuple_words_max * 8 - 8);
        let room = length.next_multiple_of(8);
        if upper < 24 + (items.len() + 3) * 4 + room {
            break;
        }
        upper -= room;
        items.push((upper | 1 << 15 | length << 17) as u32);
        let number = items.len() as u64;
        let tuple = &mut page[upper..upper + room];
        for (at, word) in tuple.chunks_exact_mut(8).enumerate() {
            let value = if noise.below(3) == 0 { noise.next() as u64 } else { number * at as u64 };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    if noise.below(4) == 0 {
        items.push(0); // unused
        items.push(1 | 2 << 15); // redirected
    }
    if recipe.shuffled {
        for at in (1..items.len()).rev() {
            items.swap(at, noise.below(at + 1));
        }
    }
    let lower = 24 + items.len() * 4;
    for (at, item) in items.iter().enumerate() {
        page[24 + at * 4..28 + at * 4].copy_from_slice(&item.to_le_bytes());
    }
    if recipe.hole && lower < upper {
        page[lower] = 7;
    }
    for (at, value) in [(12, lower), (14, upper), (16, special), (18, page_bytes | 4)] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    page[..10].copy_from_slice(&noise.next().to_le_bytes().repeat(2)[..10]);
    page
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let special = prop_oneof![Just(0usize), Just(8), Just(16)];
    (any::<u64>(), special, 2usize..40, any::<bool>(), any::<bool>()).prop_map(
        |(seed, special_bytes, tuple_words_max, shuffled, hole)| Recipe {
            seed,
            special_bytes,
            tuple_words_max,
            shuffled,
            hole,
        },
    )
}

fn pages() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let one = prop_oneof![
        8 => recipe().prop_map(Some),
        1 => Just(None), // a zero page
    ];
    (10u32..=15, prop::collection::vec(one, 1..=6)).prop_map(|(power, recipes)| {
        let page_bytes = 1usize << power;
        let pages = recipes
            .iter()
            .flat_map(|r| r.map_or_else(|| vec![0; page_bytes], |recipe| page(page_bytes, recipe)))
            .collect();
        (page_bytes, pages)
    })
}

/// Splits and joins; returns the split form, if there is one.
fn round_trip(page_bytes: usize, pages: &[u8]) -> Option<Vec<u8>> {
    let transform = SplitPages::new(page_bytes as u32);
    let mut split = b"before".to_vec();
    if !transform.split(pages, &mut split) {
        assert_eq!(split, b"before");
        return None;
    }
    let split = split.split_off(6);
    // What lies there does not matter.
    let mut joined = vec![0xA5; pages.len()];
    transform.join(&split, &mut joined).unwrap();
    assert!(joined == *pages, "the pages did not come back as they were");
    Some(split)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Law: what was split joins to what it was, and is little longer.
    #[test]
    fn split_pages_join_to_what_they_were((page_bytes, pages) in pages()) {
        if let Some(split) = round_trip(page_bytes, &pages) {
            prop_assert!(split.len() <= pages.len() + pages.len() / page_bytes);
        }
    }

    /// Law: the same for damaged pages.
    #[test]
    fn damaged_pages_come_back_with_their_damage(
        (page_bytes, mut pages) in pages(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
        heads in prop::collection::vec((any::<prop::sample::Index>(), 0usize..200, any::<u8>()), 0..4),
    ) {
        for (at, value) in hits {
            let length = pages.len();
            pages[at.index(length)] = value;
        }
        // Headers and line pointers are where it hurts.
        for (page, at, value) in heads {
            let count = pages.len() / page_bytes;
            pages[page.index(count) * page_bytes + at] = value;
        }
        round_trip(page_bytes, &pages);
    }

    /// Law: the same for bytes that are no pages at all.
    #[test]
    fn random_bytes_come_back(seed in any::<u64>(), count in 1usize..5, power in 10u32..=15) {
        let mut noise = Noise(seed | 1);
        let pages: Vec<u8> = (0..count << power).map(|_| noise.next() as u8).collect();
        round_trip(1 << power, &pages);
    }

    /// Law: what was never split is refused or joined to something, without panic and without
    /// more memory than the pages need.
    #[test]
    fn damaged_columns_are_refused_or_harmless(
        (page_bytes, pages) in pages(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10),
        length in 0usize..3,
    ) {
        if let Some(mut split) = round_trip(page_bytes, &pages) {
            for (at, value) in hits {
                // Half of them near the front, where the sizes are decided.
                let limit = if value % 2 == 0 { split.len() } else { split.len().min(300) };
                split[at.index(limit)] = value;
            }
            split.truncate(split.len() - length);
            let mut joined = vec![0; pages.len()];
            let _ = SplitPages::new(page_bytes as u32).join(&split, &mut joined);
        }
    }

    /// Law: random bytes are no split pages, whatever length is claimed.
    #[test]
    fn random_columns_are_refused_or_harmless(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        pages in 0usize..40,
    ) {
        let _ = SplitPages::new(1024).join(&bytes, &mut vec![0; pages * 1024]);
    }
}

#[test]
fn whole_pages_only() {
    let recipe =
        Recipe { seed: 1, special_bytes: 0, tuple_words_max: 9, shuffled: false, hole: false };
    let good = page(8192, recipe);
    let transform = SplitPages::new(8192);
    assert_eq!(transform.id(), 1);
    let mut out = Vec::new();
    assert!(transform.split(&good, &mut out));
    assert!(transform.join(&out.clone(), &mut [0; 8191]).is_err());
    assert!(!transform.split(&good[1..], &mut out));
    assert!(!transform.split(&[], &mut out));
    assert!(!transform.split(&vec![0; 8192], &mut out), "nothing to gain");
    for page_bytes in [0, 512, 8000, 65536] {
        let odd = SplitPages::new(page_bytes);
        assert!(!odd.split(&good, &mut out), "{page_bytes}");
        assert!(odd.join(&[], &mut []).is_err(), "{page_bytes}");
    }
}

/// Heap with a hole and four leading words, index, zero, raw.
const KINDS: [u8; 4] = [0x92, 0x03, 0x01, 0x00];

/// Four pages of 1 KiB: a heap page, an index page, a zero page, and one that is none.
fn example() -> Vec<u8> {
    let recipe =
        Recipe { seed: 3, special_bytes: 0, tuple_words_max: 12, shuffled: false, hole: true };
    let mut pages = page(1024, recipe);
    let index = Recipe { seed: 5, special_bytes: 16, tuple_words_max: 3, shuffled: true, ..recipe };
    pages.extend(page(1024, Recipe { hole: false, ..index }));
    pages.extend([0; 1024]);
    pages.extend((0..1024).map(|i| (i % 251 + 1) as u8));
    pages
}

#[test]
fn the_format_is_the_one_that_is_documented() {
    let hex = include_str!("../src/vectors/transform-split-pages.hex");
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let golden: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let split = round_trip(1024, &example()).unwrap();
    assert_eq!(split[..4], KINDS);
    if golden != split {
        let text: String = split.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("repositories hold another format than this: {text}");
    }
    let mut joined = vec![0; 4096];
    SplitPages::new(1024).join(&golden, &mut joined).unwrap();
    assert!(joined == example());
}

const WORK: &str = "
    create table a (id bigint primary key, at timestamptz, name text, more jsonb);
    insert into a select i, now() + i * interval '1 second', md5(i::text), null
      from generate_series(1, 30000) i;
    update a set name = name || 'x', more = '{\"k\": [1, 2, 3]}' where id % 7 = 0;
    delete from a where id % 11 = 0;
    create index on a (name); create index on a using hash (id); create index on a using brin (at);
    create index on a using gin (more); create index on a using spgist (name);
    create table p (at point, big text);
    insert into p select point(i, i * 2 % 7), repeat(md5(i::text), 200) from generate_series(1, 2000) i;
    create index on p using gist (at);
    create sequence s; select nextval('s');
    vacuum; insert into a select i, now(), 'again', null from generate_series(40000, 50000) i;
    delete from a where id % 3 = 0; vacuum a; checkpoint;
";

#[test]
fn a_real_cluster_splits_and_joins() {
    for major in [15, 18] {
        let Some(bin) = binaries("a_real_cluster_splits_and_joins", major) else { continue };
        let scratch = Scratch::start(bin, &[], "");
        scratch.sql(WORK);
        scratch.stop();
        let (mut pages, mut split) = (0, 0);
        for (path, _) in relation_files(&scratch.data()) {
            let bytes = std::fs::read(&path).unwrap();
            for extent in bytes.chunks(32 * 8192) {
                pages += extent.len() / 8192;
                if round_trip(8192, extent).is_some() {
                    split += extent.len() / 8192;
                }
            }
        }
        assert!(pages > 2000 && split * 10 > pages * 8, "{split} of {pages} pages were split");
    }
}
