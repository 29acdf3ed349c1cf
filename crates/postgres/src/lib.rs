//! All PostgreSQL knowledge of lifeboat; versions 14 to 18. Knows no repository.
//!
//! | module | what it holds |
//! |---|---|
//! | [`versions`] | the facts that tell one major version from another |
//! | [`control`] | [`control::ControlFile`]: `global/pg_control` |
//! | [`page`] | [`page::PgPageFormat`]: checks a page |
//! | [`transform`] | [`transform::SplitPages`]: reorders pages for compression |
//! | [`log_transform`] | [`log_transform::SplitRecords`]: takes WAL records apart for compression |
//! | [`wal`] | WAL segments and their records |
//! | [`history`], [`label`] | timeline history files, `backup_label` |
//! | [`facts`] | [`facts::log_facts`]: commits and restore points in a segment |
//! | [`engine`] | [`engine::PostgresEngine`]: what jobs ask without a running server |
//! | [`live`] | running servers: connections, backup mode, cluster control |
//! | [`base`] | what a server sends for a base backup |
//! | [`scan`] | [`scan::list`]: what a base backup copies |
//! | [`summary`] | WAL summaries: what changed between two positions (17 on) |
//! | [`tablespace_map`] | where recovery makes the links to tablespaces |
//! | [`recovery_conf`] | the recovery settings in `postgresql.auto.conf` |

pub mod base;
mod bytes;
pub mod control;
pub mod engine;
pub mod facts;
pub mod history;
pub mod label;
pub mod live;
pub mod log_transform;
pub mod page;
pub mod recovery_conf;
pub mod scan;
pub mod summary;
pub mod tablespace_map;
pub mod transform;
pub mod versions;
pub mod wal;
