//! What the program needs in order to start.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::process::Command;

/// Each shared library more is a tenth of the time that an acknowledged `wal push` takes.
#[test]
fn no_shared_library_but_that_of_c_is_loaded() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_lifeboat")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    let loaded: Vec<_> = names
        .filter(|name| !name.starts_with("linux-vdso") && !name.contains("ld-linux"))
        .collect();
    assert_eq!(loaded, ["libc.so.6"], "{text}");
}
