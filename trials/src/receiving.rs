//! A receiver that runs beside a trial.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::Lab;

/// A running `lifeboat wal receive`.
pub struct Receiving {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Receiving {
    /// Starts it. `name` names its output.
    pub fn start(lab: &Lab, name: &str, arguments: &[&str]) -> Self {
        Self::start_with(lab, name, arguments, &|_| {})
    }

    /// The same; `prepare` sees the command before it is started.
    pub fn start_with(
        lab: &Lab,
        name: &str,
        arguments: &[&str],
        prepare: &dyn Fn(&mut Command),
    ) -> Self {
        let (output, errors) =
            (lab.place(&format!("{name}.events")), lab.place(&format!("{name}.errors")));
        let mut command = lab.command(&["--json"]);
        command.args(["wal", "receive"]).args(arguments);
        prepare(&mut command);
        let file = |path: &PathBuf| Stdio::from(File::create(path).expect("it can be written"));
        let child = command.stdout(file(&output)).stderr(file(&errors)).spawn();
        Self { child: child.expect("the program starts"), output, errors }
    }

    /// Everything that it said.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How often it said this.
    pub fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|told| told["event"] == event).count()
    }

    /// What it said on standard error, and its events.
    pub fn words(&self) -> String {
        let events = std::fs::read_to_string(&self.output).unwrap_or_default();
        format!("{}{events}", std::fs::read_to_string(&self.errors).unwrap_or_default())
    }

    /// Waits until it said this so many times.
    #[track_caller]
    pub fn wait_for(&self, event: &str, times: usize) {
        let until = Instant::now() + Duration::from_secs(40);
        while self.count(event) < times {
            assert!(Instant::now() < until, "no `{event}`:\n{}", self.words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it at once.
    pub fn kill_9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, and gives its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        self.wait()
    }

    /// Waits until it ends by itself, and gives its exit code.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.kill_9();
    }
}
