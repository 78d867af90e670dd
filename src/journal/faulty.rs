//! Files in memory that do what disks do when the power goes, for crash tests.
//!
//! There is what programs see (the page cache) and what is on the disk. A sync moves the one to the other;
//! [`FaultyFiles::crash`] throws the first away. Of what was not synced, any part may have reached the disk: each
//! 512-byte sector of each write by itself, in any combination, and one cut in its middle; a file may have become longer
//! without its bytes. Entries of directories (creations, renames, removals) come through or not, each by itself. It is
//! harsher than any one file system, and promises nothing that POSIX does not.
//!
//! A sync that is made to fail leaves the pages *clean*: programs still see them, and no later sync writes them. That
//! is what Linux does.
//!
//! Every random choice comes from a seed that the caller gives.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::files::{Files, OpenFile};

const SECTOR_BYTES: usize = 512;

/// What is to go wrong. Operations are counted from 0, over all files, from [`FaultyFiles::plan`] on; or those of one class,
/// from [`FaultyFiles::plan_for`] on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// This operation fails, and those after it work.
    Fail(u64),
    /// This operation fails and all after it, on whatever file, until [`FaultyFiles::crash`].
    PowerCut(u64),
    /// From this operation on, those of the class that need room ([`Operation::Write`]) find none, until another plan.
    Full(u64),
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Opens, reads, or asks for a size or for names.
    Read,
    /// Writes bytes, or makes a file or a directory: what needs room.
    Write,
    /// Syncs a file or a directory.
    Sync,
    /// Renames, removes, or sets a size.
    Change,
}

/// Operations that are counted, and can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Class {
    /// On what is there or below; everything if it is empty.
    pub under: PathBuf,
    /// Of this kind; of any, if none is named.
    pub kind: Option<Operation>,
}

impl Class {
    fn has(&self, path: &Path, kind: Operation) -> bool {
        (self.under.as_os_str().is_empty() || path.starts_with(&self.under))
            && self.kind.is_none_or(|of| of == kind)
    }
}

/// Files in memory with faults. Clones are the same files.
#[derive(Debug, Clone, Default)]
pub struct FaultyFiles {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    files: Vec<Inode>,
    /// Names as programs see them.
    entries: BTreeMap<PathBuf, Entry>,
    /// Names on the disk.
    durable: BTreeMap<PathBuf, Entry>,
    /// What was done to names and is not synced, in order.
    unsynced: Vec<NameChange>,
    fault: Fault,
    class: Class,
    /// Of the class.
    operations: u64,
    /// Of any class.
    all_operations: u64,
    /// Whether what is planned has happened.
    went_wrong: bool,
    /// Files opened before a crash are of no use after it.
    boot: u64,
    /// Whether reads and writes are short and interrupted now and then.
    nagging: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Dir,
    File(usize),
}

