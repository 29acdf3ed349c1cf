//! A repository on a file system that can be made to hang.

use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat_testkit::scratch::ScratchBuilder;

use crate::lab::Lab;

/// A small file system of its own. While it is frozen, whoever writes to it waits in the kernel
/// and cannot be killed, as on a network file system whose server is away.
pub struct Hanging {
    mount: PathBuf,
}

fn root(program: &str, words: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new(program).args(words).arg(path).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Hanging {
    /// A lab without a repository yet, and the file system on which it will be.
    pub fn lab(builder: ScratchBuilder) -> Result<(Lab, Self), String> {
        let server = builder.start().map_err(|error| error.to_string())?;
        let mut lab = Lab::without_repository(server);
        let (image, mount) = (lab.place("image"), lab.server.directory("hanging"));
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(256 << 20).map_err(|error| error.to_string())?;
        root("mkfs.ext4", &["-q", "-F"], &image)?;
        let words = ["-o", "loop,noatime", &image.display().to_string()];
        root("mount", &words, &mount)?;
        let hanging = Self { mount };
        lab.server.account().give(&hanging.mount).map_err(|error| error.to_string())?;
        drop(hanging.freeze()?); // that it can be done is seen before anything relies on it
        lab.repository = hanging.mount.join("repository");
        Ok((lab, hanging))
    }

    /// Nothing can be written until the answer is dropped. Let it be the last of the variables: what
    /// waits for a process that writes would wait for ever.
    pub fn freeze(&self) -> Result<Frozen<'_>, String> {
        root("fsfreeze", &["--freeze"], &self.mount)?;
        Ok(Frozen(self))
    }

    fn thaw(&self) {
        let _ = root("fsfreeze", &["--unfreeze"], &self.mount);
    }
}

/// A file system that hangs.
pub struct Frozen<'a>(&'a Hanging);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.thaw();
        let _ = root("umount", &["-l"], &self.mount);
    }
}
