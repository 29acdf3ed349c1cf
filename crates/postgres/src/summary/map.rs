//! What summaries mean for the files of a data directory.
//!
//! Stricter than `GetFileBackupMethod` in `src/backend/backup/basebackup_incremental.c`: only main
//! forks are taken at a summary's word. The free space map is not fully logged, and records that
//! clear bits of the visibility map do not name its blocks (`visibilitymap_clear`); init forks are
//! tiny.

use lifeboat_engine::{ChangeMap, Changed, ClusterIdentity, Content, SourceFile};

use super::Fork;
use super::table::BlockTable;
use crate::scan::{self, RelationFile, decimal};

/// `DEFAULTTABLESPACE_OID` in `src/include/catalog/pg_tablespace.dat`.
const DEFAULT_TABLESPACE: u32 = 1663;
/// `GLOBALTABLESPACE_OID` in `src/include/catalog/pg_tablespace.dat`.
const GLOBAL_TABLESPACE: u32 = 1664;
/// `MAIN_FORKNUM` in `src/include/common/relpath.h`.
const MAIN_FORK: u32 = 0;

/// What changed in every file, by the summaries of one stretch of WAL.
pub struct SummaryMap {
    table: BlockTable,
    page_bytes: u32,
    pages_per_file: u32,
}

impl SummaryMap {
    /// A table applied to the files of this cluster.
    pub fn new(table: BlockTable, identity: &ClusterIdentity) -> Self {
        let (page_bytes, pages_per_file) = (identity.page_bytes, identity.pages_per_file);
        Self { table, page_bytes, pages_per_file }
    }
}

impl ChangeMap for SummaryMap {
    fn of(&self, file: &SourceFile) -> Changed {
        let Content::Pages { first_page } = file.content else { return Changed::Everything };
        let Some((fork, segment)) = main_fork(&file.path) else { return Changed::Everything };
        let pages = file.size_bytes / u64::from(self.page_bytes);
        if segment.checked_mul(self.pages_per_file) != Some(first_page)
            || pages > u64::from(self.pages_per_file)
            || !file.size_bytes.is_multiple_of(u64::from(self.page_bytes))
        {
            return Changed::Everything;
        }
        // The database was made, copied or dropped as files.
        if self.table.names(Fork { relation: 0, ..fork }) {
            return Changed::Everything;
        }
        if self.table.limit_of(fork).is_some_and(|limit| limit <= first_page) {
            return Changed::Everything;
        }
        let Some(end) = first_page.checked_add(pages as u32) else { return Changed::Everything };
        let mut changed = self.table.changed(fork, first_page..end);
        for range in &mut changed {
            *range = range.start - first_page..range.end - first_page;
        }
        Changed::Pages(changed)
    }

    fn was_cut(&self, file: &SourceFile) -> bool {
        let Content::Pages { first_page } = file.content else { return false };
        let Some((fork, _)) = main_fork(&file.path) else { return false };
        let end = u64::from(first_page) + file.size_bytes / u64::from(self.page_bytes);
        self.table.limit_of(fork).is_some_and(|limit| u64::from(limit) <= end)
    }
}

