//! A synchronous receiver and its server, killed at random moments: every commit that a client saw
//! acknowledged is there after restoring the latest state from the repository alone.
//!
//! `LIFEBOAT_SEED` draws the same kills again, as far as time lets them fall at the same moments.

use std::time::{Duration, SystemTime};

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::refusal::until;
use lifeboat_trials::writers::Writers;
use lifeboat_trials::{Lab, Receiving, Restored};

/// Who dies.
#[derive(Debug, Clone, Copy)]
enum Kill {
    /// The server with all its processes; the receiver lives on and finds it again.
    Server,
    /// One process of the server: it ends all others and recovers by itself.
    Backend,
    Receiver,
    /// Both, one so many milliseconds after the other.
    ServerThenReceiver(u64),
    ReceiverThenServer(u64),
    /// The server is stopped and started in an orderly way.
    Restart,
}

struct Draw(u64);

impl Draw {
    fn from_environment() -> Self {
        let seed = std::env::var("LIFEBOAT_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            u64::from(now.expect("it is after 1970").subsec_nanos())
        });
        eprintln!("LIFEBOAT_SEED={seed}");
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % end
    }

    /// Each kind at least once, in any order, and as many more.
    fn kills(&mut self, more: usize) -> Vec<Kill> {
        let mut kinds: Vec<u64> = (0..6).collect();
        for at in (1..kinds.len()).rev() {
            kinds.swap(at, self.below(at as u64 + 1) as usize);
        }
        kinds.extend((0..more).map(|_| 6));
        let draw = |kind| {
            let kind = if kind == 6 { self.below(6) } else { kind };
            match kind {
                0 => Kill::Server,
                1 => Kill::Backend,
                2 => Kill::Receiver,
                3 => Kill::ServerThenReceiver(self.below(30)),
                4 => Kill::ReceiverThenServer(self.below(30)),
                _ => Kill::Restart,
            }
        };
        kinds.into_iter().map(draw).collect()
    }
}

fn acknowledged(writers: &Writers) -> Vec<u64> {
    writers.log().iter().filter(|w| w.acknowledged.is_some()).map(|w| w.id).collect()
}

/// Restores the latest state and compares it with what clients saw acknowledged.
#[track_caller]
fn nothing_is_lost(lab: &Lab, name: &str, acknowledged: &[u64]) {
    let restored = Restored::start(lab, name, &["--latest"]);
    let rows = restored.query("SELECT id FROM journal");
    let there: std::collections::HashSet<u64> =
        rows.iter().map(|row| row.parse().expect("a number")).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "{name}: {} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    restored.stop();
    lifeboat_trials::refusal::remove_tree(&lab.place(name));
}

/// The cluster under trial.
struct Trial {
    lab: Lab,
    receiver: Receiving,
    receivers: usize,
}

impl Trial {
    fn start(test: &str, major: u32) -> Option<Self> {
        let builder = ScratchServer::of(major)
            .setting("autovacuum", "off")
            .setting("restart_after_crash", "on")
            .wal_segment_mib(1);
        let lab = match Lab::start(builder) {
            Ok(lab) => lab,
            Err(reason) => {
                scratch::skip(test, &reason);
                return None;
            }
        };
        lab.backup();
        lab.archive_nowhere();
        let receiver = receive(&lab, 0);
        receiver.wait_for("streaming", 1);
        lab.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'lifeboat'");
        lab.server.execute("SELECT pg_reload_conf()");
        until("it is synchronous", || {
            lab.server.value("SELECT sync_state FROM pg_stat_replication") == "sync"
        });
        Some(Self { lab, receiver, receivers: 0 })
    }

