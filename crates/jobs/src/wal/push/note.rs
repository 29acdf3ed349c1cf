//! Error notes: what the background pusher has to say to the call that waits.

use lifeboat_units::{Code, Explain};
use serde::{Deserialize, Serialize};

/// Why a file is not archived yet, as the call that waits for it will say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorNote {
    /// The stable name of the failure.
    pub code: String,
    /// What and where.
    pub message: String,
    /// Its causes, outermost first.
    pub causes: Vec<String>,
    /// What to do.
    pub help: Option<String>,
}

impl ErrorNote {
    /// Longest note that is read, in bytes.
    pub const BYTES_MAX: u64 = 64 << 10;

    /// A note of an error.
    pub fn of(error: &dyn Explain) -> Self {
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        Self {
            code: error.code().0.to_owned(),
            message: error.to_string(),
            causes,
            help: error.help(),
        }
    }

    /// The stable name of the failure.
    pub fn code(&self) -> Code {
        // Said once, by a process that ends with it.
        Code(Box::leak(self.code.clone().into_boxed_str()))
    }

    /// Message and causes in one line, for a log.
    pub fn line(&self) -> String {
        let parts = std::iter::once(&self.message).chain(&self.causes);
        parts.cloned().collect::<Vec<_>>().join(": ").replace('\n', " ")
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts always serialise")
    }

    /// `None` for what is torn: the pusher writes another.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}
