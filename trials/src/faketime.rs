//! Clocks that step: `libfaketime` (Debian package of that name) gives programs the time that a
//! file says.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// A clock of which any number of programs may be given the time. Their monotonic clocks are the
/// real ones.
pub struct Faketime {
    library: &'static str,
    file: PathBuf,
}

impl Faketime {
    /// A clock that is right; `file` holds how far it is off, later.
    pub fn new(file: &Path) -> Result<Self, String> {
        let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
        let library = library.ok_or("libfaketime is not installed")?;
        let clock = Self { library, file: file.to_owned() };
        clock.step(0);
        Ok(clock)
    }

    /// From now on it is off by so many seconds.
    pub fn step(&self, seconds: i64) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}s\n")).expect("a file can be written");
        std::fs::rename(&next, &self.file).expect("it can be renamed");
    }

    fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Gives a program its time; standard input becomes empty.
    ///
    /// A program that changes its user (`setpriv … -- program`) is given it behind the change: the
    /// library shares memory that only the user who made it can open.
    pub fn lend(&self, command: &mut Command) {
        let mut words = vec![command.get_program().to_owned()];
        words.extend(command.get_args().map(ToOwned::to_owned));
        let behind = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
        let variables = self.variables().map(|(name, value)| format!("{name}={value}").into());
        words.splice(behind..behind, std::iter::once("env".into()).chain(variables));
        let mut lent = Command::new(&words[0]);
        lent.args(&words[1..]).stdin(Stdio::null());
        if let Some(directory) = command.get_current_dir() {
            lent.current_dir(directory);
        }
        *command = lent;
    }

    /// The same for a program that a shell starts: words before it.
    pub fn words(&self) -> String {
        self.variables().map(|(name, value)| format!("{name}={value}")).join(" ")
    }
}
