//! Many files behind one barrier.

use std::path::{Path, PathBuf};

use lifeboat_engine::LogFile;
use lifeboat_repo::LogBatch;

use super::ack::{Ack, Kind, Target};
use super::{Admitted, Offer, PushError, PushSettings, offer, settle};
use crate::ports::Ports;

/// What it takes to store files.
pub(super) struct Storer<'a> {
    pub(super) ports: Ports<'a>,
    pub(super) directory: &'a Path,
    pub(super) settings: PushSettings,
    pub(super) target: Target,
    pub(super) admitted: &'a Admitted,
    /// Waits until everything before these files is settled; false when one of them is archived
    /// with other content. Then another server writes the same log, and whatever follows here is
    /// not what follows there.
    pub(super) in_turn: &'a dyn Fn() -> bool,
}

/// What became of one file.
pub(super) type Stored = (LogFile, Result<Ack, PushError>);

fn is_diverged<T>(outcome: &Result<T, PushError>) -> bool {
    matches!(outcome, Err(PushError::Diverged { .. }))
}

impl Storer<'_> {
    /// Stores files and gives an acknowledgement for each that is durable. Of files that were left
    /// alone, because one before them is archived with other content, nothing is said.
    ///
    /// One barrier for all, when all goes well. When anything of it fails, each is stored by
    /// itself, so that one file's failure is told of that file only.
    pub(super) fn store(&self, files: &[LogFile], content: &mut Vec<u8>) -> Vec<Stored> {
        match self.together(files, content) {
            Some(stored) => stored,
            None => self.one_by_one(files, content),
        }
    }

    fn one_by_one(&self, files: &[LogFile], content: &mut Vec<u8>) -> Vec<Stored> {
        let mut stored = Vec::with_capacity(files.len());
        if !(self.in_turn)() {
            return stored;
        }
        for file in files {
            let outcome = self.alone(*file, content);
            let diverged = is_diverged(&outcome);
            stored.push((*file, outcome));
            if diverged {
                break;
            }
        }
        stored
    }

    /// `None` when the batch failed: then of no file is known what became of it.
    fn together(&self, files: &[LogFile], content: &mut Vec<u8>) -> Option<Vec<Stored>> {
        if files.len() < 2 {
            return None;
        }
        let mut batch = self.ports.cluster.log_batch().ok()?;
        let mut stored = Vec::with_capacity(files.len());
        for file in files {
            match self.add(&mut batch, *file, content) {
                // Whether it is the file or the store that is at fault shows when it is alone.
                Err(PushError::Repo { .. }) => return None,
                outcome => {
                    let diverged = is_diverged(&outcome);
                    stored.push((*file, outcome));
                    if diverged {
                        break;
                    }
                }
            }
        }
        if !(self.in_turn)() {
            return Some(Vec::new());
        }
        batch.commit().ok()?;
        Some(stored)
    }

    fn alone(&self, file: LogFile, content: &mut Vec<u8>) -> Result<Ack, PushError> {
        let failed = |source| PushError::Repo { file: file.to_string(), source };
        let mut batch = self.ports.cluster.log_batch().map_err(failed)?;
        let ack = self.add(&mut batch, file, content)?;
        match batch.commit() {
            Ok(()) => Ok(ack),
            // Another stored it between our look and our commit: compare.
            Err(error) if error.is_already_exists() => {
                let mut again = self.ports.cluster.log_batch().map_err(failed)?;
                let ack = self.add(&mut again, file, content)?;
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
        content: &mut Vec<u8>,
    ) -> Result<Ack, PushError> {
        let path = self.path(file);
        let offer = offer(&self.ports, &path, self.admitted, content)?;
        let digest = self.ports.cluster.log_digest(content);
        let outcome = batch
            .push(
                &offer.place,
                (content, &digest),
                self.settings.compression,
                self.ports.clock.now(),
                offer.facts_as_json(),
            )
            .map_err(|source| PushError::Repo { file: file.to_string(), source })?;
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
