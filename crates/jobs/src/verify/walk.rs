//! Walks the file tables of all backups side by side, path by path.
//!
//! What two backups share is met at the same time, so that it is read once without remembering
//! all that was read: a window of at most [`WINDOW_PAGES`] page hashes is gathered, checked pack
//! by pack, and forgotten. Only an extent that holds pages of files far apart is read again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use lifeboat_repo::map::PART_PAGES;
use lifeboat_repo::reader::IndexReader;
use lifeboat_repo::{BackupId, BoxRef, FileEntry, Manifest, PackId, PartRef};

use super::context::{Context, count, is_damage};
use super::error::VerifyError;
use super::report::FindingKind;
use super::window::{Version, Window};
use crate::inventory::{Backup, chain};

/// So many page hashes are held at a time: 8 MiB, and about as much for where the pages lie. One
/// part of one file in all backups may exceed it.
const WINDOW_PAGES: u64 = 1 << 20;

type Files = Arc<Vec<FileEntry>>;

/// Where the walk is in one backup.
struct Cursor<'a> {
    backup: &'a Backup,
    next_chunk: usize,
    files: Option<Files>,
    at: usize,
    last_path: String,
}

/// Reads file tables; a chunk that several backups share is read once.
struct Tables<'c, 'a> {
    context: &'c Context<'a>,
    readers: HashMap<u32, IndexReader>,
    chunks: HashMap<BoxRef, Weak<Vec<FileEntry>>>,
    damaged: HashSet<BoxRef>,
}

/// Checks every file of these backups.
pub(super) fn walk(
    context: &Context<'_>,
    backups: &[&Backup],
    mut check: impl FnMut(Window) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let mut tables = Tables {
        context,
        readers: HashMap::new(),
        chunks: HashMap::new(),
        damaged: HashSet::new(),
    };
    let mut window = Window::default();
    let mut cursors: Vec<Cursor<'_>> = backups.iter().map(|b| Cursor::new(b)).collect();
    for cursor in &mut cursors {
        cursor.load(&mut tables, &mut window)?;
    }
    loop {
        context.go_on()?;
        let Some(path) = cursors.iter().filter_map(Cursor::path).min() else { break };
        let path: Arc<str> = path.into();
        gather(context, &cursors, &path, &mut window);
        for cursor in cursors.iter_mut().filter(|c| c.path() == Some(&path)) {
            count(&context.count.files, 1);
            cursor.step(&mut tables, &mut window)?;
        }
        if window.pages >= WINDOW_PAGES {
            check(std::mem::take(&mut window))?;
        }
    }
    check(window)
}

/// Adds the versions of one file's parts.
fn gather(context: &Context<'_>, cursors: &[Cursor<'_>], path: &Arc<str>, window: &mut Window) {
    let mut versions: Vec<Version> = Vec::new();
    for cursor in cursors.iter().filter(|c| c.path() == Some(path)) {
        let Some(file) = cursor.file() else { continue };
        let id = cursor.backup.id();
        let page_bytes = cursor.backup.manifest.page_bytes;
        let pages = file.pages(page_bytes);
        for (number, part) in file.parts.iter().enumerate() {
            check_packs(context, &cursor.backup.manifest, part, path);
            let first = number as u64 * u64::from(PART_PAGES);
            let here = pages.saturating_sub(first).min(u64::from(PART_PAGES)) as u32;
            let ends = first + u64::from(here) == pages;
            let short = (file.size_bytes % u64::from(page_bytes)) as u32;
            let last_bytes = if ends && short > 0 { short } else { page_bytes };
            let same = |v: &&mut Version| {
                (v.pages, v.page_bytes, v.last_bytes) == (here, page_bytes, last_bytes)
                    && v.part == *part
            };
            match versions.iter_mut().find(same) {
                Some(version) => version.users.push(id),
                None => versions.push(Version {
                    path: Arc::clone(path),
                    part: part.clone(),
                    pages: here,
                    page_bytes,
                    last_bytes,
                    users: vec![id],
                }),
            }
        }
    }
    versions.into_iter().for_each(|version| window.push(version));
}

