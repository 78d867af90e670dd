//! The files as they were before sled opened them.
//!
//! One failed read while sled opens passes for the end of its log, which it then goes on from: what came after is gone from the
//! file. So its files are copied first, into `before/`, as long as they are not long. The copy goes before the store is written to or
//! synced for the first time, as then its user has found it right. An opening that finds a copy puts it back: nothing was written since.
//!
//! 1. `before.new/` gets the files, each synced, and is renamed to `before/`.
//! 2. sled opens, and its user looks whether everything is there.
//! 3. Before the first write or sync, `before/` is renamed to `before.gone/`, the directory is synced, and the copy is removed.
//!
//! A crash before the end of 1 leaves files that sled has not opened; one later, a whole copy.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use crate::disk::sync_dir;

/// What `db` was when the store was closed.
pub const CLOSED_FILE: &str = "closed";

const KEPT: &str = "before";
const MAKING: &str = "before.new";
const GONE: &str = "before.gone";

/// The names of the files that sled changes as it opens, and of ours that go with them.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == "db" || name == CLOSED_FILE || name.starts_with("snap.") {
            names.push(name);
        }
    }
    Ok(names)
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Puts the files back that an opening kept, if there are some. The caller holds the lock on `db`.
pub fn restore(dir: &Path, db: &mut File) -> io::Result<()> {
    remove_dir(&dir.join(MAKING))?;
    let kept = dir.join(KEPT);
    if kept.is_dir() {
        let names = names(&kept)?;
        for name in self::names(dir)?.iter().filter(|name| *name != "db") {
            fs::remove_file(dir.join(name))?;
        }
        for name in names.iter().filter(|name| *name != "db") {
            copy(&kept.join(name), &dir.join(name))?;
        }
        // Into the file that is locked.
        db.set_len(0)?;
        db.rewind()?;
        db.write_all(&fs::read(kept.join("db"))?)?;
        db.sync_all()?;
        sync_dir(dir)?;
    }
    forget(dir)
}

/// Copies the files. Returns whether they are kept: not if they are longer than `bytes_max`, or if the disk has no room.
pub fn keep(dir: &Path, db: &File, bytes_max: u64) -> io::Result<bool> {
    let bytes = db.metadata()?.len();
    if bytes == 0 || bytes > bytes_max {
        return Ok(false);
    }
    match make(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            remove_dir(&dir.join(MAKING))?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn make(dir: &Path) -> io::Result<()> {
    let making: PathBuf = dir.join(MAKING);
    fs::create_dir(&making)?;
    for name in names(dir)? {
        copy(&dir.join(&name), &making.join(&name))?;
    }
    sync_dir(&making)?;
    fs::rename(&making, dir.join(KEPT))?;
    sync_dir(dir)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut out = File::create(to)?;
    io::copy(&mut File::open(from)?, &mut out)?;
    out.sync_all()
}

/// Nobody needs the files any more.
pub fn forget(dir: &Path) -> io::Result<()> {
    remove_dir(&dir.join(GONE))?;
    match fs::rename(dir.join(KEPT), dir.join(GONE)) {
        Ok(()) => {
            // A power cut must not bring it back once more was written.
            sync_dir(dir)?;
            remove_dir(&dir.join(GONE))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