#[derive(Debug, Clone)]
enum NameChange {
    Put(PathBuf, Entry),
    Rename(PathBuf, PathBuf, Entry),
    Remove(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    /// The name that it was made under.
    path: PathBuf,
    cache: Vec<u8>,
    disk: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetSize(usize),
}

/// A small generator (splitmix64): the same numbers on every platform.
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `percent` of the draws.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

impl FaultyFiles {
    /// An empty disk, without faults.
    pub fn new() -> Self {
        Self::default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is to go wrong, and counts operations from 0 again.
    pub fn plan(&self, fault: Fault) {
        self.plan_for(Class::default(), fault);
    }

    /// Like [`FaultyFiles::plan`], of the operations of one class; the others are not counted.
    pub fn plan_for(&self, class: Class, fault: Fault) {
        self.disk().plan(class, fault);
    }

    /// Operations that were counted since the last plan.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// All operations since the last plan, counted or not.
    pub fn all_operations(&self) -> u64 {
        self.disk().all_operations
    }

    /// Whether what is planned has gone wrong.
    pub fn went_wrong(&self) -> bool {
        self.disk().went_wrong
    }

    /// Makes reads and writes short, and interrupts them, now and then.
    pub fn nag(&self) {
        self.disk().nagging = true;
    }

    /// Another disk with the same content, also of the page cache, and the same plan. What was opened stays with the first.
    pub fn fork(&self) -> Self {
        let mut disk = self.disk().clone();
        disk.forget_unnamed();
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Cuts the power and turns it on again: what was not synced is there, or not, or in part. Faults are over.
    pub fn crash(&self, seed: u64) {
        let mut disk = self.disk();
        let mut draw = Draw(seed);
        // Some crashes lose all of it and some nothing; most are in between.
        let percent = [0, 100, 50, 20, 80][draw.below(5) as usize];
        for change in std::mem::take(&mut disk.unsynced) {
            if draw.chance(percent) {
                change.apply(&mut disk.durable);
            }
        }
        for inode in &mut disk.files {
            for change in std::mem::take(&mut inode.unsynced) {
                change.land(&mut inode.disk, percent, &mut draw);
            }
            inode.cache.clone_from(&inode.disk);
        }
        let lost: Vec<PathBuf> = disk.durable.keys().filter(|path| !disk.has_parent(path)).cloned().collect();
        for path in lost {
            disk.durable.remove(&path);
        }
        disk.entries = disk.durable.clone();
        disk.boot += 1;
        disk.forget_unnamed();
        disk.plan(Class::default(), Fault::None);
    }

    /// A file's bytes as programs see them; `None` if there is no such file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        match disk.entries.get(path)? {
            Entry::File(id) => disk.files.get(*id).map(|inode| inode.cache.clone()),
            Entry::Dir => None,
        }
    }

    /// Puts a file there, synced, name and all: damage of which nobody was told.
    pub fn set_content(&self, path: &Path, bytes: &[u8]) {
        let mut disk = self.disk();
        let id = disk.files.len();
        let (path_of, cache, disk_of) = (path.to_owned(), bytes.to_vec(), bytes.to_vec());
        disk.files.push(Inode { path: path_of, cache, disk: disk_of, unsynced: Vec::new() });
        disk.entries.insert(path.to_owned(), Entry::File(id));
        disk.durable.insert(path.to_owned(), Entry::File(id));
    }

    /// Flips bits of a byte where it lies, also for who has the file open. Nothing happens behind the file's end.
    pub fn rot(&self, path: &Path, offset: usize, bits: u8) {
        let mut disk = self.disk();
        let Ok(id) = disk.file(path) else { return };
        let Some(inode) = disk.files.get_mut(id) else { return };
        inode
            .cache
            .get_mut(offset)
            .into_iter()
            .chain(inode.disk.get_mut(offset))
            .for_each(|byte| *byte ^= bits);
    }

    /// Takes a file away, synced.
    pub fn lose(&self, path: &Path) {
        let mut disk = self.disk();
        disk.entries.remove(path);
        disk.durable.remove(path);
    }

    /// Paths of all files as programs see them, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        let disk = self.disk();
        let files = disk.entries.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }
}

impl Disk {
    fn plan(&mut self, class: Class, fault: Fault) {
        (self.class, self.fault) = (class, fault);
        (self.operations, self.all_operations, self.went_wrong) = (0, 0, false);
    }

