//! Errors that explain themselves: what a person or a script needs beyond the message.

use std::fmt;

/// Stable name of one kind of failure, `LB-<AREA>-<NUMBER>`; documented, never re-used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub &'static str);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Whether trying the same thing again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same call gives the same failure until somebody changes something.
    Never,
    /// A passing condition; the same call may succeed later.
    Later,
}

/// What every error of lifeboat can say about itself.
///
/// Implementations match exhaustively, so that a new variant cannot forget its code.
/// The message (`Display`) says what and where, lower case, without a full stop; causes are
/// reached by `source`, never repeated in the message.
pub trait Explain: std::error::Error + Send + Sync + 'static {
    /// The stable name of this failure.
    fn code(&self) -> Code;
    /// Whether trying again can help.
    fn retry(&self) -> Retry;
    /// What to do next, where that is not plain from the message.
    fn help(&self) -> Option<String>;
}
