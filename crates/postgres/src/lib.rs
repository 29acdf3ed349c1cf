//! All PostgreSQL knowledge of lifeboat; versions 14 to 18. Knows no repository.
//!
//! | module | what it holds |
//! |---|---|
//! | [`versions`] | the facts that tell one major version from another |
//! | [`control`] | [`control::ControlFile`]: `global/pg_control` |
//! | [`page`] | [`page::PgPageFormat`]: checks a page |
//! | [`wal`] | WAL segments and their records |
//! | [`facts`] | [`facts::log_facts`]: commits and restore points in a segment |

mod bytes;
pub mod control;
pub mod facts;
pub mod page;
pub mod versions;
pub mod wal;
