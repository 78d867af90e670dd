//! What the adapters of stores from elsewhere share: their panics and failures as errors, their bounds, their closing.

use std::fs::{File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use flagstone_core::store::{StoreError, StoreErrorKind, WriteBatch};

/// Longest row that any store must take, in bytes: a page of 4 KiB with a header and a seal fits. sled's pages bound it.
pub const VALUE_BYTES_MAX: usize = 4608;
/// Longest key that any store must take, in bytes. sled's pages bound it.
pub const KEY_BYTES_MAX: usize = 256;
/// What to do with files that cannot be used.
const WAY_OUT: &str = "move the directory away, and rebuild it from its blocks or restore a backup";
/// How long closing may take before a store is given up on.
const CLOSE_MAX: Duration = Duration::from_secs(60);

/// Runs a call, and returns the text of its panic if it has one.
pub fn catching<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("no text").to_owned(),
    })
}

/// Closes a store on a thread of its own, and gives up after a while: its threads may have died, and what waits for them waits for ever.
/// After giving up, the directory stays locked until the process ends. Returns whether the store was closed in good order.
pub fn close(name: &'static str, opened: impl Send + 'static) -> bool {
    let (closed, wait) = mpsc::channel();
    let closer = move || {
        let done = catching(|| drop(opened));
        // The receiver may have given up.
        let _ = closed.send(done.is_ok());
    };
    let spawned = thread::Builder::new().name(format!("{name}-close")).spawn(closer);
    spawned.is_ok() && wait.recv_timeout(CLOSE_MAX).unwrap_or(false)
}

/// Takes the lock of a file, which another store may have.
pub fn lock(store: &'static str, dir: &Path, file: &File) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(locked(dir)),
        Err(TryLockError::Error(err)) => Err(from_io(store, dir, "open", &err)),
    }
}

pub fn locked(dir: &Path) -> StoreError {
    let text = format!("store locked: {} is open in another process or store; close it first", dir.display());
    StoreError::new(StoreErrorKind::Locked, text)
}

pub fn corrupt(store: &str, dir: &Path, what: &str, why: &str) -> StoreError {
    let text = format!("corrupt store: {store} could not {what} {}: {why}; {WAY_OUT}", dir.display());
    StoreError::new(StoreErrorKind::Corrupt, text)
}

pub fn unsupported(store: &str, dir: &Path, what: &str, why: &str) -> StoreError {
    let text = format!("{store} could not {what} {}: {why}; {WAY_OUT}", dir.display());
    StoreError::new(StoreErrorKind::Unsupported, text)
}

pub fn from_panic(store: &str, dir: &Path, what: &str, panic: &str) -> StoreError {
    corrupt(store, dir, what, &format!("it panicked ({panic})"))
}

pub fn from_io(store: &str, dir: &Path, what: &str, err: &io::Error) -> StoreError {
    let kind = match err.kind() {
        // A file is shorter than what points into it.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
            return corrupt(store, dir, what, &err.to_string());
        }
        io::ErrorKind::StorageFull => StoreErrorKind::Full,
        _ => StoreErrorKind::Io,
    };
    StoreError::new(kind, format!("{store} could not {what} {}: {err}", dir.display()))
}

/// Refuses keys and rows that are longer than every store takes.
pub fn check_lengths(store: &str, batch: &WriteBatch) -> Result<(), StoreError> {
    let too_long = |what: &str, bytes: usize, bytes_max: usize| {
        let text =
            format!("{what} too long: it has {bytes} bytes, {store} takes at most {bytes_max}; split it");
        StoreError::new(StoreErrorKind::Unsupported, text)
    };
    for (key, row) in batch.iter() {
        let row_bytes = row.map_or(0, <[u8]>::len);
        if key.len() > KEY_BYTES_MAX {
            return Err(too_long("key", key.len(), KEY_BYTES_MAX));
        }
        if row_bytes > VALUE_BYTES_MAX {
            return Err(too_long("row", row_bytes, VALUE_BYTES_MAX));
        }
    }
    Ok(())
}
