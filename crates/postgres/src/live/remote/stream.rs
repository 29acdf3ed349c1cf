//! [`PgStream`]: the files of a base backup as the server sends them.

use lifeboat_engine::{
    Arriving, ClusterIdentity, Content, Directory, EngineError, FileStream, GeneratedFile, Lsn,
    Sent, SourceFile, StreamEnd, TimelineId,
};

use super::error::RemoteError;
use super::payload::{Archive, Payload};
use super::pump::{Event, Rows};
use crate::base::arrival::{Understood, is_within_left_out, understand};
use crate::base::changed::{self, Changed, ChangedError, FIXED_BYTES, Sizes};
use crate::base::tar::{Header, Kind, TarError, TarReader};
use crate::control::{CONTROL_FILE, ControlFile};
use crate::label::BackupLabel;
use crate::live::error::LiveError;
use crate::tablespace_map::TABLESPACE_MAP;

const LABEL: &str = "backup_label";
/// Files that the server generates, and the control file, are not longer than this, in bytes.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// What a stream must fit.
pub struct Expected {
    /// How the data are laid out.
    pub identity: ClusterIdentity,
    /// Where the backup began.
    pub start: Lsn,
    /// Permission bits of the data directory.
    pub mode: u32,
    /// Whether only changed blocks of files may come.
    pub differences: bool,
}

/// A base backup that is coming in.
pub struct PgStream {
    expected: Expected,
    state: State,
    /// What stands before the paths in the current archive.
    prefix: String,
    /// Directories that no archive names.
    unnamed: Vec<Directory>,
    /// The file that was begun last, for messages.
    path: String,
    label: Option<Vec<u8>>,
    tablespace_map: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
}

enum State {
    /// Between archives.
    Between(Payload),
    /// Within an archive.
    Within(TarReader<Archive>),
    /// All was sent: the answers after the data.
    Over(Vec<Rows>),
    /// It failed.
    Broken,
}

impl PgStream {
    /// A stream of which nothing was read yet.
    pub fn new(payload: Payload, expected: Expected) -> Self {
        let root = Directory { path: String::new(), mode: expected.mode };
        Self {
            expected,
            state: State::Between(payload),
            prefix: String::new(),
            unnamed: vec![root],
            path: String::new(),
            label: None,
            tablespace_map: None,
            control: None,
        }
    }

    /// Goes on to the next archive; false when there is none.
    fn next_archive(&mut self) -> Result<bool, RemoteError> {
        let mut payload = match std::mem::replace(&mut self.state, State::Broken) {
            State::Between(payload) => payload,
            State::Within(reader) => reader.into_inner().into_payload(),
            State::Over(_) | State::Broken => {
                return Err(RemoteError::Order { what: "nothing comes any more".to_owned() });
            }
        };
        match payload.next() {
            Event::Archive(name) => {
                self.prefix = self.prefix_of(&name)?;
                self.state = State::Within(TarReader::new(Archive::open(&name, payload)?));
                Ok(true)
            }
            Event::End(rows) => {
                self.state = State::Over(rows);
                Ok(false)
            }
            Event::Failed(RemoteError::Cut { source, .. }) => {
                Err(RemoteError::Cut { path: self.path.clone(), source })
            }
            Event::Failed(error) => Err(error),
            _ => Err(RemoteError::Order { what: "an answer in the middle".to_owned() }),
        }
    }

    /// Where an archive's files lie: those of a tablespace below its link.
    fn prefix_of(&mut self, name: &str) -> Result<String, RemoteError> {
        let stem = name.split('.').next().unwrap_or("");
        if stem == "base" {
            return Ok(String::new());
        }
        let oid: u32 = stem.parse().map_err(|_| RemoteError::Order {
            what: format!("an archive `{name}` of no tablespace"),
        })?;
        // The directory of a tablespace itself is in no archive; its parent decides nothing.
        let path = format!("pg_tblspc/{oid}");
        self.unnamed.push(Directory { path: path.clone(), mode: self.expected.mode });
        Ok(path + "/")
    }

