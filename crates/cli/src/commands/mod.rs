//! One file per command: arguments, one call, one report.

pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod check_archiving;
pub(crate) mod check_points;
pub(crate) mod check_settings;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod docs;
pub(crate) mod expire;
pub(crate) mod init;
pub(crate) mod init_settings;
pub(crate) mod key;
pub(crate) mod list;
mod reading;
pub(crate) mod restore;
pub(crate) mod restore_delta;
pub(crate) mod restore_start;
pub(crate) mod show;
pub(crate) mod verify;
pub(crate) mod wal;
pub(crate) mod wal_get;
pub(crate) mod wal_list;
pub(crate) mod wal_prefetch;
pub(crate) mod wal_push;
pub(crate) mod wal_pusher;
pub(crate) mod wal_receive;
pub(crate) mod wal_recovered;
