//! Pages of real clusters, sound and damaged, against `pg_checksums`.

#[path = "pure_support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use lifeboat_engine::{Lsn, PageFormat, PageVerdict};
use lifeboat_postgres::control::ControlFile;
use lifeboat_postgres::label::BackupLabel;
use lifeboat_postgres::page::{PgPageFormat, checksum, page_lsn};
use support::{Scratch, binaries, complaint, relation_files};

const WORK: &str = "
    create table a (id bigint primary key, name text);
    insert into a select i, md5(i::text) from generate_series(1, 30000) i;
    update a set name = name || 'x' where id % 7 = 0;
    create index on a using hash (id); create index on a using brin (id);
    create index on a using spgist (name); create sequence s; select nextval('s');
    vacuum; checkpoint;
";

#[test]
fn pages_of_a_real_cluster_are_valid_and_damage_is_found_as_pg_checksums_finds_it() {
    let test = "pages_of_a_real_cluster_are_valid_and_damage_is_found_as_pg_checksums_finds_it";
    for major in [15, 17, 18] {
        let Some(bin) = binaries(test, major) else { continue };
        let scratch = Scratch::start(bin, &["-k"], "");
        scratch.sql(WORK);
        scratch.stop();
        let control = fs::read(scratch.data().join("global/pg_control")).unwrap();
        let control = ControlFile::parse(&control).unwrap();
        let format = PgPageFormat::of(&control.identity());
        let files = relation_files(&scratch.data());
        let mut pages = 0;
        for (path, first) in &files {
            for (number, page) in fs::read(path).unwrap().chunks(8192).enumerate() {
                let verdict = format.check(first + number as u32, page);
                assert!(!verdict.is_damage(), "{} {number} {verdict:?}", path.display());
                assert!(page_lsn(page).unwrap() <= Lsn(control.checkpoint.0 + (1 << 20)));
                pages += 1;
            }
        }
        assert!(pages > 2000);
        let check = |expected: u32| {
            let output =
                scratch.command("pg_checksums").arg("-c").arg("-D").arg(scratch.data()).output();
            let output = output.unwrap();
            assert_eq!(output.status.success(), expected == 0);
            complaint(&output).matches("checksum verification failed").count() as u32
        };
        assert_eq!(check(0), 0);
        let mut damaged = 0;
        for (path, first) in files.iter().filter(|(path, _)| path.metadata().unwrap().len() > 8192)
        {
            let file = fs::File::options().read(true).write(true).open(path).unwrap();
            let mut page = [0; 8192];
            file.read_exact_at(&mut page, 8192).unwrap();
            if page == [0; 8192] {
                continue; // a page that was never written has no checksum to fail
            }
            page[4000] ^= 1;
            file.write_all_at(&page, 8192).unwrap();
            let verdict = format.check(first + 1, &page);
            assert!(matches!(verdict, PageVerdict::BadChecksum { .. }), "{verdict:?}");
            damaged += 1;
            if damaged == 20 {
                break;
            }
        }
        assert_eq!(check(damaged), damaged);
    }
}

#[test]
fn labels_of_real_servers_read_and_write_back() {
    for major in [15, 18] {
        let Some(bin) = binaries("labels_of_real_servers_read_and_write_back", major) else {
            continue;
        };
        let scratch = Scratch::start(bin, &[], "");
        let text = scratch.sql(
            "select pg_backup_start(E'odd\\nname', true) \\g /dev/null
             select labelfile from pg_backup_stop(false);",
        );
        let text = text.replace("\n\n", "\n"); // psql ends its line too
        let label = BackupLabel::parse(&text).unwrap();
        assert_eq!(label.to_string(), text);
        assert_eq!(label.label, "odd\nname");
        assert_eq!(label.timeline.0, 1);
        assert!(label.checkpoint >= label.start);
    }
}

/// Not a test of speed, only its report: `cargo test --release -- --nocapture --ignored`.
#[test]
#[ignore = "prints a speed"]
fn speed_of_the_checksum() {
    let pages: Vec<u8> = (0..32 * 8192u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let (start, mut sum) = (Instant::now(), 0u64);
    for round in 0..4096u32 {
        for (number, page) in pages.chunks(8192).enumerate() {
            sum += u64::from(checksum(round + number as u32, page));
        }
    }
    let bytes = 4096.0 * pages.len() as f64;
    println!("{:.2} GB/s ({sum})", bytes / start.elapsed().as_secs_f64() / 1e9);
}
