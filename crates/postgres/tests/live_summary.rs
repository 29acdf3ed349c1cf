//! What is read from summary files is what PostgreSQL's own readers print.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::{Duration, Instant};

use lifeboat_postgres::summary::Fork;
use lifeboat_postgres::summary::file::{self, Sink, SummaryError};
use lifeboat_postgres::summary::range::SummaryName;
use lifeboat_testkit::scratch::{self, ScratchServer};

/// What a file says, block by block.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    limits: BTreeMap<Fork, u32>,
    blocks: BTreeSet<(Fork, u32)>,
}

impl Sink for Said {
    fn limit(&mut self, fork: Fork, limit: Option<u32>) {
        self.limits.extend(limit.map(|limit| (fork, limit)));
    }
    fn chunk(&mut self, fork: Fork, chunk: u32, words: &[u16]) -> Result<(), SummaryError> {
        let first = chunk * 65_536;
        if words.len() == 4096 {
            let bits = (0..65_536u32).filter(|b| words[*b as usize / 16] >> (b % 16) & 1 == 1);
            self.blocks.extend(bits.map(|b| (fork, first + b)));
        } else {
            self.blocks.extend(words.iter().map(|b| (fork, first + u32::from(*b))));
        }
        Ok(())
    }
}

/// Rows of `tablespace database relation fork limit block`, with an empty field for none.
fn by_rows<'a>(rows: impl Iterator<Item = [&'a str; 6]>) -> Said {
    let mut said = Said::default();
    for [tablespace, database, relation, fork, limit, block] in rows {
        let number = |text: &str| text.parse().expect("it is a number");
        let fork = Fork {
            tablespace: number(tablespace),
            database: number(database),
            relation: number(relation),
            fork: number(fork),
        };
        if limit.is_empty() {
            said.blocks.insert((fork, number(block)));
        } else {
            said.limits.insert(fork, number(limit));
        }
    }
    said
}

/// Reads lines such as `TS 1663, DB 5, REL 16384, FORK main: limit 0` and `…: block 7`.
fn printed(text: &str) -> Said {
    let forks = ["main", "fsm", "vm", "init"].map(str::to_owned);
    let rows: Vec<[String; 6]> = text
        .lines()
        .map(|line| {
            let (place, what) = line.split_once(": ").expect("a line has two parts");
            let words: Vec<&str> = place.split([' ', ',']).filter(|w| !w.is_empty()).collect();
            let fork = forks.iter().position(|f| f == words[7]).expect("a fork is known");
            let (kind, number) = what.split_once(' ').expect("it has a number");
            let (limit, block) = if kind == "limit" { (number, "") } else { ("", number) };
            [words[1], words[3], words[5], &fork.to_string(), limit, block].map(str::to_owned)
        })
        .collect();
    by_rows(rows.iter().map(|row| row.each_ref().map(String::as_str)))
}

fn what_is_read_is_what_pg_walsummary_prints(major: u32) {
    let test = "what_is_read_is_what_pg_walsummary_prints";
    let builder = ScratchServer::of(major).setting("summarize_wal", "on");
    let server = match builder.start() {
        Ok(server) => server,
        Err(reason) => return scratch::skip(&format!("{test}_{major}"), &reason.to_string()),
    };
    server.execute(
        "CREATE TABLE dense AS SELECT i, repeat('x', 900) t FROM generate_series(1, 60000) i",
    );
    server
        .execute("CREATE TABLE cut AS SELECT i, repeat('x', 900) t FROM generate_series(1, 900) i");
    server.execute("CREATE TABLE gone (i int)");
    server.execute("CHECKPOINT");
    server.execute("UPDATE dense SET t = 'y' WHERE i % 1000 = 0");
    server.execute("DELETE FROM cut WHERE i > 100");
    server.execute("VACUUM cut");
    server.execute("DROP TABLE gone");
    server.execute("CREATE DATABASE copied STRATEGY FILE_COPY");
    server.execute("CREATE TABLE later (i int PRIMARY KEY)");
    server.execute("CHECKPOINT");
    let wanted = server.value("SELECT redo_lsn - '0/0' FROM pg_control_checkpoint()");
    let until = Instant::now() + Duration::from_secs(60);
    let reached = "SELECT summarized_lsn - '0/0' FROM pg_get_wal_summarizer_state()";
    while server.value(reached).parse::<u64>().unwrap() < wanted.parse().unwrap() {
        assert!(Instant::now() < until, "the summarizer does not get there");
        std::thread::sleep(Duration::from_millis(20));
    }
    let place = server.data_directory().join("pg_wal/summaries");
    let (mut files, mut bitmaps) = (0, 0);
    for entry in std::fs::read_dir(&place).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Ok(parsed) = name.parse::<SummaryName>() else { continue };
        let mut ours = Said::default();
        file::read(File::open(&path).unwrap(), &mut ours).unwrap();
        let theirs = server.run("pg_walsummary", &["-i", &path.display().to_string()]);
        assert!(ours == printed(&theirs), "{name}: pg_walsummary");
        let sql = format!(
            "SELECT reltablespace, reldatabase, relfilenode, relforknumber, \
             CASE WHEN is_limit_block THEN relblocknumber::text ELSE '' END, \
             relblocknumber FROM pg_wal_summary_contents({}, '{}', '{}')",
            parsed.timeline.0, parsed.start, parsed.end
        );
        let rows = server.query(&sql);
        let fields = rows.iter().map(|row| -> [&str; 6] {
            row.split('|').collect::<Vec<_>>().try_into().expect("six columns")
        });
        assert!(ours == by_rows(fields), "{name}: pg_wal_summary_contents");
        files += 1;
        bitmaps += u32::from(ours.blocks.len() > 4096);
    }
    assert!(files >= 2 && bitmaps > 0, "{files} files, {bitmaps} of them with a dense relation");
}

#[test]
fn what_is_read_is_what_pg_walsummary_prints_17() {
    what_is_read_is_what_pg_walsummary_prints(17);
}

#[test]
fn what_is_read_is_what_pg_walsummary_prints_18() {
    what_is_read_is_what_pg_walsummary_prints(18);
}
