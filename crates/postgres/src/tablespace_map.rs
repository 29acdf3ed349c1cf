//! `tablespace_map`: where recovery of a base backup makes the links of `pg_tblspc`.
//!
//! Source: `do_pg_backup_start` in PostgreSQL `src/backend/access/transam/xlog.c` (one line for a
//! tablespace: OID, blank, path; a backslash before newline, carriage return and backslash),
//! read by `read_tablespace_map` in `xlogrecovery.c`.

use lifeboat_engine::Tablespace;

/// Name of the file.
pub const TABLESPACE_MAP: &str = "tablespace_map";

/// The file's content for these tablespaces.
pub fn content(tablespaces: &[Tablespace]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = Vec::new();
    for tablespace in tablespaces {
        out.extend_from_slice(format!("{} ", tablespace.oid).as_bytes());
        for byte in tablespace.location.as_os_str().as_bytes() {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_escaped_as_the_server_escapes_them() {
        let at = |oid, location: &str| Tablespace { oid, location: location.into() };
        let map = content(&[at(16400, "/srv/a b"), at(16401, "/srv/c\\d\ne")]);
        assert_eq!(map, b"16400 /srv/a b\n16401 /srv/c\\\\d\\\ne\n");
    }
}
