//! Leaves out of WAL what follows from the rest of it, and puts it back.
//!
//! Links and checksums of records follow from the records themselves, most page headers from their
//! place, and most bytes of a record are those of the record of its kind before it. None of that
//! compresses well where it is, and a checksum not at all.
//!
//! Format: `docs/format/log-transform.md`.
//! Source of the layout: PostgreSQL `src/include/access/xlog_internal.h` (pages), `xlogrecord.h`
//! (records).

mod columns;
mod differ;
mod front;
mod join;
mod pages;
mod split;

use lifeboat_engine::{Transform, TransformError};

/// Number of this transform in the repository format.
const ID: u8 = 2;

/// Longest body of a record, in bytes, that is told by what differs from another one. Longer ones
/// are mostly images of pages, which have little in common.
const BODY_BYTES_MAX: usize = 512;

const SHORT: TransformError = TransformError("cut short");

/// Takes records apart: what follows from the rest is left out, what is alike lies together.
///
/// - Law: `join(split(x)) == x` for every `x`.
/// - Shape: declines what does not begin with a page of WAL, or holds no whole record.
/// - Speed: one pass each way, no allocation per record.
/// - Checked by: `any_bytes_come_back`, `wal_of_a_real_cluster_splits_and_joins`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SplitRecords;

impl Transform for SplitRecords {
    fn id(&self) -> u8 {
        ID
    }

    fn split(&self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let done = split::split(raw, out).is_some();
        if !done {
            out.truncate(before);
        }
        done
    }

    fn join(&self, split: &[u8], out: &mut [u8]) -> Result<(), TransformError> {
        join::join(split, out)
    }
}
