//! The server as a backup job sees it.

use std::path::Path;

use lifeboat_engine::{
    BackupStart, BackupStop, Changes, ClusterIdentity, EngineError, GeneratedFile, Listing, Origin,
    SegmentName, SegmentSwitch, Since,
};
use lifeboat_units::Timestamp;

use super::{PostgresOrigin, Running, standby};
use crate::control::CONTROL_FILE;
use crate::live::changes;
use crate::live::error::LiveError;
use crate::scan;

impl Origin for PostgresOrigin {
    fn identity(&mut self) -> Result<ClusterIdentity, EngineError> {
        Ok(self.read_identity()?)
    }

    fn version(&mut self) -> Result<String, EngineError> {
        let sql = "SELECT current_setting('server_version')";
        Ok(self.session()?.ask("reading the server's version", sql, &[])?.get(0))
    }

    fn data_directory(&self) -> &Path {
        &self.directory
    }

    fn server_time(&mut self) -> Result<Timestamp, EngineError> {
        Ok(self.session()?.time()?)
    }

    fn switch_segment(&mut self) -> Result<SegmentSwitch, EngineError> {
        Ok(self.switch()?)
    }

    fn archiver_failure(&mut self, awaited: SegmentName) -> Result<Option<String>, EngineError> {
        Ok(self.archiver_trouble(awaited)?)
    }

    fn start(&mut self, label: &str) -> Result<BackupStart, EngineError> {
        Ok(self.begin(label)?)
    }

    fn listing(&mut self) -> Result<Listing, EngineError> {
        let identity = self.read_identity()?;
        self.still_running()?;
        scan::list(&self.directory, &identity).map_err(EngineError::new)
    }

    fn changes(&mut self, since: &Since) -> Result<Changes, EngineError> {
        let identity = self.read_identity()?;
        self.still_running()?;
        let Some(Running { start, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running").into());
        };
        let directory = self.directory.clone();
        let session = self.session()?;
        Ok(changes::since(session, &directory, &identity, since, start)?)
    }

    fn keep_alive(&mut self) -> Result<(), EngineError> {
        Ok(self.still_running()?)
    }

    fn control_file(&mut self) -> Result<GeneratedFile, EngineError> {
        self.still_running()?;
        let Some(Running { start, .. }) = self.running else {
            return Err(LiveError::Order("no backup is running").into());
        };
        let (bytes, control) = self.prove_directory(start)?;
        if self.standby.is_some() && !standby::can_be_recovered(&control, start) {
            let (path, on_disk) = (self.directory.clone(), control.min_recovery);
            return Err(LiveError::StaleDirectory { path, on_disk, start }.into());
        }
        if let Some(running) = &mut self.running {
            running.consistent = self.standby.as_ref().map(|_| control.min_recovery);
        }
        Ok(GeneratedFile { path: CONTROL_FILE.into(), bytes })
    }

    fn stop(&mut self) -> Result<BackupStop, EngineError> {
        let result = self.end();
        if result.is_err() {
            self.leave();
        }
        Ok(result?)
    }

    fn abort(&mut self) {
        self.leave();
    }
}
