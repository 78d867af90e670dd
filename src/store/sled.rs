//! The embedded store: sled 0.34.7, with all of its traps worked around in this one file.
//!
//! sled is a log-structured tree in a directory: `db` (a log of 512 KiB segments), `conf`, `snap.*` (where each page is
//! in the log), and `blobs/` (one file for each large value). It must never be the last word on durability or on what
//! ought to be there; the caller's own record of blocks is. What it does otherwise than one would think, and what is
//! done about it here:
//!
//! 1. **`flush` is not an fsync.** On Linux it calls `sync_file_range`, which writes neither the file's new length nor
//!    the disk's cache. So [`SledStore`] has its own handle on `db`, and [`Store::sync`] is sled's flush followed by
//!    `fdatasync` on it. Creation ends with an fsync of `conf`, of the directory, and of every directory that was made
//!    above it; sled does none of these. A page larger than `BLOB_THRESHOLD` would go to a blob file, which nobody
//!    ever syncs, so [`VALUE_BYTES_MAX`] and [`KEY_BYTES_MAX`] keep pages below it and larger rows are refused.
//! 2. **Garbage piles up.** Each write leaves an old copy of its page to epoch-based reclamation, which runs once in 128
//!    pins of a thread, frees a few bags at a time, and can free nothing made during a batch, as a batch is one long
//!    pin. A load of 2 M rows held 6.5 GB so. Batches are short, therefore ([`BATCH_ROWS_MAX`]), and after each
//!    `collect_garbage` turns the crank until its garbage is gone. That works only with the very `crossbeam-epoch` that
//!    sled links, as the collector is a static of that crate: a test reads `Cargo.lock`.
//! 3. **Space is reclaimed by the periodic flusher** and, hardly, by writes. Without the flusher (`flush_every_ms(None)`)
//!    the file only grows. So there is no way to turn it off here. Expect four to five times the rows' raw size.
//! 4. **A batch is atomic within one tree only.** Two trees are torn by a kill in between. So all rows are in one tree,
//!    the default one, and keyspaces are the first byte of keys. (A second tree has the one row that says how far a long
//!    unit has come; of it only the order in sled's log is asked.)
//! 5. **A batch holds a lock of the whole process**, whichever directory it is for, and every read of every sled waits
//!    for it. Reads that may not wait at all belong in a cache or overlay above; here batches are short, and `get_many`
//!    and `scan` take the lock row by row, so that a batch waits for at most one row.
//! 6. **No snapshots, iterators see writes that come after them, `len` walks the tree, `flush_async` can deadlock.** So
//!    none of these are used or offered: [`Capabilities`] has no such promise, and `scan` says what it sees.
//! 7. **Opening can fail after an abrupt stop, or on a damaged file, by an error or by a panic.** One cause is removed:
//!    sled writes its page table to `snap.X.generating` and renames it, and a process killed in between leaves a piece
//!    that the next opening takes for the newest table. It is never the only one, so it is deleted first. Any other
//!    failure is [`StoreErrorKind::Corrupt`] with the directory and the way out. Every call into sled is under
//!    `catch_unwind`; a caught panic leaves the store refusing everything until it is reopened, as sled's memory is
//!    then in no known state. The panic hook is not touched, as it belongs to the whole process: the panic's text goes
//!    to standard error as well. (In a program built with `panic = "abort"` nothing can be caught.)
//! 8. **1.0.0-alpha is no way out**: it has known deadlocks and its cost grows with the state. The dependency is pinned
//!    with `=`, as everything above was checked in the sources of that version.
//!
//! A unit of at most [`BATCH_ROWS_MAX`] rows is one batch. **A longer one** is written in steps, so that it is a unit all
//! the same, where a crash may come between any two:
//!
//! 1. Its rows go to a file of their own (the format is drawn in `sled/units.rs`), which is synced, and its directory.
//! 2. A row says that the unit was begun.
//! 3. The rows are written, one batch after the other.
//! 4. A row says that the unit is whole.
//! 5. After the next [`Store::sync`], or when such files have 64 MiB and the store syncs itself, the file is removed.
//!
//! sled's log is one sequence over all trees, and a crash leaves a beginning of it. So an opening that finds a unit begun
//! and not whole has nothing of what came after it, and writes all of its rows again, from the file. A unit of which not
//! even the beginning is there is gone as a short one would be. A reader meanwhile may see some of the unit's rows and
//! not yet others, as it may between any two reads.
//!
//! A failed `fsync` may not be tried again: the kernel reports it once and then forgets the pages. So any failed write
//! or sync also leaves the store refusing everything until it is reopened.
//!
//! Worse than all of these: **at opening, sled takes a damaged message in its log for the torn end of a segment, and goes
//! on without what follows.** Acknowledged rows are then missing or old, and nothing says so; more than a third of all
//! single flipped bits in a log that sled has not opened since do that, and a `db` cut to nothing opens as an empty
//! store. (What was in the log at the last opening is safe: the page table has its place, and a damaged message is an
//! error.) So closing leaves a file `closed` with the length and checksum of `db`, and opening compares them first and
//! then removes it. That costs one sequential reading each ([`SledConfig::verify_closed`]). One read that fails while sled opens ends its log as well, so
//! short files are copied first (`sled/before.rs`). After a kill there is no such
//! file, as a torn end is then to be expected: damage of that time can only be noticed by whoever has a record of what
//! ought to be there, and the caller must have one.