    /// Counts an operation and says whether it goes wrong.
    fn step(&mut self, path: &Path, kind: Operation) -> io::Result<()> {
        self.all_operations += 1;
        let is_off = self.went_wrong && matches!(self.fault, Fault::PowerCut(_));
        if !is_off && !self.class.has(path, kind) {
            return Ok(());
        }
        let operation = self.operations;
        self.operations += 1;
        let outcome: io::Result<()> = match self.fault {
            Fault::Fail(k) if operation == k => Err(io::Error::other("made to fail")),
            Fault::PowerCut(k) if is_off || operation >= k => Err(io::Error::other("the power is off")),
            Fault::Full(k) if operation >= k && kind == Operation::Write => {
                Err(ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        };
        self.went_wrong |= outcome.is_err();
        outcome
    }

    /// Counts an operation on an open file.
    fn step_in(&mut self, id: usize, kind: Operation) -> io::Result<()> {
        let path = self.files.get_mut(id).map(|inode| std::mem::take(&mut inode.path)).unwrap_or_default();
        let outcome = self.step(&path, kind);
        self.files.get_mut(id).into_iter().for_each(|inode| inode.path.clone_from(&path));
        outcome
    }

    /// Frees the content of files that have no name, and get none by a crash.
    fn forget_unnamed(&mut self) {
        let pending = self.unsynced.iter().filter_map(|change| match change {
            NameChange::Put(_, entry) | NameChange::Rename(_, _, entry) => Some(*entry),
            NameChange::Remove(_) => None,
        });
        let all = self.entries.values().chain(self.durable.values()).copied().chain(pending);
        let named: BTreeSet<usize> =
            all.filter_map(|entry| if let Entry::File(id) = entry { Some(id) } else { None }).collect();
        let unnamed = self.files.iter_mut().enumerate().filter(|(id, _)| !named.contains(id));
        unnamed.for_each(|(_, inode)| *inode = Inode::default());
    }

    fn has_parent(&self, path: &Path) -> bool {
        path.ancestors().skip(1).all(|above| is_root(above) || self.durable.contains_key(above))
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.entries.get(path) {
            Some(Entry::File(id)) => Ok(*id),
            Some(Entry::Dir) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.entries);
        self.unsynced.push(change);
    }

    fn inode(&mut self, id: usize, boot: u64) -> io::Result<&mut Inode> {
        if boot != self.boot {
            return Err(io::Error::other("the file was opened before a crash"));
        }
        self.files.get_mut(id).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// How much of a read or write is done in one call.
    fn nagged(&self, length: usize) -> io::Result<usize> {
        match self.all_operations % 5 {
            1 if self.nagging => Err(ErrorKind::Interrupted.into()),
            3 if self.nagging => Ok(length.div_ceil(3)),
            _ => Ok(length),
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.parent().is_none()
}

impl NameChange {
    fn apply(&self, entries: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Put(path, entry) => {
                entries.insert(path.clone(), *entry);
            }
            Self::Rename(from, to, entry) => {
                entries.remove(from);
                entries.insert(to.clone(), *entry);
            }
            Self::Remove(path) => {
                entries.remove(path);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Put(path, _) | Self::Rename(_, path, _) | Self::Remove(path)) = self;
        path.parent() == Some(dir)
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, written) => write_into(bytes, *offset, written),
            Self::SetSize(size) => bytes.resize(*size, 0),
        }
    }

    /// What a crash leaves of it.
    fn land(&self, bytes: &mut Vec<u8>, percent: u64, draw: &mut Draw) {
        let Self::Write(offset, written) = self else {
            if draw.chance(percent) {
                self.apply(bytes);
            }
            return;
        };
        // The new length may come through without the bytes, which are zeros then.
        if draw.chance(percent) && bytes.len() < offset + written.len() {
            bytes.resize(offset + written.len(), 0);
        }
        let mut at = 0;
        while let Some(rest) = written.get(at..).filter(|rest| !rest.is_empty()) {
            let sector = SECTOR_BYTES - (offset + at) % SECTOR_BYTES;
            let piece = rest.get(..sector).unwrap_or(rest);
            let torn = if draw.chance(10) { draw.below(piece.len() as u64) as usize } else { piece.len() };
            if draw.chance(percent) {
                write_into(bytes, offset + at, piece.get(..torn).unwrap_or(piece));
            }
            at += piece.len();
        }
    }
}

fn write_into(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(place) = bytes.get_mut(offset..end) {
        place.copy_from_slice(written);
    }
}

impl Files for FaultyFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step(dir, Operation::Write)?;
        if !disk.entries.contains_key(dir) {
            disk.change(NameChange::Put(dir.to_owned(), Entry::Dir));
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk();
        disk.step(dir, Operation::Read)?;
        let inside = disk.entries.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        // In an order that nobody should rely on.
        Ok(names.rev().collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let mut disk = self.disk();
        disk.step(path, Operation::Write)?;
        let (id, boot) = (disk.files.len(), disk.boot);
        if let Ok(id) = disk.file(path) {
            let inode = disk.inode(id, boot)?;
            inode.cache.clear();
            inode.unsynced.push(Change::SetSize(0));
            return Ok(Box::new(FaultyFile { files: self.clone(), id, boot }));
        }
        disk.files.push(Inode { path: path.to_owned(), ..Inode::default() });
        disk.change(NameChange::Put(path.to_owned(), Entry::File(id)));
        Ok(Box::new(FaultyFile { files: self.clone(), id, boot }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let mut disk = self.disk();
        disk.step(path, Operation::Read)?;
        let id = disk.file(path)?;
        Ok(Box::new(FaultyFile { files: self.clone(), id, boot: disk.boot }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step(from, Operation::Change)?;
        let id = disk.file(from)?;
        disk.change(NameChange::Rename(from.to_owned(), to.to_owned(), Entry::File(id)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step(path, Operation::Change)?;
        disk.file(path)?;
        disk.change(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step(dir, Operation::Sync)?;
        let (synced, rest) =
            std::mem::take(&mut disk.unsynced).into_iter().partition(|change| change.is_in(dir));
        let synced: Vec<NameChange> = synced;
        synced.iter().for_each(|change| change.apply(&mut disk.durable));
        disk.unsynced = rest;
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFile {
    files: FaultyFiles,
    id: usize,
    boot: u64,
}

impl OpenFile for FaultyFile {
    fn is_linked(&mut self) -> io::Result<bool> {
        let disk = self.files.disk();
        Ok(disk.entries.values().any(|entry| *entry == Entry::File(self.id)))
    }

    fn size(&mut self) -> io::Result<u64> {
        let mut disk = self.files.disk();
        disk.step_in(self.id, Operation::Read)?;
        Ok(disk.inode(self.id, self.boot)?.cache.len() as u64)
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.files.disk();
        disk.step_in(self.id, Operation::Read)?;
        let wanted = disk.nagged(bytes.len())?;
        let cache = &disk.inode(self.id, self.boot)?.cache;
        let there = usize::try_from(offset).ok().and_then(|offset| cache.get(offset..)).unwrap_or_default();
        let count = there.len().min(wanted);
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.files.disk();
        let result = disk.step_in(self.id, Operation::Write);
        let count = disk.nagged(bytes.len())?;
        // A write that fails may have written some of it all the same.
        let count = if result.is_err() { count / 2 } else { count };
        let inode = disk.inode(self.id, self.boot)?;
        let change = Change::Write(offset as usize, bytes.get(..count).unwrap_or(bytes).to_vec());
        change.apply(&mut inode.cache);
        inode.unsynced.push(change);
        result.map(|()| count)
    }

    fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        let mut disk = self.files.disk();
        disk.step_in(self.id, Operation::Change)?;
        let inode = disk.inode(self.id, self.boot)?;
        let change = Change::SetSize(bytes as usize);
        change.apply(&mut inode.cache);
        inode.unsynced.push(change);
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut disk = self.files.disk();
        let failing = matches!(disk.fault, Fault::Fail(_));
        let result = disk.step_in(self.id, Operation::Sync);
        let inode = disk.inode(self.id, self.boot)?;
        match &result {
            Ok(()) => {
                let unsynced = std::mem::take(&mut inode.unsynced);
                unsynced.iter().for_each(|change| change.apply(&mut inode.disk));
            }
            // The pages are clean now, and not on the disk. Sizes are the file system's and come through.
            Err(_) if failing => {
                inode.unsynced.clear();
                inode.disk.resize(inode.cache.len(), 0);
            }
            Err(_) => {}
        }
        result
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
