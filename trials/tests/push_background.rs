//! Pushing in the background: what PostgreSQL was told is archived is in the repository and equal,
//! whatever happens to the pusher, the calls, the server and the repository.

use std::time::{Duration, Instant};

use lifeboat_trials::refusal::until;
use lifeboat_trials::watched::{Watched, builder, signal, watched};
use lifeboat_trials::writers::Writers;

/// Runs the load while something happens to the pusher, again and again.
fn load_while(watched: &Watched, for_time: Duration, mut each: impl FnMut(usize, &Watched)) {
    let writers = Writers::start(&watched.lab.server, 2);
    let until = Instant::now() + for_time;
    let mut turn = 0;
    while Instant::now() < until {
        watched.lab.server.execute(
            "SELECT pg_logical_emit_message(false, 'x', repeat(md5(random()::text), 60000))",
        );
        each(turn, watched);
        turn += 1;
    }
    writers.stop();
}

fn pushers_killed(test: &str, major: u32) {
    let Some(watched) = watched(test, builder(major)) else { return };
    let mut killed = 0;
    load_while(&watched, Duration::from_secs(2), |turn, watched| {
        if let Some(process) = watched.pusher().filter(|_| turn % 3 == 0) {
            signal(process, "-KILL");
            killed += 1;
        }
    });
    assert!(killed > 1, "{killed} pushers were killed: it tests nothing");
    watched.lab.archive_all();
    until("the backlog is gone", || watched.waiting() == 0);
    let files = watched.all_is_there();
    assert!(files > 10, "{files} files: it tests nothing");
    watched.lab.run(&["verify"]).ok();
}

#[test]
fn a_pusher_that_is_killed_at_any_moment_acknowledges_nothing_falsely_15() {
    pushers_killed("a_pusher_that_is_killed_at_any_moment_acknowledges_nothing_falsely_15", 15);
}

#[test]
fn a_pusher_that_is_killed_at_any_moment_acknowledges_nothing_falsely_18() {
    pushers_killed("a_pusher_that_is_killed_at_any_moment_acknowledges_nothing_falsely_18", 18);
}
