//! The embedded default: fjall 3.1.13, a log-structured merge tree in Rust, with its traps worked around in this one file.
//!
//! fjall keeps a journal of batches (`N.jnl`) and tables that are never changed once they are written. It takes a twentieth of the
//! CPU that sled takes for a block's rows, lends snapshots, and what it has synced is there after a power cut. Its caller's own record
//! of blocks is the last word all the same. What fjall does otherwise than one would think, and what is done about it here:
//!
//! 1. **Two keyspaces keep journals of gigabytes**, as a journal goes when each keyspace has flushed what is in it. So all rows are
//!    in one keyspace, and keyspaces are the first byte of keys.
//! 2. **A batch is durable only when asked.** Batches are written without a sync, and [`Store::sync`] is `persist(SyncAll)`. Versions
//!    before 3.1.13 flushed tables before the journal was synced, so that batches could come back torn: the dependency is pinned with
//!    `=`, as everything here was checked in the sources of that version.
//! 3. **A creation that is cut short never opens again.** So a store is made in `rows.new/`, closed, all of its directories are
//!    synced (fjall leaves some of them), and it is renamed to `rows/`: either there is none, or a whole one.
//! 4. **A batch that a power cut tore, and that was never synced, is refused at opening**, and with it all the rest. So the newest
//!    journal is read first (`fjall/journal.rs`) and cut behind its last whole batch. An older journal was synced before the next one
//!    was begun: what is torn there is damage. If damage cuts off batches that had been synced, the caller misses blocks that
//!    it knows were there, and says so.
//! 5. **One read of a journal that fails while fjall opens can pass for its end**, and fjall then cuts it there. The journals were read
//!    just before, so what fails is told then. If the newest journal is shorter after the opening than it was found whole, the
//!    opening fails as well.
//! 6. **Writing waits for ever if fjall's threads have died**, as they do after a failed write. So this waits itself
//!    before fjall would, and asks meanwhile whether they are alive.
//! 7. **Failures are told by names alone** (`Poisoned`), and a failed thread's own error is lost. So whether the disk is full is found by
//!    trying.
//! 8. **It has many reasons to panic.** Every call into it is under `catch_unwind`; a caught panic leaves the store refusing
//!    everything until it is reopened. (In a program built with `panic = "abort"` nothing can be caught.)
//! 9. **Handles keep the directory locked**, also those of snapshots. So who is lent one must give it back before the store is
//!    closed ([`Store::snapshot`]).
//!
//! Tables and journals have checksums of their own; what is damaged is an error when it is read. A failed write or sync is never tried
//! again: the store refuses everything until it is reopened.

mod journal;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use fjall::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{AbstractTree as _, LsmError, PersistMode, Readable as _};
use flagstone_core::store::{
    Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch,
};

use super::foreign::{self, catching, check_lengths};
use crate::disk::{copy_file, copy_tree, create_dirs, deleted, is_linked, sync_dir, sync_tree};
use crate::setters::setters;

const NAME: &str = "fjall";
/// Where fjall's files are, below the store's directory.
const FILES: &str = "rows";
/// The same while they are made.
const MAKING: &str = "rows.new";
/// Ours, beside them.
const LOCK_FILE: &str = "lock";
/// What a keyspace's rows may take in memory before they are written to a table. fjall stores it when it makes the keyspace.
const MEMTABLE_BYTES: u64 = 32 << 20;
/// Most bytes of journals; at the bound fjall flushes what keeps the oldest.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;
const BLOOM_BITS: f32 = 10.0;
/// fjall itself waits, without an end, from 4 memtables that are to be flushed on, and from 20 runs of tables that are to be merged.
const WAITING_MEMTABLES_MAX: usize = 3;
const RUNS_MAX: usize = 20;
const WAIT: Duration = Duration::from_millis(1);
/// As much as is tried to be written to see whether the disk is full.
const PROBE_BYTES: usize = 1 << 20;

/// How to open a [`FjallStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FjallConfig {
    /// Bytes of blocks of tables that are kept in memory. What is not written to tables yet comes on top: up to 32 MiB, and as much again
    /// for each table that is being written.
    pub cache_bytes: u64,
    /// How many threads write and merge tables; at least 1.
    pub worker_threads: usize,
}

impl FjallConfig {
    setters! {
        with_cache_bytes => cache_bytes: u64,
        with_worker_threads => worker_threads: usize,
    }
}

impl Default for FjallConfig {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, worker_threads: 2 }
    }
}