mod before;
mod units;

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flagstone_core::store::{
    Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch,
};

use self::before::CLOSED_FILE;
use self::units::{Progress, Units};
use super::foreign::{self, KEY_BYTES_MAX, VALUE_BYTES_MAX, catching, check_lengths, locked};
use crate::disk::{create_dirs, deleted, is_linked, sync_dir};
use crate::setters::setters;

/// How many rows sled is given as one batch. Units that are longer are logged first, and written in batches of this
/// length.
///
/// Nothing is freed while a batch is applied, and every reader in the process waits for it. Units of 31 000 rows of the
/// flat layout, 17 to 25 us a row: as one batch each, a load held 675 MiB and readers waited 0.8 s; in batches of 10 000
/// rows 463 MiB, of 1 000 380 MiB, of 250 359 MiB, and the shorter ones took up to a third less time.
pub const BATCH_ROWS_MAX: usize = 500;

const NAME: &str = "sled";
/// sled's segment, its default; a directory cannot be reopened with another.
const SEGMENT_BYTES: usize = 512 * 1024;
/// From here on, header included, sled moves a message out of its log to a blob file: a quarter of a segment, less the
/// segment's header.
const BLOB_THRESHOLD: usize = SEGMENT_BYTES / 4 - 20;
const MESSAGE_HEADER_BYTES_MAX: usize = 32;
/// sled writes whole leaves. A leaf is split at the first visit that finds more than 16 rows and a merge brings in fewer than 4, so 24
/// is a safe bound.
const LEAF_ROWS_MAX: usize = 24;
/// It writes whole index nodes, of at most 256 children plus what a merge brings (fewer than 64).
const INDEX_CHILDREN_MAX: usize = 384;
/// Lengths and page numbers are variable integers of at most 9 bytes, two of them beside each key.
const ENTRY_OVERHEAD_BYTES: usize = 18;
/// A node's own fields: two bounds, a neighbour, flags, counts.
const NODE_OVERHEAD_BYTES: usize = 2 * (KEY_BYTES_MAX + 9) + 64;

const _: () = assert!(
    MESSAGE_HEADER_BYTES_MAX
        + NODE_OVERHEAD_BYTES
        + LEAF_ROWS_MAX * (KEY_BYTES_MAX + VALUE_BYTES_MAX + ENTRY_OVERHEAD_BYTES)
        < BLOB_THRESHOLD
);
const _: () = assert!(
    MESSAGE_HEADER_BYTES_MAX
        + NODE_OVERHEAD_BYTES
        + INDEX_CHILDREN_MAX * (KEY_BYTES_MAX + ENTRY_OVERHEAD_BYTES)
        < BLOB_THRESHOLD
);

/// How often sled's own thread flushes and reclaims space. Never `None`: see the third trap.
const FLUSH_EVERY_MS: u64 = 500;
/// Pins after each batch. Each frees up to 8 bags of 64 objects, and a row makes one or two.
const GARBAGE_ROUNDS: usize = 200;
/// Bytes of logged units at which the store syncs itself, to be rid of them.
const LOGGED_BYTES_MAX: u64 = 64 << 20;
/// The tree of the row that says how far a long unit has come, and that row's key.
const UNITS_TREE: &str = "units";
const PROGRESS_KEY: &str = "progress";
/// sled spreads its cache over 256 shards and asserts that none is empty.
const CACHE_BYTES_MIN: u64 = 1 << 20;
/// How long the directory may stay locked after closing, while sled's threads let go of the file.
const UNLOCK_MAX: Duration = Duration::from_secs(2);