    fn entry(&mut self) -> Result<Option<Arriving>, RemoteError> {
        loop {
            if let Some(directory) = self.unnamed.pop() {
                return Ok(Some(Arriving::Directory(directory)));
            }
            let header = match &mut self.state {
                State::Within(reader) => reader.entry(),
                State::Over(_) => return Ok(None),
                _ => Ok(None),
            };
            let Some(header) = header.map_err(|error| self.failed(error))? else {
                if !self.next_archive()? {
                    return Ok(None);
                }
                continue;
            };
            if let Some(arriving) = self.understand(header)? {
                return Ok(Some(arriving));
            }
        }
    }

    /// What an entry is; `None` when the backup does not keep it, or keeps it elsewhere.
    fn understand(&mut self, header: Header) -> Result<Option<Arriving>, RemoteError> {
        let Header { path, kind, size_bytes, mode } = header;
        let path = format!("{}{path}", self.prefix);
        self.path.clone_from(&path);
        match kind {
            Kind::Directory if is_within_left_out(&path, &self.expected.identity) => {
                return Ok(None);
            }
            Kind::Directory => return Ok(Some(Arriving::Directory(Directory { path, mode }))),
            Kind::Link(_) => {
                return Err(RemoteError::Order { what: format!("a link, `{path}`") });
            }
            Kind::File => {}
        }
        match path.as_str() {
            LABEL => self.label = Some(self.small()?),
            TABLESPACE_MAP => self.tablespace_map = Some(self.small()?),
            CONTROL_FILE => self.control = Some(self.small()?),
            _ => return self.file(path, size_bytes, mode),
        }
        Ok(None)
    }

    fn file(
        &mut self,
        path: String,
        size_bytes: u64,
        mode: u32,
    ) -> Result<Option<Arriving>, RemoteError> {
        if self.expected.differences
            && let Some((directory, name)) = path.rsplit_once('/')
            && let Some(name) = name.strip_prefix(changed::PREFIX)
        {
            let whole = format!("{directory}/{name}");
            let understood = understand(&whole, &self.expected.identity);
            if let Understood::Kept { content: content @ Content::Pages { .. }, .. } = understood {
                return self.changed(whole, content, size_bytes, mode).map(Some);
            }
        }
        let content = match understand(&path, &self.expected.identity) {
            Understood::LeftOut => return Ok(None),
            Understood::Kept { content, .. } => content,
        };
        let identity = &self.expected.identity;
        let size_max = u64::from(identity.pages_per_file) * u64::from(identity.page_bytes);
        if content != Content::Bytes && size_bytes > size_max {
            let what = format!("`{path}` of {size_bytes} bytes, more than such a file can have");
            return Err(RemoteError::Order { what });
        }
        let file = SourceFile { path, size_bytes, mode, content };
        Ok(Some(Arriving::File { file, sent: Sent::Whole }))
    }

    /// A file of which only the blocks come that changed.
    fn changed(
        &mut self,
        path: String,
        content: Content,
        file_bytes: u64,
        mode: u32,
    ) -> Result<Arriving, RemoteError> {
        let identity = &self.expected.identity;
        let page_bytes = identity.page_bytes;
        let sizes = Sizes { file_bytes, page_bytes, pages_per_file: identity.pages_per_file };
        let bad = |source| RemoteError::Changed { path: path.clone(), source };
        let mut fixed = [0; FIXED_BYTES];
        if self.fill(&mut fixed)? < fixed.len() {
            return Err(bad(ChangedError("their file is too short")));
        }
        let (count, truncation) = changed::fixed(&fixed, sizes).map_err(bad)?;
        let mut numbers = vec![0; count as usize * 4];
        self.fill(&mut numbers)?;
        let Changed { blocks, length, header_bytes } =
            changed::blocks(&numbers, truncation, sizes).map_err(bad)?;
        let mut padding = vec![0; header_bytes as usize - FIXED_BYTES - numbers.len()];
        self.fill(&mut padding)?;
        let size_bytes = u64::from(length) * u64::from(page_bytes);
        let file = SourceFile { path, size_bytes, mode, content };
        Ok(Arriving::File { file, sent: Sent::Pages(blocks) })
    }

