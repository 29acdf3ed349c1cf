//! Cuts the files of a backup into tasks for threads: many small files, or a stretch of a large one.
//!
//! Large files are sent in turns, as many at a time as there are threads: a file that is being
//! written is locked by the system, and threads that write the same one wait for each other.

use std::collections::VecDeque;
use std::vec;

use crossbeam_channel::{SendError, Sender};
use lifeboat_repo::{FileEntry, PartRef};

/// Files of one task, at most.
const GROUP_FILES_MAX: usize = 256;
/// Bytes of one task of small files, about.
const GROUP_BYTES_MAX: u64 = 8 << 20;

/// One stretch of a file: a map part, or the whole of a file without pages.
pub(super) struct Stretch {
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) size_bytes: u64,
    pub(super) part: Option<(u64, PartRef)>,
}

/// The tasks that are being made.
pub(super) struct Tasks {
    sender: Sender<Vec<Stretch>>,
    group: Vec<Stretch>,
    group_bytes: u64,
    large: VecDeque<vec::IntoIter<Stretch>>,
    large_max: usize,
}

/// An error when nobody takes tasks any more.
type Sent = Result<(), SendError<Vec<Stretch>>>;

impl Tasks {
    /// Tasks for this many threads.
    pub(super) fn new(sender: Sender<Vec<Stretch>>, threads: usize) -> Self {
        Self {
            sender,
            group: Vec::new(),
            group_bytes: 0,
            large: VecDeque::new(),
            large_max: threads,
        }
    }

    /// Takes a file, and sends what has become a task.
    pub(super) fn add(&mut self, file: FileEntry) -> Sent {
        if file.parts.len() > 1 || matches!(file.parts.first(), Some(PartRef::Boxed { .. })) {
            while self.large.len() >= self.large_max {
                self.send_stretch()?;
            }
            self.large.push_back(stretches(file).into_iter());
            return Ok(());
        }
        self.group_bytes += file.size_bytes;
        self.group.extend(stretches(file));
        if self.group_bytes >= GROUP_BYTES_MAX || self.group.len() >= GROUP_FILES_MAX {
            self.group_bytes = 0;
            self.sender.send(std::mem::take(&mut self.group))?;
        }
        Ok(())
    }

    /// Sends the rest, the small files last: then all threads end at about the same time.
    pub(super) fn finish(mut self) -> Sent {
        while !self.large.is_empty() {
            self.send_stretch()?;
        }
        self.sender.send(self.group)
    }

    /// Sends the next stretch of the large file whose turn it is.
    fn send_stretch(&mut self) -> Sent {
        let Some(mut file) = self.large.pop_front() else { return Ok(()) };
        if let Some(stretch) = file.next() {
            self.large.push_back(file);
            self.sender.send(vec![stretch])?;
        }
        Ok(())
    }
}

fn stretches(file: FileEntry) -> Vec<Stretch> {
    let FileEntry { path, size_bytes, mode, parts, .. } = file;
    let stretch = |part| Stretch { path: path.clone(), mode, size_bytes, part };
    if parts.is_empty() {
        return vec![stretch(None)];
    }
    parts.into_iter().enumerate().map(|(n, part)| stretch(Some((n as u64, part)))).collect()
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    fn file(path: &str, parts: usize) -> FileEntry {
        FileEntry {
            path: path.to_owned(),
            size_bytes: 8192,
            mode: 0o600,
            first_page: None,
            parts: vec![PartRef::Zero; parts],
        }
    }

    /// The tasks made of these files for two threads, each as the names and parts of its stretches.
    fn tasks(files: impl IntoIterator<Item = FileEntry>) -> Vec<String> {
        let (sender, receiver) = unbounded();
        let mut tasks = Tasks::new(sender, 2);
        files.into_iter().try_for_each(|file| tasks.add(file)).expect("somebody listens");
        tasks.finish().expect("somebody listens");
        let name = |stretch: Stretch| {
            let part = stretch.part.map(|(number, _)| number.to_string()).unwrap_or_default();
            stretch.path + &part
        };
        receiver
            .iter()
            .map(|task| task.into_iter().map(name).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn large_files_take_turns_and_small_ones_end_together() {
        let made = tasks([file("a", 4), file("x", 0), file("b", 2), file("c", 3), file("y", 1)]);
        assert_eq!(made, ["a0", "b0", "a1", "b1", "a2", "a3", "c0", "c1", "c2", "x y0"]);
    }

    #[test]
    fn small_files_are_a_task_when_they_are_enough() {
        let made = tasks((0..GROUP_FILES_MAX + 1).map(|_| file("x", 0)));
        let files: Vec<_> = made.iter().map(|task| task.split(' ').count()).collect();
        assert_eq!(files, [GROUP_FILES_MAX, 1]);
    }

    #[test]
    fn nobody_listening_ends_it() {
        let (sender, receiver) = unbounded();
        drop(receiver);
        let mut tasks = Tasks::new(sender, 1);
        assert!(tasks.add(file("a", 2)).is_ok());
        assert!(tasks.add(file("b", 2)).is_err());
    }
}