/// How to open a [`SledStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SledConfig {
    /// Bytes of pages kept in memory; at least 1 MiB are. At the bound, the least recently used page goes. sled counts
    /// pages at their length on disk, and they take three to four times that in memory; the table of pages, the write
    /// buffers and uncollected garbage come on top. 2 M rows of 96 bytes, all in memory, were 700 to 870 MiB.
    pub cache_bytes: u64,
    /// Whether closing takes a checksum of the whole file, and opening compares it. Each reads the file once, about a
    /// second for a gigabyte; without it, damage to a closed store can pass for rows that were never written.
    pub verify_closed: bool,
    /// Files of at most so many bytes are copied before sled opens them, and put back by the next opening unless the store was written to or synced:
    /// one read that fails while sled opens can end its log for good. Longer ones have only the reading before to guard them.
    pub keep_before_bytes_max: u64,
}

impl SledConfig {
    setters! {
        with_cache_bytes => cache_bytes: u64,
        with_verify_closed => verify_closed: bool,
        with_keep_before_bytes_max => keep_before_bytes_max: u64,
    }
}

impl Default for SledConfig {
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, verify_closed: true, keep_before_bytes_max: 64 << 20 }
    }
}

/// Rows in a directory, by sled 0.34.7 with its traps worked around (see [the module](self)).
///
/// ```
/// use flagstone::store::{SledConfig, SledStore, Store, StoreRead, WriteBatch};
///
/// let dir = tempfile::tempdir()?;
/// let store = SledStore::open(dir.path(), SledConfig::default().with_cache_bytes(1 << 20))?;
/// let mut batch = WriteBatch::default();
/// batch.put(b"key", b"row");
/// store.write(&batch)?;
/// store.sync()?;
/// assert_eq!(store.get(b"key")?, Some(b"row".to_vec()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Its `scan` is not a snapshot: each row is as it was when it was visited, and a batch written meanwhile may be seen
/// in part. Whoever needs one state must not write meanwhile.
pub struct SledStore {
    dir: PathBuf,
    /// `None` only while it is dropped.
    trees: Option<Trees>,
    /// Our own handle on sled's file, for a real sync.
    file: File,
    /// Who holds it writes: one unit after the other.
    units: Mutex<Units>,
    /// Why nothing more is done until a reopen.
    stopped: OnceLock<StoreError>,
    /// Whether closing takes a checksum.
    sums_at_closing: bool,
    /// Whether the files are kept as they were before the opening: its user has neither written nor synced.
    kept: AtomicBool,
}

struct Trees {
    /// All rows, in its default tree.
    db: sled::Db,
    units: sled::Tree,
}

impl SledStore {
    /// Opens the store in a directory, or creates it there.
    ///
    /// # Errors
    /// [`StoreErrorKind::Locked`] if another store, of this process or another, has it open;
    /// [`StoreErrorKind::Corrupt`] if the files are damaged; [`StoreErrorKind::Unsupported`] if another version or
    /// configuration of sled wrote them; [`StoreErrorKind::Io`] if the operating system refuses.
    pub fn open(dir: &Path, config: SledConfig) -> Result<Self, StoreError> {
        let io_error = |err| from_io(dir, "open", &err);
        let created = create_dirs(dir).map_err(io_error)?;
        let mut file = open_data_file(dir).map_err(io_error)?;
        let kept = prepare(dir, &mut file, &config)?;

        let sled_config = sled::Config::new()
            .path(dir)
            .cache_capacity(config.cache_bytes.max(CACHE_BYTES_MIN))
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        let opened = catching(|| {
            let db = sled_config.open()?;
            let units = db.open_tree(UNITS_TREE)?;
            let progress = units.get(PROGRESS_KEY)?;
            Ok((Trees { db, units }, progress))
        });
        let (trees, progress) = match opened {
            Ok(Ok(opened)) => opened,
            // sled calls a lock that is held by its text only; trying the lock tells them apart.
            Ok(Err(sled::Error::Io(_))) if is_locked(&file) => return Err(locked(dir)),
            Ok(Err(err)) => return Err(from_sled(dir, "open", err)),
            Err(panic) => return Err(foreign::from_panic(NAME, dir, "open", &panic)),
        };
        // Another store may have closed between our look and sled's lock.
        remove_if_there(&dir.join(CLOSED_FILE)).map_err(io_error)?;
        sync_created(dir, &file, &created).map_err(io_error)?;
        let progress = progress.map_or(Ok(Progress::NONE), |row| Progress::decode(&row));
        let progress =
            progress.map_err(|err| corrupt(dir, "open", &format!("row `{PROGRESS_KEY}`: {err}")))?;
        let store = Self {
            dir: dir.to_owned(),
            trees: Some(trees),
            file,
            units: Mutex::new(Units::new(dir, progress)),
            stopped: OnceLock::new(),
            sums_at_closing: config.verify_closed,
            kept: AtomicBool::new(kept),
        };
        store.finish_unit(progress)?;
        Ok(store)
    }

