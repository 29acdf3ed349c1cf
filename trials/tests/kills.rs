//! The program is killed at many moments of each of its jobs. Nothing that was there is harmed,
//! nothing half is listed, and the next run goes on.

use std::path::Path;
use std::time::Instant;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::{Lab, Moments, Restored};

const MAJOR: u32 = 18;

fn lab(test: &str) -> Option<Lab> {
    let builder = ScratchServer::of(MAJOR).setting("autovacuum", "off");
    match Lab::start(builder.setting("max_wal_size", "2GB")) {
        Ok(lab) => Some(lab),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

fn listed(lab: &Lab) -> Vec<String> {
    let list = lab.run(&["list", "--json"]).ok().json();
    let backups = list["backups"].as_array().expect("a list has backups");
    backups.iter().map(|backup| backup["id"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Makes everything in the repository look as if it had been written two days ago: what a dead
/// writer left is swept after a day.
fn age(directory: &Path) {
    let status = std::process::Command::new("find")
        .arg(directory)
        .args(["-exec", "touch", "-h", "-d", "2 days ago", "{}", "+"])
        .status();
    assert!(status.expect("find can be run").success());
}

fn temporaries(lab: &Lab) -> Vec<String> {
    lab.objects().into_iter().filter(|name| name.ends_with(".tmp")).collect()
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_listed_and_blocks_nobody() {
    let test = "a_backup_that_is_killed_leaves_nothing_listed_and_blocks_nobody";
    let Some(lab) = lab(test) else { return };
    let server = &lab.server;
    server.execute(
        "CREATE TABLE big AS SELECT i AS id, md5(i::text) || md5((i * 7)::text) || md5((i * 13)::text) \
         AS filler FROM generate_series(1, 1500000) i",
    );
    lab.backup();
    let began = Instant::now();
    server.execute("UPDATE big SET filler = md5(filler) || filler WHERE id % 2 = 0");
    let before = lab.run(&["backup", "--jobs", "2"]).ok();
    drop(before);
    // So that there is something to store each time.
    let change = |number: u32| {
        server.execute(&format!(
            "UPDATE big SET filler = md5(filler || '{number}') || filler WHERE id % 16 = {number} % 16; CHECKPOINT"
        ));
    };
    change(0);
    let started = Instant::now();
    lab.backup();
    let duration = started.elapsed();
    let mut expected = listed(&lab);
    let mut moments = Moments::over(duration, 15);
    let (mut killed, mut ended, mut leftovers) = (0, 0, 0);
    while moments.go_on(killed >= 10) {
        let number = moments.made() + 1;
        change(number);
        let cut = moments.kill(lab.spawn(&["backup", "--jobs", "2"]));
        let now = listed(&lab);
        if !cut || now.len() == expected.len() + 1 {
            // It came to its end: then it is whole, as `verify` proves below.
            ended += 1;
            assert_eq!(now.len(), expected.len() + 1, "moment {number} of {moments:?}");
            expected = now;
        } else {
            killed += 1;
            assert_eq!(now, expected, "moment {number} of {moments:?}: something half is listed");
        }
        leftovers += temporaries(&lab).len();
        if number % 4 == 1 {
            lab.run(&["verify"]).ok();
        }
        if number.is_multiple_of(2) {
            lab.backup(); // the dead one's lease blocks nobody
            expected = listed(&lab);
        }
    }
    eprintln!(
        "backup of {duration:.1?}: {killed} killed, {ended} had ended, {leftovers} temporaries seen; {:.1?}",
        began.elapsed()
    );
    assert!(killed >= 10, "only {killed} were killed: the sweep tests too little");
    lab.backup();
    lab.run(&["verify"]).ok();
    // What the dead ones left is there until the grace period is over, and then no more.
    age(&lab.repository);
    let orphans = lab.run(&["expire", "--json", "--keep-backups", "2"]).ok().json();
    assert_eq!(temporaries(&lab), Vec::<String>::new(), "{orphans}");
    lab.run(&["verify"]).ok();
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    let sums = "SELECT count(*), sum(length(filler)), sum(hashtext(filler)::bigint) FROM big";
    assert_eq!(restored.query(sums), server.query(sums));
    restored.check_and_stop();
}

#[test]
fn a_push_that_is_killed_acknowledges_nothing_torn() {
    let test = "a_push_that_is_killed_acknowledges_nothing_torn";
    let Some(lab) = lab(test) else { return };
    let server = &lab.server;
    lab.backup();
    lab.archive_nowhere();
    server.execute("CREATE TABLE noise (t text)");
    for _ in 0..17 {
        server.execute(
            "INSERT INTO noise SELECT md5(random()::text) || md5(random()::text) FROM generate_series(1, 30000)",
        );
        server.execute("SELECT pg_switch_wal()");
    }
    let wal = server.data_directory().join("pg_wal");
    let status = std::fs::read_dir(wal.join("archive_status")).expect("the status can be listed");
    let mut waiting: Vec<String> = status
        .filter_map(|entry| {
            entry.ok()?.file_name().to_str()?.strip_suffix(".ready").map(str::to_owned)
        })
        .filter(|name| name.len() == 24)
        .collect();
    waiting.sort();
    assert!(waiting.len() >= 17, "{waiting:?}");
    // As the server calls it: in its data directory.
    let wal_command = |arguments: &[&str]| {
        // In the foreground: the push itself is to be killed, not one that waits for another.
        let foreground: &[&str] = &["--set", "wal.push=sync", "wal"];
        let mut command = lab.command(&[foreground, arguments].concat());
        command.current_dir(server.data_directory()).stderr(std::process::Stdio::null());
        command
    };
    let push = |name: &str| wal_command(&["push", &format!("pg_wal/{name}")]);
    let has = |name: &str| lab.objects().iter().any(|object| object.ends_with(name));
    // The first looks at more than the others do; the second is like them.
    assert!(push(&waiting[0]).status().expect("it runs").success());
    let started = Instant::now();
    assert!(push(&waiting[1]).status().expect("it runs").success());
    let duration = started.elapsed();
    let (mut killed, mut visible) = (0, 0);
    // Up to half as long again as a push took: others may be slower.
    let mut moments = Moments::over(duration * 3 / 2, 15);
    for name in &waiting[2..17] {
        if moments.kill(push(name).spawn().expect("it starts")) {
            killed += 1;
        }
        if has(name) {
            // Seen means whole: it is served with the bytes that the server has.
            visible += 1;
            let copy = lab.place("segment");
            let got = wal_command(&["get", name, &copy.display().to_string()]).status();
            assert!(got.expect("it runs").success(), "{name} is served");
            let (there, here) = (std::fs::read(&copy), std::fs::read(wal.join(name)));
            assert!(there.expect("it came") == here.expect("it is there"), "{name} is torn");
            std::fs::remove_file(copy).expect("it can be removed");
        }
        let again = push(name).status().expect("it runs");
        assert!(again.success(), "{name} is pushed again, {moments:?}");
        assert!(has(name), "{name} was acknowledged");
        lab.run(&["verify"]).ok();
    }
    eprintln!("push of {duration:.2?}: {killed} killed, {visible} of them were there");
    assert!(killed >= 5, "only {killed} were killed");
    lab.archive();
    lab.archive_all();
    lab.run(&["verify"]).ok();
    age(&lab.repository);
    lab.run(&["expire"]).ok();
    assert_eq!(temporaries(&lab), Vec::<String>::new());
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    let sums = "SELECT count(*), sum(hashtext(t)::bigint) FROM noise";
    assert_eq!(restored.query(sums), server.query(sums));
    restored.check_and_stop();
}

#[test]
fn an_expiry_that_is_killed_leaves_every_listed_backup_whole() {
    let test = "an_expiry_that_is_killed_leaves_every_listed_backup_whole";
    let Some(lab) = lab(test) else { return };
    let server = &lab.server;
    server
        .execute("CREATE TABLE load AS SELECT i, md5(i::text) t FROM generate_series(1, 99999) i");
    let load = |n: u32| {
        server.execute(&format!(
            "UPDATE load SET t = md5(t) WHERE i % 4 = {n} % 4; SELECT pg_switch_wal()"
        ));
        lab.backup();
    };
    for number in 0..13 {
        load(number);
    }
    let started = Instant::now();
    lab.run(&["expire", "--keep-backups", "12"]).ok();
    let duration = started.elapsed();
    let mut moments = Moments::over(duration, 10);
    let mut killed = 0;
    while moments.go_on(killed >= 5) {
        let number = moments.made();
        let before = listed(&lab);
        let keep = (before.len() - 1).max(2).to_string();
        if moments.kill(lab.spawn(&["expire", "--keep-backups", &keep])) {
            killed += 1;
        }
        let now = listed(&lab);
        assert!(before.ends_with(&now), "the newest stay: {before:?}, {now:?}");
        lab.run(&["verify"]).ok();
        let oldest = Restored::start(&lab, "oldest", &["--to-backup", &now[0]]);
        assert_eq!(oldest.value("SELECT count(*) FROM load"), "99999");
        oldest.stop();
        load(number);
    }
    eprintln!("expire of {duration:.2?}: {killed} killed");
    assert!(killed >= 5, "only {killed} were killed");
    let report = lab.run(&["expire", "--json", "--keep-backups", "1"]).ok().json();
    assert_eq!(listed(&lab).len(), 1, "{report}");
    let again = lab.run(&["expire", "--json", "--keep-backups", "1"]).ok().json();
    assert_eq!((&again["done"]["packs"], &again["done"]["logs"]), (&0.into(), &0.into()));
    // Of removed backups no pack is left that the last one does not refer to.
    let shown = lab.run(&["show", &listed(&lab)[0], "--json"]).ok().json();
    let packs =
        lab.objects().iter().filter(|o| o.contains("/data/") && !o.ends_with(".tmp")).count();
    assert_eq!(shown["packs"].as_u64(), Some(packs as u64), "{:#?}", lab.objects());
    lab.run(&["verify"]).ok();
    let last = Restored::start(&lab, "last", &["--latest"]);
    assert_eq!(last.value("SELECT count(*) FROM load"), "99999");
    last.check_and_stop();
}
