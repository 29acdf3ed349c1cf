//! How long the program takes, and how much memory.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// What a run cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// The most memory it had at once, in bytes, as the kernel counted it shortly before the end.
    pub peak_bytes: u64,
}

/// How often the kernel is asked.
const EVERY: Duration = Duration::from_millis(5);

/// Runs the program, which must succeed, and gives what it printed and what it cost.
#[track_caller]
pub fn measured(lab: &Lab, arguments: &[&str]) -> (String, Cost) {
    let began = Instant::now();
    let mut child = lab
        .command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut peak_bytes = 0;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be asked") {
            break status;
        }
        peak_bytes = high_water_bytes(child.id()).unwrap_or(0).max(peak_bytes);
        std::thread::sleep(EVERY);
    };
    let wall = began.elapsed();
    assert!(status.success(), "{arguments:?}: {status}");
    assert!(peak_bytes > 1 << 20, "the kernel told nothing of its memory");
    let mut text = String::new();
    // Reports are short: they fit the pipe while nobody reads.
    let out = child.stdout.as_mut().expect("it has an output");
    std::io::Read::read_to_string(out, &mut text).expect("it prints text");
    (text, Cost { wall, peak_bytes })
}

/// The most resident memory that a process had. Source: proc(5), `VmHWM`, in KiB.
fn high_water_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