    /// Opens a copy of a store's files that nobody needs when it is closed.
    pub(crate) fn open_copy(dir: &Path, config: SledConfig) -> Result<Self, StoreError> {
        let mut store = Self::open(dir, config.with_keep_before_bytes_max(0))?;
        store.sums_at_closing = false;
        Ok(store)
    }

    /// Writes the rest of a long unit that a crash cut short.
    fn finish_unit(&self, progress: Progress) -> Result<(), StoreError> {
        let mut units = self.units();
        if !progress.whole {
            let batch = self.read_unit(&mut units, progress.unit)?;
            self.apply_long(progress.unit, &batch)?;
        }
        units.sweep().map_err(|err| from_io(&self.dir, "open", &err))
    }

    /// The store's user has found it right: the files as they were before are not needed.
    fn forget_before(&self) -> Result<(), StoreError> {
        if self.kept.swap(false, Ordering::SeqCst) {
            before::forget(&self.dir)
                .map_err(|err| from_io(&self.dir, "remove a copy of the files of", &err))?;
        }
        Ok(())
    }

    fn read_unit(&self, units: &mut Units, unit: u64) -> Result<WriteBatch, StoreError> {
        let path = units.path(unit);
        let damaged = |why: String| {
            let what = format!("finish a unit that was cut short, from {}, in", path.display());
            corrupt(&self.dir, &what, &why)
        };
        match units.read(unit) {
            Ok(Ok(batch)) => Ok(batch),
            Ok(Err(err)) => Err(damaged(err.to_string())),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Err(damaged(err.to_string())),
            Err(err) => Err(from_io(&path, "read", &err)),
        }
    }

    fn units(&self) -> MutexGuard<'_, Units> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls into sled: not at all once stopped, and a panic becomes an error.
    fn call<T>(&self, what: &str, run: impl FnOnce(&Trees) -> sled::Result<T>) -> Result<T, StoreError> {
        if let Some(err) = self.stopped.get() {
            return Err(err.clone());
        }
        let Some(trees) = &self.trees else {
            return Err(StoreError::new(StoreErrorKind::Closed, "store is closed"));
        };
        match catching(|| run(trees)) {
            Ok(result) => result.map_err(|err| from_sled(&self.dir, what, err)),
            Err(panic) => Err(self.stop(foreign::from_panic(NAME, &self.dir, what, &panic))),
        }
    }

    /// Refuses everything from now on.
    fn stop(&self, err: StoreError) -> StoreError {
        self.stopped.get_or_init(|| err).clone()
    }

    fn get_row(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.call("read", |trees| trees.db.get(key))
    }

    /// Steps 1 to 5 of the [module](self).
    fn write_long(&self, units: &mut Units, batch: &WriteBatch) -> Result<(), StoreError> {
        let unit = units.log(batch).map_err(|err| from_io(&self.dir, "log a unit in", &err))?; // 1
        self.apply_long(unit, batch)?;
        if units.held_bytes() > LOGGED_BYTES_MAX {
            self.sync_units(units)?; // 5
        }
        Ok(())
    }

    fn apply_long(&self, unit: u64, batch: &WriteBatch) -> Result<(), StoreError> {
        self.set_progress(Progress { unit, whole: false })?; // 2
        let mut rows = batch.iter();
        for _ in 0..batch.len().div_ceil(BATCH_ROWS_MAX) {
            self.apply(rows.by_ref().take(BATCH_ROWS_MAX))?; // 3
        }
        self.set_progress(Progress { unit, whole: true }) // 4
    }

    fn set_progress(&self, progress: Progress) -> Result<(), StoreError> {
        self.call("write", |trees| trees.units.insert(PROGRESS_KEY, &progress.encode())).map(drop)
    }

