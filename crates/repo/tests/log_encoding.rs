//! Log files that are stored piece by piece.

mod support;

use lifeboat_repo::{Compression, LOG_PIECE_BYTES, LogPlace, PushOutcome};
use lifeboat_store::MemoryStore;

#[test]
fn pieces_are_stored_as_the_whole_is() {
    let repository = support::create(MemoryStore::new(), 5);
    let cluster = support::main_cluster(&repository);
    let mut writer = cluster.log_writer(Compression::Auto);
    let facts = || serde_json::json!({ "known": true });
    for length in [0, 1, LOG_PIECE_BYTES, LOG_PIECE_BYTES + 1, 3 * LOG_PIECE_BYTES] {
        let content: Vec<u8> = (0..length).map(|at| (at >> 3) as u8).collect();
        let name = format!("{:024X}", 0x1_0000_0000_0000_0000_u128 + length as u128);
        let place = LogPlace { system: "7".into(), timeline: 1, name };
        let mut encoding = cluster.encode_log(&place, &mut writer);
        let mut digest = cluster.digest_log();
        for piece in content.chunks(LOG_PIECE_BYTES) {
            encoding.add(piece);
            digest.add(piece);
        }
        let encoded = encoding.finish(support::at(1), facts()).unwrap();
        assert_eq!(encoded.digest(), cluster.log_digest(&content));
        assert_eq!(encoded.digest(), digest.finish());
        assert!(matches!(cluster.put_log(&encoded).unwrap(), PushOutcome::Stored { .. }));
        assert_eq!(cluster.put_log(&encoded).unwrap(), PushOutcome::AlreadyThere);
        let (head, read) = cluster.read_log(&place).unwrap();
        assert!(read == content && head.facts == facts());
        let again =
            cluster.push_log(&place, &content, Compression::None, support::at(2), facts()).unwrap();
        assert_eq!(again, PushOutcome::AlreadyThere);
        let other = cluster.push_log(&place, b"!", Compression::None, support::at(2), facts());
        assert!(matches!(other.unwrap(), PushOutcome::Different { .. }));
    }
}

#[test]
#[should_panic(expected = "piece by piece")]
fn a_short_piece_is_the_last_one() {
    let repository = support::create(MemoryStore::new(), 5);
    let cluster = support::main_cluster(&repository);
    let mut writer = cluster.log_writer(Compression::Auto);
    let name = "000000010000000000000001".to_owned();
    let place = LogPlace { system: "7".into(), timeline: 1, name };
    let mut encoding = cluster.encode_log(&place, &mut writer);
    encoding.add(b"short");
    encoding.add(b"one more");
}
