//! Promises 1, 2 and 5 when the writing process is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lifeboat_store::{Key, LocalStore, Store};

const ROOT: &str = "LIFEBOAT_TEST_KILLED_WRITER_ROOT";
const BODY_BYTES: usize = 300_000;

fn key(n: usize) -> Key {
    Key::new(format!("objects/{}/{n}", n % 3)).unwrap()
}

fn body(n: usize) -> Vec<u8> {
    n.to_le_bytes().repeat(BODY_BYTES / 8)
}

/// Runs in the child: puts and commits for ever, and says what was acknowledged.
fn write_for_ever(root: &Path) {
    let store = LocalStore::open(root).unwrap();
    let mut out = std::io::stdout();
    for n in (0..).step_by(4) {
        store.put(&key(n), &body(n)).unwrap();
        writeln!(out, "acknowledged {n}").unwrap();
        let batch = store.batch().unwrap();
        for n in n + 1..n + 4 {
            batch.put(&key(n), &body(n)).unwrap();
        }
        batch.commit().unwrap();
        for n in n + 1..n + 4 {
            writeln!(out, "acknowledged {n}").unwrap();
        }
    }
}

#[test]
fn a_killed_writer_leaves_whole_objects_only_and_all_that_it_acknowledged() {
    if let Some(root) = std::env::var_os(ROOT) {
        return write_for_ever(Path::new(&root));
    }
    let (mut acknowledged_total, mut leftovers_total) = (0, 0);
    for round in 0..25_u64 {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("a_killed_writer_leaves_whole_objects_only_and_all_that_it_acknowledged")
            .env(ROOT, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<usize>().ok())
                .collect::<Vec<_>>()
        });
        // Moments spread over several puts and commits, different in each round.
        std::thread::sleep(Duration::from_micros(20_000 + round * 7_919 % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = reader.join().unwrap();

        let store = LocalStore::open(directory.path()).unwrap();
        let mut listed = Vec::new();
        store.list("", &mut |entry| listed.push(entry)).unwrap();
        for entry in &listed {
            let n: usize = entry.key.name().parse().unwrap();
            assert_eq!(store.get(&entry.key, entry.size_bytes).unwrap(), body(n), "{}", entry.key);
        }
        for &n in &acknowledged {
            assert!(listed.iter().any(|entry| entry.key == key(n)), "{n} was acknowledged");
        }
        acknowledged_total += acknowledged.len();
        leftovers_total += store.sweep_temporaries("", Duration::ZERO).unwrap();
        assert_eq!(store.sweep_temporaries("", Duration::ZERO).unwrap(), 0);
    }
    assert!(acknowledged_total > 0, "every child was killed before it wrote anything");
    assert!(leftovers_total > 0, "no child was killed in the middle of a write");
}