    /// Writes rows as one batch of sled.
    fn apply<'a>(&self, rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, row) in rows {
            match row {
                Some(row) => batch.insert(key, row),
                None => batch.remove(key),
            }
        }
        let written = self.call("write", |trees| trees.db.apply_batch(batch));
        collect_garbage();
        written
    }

    fn sync_units(&self, units: &mut Units) -> Result<(), StoreError> {
        self.call("sync", |trees| trees.db.flush())?;
        let synced = self.file.sync_data().and_then(|()| is_linked(&self.file));
        let synced = synced.and_then(|is_linked| if is_linked { Ok(()) } else { Err(deleted()) });
        synced.map_err(|err| from_io(&self.dir, "sync", &err))?;
        self.forget_before()?;
        units.synced().map_err(|err| from_io(&self.dir, "remove a logged unit in", &err))
    }
}

impl StoreRead for SledStore {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        Ok(self.get_row(key)?.map(|row| row.to_vec()))
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut rows = self.call("scan", |trees| Ok(trees.db.range(from.max(prefix)..)))?;
        // The visitor is called outside of `call`: its panics are its own.
        while let Some((key, row)) = self.call("scan", |_| rows.next().transpose())? {
            if !key.starts_with(prefix) || visit(&key, &row) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

impl Store for SledStore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        check_lengths(NAME, batch)?;
        if batch.is_empty() {
            return Ok(());
        }
        self.forget_before()?;
        let mut units = self.units();
        let written = if batch.len() > BATCH_ROWS_MAX {
            self.write_long(&mut units, batch)
        } else {
            self.apply(batch.iter())
        };
        written.map_err(|err| self.stop(err))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.sync_units(&mut self.units()).map_err(|err| self.stop(err))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not sled's own: that one prints every row.
        f.debug_struct("SledStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Drop for SledStore {
    /// Closes sled, and takes the checksum for the next opening. A failure loses nothing, as what had to last was synced;
    /// then there is no checksum.
    fn drop(&mut self) {
        let Some(trees) = self.trees.take() else { return };
        // Holding the lock, we are alone with the file: sled's threads have let go of it, and no other store has it.
        if !foreign::close(NAME, trees) || !lock_within(&self.file, UNLOCK_MAX) {
            return;
        }
        // If the files are kept, the next opening puts them back.
        if self.sums_at_closing && self.stopped.get().is_none() && !self.kept.load(Ordering::SeqCst) {
            let _ = write_closed(&self.dir, &self.file);
        }
        let _ = self.file.unlock();
    }
}

/// Frees what a batch has left behind (the second trap).
fn collect_garbage() {
    for _ in 0..GARBAGE_ROUNDS {
        crossbeam_epoch::pin().flush();
    }
}

fn open_data_file(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("db"))
}

/// What must be done before sled looks at the files, under the lock that it will take itself.
/// Returns whether the files are kept as they are.
fn prepare(dir: &Path, file: &mut File, config: &SledConfig) -> Result<bool, StoreError> {
    let io_error = |err| from_io(dir, "open", &err);
    foreign::lock(NAME, dir, file)?;
    before::restore(dir, file).map_err(io_error)?;
    if config.verify_closed {
        check_closed(dir, file)?;
    }
    let kept = before::keep(dir, file, config.keep_before_bytes_max).map_err(io_error)?;
    // Before sled opens, as it may then write: a kill must not leave a checksum of what was.
    if remove_if_there(&dir.join(CLOSED_FILE)).map_err(io_error)? {
        sync_dir(dir).map_err(io_error)?;
    }
    let tables = remove_half_written_tables(dir).map_err(io_error)?;
    let is_empty = file.metadata().map_err(io_error)?.len() == 0;
    // sled would read the missing file as an empty log, and answer from a table that points nowhere.
    if tables > 0 && is_empty {
        return Err(corrupt(
            dir,
            "open",
            "`db` is empty or missing, though there is a page table (`snap.*`) for it",
        ));
    }
    check_conf(dir, is_empty)?;
    // sled locks through a handle of its own, which excludes ours.
    file.unlock().map_err(io_error)?;
    Ok(kept)
}

/// sled looks at the checksum of `conf` but does not mind it.
fn check_conf(dir: &Path, is_empty: bool) -> Result<(), StoreError> {
    let path = dir.join("conf");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(from_io(dir, "open", &err)),
    };
    let whole =
        bytes.split_last_chunk().is_some_and(|(text, sum)| crc32fast::hash(text) == u32::from_le_bytes(*sum));
    match (whole, is_empty) {
        (true, _) => Ok(()),
        // A creation that was cut short: there is nothing yet to be wrong about.
        (false, true) => fs::remove_file(&path).map_err(|err| from_io(dir, "open", &err)),
        (false, false) => Err(corrupt(dir, "open", "its `conf` is damaged")),
    }
}