    /// Strikes; says whether the server is down, and whether the receiver is.
    fn strike(&mut self, kill: Kill) -> (bool, bool) {
        let server = &self.lab.server;
        let pause = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
        match kill {
            Kill::Server => server.kill_9(),
            Kill::Backend => {
                // From within: the process that is asked kills another one.
                let victim = server.value(
                    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
                     AND pid <> pg_backend_pid() LIMIT 1",
                );
                let process = victim.parse().expect("a number");
                lifeboat_trials::watched::signal(process, "-KILL");
            }
            Kill::Receiver => self.receiver.kill_9(),
            Kill::ServerThenReceiver(milliseconds) => {
                server.kill_9();
                pause(milliseconds);
                self.receiver.kill_9();
            }
            Kill::ReceiverThenServer(milliseconds) => {
                self.receiver.kill_9();
                pause(milliseconds);
                server.kill_9();
            }
            Kill::Restart => server.restart(),
        }
        match kill {
            Kill::Server => (true, false),
            Kill::Backend | Kill::Restart => (false, false),
            Kill::Receiver => (false, true),
            Kill::ServerThenReceiver(_) | Kill::ReceiverThenServer(_) => (true, true),
        }
    }

    /// What was acknowledged up to now is there; while somebody is dead nothing more is
    /// acknowledged.
    fn look(&self, writers: &Writers, name: &str, dead: bool) -> usize {
        // A client may have its answer, and not yet have noted it.
        std::thread::sleep(Duration::from_millis(200));
        let seen = acknowledged(writers);
        nothing_is_lost(&self.lab, name, &seen);
        if dead {
            let more = acknowledged(writers).len() - seen.len();
            assert_eq!(more, 0, "{name}: {more} commits were acknowledged meanwhile");
        }
        seen.len()
    }

    fn revive(&mut self, (server, receiver): (bool, bool)) {
        if server {
            self.lab.server.start();
        }
        if receiver {
            self.receivers += 1;
            self.receiver = receive(&self.lab, self.receivers);
        }
    }
}

fn receive(lab: &Lab, number: usize) -> Receiving {
    Receiving::start(lab, &format!("receiver{number}"), &["--create-slot", "--synchronous"])
}

fn synchronous(major: u32, kills: impl FnOnce(&mut Draw) -> Vec<Kill>) {
    let test = format!("no_acknowledged_commit_is_lost on {major}");
    let Some(mut trial) = Trial::start(&test, major) else { return };
    let mut draw = Draw::from_environment();
    let writers = Writers::start(&trial.lab.server, 4);
    let kills = kills(&mut draw);
    for (round, kill) in kills.iter().enumerate() {
        let before = acknowledged(&writers).len();
        let more = 20 + draw.below(200) as usize;
        until("clients commit", || acknowledged(&writers).len() >= before + more);
        std::thread::sleep(Duration::from_micros(draw.below(20_000)));
        let down = trial.strike(*kill);
        let seen = trial.look(&writers, &format!("round{round}"), down.0 || down.1);
        eprintln!("PostgreSQL {major}: round {round}, {kill:?}: {seen} commits, none lost");
        trial.revive(down);
    }
    let before = acknowledged(&writers).len();
    until("clients commit", || acknowledged(&writers).len() >= before + 50);
    // The last strike while everything runs; afterwards all that was ever acknowledged is asked for.
    trial.strike(Kill::ServerThenReceiver(0));
    let seen = trial.look(&writers, "at-last", true);
    assert!(seen >= 20 * kills.len(), "{seen} commits test too little");
    trial.revive((true, true));
    trial.receiver.wait_for("streaming", 1);
    writers.stop();
    assert_eq!(trial.receiver.terminate(), Some(0), "{}", trial.receiver.words());
    let list = trial.lab.run(&["wal", "list", "--json"]).ok().json();
    assert!(list["given_up"].as_array().is_none_or(Vec::is_empty), "{list:#}");
    trial.lab.run(&["verify"]).ok();
}

#[test]
fn no_acknowledged_commit_is_lost() {
    synchronous(18, |draw| draw.kills(2));
}

#[test]
fn no_acknowledged_commit_is_lost_on_15() {
    synchronous(15, |draw| {
        vec![Kill::ServerThenReceiver(draw.below(30)), Kill::Backend, Kill::Receiver]
    });
}
