//! Links the unwinder of GCC into the program.
//!
//! PostgreSQL starts lifeboat for each WAL file: one shared library less to load, which asks the
//! processor for its features as it begins, is a tenth of the time that such a start takes. And the
//! program runs where there is no `libgcc_s.so.1`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let native = std::env::var("HOST") == std::env::var("TARGET");
    if !(native && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu")) {
        return;
    }
    // A compiler that has none names no path; the program is linked as usual then.
    let Ok(told) = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output() else { return };
    let told = String::from_utf8_lossy(&told.stdout);
    let archive = Path::new(told.trim());
    if let Some(directory) = archive.parent().filter(|_| archive.is_absolute() && archive.exists())
    {
        println!("cargo::rustc-link-search=native={}", directory.display());
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}
