//! The PostgreSQL versions that lifeboat knows, one row of facts each.
//!
//! Supporting a new major version means adding a row, and a golden control file beside
//! `crates/postgres/src/vectors/`.

/// What tells one major version from another in its files.
///
/// - Source: `PG_CONTROL_VERSION` in `src/include/catalog/pg_control.h`, `CATALOG_VERSION_NO` in
///   `src/include/catalog/catversion.h`, `XLOG_PAGE_MAGIC` in
///   `src/include/access/xlog_internal.h`, each on the version's stable branch.
/// - Checked by: `control_files_of_all_versions_read_as_pg_controldata_says`.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// Major version, such as 18.
    pub major: u32,
    /// Layout of `global/pg_control`. Versions 14, 15 and 16 share one number.
    pub control_version: u32,
    /// Catalog version of the releases; it never changes after a major version's first release.
    pub catalog_version: u32,
    /// First two bytes of each WAL page.
    pub wal_magic: u16,
    /// Bytes of the control file that its checksum covers: `offsetof(ControlFileData, crc)`.
    pub control_crc_offset: usize,
}

/// Every version that lifeboat reads, oldest first.
pub const VERSIONS: [Version; 5] = [
    // REL_14_STABLE
    Version {
        major: 14,
        control_version: 1300,
        catalog_version: 202107181,
        wal_magic: 0xD10D,
        control_crc_offset: 288,
    },
    // REL_15_STABLE
    Version {
        major: 15,
        control_version: 1300,
        catalog_version: 202209061,
        wal_magic: 0xD110,
        control_crc_offset: 288,
    },
    // REL_16_STABLE
    Version {
        major: 16,
        control_version: 1300,
        catalog_version: 202307071,
        wal_magic: 0xD113,
        control_crc_offset: 288,
    },
    // REL_17_STABLE: `CheckPoint` has gained `wal_level`, in what was padding
    Version {
        major: 17,
        control_version: 1700,
        catalog_version: 202406281,
        wal_magic: 0xD116,
        control_crc_offset: 288,
    },
    // REL_18_STABLE: `default_char_signedness` lies before the nonce
    Version {
        major: 18,
        control_version: 1800,
        catalog_version: 202506291,
        wal_magic: 0xD118,
        control_crc_offset: 292,
    },
];

/// The version whose control files carry these numbers. Pre-releases are unknown.
pub fn by_control(control_version: u32, catalog_version: u32) -> Option<&'static Version> {
    VERSIONS
        .iter()
        .find(|v| v.control_version == control_version && v.catalog_version == catalog_version)
}

/// The version whose WAL pages begin with this number.
pub fn by_wal_magic(magic: u16) -> Option<&'static Version> {
    VERSIONS.iter().find(|v| v.wal_magic == magic)
}

/// The version of this major number.
pub fn by_major(major: u32) -> Option<&'static Version> {
    VERSIONS.iter().find(|v| v.major == major)
}

/// "14 to 18", for messages.
pub(crate) fn range() -> String {
    format!("{} to {}", VERSIONS[0].major, VERSIONS[VERSIONS.len() - 1].major)
}