/// Compares `db` with what it was when the store was closed, if it was.
fn check_closed(dir: &Path, file: &File) -> Result<(), StoreError> {
    let io_error = |err| from_io(dir, "open", &err);
    let before = match fs::read(dir.join(CLOSED_FILE)) {
        Ok(before) => String::from_utf8_lossy(&before).into_owned(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(io_error(err)),
    };
    let now = describe(file).map_err(io_error)?;
    if before != now {
        let (before, now) = (before.trim_end(), now.trim_end());
        let why = format!("it was closed with `{before}` (file `{CLOSED_FILE}`), and is now `{now}`");
        return Err(corrupt(dir, "open", &why));
    }
    Ok(())
}

/// Leaves what [`check_closed`] compares. The caller holds the lock.
fn write_closed(dir: &Path, file: &File) -> io::Result<()> {
    file.sync_all()?;
    let new = dir.join("closed.new");
    let mut out = File::create(&new)?;
    out.write_all(describe(file)?.as_bytes())?;
    out.sync_all()?;
    fs::rename(&new, dir.join(CLOSED_FILE))?;
    sync_dir(dir)
}

/// Length and checksum of the data file, as text. Reads all of it.
fn describe(mut file: &File) -> io::Result<String> {
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; SEGMENT_BYTES];
    let mut bytes = 0;
    file.rewind()?;
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 {
            break;
        }
        hasher.update(&piece[..len]);
        bytes += len;
    }
    Ok(format!("db: {bytes} bytes, crc32 {:08x}\n", hasher.finalize()))
}

/// Returns whether there was such a file.
fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(err),
    }
}

/// Deletes page tables that were being written when the process was killed (the seventh trap). Returns how many whole
/// ones there are.
fn remove_half_written_tables(dir: &Path) -> io::Result<usize> {
    let mut whole = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") {
            if name.ends_with(".generating") {
                fs::remove_file(entry.path())?;
            } else {
                whole += 1;
            }
        }
    }
    Ok(whole)
}

/// Makes what opening may have created outlast a power cut.
fn sync_created(dir: &Path, file: &File, parents: &[PathBuf]) -> io::Result<()> {
    file.sync_all()?;
    File::open(dir.join("conf"))?.sync_all()?;
    sync_dir(dir)?;
    parents.iter().try_for_each(|parent| sync_dir(parent))
}

fn is_locked(file: &File) -> bool {
    match file.try_lock() {
        Ok(()) => file.unlock().is_err(),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}

/// Waits for the lock, which sled's threads hold for a moment after closing: they let go of the file one by one, and an
/// opening right after would find it locked.
fn lock_within(file: &File, wait_max: Duration) -> bool {
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) if started.elapsed() < wait_max => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return false,
        }
    }
}

fn corrupt(dir: &Path, what: &str, why: &str) -> StoreError {
    foreign::corrupt(NAME, dir, what, why)
}

fn from_io(dir: &Path, what: &str, err: &io::Error) -> StoreError {
    foreign::from_io(NAME, dir, what, err)
}