/// The main fork of which this is a segment file, and which; `None` for anything else.
fn main_fork(path: &str) -> Option<(Fork, u32)> {
    let (directory, name) = path.rsplit_once('/')?;
    let file = RelationFile::parse(name)?;
    if file.fork != scan::Fork::Main || file.temporary {
        return None;
    }
    let parts: Vec<&str> = directory.split('/').collect();
    let (tablespace, database) = match parts[..] {
        ["global"] => (GLOBAL_TABLESPACE, 0),
        ["base", database] => (DEFAULT_TABLESPACE, decimal(database)?),
        ["pg_tblspc", tablespace, version, database] if version.starts_with("PG_") => {
            (decimal(tablespace)?, decimal(database)?)
        }
        _ => return None,
    };
    Some((Fork { tablespace, database, relation: file.number, fork: MAIN_FORK }, file.segment))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is meant")]
mod tests {
    use lifeboat_engine::{SegmentSize, SystemId};

    use super::super::file::Sink;
    use super::*;

    fn fork(tablespace: u32, database: u32, relation: u32) -> Fork {
        Fork { tablespace, database, relation, fork: 0 }
    }

    fn map(table: BlockTable) -> SummaryMap {
        let identity = ClusterIdentity {
            system_id: SystemId(7),
            major: 18,
            catalog_version: 1,
            page_bytes: 8192,
            pages_per_file: 100,
            log_segment: SegmentSize::DEFAULT,
            checksums: true,
        };
        SummaryMap::new(table, &identity)
    }

    fn file(path: &str, first_page: u32, pages: u64) -> SourceFile {
        SourceFile {
            path: path.into(),
            size_bytes: pages * 8192,
            mode: 0o600,
            content: Content::Pages { first_page },
        }
    }

    #[test]
    fn a_path_names_its_relation() {
        assert_eq!(main_fork("base/5/16384"), Some((fork(1663, 5, 16384), 0)));
        assert_eq!(main_fork("base/5/16384.3"), Some((fork(1663, 5, 16384), 3)));
        assert_eq!(main_fork("global/1260"), Some((fork(1664, 0, 1260), 0)));
        let there = "pg_tblspc/16385/PG_18_202506291/5/16400";
        assert_eq!(main_fork(there), Some((fork(16385, 5, 16400), 0)));
        for other in [
            "base/5/16384_fsm",
            "base/5/16384_vm",
            "base/5/16384_init",
            "base/5/t3_16384",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/pgsql_tmp/16384",
            "16384",
            "srv/base/5/16384",
            "pg_tblspc/16385/5/16400",
            "pg_xact/0000",
        ] {
            assert_eq!(main_fork(other), None, "{other}");
        }
    }

    #[test]
    fn touched_blocks_are_those_of_the_segment_file() {
        let mut table = BlockTable::default();
        let relation = fork(1663, 5, 7);
        table.limit(relation, None);
        table.chunk(relation, 0, &[250, 3, 4, 99, 100, 3]).unwrap();
        let map = map(table);
        let of = |path: &str, first, pages| map.of(&file(path, first, pages));
        assert_eq!(of("base/5/7", 0, 100), Changed::Pages(vec![3..5, 99..100]));
        assert_eq!(of("base/5/7.1", 100, 100), Changed::Pages(vec![0..1]));
        assert_eq!(of("base/5/7.2", 200, 60), Changed::Pages(vec![50..51]));
        assert_eq!(of("base/5/7.2", 200, 50), Changed::NOTHING, "beyond its end");
        assert_eq!(of("base/5/8", 0, 9), Changed::NOTHING, "nobody touched it");
        assert_eq!(of("base/5/7_vm", 0, 1), Changed::Everything);
        assert_eq!(of("base/5/7.2", 0, 60), Changed::Everything, "not where it says");
        assert_eq!(of("base/5/7", 0, 101), Changed::Everything, "longer than a file can be");
        let odd = SourceFile { size_bytes: 8193, ..file("base/5/7", 0, 1) };
        assert_eq!(map.of(&odd), Changed::Everything);
        let bytes = SourceFile { content: Content::Bytes, ..file("base/5/7", 0, 1) };
        assert_eq!(map.of(&bytes), Changed::Everything);
    }

    #[test]
    fn from_where_it_was_cut_on_a_relation_is_new() {
        let mut table = BlockTable::default();
        let relation = fork(1663, 5, 7);
        table.limit(relation, Some(130));
        table.chunk(relation, 0, &[5, 120, 150]).unwrap();
        table.limit(relation, Some(160)); // a later file says a higher one: the lowest counts
        let map = map(table);
        let of = |path: &str, first, pages| map.of(&file(path, first, pages));
        assert_eq!(of("base/5/7", 0, 100), Changed::Pages(vec![5..6]));
        assert_eq!(of("base/5/7.1", 100, 100), Changed::Pages(vec![20..21, 30..100]));
        assert_eq!(of("base/5/7.2", 200, 10), Changed::Everything);
        let was_cut = |path: &str, first, pages| map.was_cut(&file(path, first, pages));
        assert!(was_cut("base/5/7.1", 100, 30) && was_cut("base/5/7.1", 100, 31));
        assert!(!was_cut("base/5/7.1", 100, 29), "shorter than anybody says");
        assert!(!was_cut("base/5/8", 0, 100) && !was_cut("base/5/7_vm", 0, 1));
    }

    #[test]
    fn a_database_that_was_made_of_files_is_new_in_its_tablespace_only() {
        let mut table = BlockTable::default();
        table.limit(fork(1663, 5, 0), Some(0));
        let map = map(table);
        assert_eq!(map.of(&file("base/5/7", 0, 9)), Changed::Everything);
        assert_eq!(map.of(&file("base/6/7", 0, 9)), Changed::NOTHING);
        assert_eq!(map.of(&file("pg_tblspc/99/PG_18_1/5/7", 0, 9)), Changed::NOTHING);
    }
}