/// Rows in a directory, by fjall 3.1.13 with its traps worked around (see [the module](self)).
///
/// ```
/// use flagstone::store::{FjallConfig, FjallStore, Store, StoreRead, WriteBatch};
///
/// let dir = tempfile::tempdir()?;
/// let store = FjallStore::open(dir.path(), FjallConfig::default())?;
/// let mut batch = WriteBatch::default();
/// batch.put(b"key", b"row");
/// store.write(&batch)?;
/// store.sync()?;
/// assert_eq!(store.get(b"key")?, Some(b"row".to_vec()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FjallStore {
    /// `None` only while it is dropped.
    opened: Option<Arc<Opened>>,
    /// Who holds it writes: one unit after the other.
    writing: Mutex<()>,
}

/// What reads go through, the store's and its snapshots'.
struct Opened {
    dir: PathBuf,
    rows: fjall::Keyspace,
    db: fjall::Database,
    /// Why nothing more is done until a reopen.
    stopped: OnceLock<StoreError>,
    /// Held until fjall has let go of its files: what it has not written yet looks torn to who opens them.
    lock: File,
}

impl FjallStore {
    /// Opens the store in a directory, or creates it there.
    ///
    /// # Errors
    /// [`StoreErrorKind::Locked`] if another store, of this process or another, has it open;
    /// [`StoreErrorKind::Corrupt`] if the files are damaged; [`StoreErrorKind::Unsupported`] if another version of fjall
    /// wrote them; [`StoreErrorKind::Io`] if the operating system refuses.
    pub fn open(dir: &Path, config: FjallConfig) -> Result<Self, StoreError> {
        Self::open_with(dir, &config, prepare)
    }

    /// The same whatever is torn: every row is then to be distrusted.
    pub(crate) fn open_damaged(dir: &Path, config: FjallConfig) -> Result<Self, StoreError> {
        Self::open_with(dir, &config, cut_all)
    }

    fn open_with(
        dir: &Path,
        config: &FjallConfig,
        prepare: fn(&Path, &Path) -> Result<Option<journal::JournalFile>, StoreError>,
    ) -> Result<Self, StoreError> {
        let io_error = |err| from_io(dir, "open", &err);
        let created = create_dirs(dir).map_err(io_error)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(LOCK_FILE));
        let lock = lock.map_err(io_error)?;
        foreign::lock(NAME, dir, &lock)?;
        let files = dir.join(FILES);
        if !files.is_dir() {
            create(dir, config)?;
            sync_dir(dir).map_err(io_error)?;
            created.iter().try_for_each(|parent| sync_dir(parent)).map_err(io_error)?;
        }
        let whole = prepare(dir, &files)?;
        let (db, rows) = open_files(dir, &files, config)?;
        check_uncut(dir, whole)?;
        let opened = Opened { dir: dir.to_owned(), rows, db, stopped: OnceLock::new(), lock };
        Ok(Self { opened: Some(Arc::new(opened)), writing: Mutex::new(()) })
    }

    /// Makes what [`FjallStore::open`] can open of the files of a store that is not open, in a directory that is empty: tables are
    /// linked to, as nobody changes them, and the rest is copied. Returns how many bytes were copied.
    pub(crate) fn shadow(from: &Path, to: &Path) -> io::Result<u64> {
        let (files, shadow) = (from.join(FILES), to.join(FILES));
        if !files.is_dir() {
            return Ok(0);
        }
        let journals = journal::read_all(&files)?;
        fs::create_dir(&shadow)?;
        let mut bytes = copy_tree(&files, &shadow, &copy_or_link)?;
        for journal in journals {
            if let Some(name) = journal.path.file_name() {
                bytes += journal.copy(&shadow.join(name))?;
            }
        }
        Ok(bytes)
    }

    fn opened(&self) -> Result<&Arc<Opened>, StoreError> {
        let closed = || StoreError::new(StoreErrorKind::Closed, "store is closed");
        self.opened.as_ref().ok_or_else(closed)
    }
}

impl Opened {
    /// Calls into fjall: not at all once stopped, and a panic becomes an error.
    fn call<T>(&self, what: &str, run: impl FnOnce() -> fjall::Result<T>) -> Result<T, StoreError> {
        if let Some(err) = self.stopped.get() {
            return Err(err.clone());
        }
        match catching(run) {
            Ok(result) => result.map_err(|err| from_fjall(&self.dir, what, err)),
            Err(panic) => Err(self.stop(foreign::from_panic(NAME, &self.dir, what, &panic))),
        }
    }

    /// Refuses everything from now on.
    fn stop(&self, err: StoreError) -> StoreError {
        self.stopped.get_or_init(|| err).clone()
    }