fn from_sled(dir: &Path, what: &str, err: sled::Error) -> StoreError {
    match err {
        sled::Error::Io(err) => from_io(dir, what, &err),
        sled::Error::Unsupported(why) => foreign::unsupported(NAME, dir, what, &why),
        sled::Error::Corruption { at: Some(at), .. } => {
            corrupt(dir, what, &format!("damaged data at {at} of its log"))
        }
        sled::Error::Corruption { at: None, .. } => corrupt(dir, what, "damaged data"),
        err => corrupt(dir, what, &err.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with_one_row(dir: &Path) -> SledStore {
        let store = SledStore::open(dir, SledConfig::default()).unwrap();
        let mut batch = WriteBatch::default();
        batch.put(b"key", b"row");
        store.write(&batch).unwrap();
        store.sync().unwrap();
        store
    }

    #[test]
    fn a_panic_inside_sled_is_an_error_and_stops_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_one_row(dir.path());
        let err = store.call::<()>("read", |_| panic!("lost page {}", 7)).unwrap_err();
        assert_eq!(err.kind(), StoreErrorKind::Corrupt);
        let text = err.to_string();
        assert!(text.contains("lost page 7") && text.contains(&dir.path().display().to_string()), "{text}");
        assert_eq!(store.get(b"key"), Err(err.clone()));
        assert_eq!(store.scan(b"", &mut |_, _| ControlFlow::Continue(())), Err(err.clone()));
        assert_eq!(store.sync(), Err(err));
        drop(store);
        // Nothing vouches for the file of a store that stopped; but a reopen is free to find it whole.
        assert!(!dir.path().join(CLOSED_FILE).exists());
        let store = SledStore::open(dir.path(), SledConfig::default()).unwrap();
        assert_eq!(store.get(b"key").unwrap(), Some(b"row".to_vec()));
    }

    /// An opening whose reads failed may have ended sled's log: the next one begins with the files as they were.
    #[test]
    fn files_are_as_they_were_until_the_store_is_written_to_or_synced() {
        let dir = tempfile::tempdir().unwrap();
        drop(store_with_one_row(dir.path()));
        let (before, db) = (dir.path().join("before"), dir.path().join("db"));
        let open = || SledStore::open(dir.path(), SledConfig::default()).unwrap();
        let row = |store: &SledStore| store.get(b"key").unwrap();
        assert!(!before.exists());
        drop(open());
        assert!(before.join("db").exists());
        let whole = fs::read(&db).unwrap();
        fs::write(&db, &whole[..whole.len() / 2]).unwrap();
        let store = open();
        assert_eq!(row(&store), Some(b"row".to_vec()));
        store.sync().unwrap();
        assert!(!before.exists());
        drop(store);
        // As a kill in the middle of copying leaves it.
        fs::create_dir(dir.path().join("before.new")).unwrap();
        fs::write(dir.path().join("before.new/db"), b"half").unwrap();
        let store = open();
        assert_eq!(row(&store), Some(b"row".to_vec()));
        let mut batch = WriteBatch::default();
        batch.put(b"key", b"later");
        store.write(&batch).unwrap();
        assert!(!before.exists() && !dir.path().join("before.new").exists());
        drop(store);
        assert_eq!(row(&open()), Some(b"later".to_vec()));
        let long = SledConfig::default().with_keep_before_bytes_max(1);
        drop(SledStore::open(dir.path(), long).unwrap());
        assert!(!before.exists(), "it is too long");
    }

    #[test]
    #[cfg(unix)]
    fn a_failed_sync_stops_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_with_one_row(dir.path());
        // A sync of a pipe fails.
        let (_reader, writer) = io::pipe().unwrap();
        let good = std::mem::replace(&mut store.file, File::from(std::os::fd::OwnedFd::from(writer)));
        let err = store.sync().unwrap_err();
        assert_eq!(err.kind(), StoreErrorKind::Io);
        store.file = good;
        assert_eq!(store.sync(), Err(err.clone()));
        assert_eq!(store.get(b"key"), Err(err));
    }

    /// What is written to a deleted file is gone with the process.
    #[test]
    #[cfg(unix)]
    fn a_store_whose_file_is_deleted_syncs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_one_row(dir.path());
        fs::remove_file(dir.path().join("db")).unwrap();
        let err = store.sync().unwrap_err();
        assert!(err.to_string().contains("deleted while it was open"), "{err}");
        assert_eq!(store.get(b"key"), Err(err));
    }

    #[test]
    fn a_visitors_panic_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_with_one_row(dir.path());
        let scan = || store.scan(b"", &mut |_, _| panic!("visitor"));
        assert!(catching(scan).is_err());
        assert_eq!(store.get(b"key").unwrap(), Some(b"row".to_vec()));
    }

    #[test]
    fn checksum_is_taken_at_closing_and_removed_at_opening() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join(CLOSED_FILE);
        for verify_closed in [true, false] {
            drop(store_with_one_row(dir.path()));
            assert!(closed.exists());
            let config = SledConfig { verify_closed, ..SledConfig::default() };
            let store = SledStore::open(dir.path(), config).unwrap();
            assert!(!closed.exists());
            store.sync().unwrap();
            drop(store);
            assert_eq!(closed.exists(), verify_closed);
        }
    }

    const BATCHES: usize = 4;

    /// A unit of a few batches that changes every row of `long_unit(n - 1)`, and deletes one in seven.
    fn long_unit(n: u8) -> WriteBatch {
        let rows = BATCHES * BATCH_ROWS_MAX - 1;
        let row = |i: usize| (!(i + usize::from(n)).is_multiple_of(7)).then(|| vec![n; 20]);
        (0..rows).map(|i| ((i as u32).to_be_bytes(), row(i))).collect()
    }

    fn rows(store: &SledStore) -> WriteBatch {
        let mut rows = WriteBatch::default();
        store
            .scan(b"", &mut |key, row| {
                rows.put(key, row);
                ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }

    fn unit_files(dir: &Path) -> usize {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("unit.")).count()
    }

    /// What is left when a unit's deletions are gone.
    fn kept(batch: &WriteBatch) -> WriteBatch {
        batch.iter().filter_map(|(key, row)| Some((key.to_vec(), Some(row?.to_vec())))).collect()
    }

    /// Writes a unit up to a step, and closes the store: 1 for its file, 2 for the row before it, then a step for each
    /// batch, then the row behind it, then the sync.
    fn stop_after(store: SledStore, step: usize, batch: &WriteBatch) {
        let unit = store.units().log(batch).unwrap();
        if step >= 2 {
            store.set_progress(Progress { unit, whole: false }).unwrap();
        }
        let batches = step.saturating_sub(2).min(BATCHES);
        store.apply(batch.iter().take(batches * BATCH_ROWS_MAX)).unwrap();
        if step > 2 + BATCHES {
            store.set_progress(Progress { unit, whole: true }).unwrap();
        }
        if step > 3 + BATCHES {
            store.sync().unwrap();
        }
    }

    #[test]
    fn a_long_unit_is_whole_or_not_there_whatever_step_it_stops_at() {
        for step in 1..=4 + BATCHES {
            let dir = tempfile::tempdir().unwrap();
            let open = || SledStore::open(dir.path(), SledConfig::default()).unwrap();
            let store = open();
            store.write(&long_unit(1)).unwrap();
            store.sync().unwrap();
            assert_eq!(unit_files(dir.path()), 0);
            stop_after(store, step, &long_unit(2));
            assert_eq!(unit_files(dir.path()), usize::from(step < 4 + BATCHES));

            let store = open();
            let expected = if step == 1 { long_unit(1) } else { long_unit(2) };
            assert!(rows(&store) == kept(&expected), "step {step}");
            // A unit that was finished only now is not yet synced: its file stays.
            let was_finished = (2..=2 + BATCHES).contains(&step);
            assert_eq!(unit_files(dir.path()), usize::from(was_finished), "step {step}");
            store.write(&long_unit(3)).unwrap();
            assert_eq!(unit_files(dir.path()), 1 + usize::from(was_finished));
            store.sync().unwrap();
            assert_eq!(unit_files(dir.path()), 0);
            drop(store);
            assert!(rows(&open()) == kept(&long_unit(3)), "step {step}");
        }
    }

    #[test]
    fn a_cut_unit_whose_file_is_gone_or_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SledStore::open(dir.path(), SledConfig::default());
        stop_after(open().unwrap(), 3, &long_unit(1));
        let path = dir.path().join("unit.0000000000000001");
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[1000] ^= 1;
        fs::write(&path, damaged).unwrap();
        for problem in ["checksum", "No such file"] {
            let err = open().unwrap_err();
            assert_eq!(err.kind(), StoreErrorKind::Corrupt);
            let text = err.to_string();
            assert!(text.contains(problem) && text.contains(&path.display().to_string()), "{text}");
            let _ = fs::remove_file(&path);
        }
        fs::write(&path, whole).unwrap();
        assert!(rows(&open().unwrap()) == kept(&long_unit(1)));
    }

    /// Otherwise the files of units would take any room between two of the caller's syncs.
    #[test]
    fn logged_units_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), SledConfig::default()).unwrap();
        let row = vec![7; VALUE_BYTES_MAX];
        let unit: WriteBatch =
            (0..4 * BATCH_ROWS_MAX as u32).map(|i| (i.to_be_bytes(), Some(row.clone()))).collect();
        let mut most = 0;
        for _ in 0..10 {
            store.write(&unit).unwrap();
            most = most.max(unit_files(dir.path()));
        }
        let unit_bytes = (VALUE_BYTES_MAX * unit.len()) as u64;
        assert!(10 * unit_bytes > LOGGED_BYTES_MAX, "the test does not reach the bound");
        assert_eq!(most as u64, LOGGED_BYTES_MAX / unit_bytes);
    }
}
