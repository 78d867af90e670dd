//! The lock on a database's directory: taken before anything in it is looked at, and kept until the engine and its views are
//! gone. So creators, importers and openers of one directory come one after the other, whatever their store does.
//!
//! `DIR/LOCK` is never removed, as two processes could then hold locks on two files of that name. What it says is for people:
//! the process that has it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek as _, Write as _};
use std::path::Path;

use crate::disk::{self, sync_dir};
use crate::error::Error;
use crate::store::{StoreError, StoreErrorKind};

/// Name of the file.
pub(crate) const LOCK: &str = "LOCK";

/// A lock on a directory, until it is dropped.
#[derive(Debug)]
pub(crate) struct DirLock {
    /// Holds it: the system lets go of it with the file, also when the process is killed.
    _file: File,
}

impl DirLock {
    /// Takes it for one who writes: nobody else has one. The directory must be there.
    ///
    /// # Errors
    /// [`StoreErrorKind::Locked`] if somebody has one, who is named; [`StoreErrorKind::Io`] if the system refuses.
    pub fn exclusive(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(|error| io_error("cannot lock", dir, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(dir, &path)),
            Err(TryLockError::Error(error)) => return Err(io_error("cannot lock", dir, &error)),
        }
        // Only for people, and a full disk is no reason not to open.
        let _ = say_who(&mut file);
        Ok(Self { _file: file })
    }

    /// Takes it for one who only looks, beside others who do; `None` if nobody ever wrote there, or this user may not lock it.
    ///
    /// # Errors
    /// As [`DirLock::exclusive`].
    pub fn shared(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Ok(None);
            }
            Err(error) => return Err(io_error("cannot lock", dir, &error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Err(locked(dir, &path)),
            Err(TryLockError::Error(error)) => Err(io_error("cannot lock", dir, &error)),
        }
    }
}

fn say_who(file: &mut File) -> io::Result<()> {
    let program = std::env::current_exe().unwrap_or_default();
    let program = program.file_name().unwrap_or_default().to_string_lossy();
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {} ({program})", std::process::id())
}

fn locked(dir: &Path, path: &Path) -> Error {
    let said = fs::read_to_string(path).unwrap_or_default();
    let who = if said.trim().is_empty() { "another process" } else { said.trim() };
    let text = format!("database locked: {} is open in {who}; close it there first", dir.display());
    StoreError::new(StoreErrorKind::Locked, text).into()
}

/// Makes a directory and those above it, each durable in the one above.
pub(crate) fn create_dirs(dir: &Path) -> Result<(), Error> {
    let made =
        disk::create_dirs(dir).and_then(|parents| parents.iter().try_for_each(|parent| sync_dir(parent)));
    made.map_err(|error| io_error("cannot create", dir, &error))
}

/// What the system refused to do with a file or directory of the database.
pub(crate) fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    let kind = if error.kind() == ErrorKind::StorageFull { StoreErrorKind::Full } else { StoreErrorKind::Io };
    StoreError::new(kind, format!("{what} {}: {error}", path.display())).into()
}
