//! Starts a restored server, waits until recovery is over, and says where it landed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lifeboat_engine::{Landing, Lsn, StartRequest, TimelineId};
use lifeboat_units::{Progress, Stage, Timestamp, Work};

use super::backup::read_control;
use super::cluster::{
    Account, Binaries, Cluster, ClusterError, Places, StartOptions, StopMode, log_tail,
    running_postmaster,
};
use super::conninfo::{Conninfo, quote};
use super::isolation;
use super::session::Session;
use crate::control::ClusterState;
use crate::history::parse_history;

/// How often a recovering server is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// A restored server on its way.
pub struct Recovery<'a> {
    request: &'a StartRequest,
    cluster: Cluster,
    account: Account,
    log: PathBuf,
    /// Roles to try when asking the server; none of them needs to exist.
    roles: Vec<String>,
    session: Option<Session>,
}

impl<'a> Recovery<'a> {
    /// Finds binaries, and writes what the server needs beside its socket.
    pub fn prepare(
        request: &'a StartRequest,
        places: &Places,
        role: Option<&str>,
    ) -> Result<Self, ClusterError> {
        let places = match &request.binaries {
            Some(given) => Places { given: Some(given.clone()), ..places.clone() },
            None => places.clone(),
        };
        let binaries = Binaries::find(request.major, &places)?;
        let account = Account::owner_of(&request.directory)?;
        account.create_directory(&request.socket_directory)?;
        let log = request.socket_directory.join(format!("lifeboat-{}.log", request.port));
        let _ = fs::remove_file(&log); // an earlier start's words must not be taken for this one's
        let mut roles: Vec<String> = role.map(str::to_owned).into_iter().collect();
        roles.push("postgres".into());
        roles.extend(account.name());
        let cluster = Cluster { binaries, directory: request.directory.clone() };
        Ok(Self { request, cluster, account, log, roles, session: None })
    }

    /// Starts the server and waits: for promotion, or until it can be read, as the request says.
    pub fn run(mut self, progress: &dyn Progress) -> Result<Landing, ClusterError> {
        progress.stage(Stage::Recovering, None);
        let options = StartOptions {
            settings: self.settings()?,
            log: self.log.clone(),
            // Ours is the patience that counts: without progress, not in all.
            patience: Duration::from_secs(30 * 24 * 3600),
        };
        let mut starter = self.cluster.spawn(&options)?;
        let result = self.wait(&mut starter, progress);
        if result.is_err() {
            let _ = starter.kill();
            let _ = starter.wait();
            let _ = self.cluster.stop(StopMode::Immediate, Duration::from_secs(30));
        }
        result?;
        self.landing()
    }

    fn settings(&self) -> Result<Vec<(String, String)>, ClusterError> {
        let request = self.request;
        let mut settings = isolation::common(request);
        let configured = request.directory.join("postgresql.conf").exists();
        if !request.isolated {
            if !configured {
                let directory = request.directory.clone();
                return Err(ClusterError::NoConfiguration { directory });
            }
            return Ok(settings);
        }
        self.write(isolation::HBA_FILE, "local all all trust\nlocal replication all trust\n")?;
        self.write(isolation::IDENT_FILE, "")?;
        if !configured {
            self.write(isolation::CONFIG_FILE, "")?;
            let path = request.socket_directory.join(isolation::CONFIG_FILE);
            settings.push(("config_file".into(), path.display().to_string()));
        }
        let limits = isolation::limits(&self.controldata()?);
        settings.extend(isolation::isolated(request, limits));
        Ok(settings)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = self.request.socket_directory.join(name);
        fs::write(&path, text)
            .and_then(|()| self.account.give(&path))
            .map_err(|source| ClusterError::Write { path, source })
    }

    fn controldata(&self) -> Result<String, ClusterError> {
        let program = self.cluster.binaries.program("pg_controldata");
        let mut command = self.account.command(&program);
        command.arg(&self.request.directory).current_dir("/").env("LC_ALL", "C");
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ClusterError::Run { program: program.clone(), source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ClusterError::Failed { program, said })
    }