    /// Waits until fjall takes a batch without waiting itself (the sixth trap).
    fn wait_for_room(&self) -> Result<(), StoreError> {
        while self.rows.sealed_memtable_count() >= WAITING_MEMTABLES_MAX
            || self.rows.tree.l0_run_count() >= RUNS_MAX
        {
            self.call("write", || self.db.persist(PersistMode::Buffer))?;
            thread::sleep(WAIT);
        }
        Ok(())
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.wait_for_room()?;
        self.call("write", || {
            let mut rows = fjall::OwnedWriteBatch::with_capacity(self.db.clone(), batch.len());
            for (key, row) in batch.iter() {
                match row {
                    Some(row) => rows.insert(&self.rows, key, row),
                    None => rows.remove(&self.rows, key),
                }
            }
            rows.commit()
        })
    }

    fn get(&self, read: impl FnOnce() -> fjall::Result<Option<fjall::UserValue>>) -> Result<Row, StoreError> {
        Ok(self.call("read", read)?.map(|row| row.to_vec()))
    }

    /// Goes over rows. The visitor is called outside of `call`: its panics are its own.
    fn visit(
        &self,
        begin: impl FnOnce() -> fjall::Iter,
        prefix: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let mut rows = self.call("scan", || Ok(begin()))?;
        while let Some((key, row)) =
            self.call("scan", || rows.next().map(fjall::Guard::into_inner).transpose())?
        {
            if !key.starts_with(prefix) || visit(&key, &row) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

impl StoreRead for FjallStore {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        let opened = self.opened()?;
        opened.get(|| opened.rows.get(key))
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let opened = self.opened()?;
        opened.visit(|| opened.rows.range(from.max(prefix)..), prefix, visit)
    }
}

impl Store for FjallStore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        check_lengths(NAME, batch)?;
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = self.opened()?;
        opened.write(batch).map_err(|err| opened.stop(err))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let opened = self.opened()?;
        let synced = opened.call("sync", || opened.db.persist(PersistMode::SyncAll)).and_then(|()| {
            let is_there =
                is_linked(&opened.lock).and_then(|linked| if linked { Ok(()) } else { Err(deleted()) });
            is_there.map_err(|err| from_io(&opened.dir, "sync", &err))
        });
        synced.map_err(|err| opened.stop(err))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }

    fn snapshot(&self) -> Option<Arc<dyn StoreRead>> {
        let opened = Arc::clone(self.opened().ok()?);
        let at = catching(|| opened.db.snapshot()).ok()?;
        Some(Arc::new(Snapshot { opened, at }))
    }
}

/// The store at one moment.
struct Snapshot {
    opened: Arc<Opened>,
    at: fjall::Snapshot,
}

impl StoreRead for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        self.opened.get(|| self.at.get(&self.opened.rows, key))
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.opened.visit(|| self.at.range(&self.opened.rows, from.max(prefix)..), prefix, visit)
    }
}

impl fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.opened.as_ref().map(|opened| &opened.dir);
        f.debug_struct("FjallStore").field("dir", &dir).finish_non_exhaustive()
    }
}

impl Drop for FjallStore {
    /// Closes fjall. A failure loses nothing, as what had to last was synced.
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            foreign::close(NAME, opened);
        }
    }
}

/// Makes an empty store in a directory, wholly or not at all (the third trap).
fn create(dir: &Path, config: &FjallConfig) -> Result<(), StoreError> {
    let io_error = |err| from_io(dir, "create its files in", &err);
    let making = dir.join(MAKING);
    match fs::remove_dir_all(&making) {
        Err(err) if err.kind() != ErrorKind::NotFound => return Err(io_error(err)),
        _ => {}
    }
    foreign::close(NAME, open_files(dir, &making, config)?);
    sync_tree(&making).map_err(io_error)?;
    fs::rename(&making, dir.join(FILES)).map_err(io_error)
}

/// What must be done before fjall looks at the files (the fourth trap). Returns the newest journal and where it must not be cut.
fn prepare(dir: &Path, files: &Path) -> Result<Option<journal::JournalFile>, StoreError> {
    let io_error = |err| from_io(dir, "read the journals in", &err);
    let mut journals = journal::read_all(files).map_err(io_error)?;
    let newest = journals.pop();
    if let Some(torn) = journals.iter().find(|journal| journal.is_torn) {
        let (path, bytes) = (torn.path.display(), torn.whole_bytes);
        return Err(corrupt(dir, "open", &format!("{path} is damaged behind its first {bytes} bytes")));
    }
    if let Some(newest) = newest.as_ref().filter(|newest| newest.is_torn) {
        newest.cut().map_err(io_error)?;
    }
    Ok(newest)
}

