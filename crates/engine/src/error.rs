//! Any engine's error, carried across the seam.

use std::fmt;

use lifeboat_units::{Code, Explain, Retry};

/// An engine's own error type behind one face; keeps message, causes, code and help.
#[derive(Debug)]
pub struct EngineError(Box<dyn Explain>);

impl EngineError {
    /// Wraps an engine's own error.
    pub fn new(error: impl Explain) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl Explain for EngineError {
    fn code(&self) -> Code {
        self.0.code()
    }
    fn retry(&self) -> Retry {
        self.0.retry()
    }
    fn help(&self) -> Option<String> {
        self.0.help()
    }
}
