//! Log files that are reordered before compression.

mod support;

use lifeboat_repo::{Cluster, Compression, LogPlace};
use lifeboat_store::MemoryStore;

fn place(number: u32) -> LogPlace {
    LogPlace {
        system: "7".into(),
        timeline: 1,
        name: format!("0000000100000000000000{number:02X}"),
    }
}

fn push(cluster: &Cluster, place: &LogPlace, content: &[u8], compression: Compression) -> u64 {
    cluster.push_log(place, content, compression, support::at(1), serde_json::json!({})).unwrap();
    let stored = cluster.logs().unwrap();
    stored.iter().find(|log| log.place == *place).unwrap().stored_bytes
}

#[test]
fn a_reordered_log_file_is_read_by_whoever_knows_the_transform() {
    let store = MemoryStore::new();
    let repository = support::create(store.clone(), 5);
    let plain = support::main_cluster(&repository);
    let cluster = plain.clone().with_log_transforms(support::transforms());
    let content = b"All work and no play makes Jack a dull boy. ".repeat(60_000);
    assert!(content.len() > 2 << 20, "three pieces");
    let policies = ["auto", "zstd:3", "lz4", "none"];
    for (number, policy) in policies.into_iter().enumerate() {
        let place = place(number as u32);
        let stored = push(&cluster, &place, &content, policy.parse().unwrap());
        assert_eq!(stored < content.len() as u64 / 10, policy != "none", "{policy}: {stored}");
        assert!(cluster.read_log(&place).unwrap().1 == content, "{policy}");
        let known = plain.read_log(&place);
        if policy == "none" {
            assert!(known.unwrap().1 == content, "what is stored as it is needs no transform");
        } else {
            let refused = known.unwrap_err().to_string();
            assert!(
                refused.contains("transform 200, which this program does not know"),
                "{refused}"
            );
        }
    }
    // What an older program stored.
    let before = place(99);
    push(&plain, &before, &content, Compression::Auto);
    assert!(cluster.read_log(&before).unwrap().1 == content);
}
