//! The replication protocol: a thin, blocking client for what SQL cannot do.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Connection`] | opening, asking, stopping from another thread |
//! | `commands` | [`SystemInfo`], timelines' histories, [`SlotState`] |
//! | [`WalStream`] | streamed WAL, and how far it has come |
//! | [`CopyOut`], [`CopyIn`] | base backups out, manifests in |
//! | `login` | startup, passwords, SCRAM |
//! | `channel`, `socket` | time limits, notices |
//! | `frame`, `message` | messages, and what is in them; pure |
//! | [`WireError`] | what can go wrong |
//!
//! Everything that a server says is a claim: lengths are checked before room is made, texts
//! before they are used, and what has no place ends the connection.

mod channel;
mod commands;
mod connection;
mod copy;
mod error;
mod frame;
mod login;
mod message;
mod socket;
mod wal_stream;

pub use commands::{SlotState, SystemInfo};
pub use connection::{Connection, Stopper};
pub use copy::{CopyIn, CopyOut, TextRows};
pub use error::WireError;
pub use message::ServerReport;
pub use wal_stream::{Status, WalEvent, WalStream};
