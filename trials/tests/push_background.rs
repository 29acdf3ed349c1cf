//! Pushing in the background: what PostgreSQL was told is archived is in the repository and equal,
//! whatever happens to the pusher, the calls, the server and the repository.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lifeboat_testkit::scratch::{self, ScratchBuilder, ScratchServer};
use lifeboat_trials::Lab;
use lifeboat_trials::lab::run;
use lifeboat_trials::refusal::until;
use lifeboat_trials::writers::Writers;

fn builder(major: u32) -> ScratchBuilder {
    ScratchServer::of(major).setting("autovacuum", "off").wal_segment_mib(1)
}

/// A lab that keeps a copy of every file at the moment when the server is told that it is
/// archived.
struct Watched {
    lab: Lab,
    kept: PathBuf,
}

impl Watched {
    fn of(lab: Lab) -> Self {
        let kept = lab.server.directory("kept");
        let watched = Self { lab, kept };
        watched.archive();
        watched
    }

    /// Archives, and keeps what is archived.
    fn archive(&self) {
        let command = format!(
            "{} && cp %p {}/%f.new && mv {}/%f.new {}/%f",
            self.lab.archive_command(),
            self.kept.display(),
            self.kept.display(),
            self.kept.display(),
        );
        self.lab.server.execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        self.lab.server.execute("SELECT pg_reload_conf()");
    }

    fn spool(&self) -> PathBuf {
        self.lab.server.data_directory().join("lifeboat.spool")
    }

    /// The pusher that lives; `None` when none does.
    fn pusher(&self) -> Option<u32> {
        let signed = fs::read_to_string(self.spool().join("lock")).ok()?;
        let process: u32 = signed.split_whitespace().nth(1)?.parse().ok()?;
        let words = fs::read(format!("/proc/{process}/cmdline")).ok()?;
        String::from_utf8_lossy(&words).contains("pusher").then_some(process)
    }

    fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.kept).expect("it is there").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with(".new")).collect();
        names.sort();
        names
    }

    /// Compares all that was kept with what is in the repository; says how many files. Pushing
    /// compares: it says whether the same content is there already.
    #[track_caller]
    fn all_is_there(&self) -> usize {
        let kept = self.kept();
        for name in &kept {
            let path = self.kept.join(name).display().to_string();
            let set = ["--set", "wal.push=sync", "--json", "wal", "push", &path];
            let mut push = self.lab.command(&set);
            let said = run(push.current_dir(self.lab.server.data_directory())).ok().json();
            assert_eq!(said["outcome"], "already-there", "{name} was archived, and is not there");
        }
        kept.len()
    }

    fn waiting(&self) -> usize {
        let status = self.lab.server.data_directory().join("pg_wal/archive_status");
        let entries = fs::read_dir(status).expect("it is there").flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "ready")).count()
    }
}

/// A lab that is watched; `None`, counted as skipped, where there is no such server.
fn watched(test: &str, builder: ScratchBuilder) -> Option<Watched> {
    match Lab::start(builder) {
        Ok(lab) => Some(Watched::of(lab)),
        Err(reason) => {
            scratch::skip(test, &reason);
            None
        }
    }
}

fn signal(process: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &process.to_string()]).status();
}

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

#[test]
fn a_pusher_that_is_killed_at_any_moment_acknowledges_nothing_falsely() {
    let test = "a_pusher_that_is_killed_at_any_moment_acknowledges_nothing_falsely";
    for major in [18, 15] {
        let Some(watched) = watched(test, builder(major)) else { continue };
        let mut killed = 0;
        load_while(&watched, Duration::from_secs(4), |turn, watched| {
            if let Some(process) = watched.pusher().filter(|_| turn % 3 == 0) {
                signal(process, "-KILL");
                killed += 1;
            }
        });
        assert!(killed > 3, "{killed} pushers were killed: it tests nothing");
        watched.lab.archive_all();
        until("the backlog is gone", || watched.waiting() == 0);
        let files = watched.all_is_there();
        assert!(files > 20, "{files} files: it tests nothing");
        watched.lab.run(&["verify"]).ok();
    }
}
