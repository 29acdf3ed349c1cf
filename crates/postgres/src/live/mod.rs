//! Running servers: connections, what a server says about itself, backup mode, cluster control.
//!
//! | module | what it holds |
//! |---|---|
//! | [`conninfo`] | [`conninfo::Conninfo`]: connection strings as libpq reads them |
//! | [`session`] | connections with settings that suit a backup |
//! | [`server`] | [`server::ServerFacts`]: version, settings, privileges, archiver |
//! | [`privileges`] | what a role needs, and the GRANTs that give it |
//! | [`backup`] | [`backup::PostgresOrigin`]: backup mode |
//! | [`changes`] | what WAL summaries say changed since an earlier backup |
//! | [`remote`] | [`remote::RemoteOrigin`]: base backups over the network |
//! | [`cluster`] | binaries, initdb, start, stop, status |
//! | [`isolation`] | settings that keep a restored server to itself |
//! | [`recover`] | starting a restored server and waiting for recovery |
//! | [`replication`] | the replication protocol: WAL streams, base backups, slots |
//! | [`source`] | [`source::ServerSource`]: a server whose WAL is received |
//! | [`slots`] | physical replication slots: in use or not, and what they keep |
//! | [`tls`] | TLS for both kinds of connection |
//! | [`error`] | [`error::LiveError`] |

pub mod backup;
pub mod changes;
pub mod cluster;
pub mod conninfo;
pub mod error;
pub mod isolation;
pub mod privileges;
pub mod recover;
pub mod remote;
pub mod replication;
pub mod server;
pub mod session;
pub mod slots;
pub mod source;
pub mod tls;
