//! What a file that arrives is, by its path alone: the same rules as for one that is listed.

use lifeboat_engine::{ClusterIdentity, Content};

use crate::scan::{Fork, Place, RelationFile, is_left_out};

/// What to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Understood {
    /// Nothing that a backup keeps.
    LeftOut,
    /// To be kept.
    Kept {
        /// How its bytes are to be understood.
        content: Content,
        /// For a file of a relation: the relation's number and fork.
        relation: Option<(u32, Fork)>,
    },
}

/// Says what the file at `path` is; the path is as a listing has it.
pub fn understand(path: &str, identity: &ClusterIdentity) -> Understood {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let place = place_of(directory, identity);
    if is_within_left_out(path, identity) {
        return Understood::LeftOut;
    }
    let relation = match place {
        Place::Relations => RelationFile::parse(name),
        _ => None,
    };
    let Some(relation) = relation else {
        return Understood::Kept { content: Content::Bytes, relation: None };
    };
    if relation.temporary {
        return Understood::LeftOut;
    }
    let first_page = relation.segment.checked_mul(identity.pages_per_file);
    let content = first_page.map_or(Content::Bytes, |first_page| Content::Pages { first_page });
    Understood::Kept { content, relation: Some((relation.number, relation.fork)) }
}

/// Whether `path`, or a directory that it lies in, is nothing that a backup keeps.
pub fn is_within_left_out(path: &str, identity: &ClusterIdentity) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.map(|end| &path[..end]).any(|part| {
        let (directory, name) = part.rsplit_once('/').unwrap_or(("", part));
        is_left_out(place_of(directory, identity), directory, name)
    })
}

/// What the directory at `path` is.
fn place_of(path: &str, identity: &ClusterIdentity) -> Place {
    if path.is_empty() {
        return Place::Root;
    }
    if let Some(within) = path.strip_prefix("pg_tblspc/") {
        let version = format!("PG_{}_{}", identity.major, identity.catalog_version);
        let mut parts = within.split('/').skip(1);
        if parts.next() != Some(version.as_str()) {
            return Place::Plain;
        }
        return parts.fold(Place::Databases, |place, name| place.of_child(name));
    }
    path.split('/').fold(Place::Root, |place, name| place.of_child(name))
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::{SegmentSize, SystemId};

    use super::*;

    fn content(path: &str) -> Option<Content> {
        let identity = ClusterIdentity {
            system_id: SystemId(1),
            major: 18,
            catalog_version: 9,
            page_bytes: 8192,
            pages_per_file: 131_072,
            log_segment: SegmentSize::DEFAULT,
            checksums: true,
        };
        match understand(path, &identity) {
            Understood::LeftOut => None,
            Understood::Kept { content, .. } => Some(content),
        }
    }

    #[test]
    fn relations_are_known_in_every_place_and_only_there() {
        let pages = |first_page| Some(Content::Pages { first_page });
        assert_eq!(content("base/5/1259"), pages(0));
        assert_eq!(content("base/5/1259_vm"), pages(0));
        assert_eq!(content("global/1262.2"), pages(262_144));
        assert_eq!(content("pg_tblspc/16385/PG_18_9/5/16400.1"), pages(131_072));
        for path in [
            "base/1259",
            "base/x/1259",
            "base/5/base/1259",
            "pg_tblspc/16385/PG_17_1/5/16400",
            "pg_tblspc/16385/16400",
            "pg_xact/0000",
            "base/5/PG_VERSION",
            "global/pg_filenode.map",
            "global/1/1262",
            "srv/base/5/1259",
        ] {
            assert_eq!(content(path), Some(Content::Bytes), "{path}");
        }
    }

    #[test]
    fn what_a_listing_leaves_out_is_left_out_here_too() {
        for path in [
            "standby.signal",
            "recovery.signal",
            "backup_label.old",
            "postgresql.auto.conf.tmp",
            "lifeboat.reading",
            "lifeboat.recovery",
            "lifeboat.restoring",
            "postmaster.pid",
            "global/pg_control",
            "global/pg_internal.init",
            "base/5/pg_internal.init.77",
            "base/5/t3_16384_fsm",
            "base/pgsql_tmp/pgsql_tmp7.0",
            "base/pgsql_tmp/anything",
            "lifeboat.recovery/anything",
            "pg_tblspc/16385/PG_18_9/pgsql_tmp",
            "pg_tblspc/16385/PG_18_9/5/t3_16384",
            ".s.PGSQL.5432.lock",
        ] {
            assert_eq!(content(path), None, "{path}");
        }
    }
}
