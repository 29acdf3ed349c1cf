//! What users ask for. Every job plans from facts first and then applies the plan.
//!
//! | module | what it does |
//! |---|---|
//! | [`ports`] | what every job is given: repository, engine, clock, progress |
//! | [`facts`] | what a job writes into a manifest or beside a log file |
//! | [`inventory`] | what is there: backups, ranges of WAL, gaps |
//! | [`backup`] | takes a backup |
//! | [`restore`] | plans and writes a restore |
//! | [`wal`] | archives and fetches WAL |
//! | [`verify`] | reads everything back and checks it |
//! | [`succession`] | which system is the cluster, after an upgrade |
//! | [`retention`] | expires backups, collects what nobody refers to |

pub mod backup;
pub mod facts;
pub mod inventory;
pub mod ports;
pub mod restore;
pub mod retention;
pub mod succession;
pub mod verify;
pub mod wal;

pub use ports::{Ports, log_transforms};
