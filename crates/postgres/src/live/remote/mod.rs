//! [`RemoteOrigin`]: base backups with nothing but a connection string.
//!
//! | module | what it holds |
//! |---|---|
//! | `pump` | the thread that empties the socket |
//! | `payload` | the bytes of one archive |
//! | `stream` | the files in them |
//! | [`compression`] | compression on the way |
//! | [`ready`] | whether a server can send backups |
//! | [`error`] | [`error::RemoteError`] |

pub mod compression;
pub mod error;
mod payload;
mod pump;
pub mod ready;
mod stream;

use std::path::Path;
use std::time::Duration;

use lifeboat_engine::{
    BackupStart, BackupStop, ClusterIdentity, Earlier, EarlierFile, EngineError, GeneratedFile,
    Listing, Lsn, Origin, SegmentName, SegmentSize, SegmentSwitch, Source, Streamed, SystemId,
    Tablespace,
};
use lifeboat_units::{Cancel, Timestamp};

use super::backup::segment;
use super::backup::standby::{self, Replayed, Standby};
use super::conninfo::Conninfo;
use super::error::LiveError;
use super::privileges::Privileges;
use super::replication::Connection;
use super::session::Session;
use crate::base::manifest::ManifestWriter;
use compression::WireCompression;
use error::RemoteError;
use payload::Payload;
use pump::{Command, Event, Pump, Rows};
use stream::{Expected, PgStream, position};

/// The server says nothing while it waits for its checkpoint, or for WAL to be summarised.
const SILENCE_MAX: Duration = Duration::from_secs(30 * 60);
/// The manifest of an earlier backup is sent in pieces of about this size, in bytes.
const MANIFEST_BYTES: usize = 64 << 10;

/// How a backup over the network treats its server.
#[derive(Debug, Clone, Default)]
pub struct RemoteOptions {
    /// Compression on the way.
    pub compression: WireCompression,
    /// How a standby's primary can be reached, when it is neither among the hosts of the
    /// connection nor where the standby receives WAL from.
    pub primary: Option<Conninfo>,
    /// How long a standby may take to replay what its primary has written.
    pub patience: Duration,
    /// Ends waiting.
    pub cancel: Cancel,
}

/// The first version whose backups are understood: before, one archive came after the other, each
/// in a stream of its own.
pub const MAJOR_MIN: u32 = 15;

/// A running server that sends its files over the replication protocol.
///
/// Beside the replication connection, which can do nothing else meanwhile, there is an ordinary
/// session for all questions.
pub struct RemoteOrigin {
    /// Leads to the one server that let the first session in.
    conninfo: Conninfo,
    compression: WireCompression,
    /// When the server is one.
    standby: Option<Standby>,
    session: Option<Session>,
    /// Opened by `offer`, used by `start`.
    replication: Option<Connection>,
    /// Whether an earlier backup was offered, and why not.
    offered: Result<(), String>,
    started: Option<Streamed>,
}

impl RemoteOrigin {
    /// Connects. Refuses versions whose protocol is another (before 15), and unknown ones.
    pub fn connect(conninfo: Conninfo, options: RemoteOptions) -> Result<Self, LiveError> {
        let mut session = Session::open(&conninfo)?;
        if session.major() < MAJOR_MIN {
            let (doing, major) = ("a backup over the network", session.major());
            return Err(LiveError::TooOld { doing, major, needed: MAJOR_MIN });
        }
        let RemoteOptions { compression, primary, patience, cancel } = options;
        let sql = "SELECT pg_catalog.pg_is_in_recovery()";
        let in_recovery = session.ask("asking for the server's kind", sql, &[])?.get(0);
        let standby = match in_recovery {
            true => Some(Standby::new(&mut session, &conninfo, primary, patience, cancel)),
            false => None,
        };
        // Among several servers, all questions go to the one that sends the files.
        Ok(Self {
            conninfo: conninfo.only(session.host()),
            compression,
            standby,
            session: Some(session),
            replication: None,
            offered: Err("nothing was offered".to_owned()),
            started: None,
        })
    }

    /// How the server is reached: the one of several that let us in.
    pub fn conninfo(&self) -> &Conninfo {
        &self.conninfo
    }

    /// The session, for further questions. Opened again if it was lost.
    pub fn session(&mut self) -> Result<&mut Session, LiveError> {
        if self.session.is_none() {
            self.session = Some(Session::open(&self.conninfo)?);
        }
        self.session.as_mut().ok_or(LiveError::Order("there is no session"))
    }

