//! Where one `syncfs` makes all files of a file system durable.

use std::os::fd::AsFd;

use rustix::fs::{fstat, fstatfs};

/// File systems whose `syncfs` is a real barrier for all their files (`statfs(2)`). Others, above
/// all those in user space, may answer without having passed it on.
const SYNCFS_TRUSTED: [u64; 4] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
];

/// The device of a directory (`st_dev`) if `syncfs` through this descriptor can be relied on there,
/// for what was written after the descriptor was opened; `None` where every file is to be synced.
pub fn barrier_device(directory: impl AsFd) -> Option<u64> {
    let trusted = fstatfs(&directory)
        .is_ok_and(|status| SYNCFS_TRUSTED.contains(&(status.f_type as u64)))
        && syncfs_reports_errors();
    if trusted { fstat(&directory).ok().map(|status| status.st_dev) } else { None }
}

/// Since Linux 5.8 `syncfs` reports writes that failed since its descriptor was opened
/// (`syncfs(2)`); before, it would call a lost object durable.
fn syncfs_reports_errors() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 8)
}
