//! Many files behind one barrier.

use std::path::{Path, PathBuf};

use lifeboat_engine::LogFile;
use lifeboat_repo::{Compression, LogBatch, LogWriter, RepoError};

use super::ack::{Ack, Kind, Target};
use super::{Admitted, Object, Offer, PushError, PushSettings, offer, settle};
use crate::ports::Ports;

/// What it takes to store files.
pub(super) struct Storer<'a> {
    pub(super) ports: Ports<'a>,
    pub(super) directory: &'a Path,
    pub(super) target: Target,
    pub(super) admitted: &'a Admitted,
}

/// Memory of a thread that stores files.
pub(super) struct Desk {
    memory: Vec<u8>,
    compression: Compression,
    /// Made when the repository is there.
    writer: Option<LogWriter>,
}

impl Desk {
    pub(super) fn new(settings: PushSettings) -> Self {
        Self { memory: Vec::new(), compression: settings.compression, writer: None }
    }
}

/// What became of one file.
pub(super) type Stored = (LogFile, Result<Ack, PushError>);

/// Files as far as they come without any becoming visible.
pub(super) enum Prepared<'a> {
    /// They are written. The outcomes hold when the batch is committed.
    Written(LogBatch<'a>, Vec<Stored>),
    /// The only one of them failed.
    Failed(Stored),
    /// One of many failed, or the store: which it is shows when each is stored by itself.
    Apart,
}

impl<'a> Storer<'a> {
    /// Writes files, and makes none of them visible.
    pub(super) fn prepare(&self, files: &[LogFile], desk: &mut Desk) -> Prepared<'a> {
        let mut batch = match self.ports.cluster.log_batch() {
            Ok(batch) => batch,
            Err(source) => match *files {
                [file] => return Prepared::Failed((file, Err(failed(file, source)))),
                _ => return Prepared::Apart,
            },
        };
        let mut stored = Vec::with_capacity(files.len());
        for file in files {
            match self.add(&mut batch, *file, desk) {
                Err(error @ PushError::Repo { .. }) => match files.len() {
                    1 => return Prepared::Failed((*file, Err(error))),
                    _ => return Prepared::Apart,
                },
                outcome => {
                    let diverged = is_diverged(&outcome);
                    stored.push((*file, outcome));
                    if diverged {
                        break;
                    }
                }
            }
        }
        Prepared::Written(batch, stored)
    }

    /// Makes files durable and visible, and gives an acknowledgement for each. Of files that were
    /// left alone, because one before them is archived with other content, nothing is said.
    ///
    /// One barrier for all, when all goes well. When anything of it fails, each is stored by
    /// itself, so that one file's failure is told of that file only.
    pub(super) fn finish(
        &self,
        files: &[LogFile],
        prepared: Prepared<'a>,
        desk: &mut Desk,
    ) -> Vec<Stored> {
        match prepared {
            Prepared::Written(batch, stored) => match (batch.commit(), files) {
                (Ok(()), _) => stored,
                (Err(source), &[file]) if !source.is_already_exists() => {
                    vec![(file, Err(failed(file, source)))]
                }
                (Err(_), _) => self.one_by_one(files, desk),
            },
            Prepared::Failed(stored) => vec![stored],
            Prepared::Apart => self.one_by_one(files, desk),
        }
    }

    fn one_by_one(&self, files: &[LogFile], desk: &mut Desk) -> Vec<Stored> {
        let mut stored = Vec::with_capacity(files.len());
        for file in files {
            let outcome = self.alone(*file, desk);
            let diverged = is_diverged(&outcome);
            stored.push((*file, outcome));
            if diverged {
                break;
            }
        }
        stored
    }

    fn alone(&self, file: LogFile, desk: &mut Desk) -> Result<Ack, PushError> {
        let failed = |source| failed(file, source);
        let mut batch = self.ports.cluster.log_batch().map_err(failed)?;
        let ack = self.add(&mut batch, file, desk)?;
        match batch.commit() {
            Ok(()) => Ok(ack),
            // Another stored it between our look and our commit: compare.
            Err(error) if error.is_already_exists() => {
                let mut again = self.ports.cluster.log_batch().map_err(failed)?;
                let ack = self.add(&mut again, file, desk)?;
                again.commit().map_err(failed)?;
                Ok(ack)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The acknowledgement holds when the batch is committed.
    fn add(
        &self,
        batch: &mut LogBatch<'_>,
        file: LogFile,
        desk: &mut Desk,
    ) -> Result<Ack, PushError> {
        let path = self.path(file);
        let Desk { memory, compression, writer } = desk;
        let writer = writer.get_or_insert_with(|| self.ports.cluster.log_writer(*compression));
        let (offer, object) = offer(&self.ports, &path, self.admitted, memory, writer)?;
        let (outcome, digest) = match object {
            Object::New(encoded) => (batch.put(&encoded), encoded.digest().to_owned()),
            Object::There(digest) => {
                (self.ports.cluster.compare_log(&offer.place, &digest), digest)
            }
        };
        let outcome = outcome.map_err(|source| failed(file, source))?;
        settle(&file.to_string(), outcome)?;
        Ok(self.ack(&offer, digest))
    }

    fn ack(&self, offer: &Offer, digest: String) -> Ack {
        Ack {
            kind: Kind::Stored,
            file: offer.file.to_string(),
            system: offer.system.to_string(),
            target: self.target,
            stamp: offer.stamp,
            digest,
        }
    }

    fn path(&self, file: LogFile) -> PathBuf {
        self.directory.join(self.ports.engine.log_directory()).join(file.to_string())
    }
}

fn is_diverged<T>(outcome: &Result<T, PushError>) -> bool {
    matches!(outcome, Err(PushError::Diverged { .. }))
}

fn failed(file: LogFile, source: RepoError) -> PushError {
    PushError::Repo { file: file.to_string(), source }
}
