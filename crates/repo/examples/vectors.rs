//! Writes the golden vectors of the format, those that are not there yet.
//!
//! `cargo run -p lifeboat-repo --example vectors -- crates/repo/src/vectors`
//!
//! A vector that is there stays: it stands for what released programs have written. Wrapped data
//! keys and ephemeral shares come from age's own generator, so the objects that hold them cannot
//! be made twice.

#[path = "../tests/support/fixed.rs"]
mod fixed;

use std::fmt::Write;
use std::path::Path;

use lifeboat_repo::Compression;
use lifeboat_store::Store;

fn main() -> std::io::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "crates/repo/src/vectors".to_owned());
    let (store, part, entries) = fixed::make();
    let mut vectors: Vec<(&str, Vec<u8>)> = vec![
        ("extent-stored", fixed::extent(Compression::None, false)),
        ("extent-zstd", fixed::extent(Compression::Zstd(3), false)),
        ("extent-lz4", fixed::extent(Compression::Lz4, false)),
        ("extent-reordered", fixed::extent(Compression::Zstd(3), true)),
        ("map-part", fixed::encode_part(&part)),
        ("table-chunk", fixed::encode_chunk(&entries)),
    ];
    for (name, key) in fixed::names() {
        vectors.push((name, store.get(&key, u64::MAX).map_err(std::io::Error::other)?));
    }
    let key_file = std::env::temp_dir().join(format!("vectors-{}.key", std::process::id()));
    fixed::keyring().write_file(&key_file, true).map_err(std::io::Error::other)?;
    vectors.push(("key-file", std::fs::read(&key_file)?));
    std::fs::remove_file(&key_file)?;
    for (name, bytes) in vectors {
        let path = Path::new(&directory).join(format!("{name}.hex"));
        if !path.exists() {
            std::fs::write(path, to_hex(&bytes))?;
        }
    }
    Ok(())
}

/// 32 bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        line.iter().for_each(|byte| {
            let _ = write!(text, "{byte:02x}");
        });
        text.push('\n');
    }
    text
}