    /// The whole of a small file.
    fn small(&mut self) -> Result<Vec<u8>, RemoteError> {
        let left = match &self.state {
            State::Within(reader) => reader.left(),
            _ => 0,
        };
        if left > SMALL_BYTES_MAX {
            let what = format!("`{}` of {left} bytes", self.path);
            return Err(RemoteError::Order { what });
        }
        let mut bytes = vec![0; left as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, RemoteError> {
        let State::Within(reader) = &mut self.state else {
            return Err(RemoteError::Order { what: "no file is being sent".to_owned() });
        };
        let result = reader.read(buffer);
        result.map_err(|error| self.failed(error))
    }

    /// What is behind an archive that cannot be read: as a rule the connection.
    fn failed(&mut self, source: TarError) -> RemoteError {
        let path = self.path.clone();
        let State::Within(reader) = std::mem::replace(&mut self.state, State::Broken) else {
            return RemoteError::Archive { path, source };
        };
        match reader.into_inner().payload().failure() {
            Some(RemoteError::Cut { source, .. }) => RemoteError::Cut { path, source },
            Some(error) => error,
            None => RemoteError::Archive { path, source },
        }
    }

    fn end(self) -> Result<StreamEnd, RemoteError> {
        let State::Over(after) = &self.state else {
            return Err(RemoteError::Order { what: "not all was read".to_owned() });
        };
        let (stop, timeline) = position(after.first())?;
        let control = self.control.ok_or(RemoteError::Missing { path: CONTROL_FILE })?;
        let parsed =
            ControlFile::parse(&control).map_err(|source| RemoteError::Control { source })?;
        if parsed.identity() != self.expected.identity || parsed.checkpoint < self.expected.start {
            let (system, checkpoint) = (parsed.system_id, parsed.checkpoint);
            return Err(RemoteError::Foreign { system, checkpoint });
        }
        let label = self.label.ok_or(RemoteError::Missing { path: LABEL })?;
        let mut generated = vec![GeneratedFile { path: LABEL.into(), bytes: whole_label(label)? }];
        if let Some(bytes) = self.tablespace_map.filter(|bytes| !bytes.is_empty()) {
            generated.push(GeneratedFile { path: TABLESPACE_MAP.into(), bytes });
        }
        let control = GeneratedFile { path: CONTROL_FILE.into(), bytes: control };
        Ok(StreamEnd { control, stop, timeline, generated })
    }
}

/// The label without the lines that say what the blocks were relative to: with them a server
/// would refuse to start on the files, which are whole here.
fn whole_label(bytes: Vec<u8>) -> Result<Vec<u8>, RemoteError> {
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let label = BackupLabel::parse(&text).map_err(|source| RemoteError::Label { source })?;
    if label.incremental_from.is_none() {
        return Ok(bytes);
    }
    Ok(BackupLabel { incremental_from: None, ..label }.to_string().into_bytes())
}

/// Reads an answer of one row with a position and a timeline.
pub fn position(rows: Option<&Rows>) -> Result<(Lsn, TimelineId), RemoteError> {
    let none = || RemoteError::Order { what: "an answer without a position".to_owned() };
    let row = rows.and_then(|rows| rows.first()).ok_or_else(none)?;
    let [Some(lsn), Some(timeline), ..] = &row[..] else { return Err(none()) };
    let timeline = timeline.parse().map_err(|_| none())?;
    Ok((lsn.parse().map_err(|_| none())?, TimelineId(timeline)))
}

impl FileStream for PgStream {
    fn arrive(&mut self) -> Result<Option<Arriving>, EngineError> {
        Ok(self.entry()?)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, EngineError> {
        Ok(self.fill(buffer)?)
    }

    fn finish(self: Box<Self>) -> Result<StreamEnd, EngineError> {
        Ok(self.end()?)
    }
}

impl From<LiveError> for RemoteError {
    fn from(source: LiveError) -> Self {
        Self::Cut { path: String::new(), source }
    }
}
