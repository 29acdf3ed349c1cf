//! All PostgreSQL knowledge of lifeboat; versions 14 to 18. Knows no repository.
//!
//! | module | what it holds |
//! |---|---|
//! | [`versions`] | the facts that tell one major version from another |
//! | [`control`] | [`control::ControlFile`]: `global/pg_control` |
//! | [`page`] | [`page::PgPageFormat`]: checks a page |

mod bytes;
pub mod control;
pub mod page;
pub mod versions;
