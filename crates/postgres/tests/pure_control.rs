//! Control files of every supported version, against what the servers say about them.

use lifeboat_engine::{Lsn, SegmentSize, SystemId, TimelineId};
use lifeboat_postgres::control::{ClusterState, ControlError, ControlFile, WalLevel};
use lifeboat_units::Explain;
use proptest::prelude::*;

/// What `pg_controldata` said when the vector was taken; for 14 and 16 the functions
/// `pg_control_system()`, `pg_control_checkpoint()` and `pg_control_init()`.
struct Expected {
    major: u32,
    hex: &'static str,
    system_id: u64,
    checkpoint: u64,
    next_xid: u64,
    checkpoint_at: &'static str,
    log_segment: u64,
    checksum_version: u32,
    wal_level: WalLevel,
    track_commit_timestamp: bool,
}

const EXPECTED: [Expected; 5] = [
    Expected {
        major: 14,
        hex: include_str!("../src/vectors/control-14.hex"),
        system_id: 7711144442152756250,
        checkpoint: 0x1943208,
        next_xid: 733,
        checkpoint_at: "2026-11-22T23:38:44Z",
        log_segment: 16 << 20,
        checksum_version: 1,
        wal_level: WalLevel::Replica,
        track_commit_timestamp: false,
    },
    Expected {
        major: 15,
        hex: include_str!("../src/vectors/control-15.hex"),
        system_id: 7711144447996589118,
        checkpoint: 0x8415B8,
        next_xid: 724,
        checkpoint_at: "2026-11-22T23:38:46Z",
        log_segment: 1 << 20,
        checksum_version: 1,
        wal_level: WalLevel::Replica,
        track_commit_timestamp: false,
    },
    Expected {
        major: 16,
        hex: include_str!("../src/vectors/control-16.hex"),
        system_id: 7711144453848138854,
        checkpoint: 0x1721050,
        next_xid: 730,
        checkpoint_at: "2026-11-22T23:38:47Z",
        log_segment: 16 << 20,
        checksum_version: 1,
        wal_level: WalLevel::Replica,
        track_commit_timestamp: true,
    },
    Expected {
        major: 17,
        hex: include_str!("../src/vectors/control-17.hex"),
        system_id: 7711144460460098728,
        checkpoint: 0x44EE9B8,
        next_xid: 738,
        checkpoint_at: "2026-11-22T23:38:49Z",
        log_segment: 64 << 20,
        checksum_version: 0,
        wal_level: WalLevel::Replica,
        track_commit_timestamp: false,
    },
    Expected {
        major: 18,
        hex: include_str!("../src/vectors/control-18.hex"),
        system_id: 7711144466875090121,
        checkpoint: 0x1765D98,
        next_xid: 752,
        checkpoint_at: "2026-11-22T23:38:50Z",
        log_segment: 16 << 20,
        checksum_version: 1,
        wal_level: WalLevel::Logical,
        track_commit_timestamp: false,
    },
];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn a_transaction_belongs_to_the_epoch_that_is_near() {
    let mut control = ControlFile::parse(&unhex(EXPECTED[0].hex)).unwrap();
    let epoch = 1u64 << 32;
    for (next, xid, expected) in [
        (733, 700, Some(700)),
        (733, 800, Some(800)),
        (733, u32::MAX, None),
        (epoch + 733, 800, Some(epoch + 800)),
        (epoch + 733, u32::MAX, Some(epoch - 1)),
        (3 * epoch - 5, 7, Some(3 * epoch + 7)),
        (3 * epoch - 5, u32::MAX - 9, Some(3 * epoch - 10)),
    ] {
        control.next_xid = next;
        assert_eq!(control.transaction_near(xid), expected, "{xid} near {next}");
    }
}

#[test]
fn control_files_of_all_versions_read_as_pg_controldata_says() {
    for expected in &EXPECTED {
        let control = ControlFile::parse(&unhex(expected.hex)).unwrap();
        assert_eq!(control.version.major, expected.major);
        assert_eq!(control.system_id, SystemId(expected.system_id));
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!(control.checkpoint, Lsn(expected.checkpoint));
        assert_eq!(control.redo, Lsn(expected.checkpoint), "of a shutdown checkpoint");
        assert_eq!(control.timeline, TimelineId(1));
        assert_eq!(control.previous_timeline, TimelineId(1));
        assert!(control.full_page_writes);
        assert_eq!(control.next_xid, expected.next_xid);
        assert_eq!(control.checkpoint_at.to_string(), expected.checkpoint_at);
        assert_eq!(control.written_at.to_string()[..17], expected.checkpoint_at[..17]);
        assert_eq!(control.min_recovery, Lsn(0));
        assert_eq!(control.min_recovery_timeline, TimelineId(0));
        assert_eq!((control.backup_start, control.backup_end), (Lsn(0), Lsn(0)));
        assert!(!control.backup_end_required);
        assert_eq!(control.wal_level, expected.wal_level);
        assert!(!control.wal_log_hints);
        assert_eq!(control.track_commit_timestamp, expected.track_commit_timestamp);
        assert_eq!(control.max_align, 8);
        assert_eq!(control.wal_page_bytes, 8192);
        assert_eq!(control.data_checksum_version, expected.checksum_version);

        let identity = control.identity();
        assert_eq!(identity.major, expected.major);
        assert_eq!(identity.page_bytes, 8192);
        assert_eq!(identity.pages_per_file, 131_072);
        assert_eq!(identity.log_segment, SegmentSize::new(expected.log_segment).unwrap());
        assert_eq!(identity.checksums, expected.checksum_version != 0);
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    for expected in &EXPECTED {
        let bytes = unhex(expected.hex);
        let whole = ControlFile::parse(&bytes).unwrap().version.control_crc_offset + 4;
        for length in 0..whole {
            let error = ControlFile::parse(&bytes[..length]).unwrap_err();
            assert!(matches!(error, ControlError::TooShort { .. }), "{length}: {error}");
        }
        assert!(ControlFile::parse(&bytes[..whole]).is_ok());
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for expected in &EXPECTED {
        let good = unhex(expected.hex);
        let whole = ControlFile::parse(&good).unwrap().version.control_crc_offset + 4;
        for bit in 0..whole * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = ControlFile::parse(&bytes).unwrap_err();
            let version_bits = (64..128).contains(&bit);
            assert_eq!(
                matches!(error, ControlError::UnknownVersion { .. }),
                version_bits,
                "bit {bit}: {error}"
            );
            assert!(version_bits || matches!(error, ControlError::Checksum { .. }));
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    let mut bytes = unhex(EXPECTED[4].hex);
    bytes[12] ^= 1;
    let error = ControlFile::parse(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the control file is of an unknown version (control 1800, catalog 202506290)"
    );
    assert!(error.help().unwrap().contains("14 to 18"));
    assert_eq!(
        ControlFile::parse(&bytes[..10]).unwrap_err().to_string(),
        "the control file is cut short: 10 bytes, at least 16 are needed"
    );
}

proptest! {
    /// Law: no input makes the decoder panic.
    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(ControlFile::parse(&bytes).is_err());
    }
}
