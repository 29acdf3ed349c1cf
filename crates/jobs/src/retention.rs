//! Expires backups, and collects what nobody refers to: plan, then apply.
//!
//! | module | what it does |
//! |---|---|
//! | [`policy`] | what is to be kept |
//! | [`plan`] | decides from facts alone |
//! | [`apply`] | carries a plan out |

pub mod apply;
pub mod error;
pub mod plan;
pub mod policy;

mod collect;
mod logs;

pub use apply::{Report, apply};
pub(crate) use collect::parse_pack;
pub use error::RetentionError;
pub use plan::{Kept, LogRemoval, Plan, Removed, plan};
pub use policy::{KeepReason, Policy, RemoveReason};