/// Cuts off whatever is torn.
fn cut_all(dir: &Path, files: &Path) -> Result<Option<journal::JournalFile>, StoreError> {
    let io_error = |err| from_io(dir, "read the journals in", &err);
    let mut journals = journal::read_all(files).map_err(io_error)?;
    journals
        .iter()
        .filter(|journal| journal.is_torn)
        .try_for_each(journal::JournalFile::cut)
        .map_err(io_error)?;
    Ok(journals.pop())
}

/// Whether fjall left the newest journal as whole as it was (the fifth trap).
fn check_uncut(dir: &Path, newest: Option<journal::JournalFile>) -> Result<(), StoreError> {
    let Some(newest) = newest else { return Ok(()) };
    // Its threads may have let it go meanwhile, with all that was in it in tables.
    let Ok(now) = fs::metadata(&newest.path).map(|file| file.len()) else { return Ok(()) };
    if now >= newest.whole_bytes {
        return Ok(());
    }
    let (path, bytes) = (newest.path.display(), newest.whole_bytes);
    Err(corrupt(dir, "open", &format!("a read failed, and {path} was cut from {bytes} to {now} bytes")))
}

fn open_files(
    dir: &Path,
    files: &Path,
    config: &FjallConfig,
) -> Result<(fjall::Database, fjall::Keyspace), StoreError> {
    let options = || {
        fjall::KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES)
            .manual_journal_persist(true)
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
                BLOOM_BITS,
            ))))
    };
    let opened = catching(|| {
        let db = fjall::Database::builder(files)
            .cache_size(config.cache_bytes)
            .manual_journal_persist(true)
            .worker_threads(config.worker_threads.max(1))
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .open()?;
        let rows = db.keyspace(FILES, options)?;
        Ok((db, rows))
    });
    match opened {
        Ok(opened) => opened.map_err(|err| from_fjall(dir, "open", err)),
        Err(panic) => Err(foreign::from_panic(NAME, dir, "open", &panic)),
    }
}

/// Copies a file that is no journal, or links to it if it is a table.
fn copy_or_link(path: &Path, target: &Path) -> io::Result<u64> {
    let is_table = path.parent().and_then(Path::file_name).is_some_and(|name| name == "tables");
    if path.extension().is_some_and(|extension| extension == "jnl") || is_table && link(path, target).is_ok()
    {
        return Ok(0);
    }
    copy_file(path, target)
}

#[cfg(unix)]
fn link(to: &Path, from: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(fs::canonicalize(to)?, from)
}

#[cfg(not(unix))]
fn link(to: &Path, from: &Path) -> io::Result<()> {
    fs::hard_link(to, from)
}

fn corrupt(dir: &Path, what: &str, why: &str) -> StoreError {
    foreign::corrupt(NAME, dir, what, why)
}

fn from_io(dir: &Path, what: &str, err: &io::Error) -> StoreError {
    foreign::from_io(NAME, dir, what, err)
}

fn from_fjall(dir: &Path, what: &str, err: fjall::Error) -> StoreError {
    match err {
        fjall::Error::Io(err) | fjall::Error::Storage(LsmError::Io(err)) => from_io(dir, what, &err),
        fjall::Error::Locked => foreign::locked(dir),
        fjall::Error::InvalidVersion(_) | fjall::Error::Storage(LsmError::InvalidVersion(_)) => {
            foreign::unsupported(NAME, dir, what, "its files are of another version")
        }
        fjall::Error::Poisoned => from_io(dir, what, &probe(dir)),
        fjall::Error::JournalRecovery(err) => corrupt(dir, what, &format!("its journal is damaged ({err})")),
        fjall::Error::Storage(LsmError::ChecksumMismatch { .. }) => {
            corrupt(dir, what, "a table's checksum is not that of its bytes")
        }
        err => corrupt(dir, what, &format!("its files are damaged ({err})")),
    }
}

/// Why a thread of fjall's may have failed (the seventh trap).
fn probe(dir: &Path) -> io::Error {
    let path = dir.join("probe");
    let probed = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![1; PROBE_BYTES])?;
        file.sync_all()
    });
    let _ = fs::remove_file(&path);
    let failed = || io::Error::other("an earlier write of its threads failed; open the store again");
    probed.err().unwrap_or_else(failed)
}

#[cfg(test)]
mod tests;
