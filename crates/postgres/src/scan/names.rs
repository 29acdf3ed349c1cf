//! Recognises relation files by name.
//!
//! Source: PostgreSQL `src/common/relpath.c` (`forkNames`) and
//! `src/backend/storage/file/reinit.c` (`parse_filename_for_nontemp_relation`).

/// A fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The rows or index entries.
    Main,
    /// Free space map.
    Fsm,
    /// Visibility map.
    Vm,
    /// What an unlogged relation is reset to.
    Init,
}

/// The parts of a relation file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// Relfilenumber, which is not the relation's OID for long.
    pub number: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which segment file of the fork; the first is 0 and has no suffix.
    pub segment: u32,
    /// Belongs to a temporary relation of some session (`t3_16384`).
    pub temporary: bool,
}

impl RelationFile {
    /// Reads a name such as `16384`, `16384.1`, `16384_fsm` or `t3_16384_vm.2`.
    pub fn parse(name: &str) -> Option<Self> {
        let (temporary, name) = match name.strip_prefix('t') {
            Some(rest) => {
                let (backend, rest) = rest.split_once('_')?;
                decimal(backend)?;
                (true, rest)
            }
            None => (false, name),
        };
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) => (stem, decimal(segment).filter(|n| *n > 0)?),
            None => (name, 0),
        };
        let (number, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((number, "fsm")) => (number, Fork::Fsm),
            Some((number, "vm")) => (number, Fork::Vm),
            Some((number, "init")) => (number, Fork::Init),
            Some(_) => return None,
        };
        let number = decimal(number).filter(|n| *n > 0)?;
        Some(Self { number, fork, segment, temporary })
    }
}

/// Reads a decimal number as PostgreSQL writes it: no sign, no leading zero.
pub(crate) fn decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relation_files_are_told_from_all_others() {
        let parsed =
            |name| RelationFile::parse(name).map(|f| (f.number, f.fork, f.segment, f.temporary));
        assert_eq!(parsed("16384"), Some((16384, Fork::Main, 0, false)));
        assert_eq!(parsed("16384.12"), Some((16384, Fork::Main, 12, false)));
        assert_eq!(parsed("16384_fsm"), Some((16384, Fork::Fsm, 0, false)));
        assert_eq!(parsed("16384_vm.3"), Some((16384, Fork::Vm, 3, false)));
        assert_eq!(parsed("4294967295_init"), Some((u32::MAX, Fork::Init, 0, false)));
        assert_eq!(parsed("t3_16384_vm.2"), Some((16384, Fork::Vm, 2, true)));
        for name in [
            "",
            "0",
            "016384",
            "16384.0",
            "16384.01",
            "16384.",
            "16384_",
            "16384_x",
            "16384.1_fsm",
            "t16384",
            "t_1",
            "tx_1",
            "4294967296",
            "+1",
            "16384 ",
            "PG_VERSION",
            "pg_filenode.map",
        ] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }
}
