//! Writes a backup manifest: what the server wants to see of the backup that an incremental one
//! is to follow.
//!
//! Source: PostgreSQL documentation, "Backup Manifest Format"; `parse_manifest.c` in
//! `src/common`; `PrepareForIncrementalBackup` in `src/backend/backup/basebackup_incremental.c`,
//! which uses the system identifier, the WAL ranges and the paths, and neither sizes nor
//! checksums of files.

use lifeboat_engine::{Earlier, SystemId};
use sha2::{Digest, Sha256};

/// A manifest that is being written, in pieces.
pub struct ManifestWriter {
    digest: Sha256,
    piece: String,
    first: bool,
}

impl ManifestWriter {
    /// Begins a manifest of a cluster's backup.
    pub fn new(system: SystemId) -> Self {
        let piece = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system},\n\
             \"Files\": [\n"
        );
        Self { digest: Sha256::new(), piece, first: true }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, size_bytes: u64) {
        if !std::mem::take(&mut self.first) {
            self.piece.push_str(",\n");
        }
        self.piece.push_str("{ \"Path\": \"");
        for letter in path.chars() {
            match letter {
                '"' | '\\' => self.piece.extend(['\\', letter]),
                c if (c as u32) < 0x20 => self.piece.push_str(&format!("\\u{:04x}", c as u32)),
                c => self.piece.push(c),
            }
        }
        self.piece.push_str(&format!("\", \"Size\": {size_bytes} }}"));
    }

    /// What was written since the last call, when it is at least `bytes` long.
    pub fn take(&mut self, bytes: usize) -> Option<String> {
        if self.piece.len() < bytes {
            return None;
        }
        self.digest.update(self.piece.as_bytes());
        Some(std::mem::take(&mut self.piece))
    }

    /// The rest: the stretch of WAL that the backup needs, and the checksum over all lines
    /// before the last.
    pub fn finish(mut self, earlier: &Earlier) -> String {
        self.piece.push_str(&format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \
             \"End-LSN\": \"{}\" }}\n],\n",
            earlier.timeline.0, earlier.start, earlier.stop
        ));
        self.digest.update(self.piece.as_bytes());
        let digest: String = self.digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        self.piece.push_str(&format!("\"Manifest-Checksum\": \"{digest}\"}}\n"));
        self.piece
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_engine::{Lsn, TimelineId};

    use super::*;

    #[test]
    fn a_manifest_is_json_with_the_digest_of_all_but_its_last_line() {
        let mut writer = ManifestWriter::new(SystemId(7_654_321_000_111_222_333));
        assert_eq!(writer.take(10_000), None);
        writer.file("base/1/1259", 8192);
        let mut text = writer.take(1).unwrap();
        writer.file("od\"d\\\n", 0);
        let earlier =
            Earlier { start: Lsn(0x200_0028), stop: Lsn(0x1_0000_0100), timeline: TimelineId(12) };
        text += &writer.finish(&earlier);
        let expected = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\
            \"System-Identifier\": 7654321000111222333,\n\"Files\": [\n\
            { \"Path\": \"base/1/1259\", \"Size\": 8192 },\n\
            { \"Path\": \"od\\\"d\\\\\\u000a\", \"Size\": 0 }\n],\n\"WAL-Ranges\": [\n\
            { \"Timeline\": 12, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"1/100\" }\n],\n";
        let (body, last) = text.split_at(expected.len());
        assert_eq!(body, expected);
        let digest: String =
            Sha256::digest(body.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(last, format!("\"Manifest-Checksum\": \"{digest}\"}}\n"));
    }
}