    /// Whether the server is a standby.
    pub fn is_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// Why a standby's primary cannot be asked to finish segments; `None` when it can, and for a
    /// primary.
    pub fn primary_trouble(&self) -> Option<&str> {
        self.standby.as_ref().and_then(Standby::trouble)
    }

    /// What the standby's side of a backup does, with the session; nothing for a primary.
    fn with_standby<T>(
        &mut self,
        act: impl FnOnce(&mut Standby, &mut Session) -> Result<T, LiveError>,
    ) -> Result<Option<T>, LiveError> {
        let Some(mut standby) = self.standby.take() else { return Ok(None) };
        let done = self.session().and_then(|session| act(&mut standby, session));
        self.standby = Some(standby);
        done.map(Some)
    }

    /// The replication connection, opened when it is first needed.
    fn replication(&mut self) -> Result<&mut Connection, LiveError> {
        if self.replication.is_none() {
            let mut connection = Connection::open(&self.conninfo)?;
            connection.set_silence_max(Some(SILENCE_MAX));
            self.replication = Some(connection);
        }
        self.replication.as_mut().ok_or(LiveError::Order("there is no replication connection"))
    }

    fn read_identity(&mut self) -> Result<ClusterIdentity, LiveError> {
        const DOING: &str = "reading how the data are laid out";
        let session = self.session()?;
        let row = session.ask(
            DOING,
            "SELECT s.system_identifier, s.catalog_version_no, i.database_block_size, \
             i.blocks_per_segment, i.bytes_per_wal_segment, i.data_page_checksum_version \
             FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_init() i",
            &[],
        )?;
        let number = |at| row.get::<_, i32>(at) as u32;
        let log_segment = SegmentSize::new(u64::from(number(4)));
        Ok(ClusterIdentity {
            system_id: SystemId(row.get::<_, i64>(0) as u64),
            major: session.major(),
            catalog_version: number(1),
            page_bytes: number(2),
            pages_per_file: number(3),
            log_segment: log_segment.map_err(|_| LiveError::Answer { doing: DOING })?,
            checksums: number(5) != 0,
        })
    }

    /// Permission bits of the data directory: no archive holds its own entry.
    fn directory_mode(&mut self) -> Result<u32, LiveError> {
        const DOING: &str = "reading the data directory's mode";
        let sql = "SELECT current_setting('data_directory_mode')";
        let row = self.session()?.ask(DOING, sql, &[])?;
        u32::from_str_radix(row.get(0), 8).map_err(|_| LiveError::Answer { doing: DOING })
    }

