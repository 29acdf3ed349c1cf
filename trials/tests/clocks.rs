//! Clocks that step back and forth under a server and under lifeboat, each for itself, while WAL is
//! pushed and received and backups are taken: what was acknowledged comes back, from the newest
//! backup, whatever its time says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::faketime::Faketime;
use lifeboat_trials::lab::run;
use lifeboat_trials::refusal::until;
use lifeboat_trials::writers::Writers;
use lifeboat_trials::{Lab, Receiving, Restored};

const HOUR: i64 = 3600;
/// Seconds by which the clocks are off in turn; the two never step together.
const STEPS: [(i64, i64); 8] = [
    (HOUR, 0),
    (HOUR, -HOUR),
    (-HOUR, -HOUR),
    (-24 * HOUR, HOUR),
    (0, 24 * HOUR),
    (300, 0),
    (-300, 0),
    (0, -24 * HOUR),
];

fn backups(lab: &Lab) -> Vec<String> {
    let list = lab.run(&["list", "--json"]).ok().json();
    let all = list["backups"].as_array().expect("a list").iter();
    all.map(|backup| backup["id"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn clocks_that_step_lose_nothing_and_mix_up_no_backups() {
    let test = "clocks_that_step_lose_nothing_and_mix_up_no_backups";
    let lab = match Lab::start(ScratchServer::of(18).wal_segment_mib(1)) {
        Ok(lab) => lab,
        Err(reason) => return scratch::skip(test, &reason),
    };
    let (ours, theirs) =
        match (Faketime::new(&lab.place("our-clock")), Faketime::new(&lab.place("their-clock"))) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(reason), _) | (_, Err(reason)) => return scratch::skip(test, &reason),
        };
    let server = &lab.server;
    lab.backup();
    server.stop();
    let mut start = server.command("pg_ctl");
    theirs.lend(&mut start);
    let directory = server.data_directory().display().to_string();
    let log = server.log().display().to_string();
    run(start.args(["-D", &directory, "-w", "-l", &log, "start"])).ok();
    theirs.step(100_000);
    let skew = format!("extract(epoch FROM clock_timestamp())::int8 > {}", now() + 50_000);
    assert_eq!(server.value(&format!("SELECT {skew}")), "t", "its clock does not step");
    theirs.step(0);
    let archive = format!("env {} {}", ours.words(), lab.archive_command());
    server.execute(&format!("ALTER SYSTEM SET archive_command = '{archive}'"));
    server.execute("SELECT pg_reload_conf()");
    let arguments = ["--create-slot", "--ship-every", "500ms"];
    let mut receiver =
        Receiving::start_with(&lab, "receiver", &arguments, &|command| ours.lend(command));
    receiver.wait_for("streaming", 1);
    let writers = Writers::start(server, 2);
    let stepping = AtomicBool::new(true);
    let mut taken = backups(&lab);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (our, their) in STEPS.iter().cycle() {
                if !stepping.load(Ordering::Relaxed) {
                    return;
                }
                ours.step(*our);
                std::thread::sleep(Duration::from_millis(350));
                theirs.step(*their);
                std::thread::sleep(Duration::from_millis(350));
            }
        });
        for round in 0..6 {
            let mut backup = lab.command(&["backup", "--jobs", "2"]);
            ours.lend(&mut backup);
            let ran = run(&mut backup);
            let listed = backups(&lab);
            // A lease that is over by a clock that stepped ends a backup; nothing half is listed.
            let expected = taken.len() + usize::from(ran.code == Some(0));
            eprintln!("backup {round}: exit {:?} {}", ran.code, ran.stderr.trim());
            assert_eq!(listed.len(), expected, "{listed:?}\n{}", ran.stderr);
            assert!(listed.starts_with(&taken), "a newer one sorts before older ones: {listed:?}");
            taken = listed;
            std::thread::sleep(Duration::from_millis(500));
        }
        stepping.store(false, Ordering::Relaxed);
    });
    // The last one is of yesterday by its clock, and the newest all the same.
    ours.step(-24 * HOUR);
    let mut backup = lab.command(&["backup", "--json", "--jobs", "2"]);
    ours.lend(&mut backup);
    let last = run(&mut backup).ok().json();
    assert_eq!(backups(&lab).last().map(String::as_str), last["id"].as_str());
    let log = writers.stop();
    let seen = log.iter().filter(|written| written.acknowledged.is_some()).count();
    server.execute("CREATE TABLE last AS SELECT 42 AS answer");
    let lsn = server.value("SELECT pg_current_wal_flush_lsn()");
    let shipped = format!("SELECT flush_lsn >= '{lsn}' FROM pg_stat_replication");
    until("it is shipped", || server.query(&shipped) == ["t"]);
    assert_eq!(receiver.terminate(), Some(0), "{}", receiver.words());
    let log = std::fs::read_to_string(server.log()).unwrap_or_default();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| ["LB-", "archiv", "faketime"].iter().any(|word| line.contains(word)))
        .collect();
    // Two programs at once may take each other's semaphore: then libfaketime ends one of them.
    let unlent = said.iter().filter(|line| line.contains("libfaketime: In ft_shm_init")).count();
    let failed = server.value("SELECT failed_count FROM pg_stat_archiver");
    assert!(failed.parse().is_ok_and(|failed: usize| failed <= unlent), "{failed}: {said:#?}");
    lab.run(&["verify"]).ok();
    let plan = ["restore", "--json", "--dry-run", "--latest", "--into"];
    let into = lab.place("latest").display().to_string();
    let plan = lab.run(&[&plan[..], &[&into]].concat()).ok().json();
    assert!(plan.to_string().contains(last["id"].as_str().expect("an id")), "{plan:#}");
    let restored = Restored::start(&lab, "latest", &["--latest"]);
    assert_eq!(restored.value("SELECT answer FROM last"), "42");
    let rows: usize = restored.value("SELECT count(*) FROM journal").parse().expect("a number");
    assert!(rows >= seen && seen > 100, "{rows} rows came back of {seen}");
    restored.check_and_stop();
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    now.expect("it is after 1970").as_secs()
}