    /// Waits until the server is where it should be, or has ended, or stands still.
    fn wait(&mut self, starter: &mut Child, progress: &dyn Progress) -> Result<(), ClusterError> {
        let mut reported: Option<Lsn> = None;
        let mut seen = (None, 0);
        let mut moved = Instant::now();
        let mut started = false;
        loop {
            if !started && let Ok(Some(status)) = starter.try_wait() {
                if !status.success() {
                    return Err(self.failed());
                }
                started = true;
            }
            if started && running_postmaster(&self.request.directory)?.is_none() {
                return Err(self.failed());
            }
            if started && (!self.request.wait_for_promotion || self.promoted()) {
                return Ok(());
            }
            let at = self.replayed(started);
            if let Some(at) = at {
                let delta = reported.map_or(0, |before| at.0.saturating_sub(before.0));
                progress.advance(Work::Bytes(delta));
                reported = Some(reported.map_or(at, |before| before.max(at)));
            }
            let now = (at, fs::metadata(&self.log).map_or(0, |m| m.len()));
            if now != seen {
                (seen, moved) = (now, Instant::now());
            } else if moved.elapsed() > self.request.patience {
                return Err(self.stalled(at));
            }
            sleep(PAUSE);
        }
    }

    /// How far replay is: by asking, once the server answers, else by its control file.
    fn replayed(&mut self, started: bool) -> Option<Lsn> {
        const SQL: &str = "SELECT pg_last_wal_replay_lsn()::text";
        if started
            && let Some(session) = self.session()
            && let Ok(row) = session.ask("reading how far replay is", SQL, &[])
            && let Some(text) = row.get::<_, Option<String>>(0)
        {
            return text.parse().ok();
        }
        let (_, control) = read_control(&self.request.directory).ok()?;
        Some(control.min_recovery.max(control.checkpoint))
    }

    /// Whether recovery is over: the server writes so into its control file when it is.
    fn promoted(&self) -> bool {
        read_control(&self.request.directory)
            .is_ok_and(|(_, control)| control.state == ClusterState::InProduction)
    }

    fn session(&mut self) -> Option<&mut Session> {
        if self.session.is_none() {
            let opened = self.conninfos().into_iter().find_map(|conninfo| {
                let conninfo = Conninfo::read(&conninfo, &|_| None).ok()?;
                Session::open(&conninfo).ok()
            });
            self.session = opened;
        }
        self.session.as_mut()
    }

    fn conninfos(&self) -> Vec<String> {
        let place = format!(
            "host={} port={}",
            quote(&self.request.socket_directory.display().to_string()),
            self.request.port
        );
        let pairs = self.roles.iter().flat_map(|role| [(role, "postgres"), (role, "template1")]);
        pairs.map(|(role, db)| format!("{place} user={} dbname={db}", quote(role))).collect()
    }

    fn landing(mut self) -> Result<Landing, ClusterError> {
        let promoted = self.promoted();
        let answered = self.session().and_then(ask_landing);
        let (timeline, lsn, last_commit) = match answered {
            Some(answer) => answer,
            None => self.landing_on_disk()?,
        };
        let conninfo = match &self.session {
            Some(session) => self.conninfo_of(session.role()),
            None => self.conninfos().remove(0),
        };
        Ok(Landing { timeline, lsn, last_commit, promoted, conninfo })
    }

    fn conninfo_of(&self, role: &str) -> String {
        let wanted = format!(" user={} ", quote(role));
        let all = self.conninfos();
        all.iter().find(|c| c.contains(&wanted)).unwrap_or(&all[0]).clone()
    }

    /// Where it landed, from its files: for servers that let none of the known roles in.
    fn landing_on_disk(&self) -> Result<(TimelineId, Lsn, Option<Timestamp>), ClusterError> {
        let directory = &self.request.directory;
        let nowhere = || ClusterError::NoLanding { directory: directory.clone() };
        let (_, control) = read_control(directory).map_err(|_| nowhere())?;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last_commit = last_commit_in_log(&text);
        // The first checkpoint on the new timeline may still be to come: the history file is there.
        if let Some((timeline, left_at)) = newest_history(directory)
            && timeline >= control.timeline
        {
            return Ok((timeline, left_at, last_commit));
        }
        Ok((control.timeline, control.min_recovery.max(control.checkpoint), last_commit))
    }