    fn send_manifest(
        &mut self,
        earlier: &Earlier,
        files: &mut dyn Iterator<Item = EarlierFile>,
    ) -> Result<(), LiveError> {
        const DOING: &str = "sending the list of the earlier backup's files";
        let session = self.session()?;
        if session.major() < 17 {
            self.offered = Err("the server's version cannot send differences (17 can)".to_owned());
            return Ok(());
        }
        let row = session.ask(
            "reading whether WAL is summarised",
            "SELECT current_setting('summarize_wal')",
            &[],
        )?;
        if row.get::<_, &str>(0) != "on" {
            self.offered = Err("summarize_wal is off".to_owned());
            return Ok(());
        }
        let connection = self.replication()?;
        let system = connection.identify_system()?;
        if system.timeline != earlier.timeline {
            let (then, now) = (earlier.timeline, system.timeline);
            self.offered = Err(format!("the timeline was {then} then and is {now} now"));
            return Ok(());
        }
        let mut manifest = ManifestWriter::new(system.system);
        let mut upload = connection.copy_in(DOING, "UPLOAD_MANIFEST")?;
        for (path, size_bytes) in files {
            manifest.file(&path, size_bytes);
            if let Some(piece) = manifest.take(MANIFEST_BYTES) {
                upload.write(piece.as_bytes())?;
            }
        }
        upload.write(manifest.finish(earlier).as_bytes())?;
        self.offered = match upload.finish() {
            Ok(()) => Ok(()),
            Err(error @ LiveError::Query { .. }) => Err(refusal(&error)),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// The commands to try, one after the other; those for differences first.
    fn commands(&self, label: &str) -> Vec<Command> {
        let base = format!(
            "LABEL '{}', PROGRESS, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP, \
             VERIFY_CHECKSUMS false, MANIFEST 'no'",
            label.replace('\'', "''")
        );
        let kinds = if self.offered.is_ok() { &[true, false][..] } else { &[false] };
        let mut commands = Vec::new();
        for differences in kinds.iter().copied() {
            let kind = if differences { ", INCREMENTAL" } else { "" };
            for how in self.compression.options(&self.conninfo) {
                let text = format!("BASE_BACKUP ({base}{kind}{how})");
                commands.push(Command { text, differences });
            }
        }
        commands
    }

    /// Time by the server's clock; on a standby not before any transaction that was replayed.
    fn time(&mut self) -> Result<Timestamp, LiveError> {
        match self.standby {
            Some(_) => standby::time_now(self.session()?),
            None => self.session()?.time(),
        }
    }

    fn begin(&mut self, label: &str) -> Result<BackupStart, EngineError> {
        let identity = self.read_identity()?;
        let mode = self.directory_mode()?;
        let commands = self.commands(label);
        self.with_standby(|standby, session| standby.wait_for_replay(session))?;
        self.replication()?;
        let Some(connection) = self.replication.take() else {
            return Err(LiveError::Order("there is no replication connection").into());
        };
        let differences: Vec<bool> = commands.iter().map(|command| command.differences).collect();
        let mut pump = Pump::start(connection, commands)?;
        let (number, before) = loop {
            match pump.next() {
                Event::Started(number, before) => break (number, before),
                Event::Refused(error) => self.offered = Err(refusal(&error)),
                Event::Failed(RemoteError::Cut { source, .. }) => return Err(source.into()),
                Event::Failed(error) => return Err(error.into()),
                _ => {
                    let what = "data before a start".to_owned();
                    return Err(RemoteError::Order { what }.into());
                }
            }
        };
        let at = self.time()?;
        let (lsn, timeline) = position(before.first())?;
        let (tablespaces, total_bytes) = tablespaces(before.get(1))?;
        let differences = differences.get(number).copied().unwrap_or(false);
        let expected = Expected { identity, start: lsn, mode, differences };
        let stopper = pump.stopper();
        self.started = Some(Streamed {
            files: Box::new(PgStream::new(Payload::new(pump), expected)),
            stop: Box::new(move || stopper.stop()),
            tablespaces,
            total_bytes,
            differences,
            why: self.offered.clone().err().unwrap_or_default(),
        });
        Ok(BackupStart { lsn, timeline, at })
    }
}

/// Why the server refused, in its words.
fn refusal(error: &LiveError) -> String {
    let cause = std::error::Error::source(error);
    let text = cause.map_or_else(|| error.to_string(), ToString::to_string);
    let first = text.lines().next().unwrap_or_default();
    format!("the server says: {}", first.strip_prefix("ERROR: ").unwrap_or(first))
}

/// The tablespaces that will come, without the data directory itself and those within it; and
/// how many bytes all is.
fn tablespaces(rows: Option<&Rows>) -> Result<(Vec<Tablespace>, Option<u64>), RemoteError> {
    let none = || RemoteError::Order { what: "an answer without tablespaces".to_owned() };
    let (mut found, mut total) = (Vec::new(), Some(0u64));
    for row in rows.ok_or_else(none)? {
        let [oid, location, kib] = &row[..] else { return Err(none()) };
        let kib: Option<u64> = kib.as_ref().and_then(|kib| kib.parse().ok());
        total = total.zip(kib).and_then(|(sum, kib)| sum.checked_add(kib.checked_mul(1024)?));
        let (Some(oid), Some(location)) = (oid, location) else { continue };
        // One that lies within the data directory is named by its path there.
        if location.starts_with('/') {
            let oid = oid.parse().map_err(|_| none())?;
            found.push(Tablespace { oid, location: location.into() });
        }
    }
    found.sort_unstable_by_key(|tablespace| tablespace.oid);
    Ok((found, total))
}

impl Origin for RemoteOrigin {
    fn identity(&mut self) -> Result<ClusterIdentity, EngineError> {
        Ok(self.read_identity()?)
    }

    fn version(&mut self) -> Result<String, EngineError> {
        let sql = "SELECT current_setting('server_version')";
        Ok(self.session()?.ask("reading the server's version", sql, &[])?.get(0))
    }

    fn data_directory(&self) -> &Path {
        Path::new("")
    }

    fn server_time(&mut self) -> Result<Timestamp, EngineError> {
        Ok(self.time()?)
    }

    fn cannot_switch(&mut self) -> Result<Option<String>, EngineError> {
        if self.primary_trouble().is_some() {
            return Ok(None); // nobody is asked: the newest finished segment proves it
        }
        // A standby's roles have the privileges that they have on its primary.
        let session = self.session()?;
        let role = session.role().to_owned();
        if Privileges::of(session)?.switch_wal {
            return Ok(None);
        }
        Ok(Some(format!("role `{role}` may not finish a WAL segment (pg_switch_wal)")))
    }

    fn switch_segment(&mut self) -> Result<SegmentSwitch, EngineError> {
        let switched = self.with_standby(|standby, session| {
            let replayed = Replayed::ask(session)?;
            standby.finish_segment(session, replayed)
        })?;
        if let Some(switched) = switched {
            return Ok(switched);
        }
        let size = self.read_identity()?.log_segment;
        Ok(segment::finish(self.session()?, size)?)
    }

    fn stream_ended(&mut self, stop: Lsn) -> Result<(), EngineError> {
        self.with_standby(|standby, session| {
            // After a promotion there is no primary to ask, and the segment arrives or does not.
            match Replayed::ask(session) {
                Ok(replayed) => standby.finish_last(stop, replayed),
                Err(LiveError::Promoted) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(())
    }

    fn archiver_failure(&mut self, awaited: SegmentName) -> Result<Option<String>, EngineError> {
        let of_primary =
            self.with_standby(|standby, session| standby.archiver_failure(session, awaited));
        let answer = match of_primary {
            Ok(None) => segment::archiver_failure(self.session()?, awaited),
            Ok(Some(failure)) => Ok(failure),
            Err(error) => Err(error),
        };
        match answer {
            // A role that may not see it has another error to report.
            Err(LiveError::Privilege { .. }) => Ok(None),
            other => Ok(other?),
        }
    }

    fn takes_offers(&self) -> bool {
        true
    }

    fn offer(
        &mut self,
        earlier: &Earlier,
        files: &mut dyn Iterator<Item = EarlierFile>,
    ) -> Result<(), EngineError> {
        Ok(self.send_manifest(earlier, files)?)
    }

    fn start(&mut self, label: &str) -> Result<BackupStart, EngineError> {
        self.begin(label)
    }

    fn source(&mut self) -> Result<Source, EngineError> {
        let started = self.started.take();
        Ok(Source::Stream(started.ok_or(LiveError::Order("no backup is running"))?))
    }

    fn listing(&mut self) -> Result<Listing, EngineError> {
        Err(LiveError::Order("the files of this backup come from the server").into())
    }

    fn keep_alive(&mut self) -> Result<(), EngineError> {
        // The backup does not depend on this session: it is opened again when it is needed.
        let alive = self.session.as_mut().is_some_and(|session| session.time().is_ok());
        if !alive {
            self.session = None;
        }
        Ok(())
    }

    fn control_file(&mut self) -> Result<GeneratedFile, EngineError> {
        Err(LiveError::Order("the control file comes from the server").into())
    }

    fn stop(&mut self) -> Result<BackupStop, EngineError> {
        Err(LiveError::Order("the server ends this backup by itself").into())
    }

    fn look_again(
        &mut self,
        path: &str,
        offset: u64,
        bytes: u32,
    ) -> Result<Option<Vec<u8>>, EngineError> {
        const DOING: &str = "reading a page again";
        let session = self.session()?;
        let may = "SELECT pg_catalog.has_function_privilege(\
                   'pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)', 'EXECUTE')";
        if !session.ask(DOING, may, &[])?.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = "SELECT coalesce(pg_catalog.pg_read_binary_file($1, $2, $3, true), '')";
        let row = session.ask(DOING, sql, &[&path, &(offset as i64), &i64::from(bytes)])?;
        Ok(Some(row.get(0)))
    }

    fn abort(&mut self) {
        (self.started, self.replication) = (None, None);
    }
}

impl RemoteOrigin {
    /// What the session's role may do.
    pub fn privileges(&mut self) -> Result<Privileges, LiveError> {
        Privileges::of(self.session()?)
    }

    /// The end of the WAL, for messages.
    pub fn flushed(&mut self) -> Result<Lsn, LiveError> {
        Ok(self.replication()?.identify_system()?.flushed)
    }
}
