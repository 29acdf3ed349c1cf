//! Moments near the end of the WAL, where a commit may lie across two segments.

use std::path::Path;
use std::time::Duration;

use lifeboat_engine::LogFacts;
use lifeboat_jobs::restore::{self, Target};
use lifeboat_testkit::toy;
use lifeboat_units::Timestamp;

mod history_support;
#[path = "world/request.rs"]
mod request;

use history_support::{World, day, pages};
use request::request;

/// What is known of a segment in which transactions were committed at these moments.
fn commits(first: Timestamp, last: Timestamp) -> LogFacts {
    LogFacts {
        commits: 2,
        first_commit: Some(first),
        last_commit: Some(last),
        ..LogFacts::default()
    }
}

/// Where a restore of a moment would land.
fn landing(world: &World, at: Timestamp) -> String {
    let request = request(Path::new("/nonexistent/restored"), Target::Time(at));
    restore::plan(&world.ports(), &request).unwrap().landing
}

#[test]
fn a_record_across_two_segments_passes_no_moment_that_later_commits_do_not_pass() {
    let world = World::new();
    world.backup(0, 1, &[("base/1/1", pages(2, 1))], None);
    let at = |seconds| day(1) + Duration::from_secs(seconds);
    world.archive(0, 1, 1..=2);
    let cut = LogFacts { cut_off: true, ..commits(at(0), at(1)) };
    world.archive_with(1, toy::segment_name(1, 3), cut);
    world.archive_with(2, toy::segment_name(1, 4), commits(at(10), at(20)));
    // The record that lies across them was written before what was committed in the last.
    let after_all = landing(&world, at(200));
    assert!(after_all.contains("the end of the WAL"), "{after_all}");
    let between = landing(&world, at(15));
    assert!(between.starts_with("the last commit at or before"), "{between}");
    // Where nothing was committed after it, it may be what passes the moment: the server decides.
    let world = World::new();
    world.backup(0, 1, &[("base/1/1", pages(2, 1))], None);
    world.archive(0, 1, 1..=2);
    world.archive_with(
        1,
        toy::segment_name(1, 3),
        LogFacts { cut_off: true, ..commits(at(0), at(1)) },
    );
    world.archive_with(2, toy::segment_name(1, 4), LogFacts::default());
    let unknown = landing(&world, at(200));
    assert!(unknown.starts_with("the last commit at or before"), "{unknown}");
}