    fn failed(&self) -> ClusterError {
        let tail = match log_tail(&self.log) {
            nothing if nothing.is_empty() => "(nothing: its log is empty)".into(),
            tail => tail,
        };
        let (directory, log) = (self.request.directory.clone(), self.log.clone());
        ClusterError::Recovery { directory, log, tail }
    }

    fn stalled(&self, at: Option<Lsn>) -> ClusterError {
        ClusterError::Stalled {
            directory: self.request.directory.clone(),
            seconds: self.request.patience.as_secs(),
            at: at.map_or_else(|| "an unknown position".into(), |lsn| lsn.to_string()),
            tail: log_tail(&self.log),
        }
    }
}

/// Asks a server where its recovery ended; it remembers until it is stopped.
fn ask_landing(session: &mut Session) -> Option<(TimelineId, Lsn, Option<Timestamp>)> {
    const SQL: &str = "SELECT pg_last_wal_replay_lsn()::text, \
        (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::int8, \
        pg_is_in_recovery()";
    const DOING: &str = "reading where recovery ended";
    let row = session.ask(DOING, SQL, &[]).ok()?;
    let lsn = row.get::<_, Option<String>>(0)?.parse().ok()?;
    let commit = row.get::<_, Option<i64>>(1).and_then(|us| Timestamp::from_microsecond(us).ok());
    let (timeline, _) = super::server::position(session, row.get(2)).ok()?;
    Some((timeline, lsn, commit))
}

/// The newest timeline that a directory has a history file of, and where it began.
fn newest_history(directory: &Path) -> Option<(TimelineId, Lsn)> {
    let entries = fs::read_dir(directory.join("pg_wal")).ok()?;
    let newest = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            u32::from_str_radix(name.strip_suffix(".history")?, 16).ok()
        })
        .max()?;
    let timeline = TimelineId(newest);
    let bytes = fs::read(directory.join(format!("pg_wal/{newest:08X}.history"))).ok()?;
    let past = parse_history(timeline, &bytes).ok()?;
    Some((timeline, past.ancestors.last()?.left_at))
}

/// Finds `last completed transaction was at log time 2026-11-22 23:33:28.123456+00`. An isolated
/// server logs in English and UTC; another's time zone may be a word that says too little.
fn last_commit_in_log(log: &str) -> Option<Timestamp> {
    const WORDS: &str = "last completed transaction was at log time ";
    let at = log.rfind(WORDS)? + WORDS.len();
    let text = log[at..].lines().next()?.trim();
    let utc = text.strip_suffix("+00").or_else(|| text.strip_suffix(" UTC"))?;
    format!("{}Z", utc.replace(' ', "T")).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_commit_is_read_from_a_log_in_utc() {
        let log = "LOG:  redo done at 0/3000100\n\
                   LOG:  last completed transaction was at log time 2026-11-22 23:33:28.5+00\n";
        let expected: Timestamp = "2026-11-22T23:33:28.5Z".parse().unwrap();
        assert_eq!(last_commit_in_log(log), Some(expected));
        assert_eq!(last_commit_in_log(&log.replace("+00", " CET")), None);
        assert_eq!(last_commit_in_log(""), None);
    }

    #[test]
    fn the_newest_history_file_says_where_the_timeline_began() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        fs::create_dir(&wal).unwrap();
        assert_eq!(newest_history(directory.path()), None);
        fs::write(wal.join("00000002.history"), "1\t0/3000000\tno recovery target\n").unwrap();
        let text = "1\t0/3000000\tx\n\n2\t0/5000A28\tbefore 2026\n";
        fs::write(wal.join("0000000A.history"), text).unwrap();
        assert_eq!(newest_history(directory.path()), Some((TimelineId(10), Lsn(0x500_0A28))));
    }
}
