//! What a server sends for a base backup over the replication protocol.
//!
//! | module | what it holds |
//! |---|---|
//! | [`tar`] | reads the archives |
//! | [`changed`] | reads files of which only some blocks were sent |
//! | [`manifest`] | writes the backup manifest that such files are relative to |
//! | [`arrival`] | what a file is, by its path alone |

pub mod arrival;
pub mod changed;
pub mod manifest;
pub mod tar;
