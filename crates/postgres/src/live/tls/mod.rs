//! TLS for connections of both kinds, from one set of settings.
//!
//! | module | what it holds |
//! |---|---|
//! | [`TlsError`] | what can go wrong, with what to do |
//! | `settings` | [`ClientTls`]: files read, keys checked |
//! | `verify` | whose certificates are believed, and for which names |
//! | `certificate` | the parts of a certificate that are looked at |
//! | `driver` | the same for the SQL client |

mod certificate;
mod driver;
mod error;
mod settings;
mod verify;

pub(crate) use driver::DriverTls;
pub use error::TlsError;
pub(crate) use settings::{ClientTls, Encryption, attempts};