/// What a manifest does not name, collection takes for waste.
fn check_packs(context: &Context<'_>, manifest: &Manifest, part: &PartRef, path: &str) {
    let object = || format!("manifest {}", manifest.id);
    part.each_pack(|pack, sealed_by| {
        if !names(manifest, pack) {
            let what =
                format!("it does not name pack {}, to which its files refer", pack_name(pack));
            context.findings.add_file(
                (FindingKind::Manifest, &object(), &what),
                [manifest.id],
                path,
            );
        }
        if let Some(session) = sealed_by.filter(|s| !manifest.data_keys.contains_key(s)) {
            let what = format!("it has no data key for {session}");
            context.findings.add_file(
                (FindingKind::DataKey, &object(), &what),
                [manifest.id],
                path,
            );
        }
    });
}

fn names(manifest: &Manifest, pack: PackId) -> bool {
    manifest.packs.get(&pack.session).is_some_and(|ranges| {
        ranges.iter().any(|(first, last)| (*first..=*last).contains(&pack.number))
    })
}

/// Name of a pack in messages.
pub(super) fn pack_name(pack: PackId) -> String {
    format!("data/{}/{:06}", pack.session, pack.number)
}

impl<'a> Cursor<'a> {
    fn new(backup: &'a Backup) -> Self {
        Self { backup, next_chunk: 0, files: None, at: 0, last_path: String::new() }
    }

    fn file(&self) -> Option<&FileEntry> {
        self.files.as_ref()?.get(self.at)
    }

    fn path(&self) -> Option<&str> {
        self.file().map(|file| file.path.as_str())
    }

    /// Goes to the next file.
    fn step(
        &mut self,
        tables: &mut Tables<'_, '_>,
        window: &mut Window,
    ) -> Result<(), VerifyError> {
        if let Some(path) = self.path() {
            self.last_path = path.to_owned();
        }
        self.at += 1;
        self.load(tables, window)
    }

    /// Reads chunks until there is a file, or none is left.
    fn load(
        &mut self,
        tables: &mut Tables<'_, '_>,
        window: &mut Window,
    ) -> Result<(), VerifyError> {
        while self.file().is_none() {
            let Some(chunk) = self.backup.manifest.chunks.get(self.next_chunk) else {
                self.files = None;
                return Ok(());
            };
            self.next_chunk += 1;
            self.at = 0;
            self.files = tables.chunk(self.backup, *chunk, window)?;
            // A path that does not follow would be met out of step with the other backups.
            if self.path().is_some_and(|path| path <= self.last_path.as_str()) {
                let object = format!("manifest {}", self.backup.id());
                let what = "its file table is not in order of paths";
                let id = [self.backup.id()];
                tables.context.findings.add(FindingKind::Manifest, &object, what, id);
            }
        }
        Ok(())
    }
}

impl Tables<'_, '_> {
    fn chunk(
        &mut self,
        backup: &Backup,
        chunk: lifeboat_repo::ChunkRef,
        window: &mut Window,
    ) -> Result<Option<Files>, VerifyError> {
        let at = chunk.at();
        let object = format!("{} at {}", pack_name(at.pack), at.offset);
        let id: BackupId = backup.id();
        window.refer(at, id);
        if !names(&backup.manifest, at.pack) {
            let what = format!(
                "it does not name pack {}, in which its file table lies",
                pack_name(at.pack)
            );
            self.context.findings.add(
                FindingKind::Manifest,
                &format!("manifest {id}"),
                &what,
                [id],
            );
        }
        if let Some(files) = self.chunks.get(&at).and_then(Weak::upgrade) {
            return Ok(Some(files));
        }
        let page_bytes = backup.manifest.page_bytes;
        let cluster = self.context.cluster();
        let reader =
            self.readers.entry(page_bytes).or_insert_with(|| IndexReader::new(cluster, page_bytes));
        let again = self.damaged.contains(&at);
        match reader.chunk(&chunk) {
            Ok(files) => {
                if files.len() as u64 != u64::from(chunk.files) {
                    let what = format!("it lists {} files, not {}", files.len(), chunk.files);
                    self.context.findings.add(FindingKind::Index, &object, &what, [id]);
                }
                if !again {
                    count(&self.context.count.index_boxes, 1);
                }
                let files = Arc::new(files);
                self.chunks.retain(|_, known| known.strong_count() > 0);
                self.chunks.insert(at, Arc::downgrade(&files));
                Ok(Some(files))
            }
            Err(error) if is_damage(&error) => {
                self.damaged.insert(at);
                let what = format!("a part of the file table cannot be read: {}", chain(&error));
                self.context.findings.add(FindingKind::Index, &object, &what, [id]);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
