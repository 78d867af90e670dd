//! What a layout and the engine need from a key-value store, and no more.
//!
//! One ordered tree. Keyspaces are a one-byte prefix ([`keyspace`]), so that one batch is one unit on every store.
//! Reading and writing are two traits: a layout is only ever handed a [`StoreRead`], and so cannot write.

mod batch;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

pub use batch::{BatchBuilder, Row, WriteBatch};

/// First bytes of keys. A layout's rows begin at [`keyspace::LAYOUT_FIRST`].
pub mod keyspace {
    /// The engine's own rows.
    pub const META: u8 = 0x00;
    /// Roots of committed blocks.
    pub const BLOCK: u8 = 0x02;
    /// Diffs that take the last committed blocks back.
    pub const UNDO: u8 = 0x03;
    /// What callers keep beside the state, by their own keys.
    pub const BLOB: u8 = 0x04;
    /// Blocks by their hashes.
    pub const BLOCK_HASH: u8 = 0x05;
    /// First byte that belongs to the layout.
    pub const LAYOUT_FIRST: u8 = 0x10;
}

/// What kind of failure a store had, for callers that branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The operating system refused.
    Io,
    /// The disk is full. Nothing that was durable is touched.
    Full,
    /// Bytes are not what was written.
    Corrupt,
    /// Another process has the store open.
    Locked,
    /// The store cannot do what it is asked for, or what is on the disk is of another version or configuration.
    Unsupported,
    /// What is read is not kept any more: the read took too long.
    Expired,
    /// The store was closed, or refuses everything after an earlier failure; opening it again is the way out.
    Closed,
}

/// A store's failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    kind: StoreErrorKind,
    message: String,
}

impl StoreError {
    /// An error of a kind, with a text that names the thing and the way out.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Its kind.
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

/// What a store can do beyond the minimum. The engine asks for nothing that is not said here.
///
/// Stores build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether a batch is applied wholly or not at all, also when the process is killed in between.
    pub atomic_batches: bool,
    /// Whether anything outlives the process.
    pub durable: bool,
}

/// Called by [`StoreRead::scan`] with a key and its row.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Reading. All methods may be called from many threads at once.
pub trait StoreRead: Send + Sync {
    /// The row at a key.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn get(&self, key: &[u8]) -> Result<Row, StoreError>;

    /// The rows at many keys, in the order asked.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Visits the rows whose keys begin with `prefix`, ascending, until the visitor breaks.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// Like [`StoreRead::scan`], from the first key on that is not below `from`. Stores that can begin there should.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan(prefix, &mut |key, row| match key < from {
            true => ControlFlow::Continue(()),
            false => visit(key, row),
        })
    }
}

/// Writing. Only the engine calls these.
pub trait Store: StoreRead {
    /// Name for reports and for the file that says what a database is.
    fn name(&self) -> &'static str;

    /// Applies a batch as one unit. It is visible to reads afterwards, and durable only after [`Store::sync`].
    ///
    /// # Errors
    /// [`StoreError`] if the store fails; what then became of the batch is known only after a reopen.
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError>;

    /// Returns when everything written before is on the disk.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails; nothing written since the last successful sync may be relied on then.
    fn sync(&self) -> Result<(), StoreError>;

    /// What this store can do.
    fn capabilities(&self) -> Capabilities;

    /// The rows as they are now, for as long as they are held, whatever is written meanwhile; `None` from a store that cannot. Who holds
    /// a snapshot holds the store open.
    fn snapshot(&self) -> Option<Arc<dyn StoreRead>> {
        None
    }
}

/// Reading through a pointer is reading what it points to, each call by the store's own way.
macro_rules! reads_through {
    ($pointer:ty) => {
        impl<S: StoreRead + ?Sized> StoreRead for $pointer {
            fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
                (**self).get(key)
            }
            fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
                (**self).get_many(keys)
            }
            fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
                (**self).scan(prefix, visit)
            }
            fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
                (**self).scan_from(prefix, from, visit)
            }
        }
    };
}

reads_through!(&S);
reads_through!(Arc<S>);

impl<S: Store + ?Sized> Store for Arc<S> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        (**self).write(batch)
    }
    fn sync(&self) -> Result<(), StoreError> {
        (**self).sync()
    }
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }
    fn snapshot(&self) -> Option<Arc<dyn StoreRead>> {
        (**self).snapshot()
    }
}

/// A store in memory: an ordered map behind a lock. Nothing outlives it.
#[derive(Default)]
pub struct MemoryStore {
    rows: RwLock<BTreeSet<Packed>>,
}

/// A key and its row in one allocation, in the order of keys. There are millions of them and most are short: two vectors
/// for each took half as much again.
struct Packed(Box<[u8]>);

/// The key's length comes first.
const KEY_LENGTH_BYTES: usize = size_of::<u32>();

impl Packed {
    fn new(key: &[u8], row: &[u8]) -> Self {
        Self([&(key.len() as u32).to_be_bytes(), key, row].concat().into())
    }

    fn split(&self) -> (&[u8], &[u8]) {
        let (length, rest) = self.0.split_first_chunk().unwrap_or((&[0; KEY_LENGTH_BYTES], &[]));
        rest.split_at(u32::from_be_bytes(*length) as usize)
    }
}

impl Borrow<[u8]> for Packed {
    fn borrow(&self) -> &[u8] {
        self.split().0
    }
}

impl Ord for Packed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.split().0.cmp(other.split().0)
    }
}

impl PartialOrd for Packed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Packed {}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        self.rows().len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn rows(&self) -> RwLockReadGuard<'_, BTreeSet<Packed>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("rows", &self.len()).finish()
    }
}

impl StoreRead for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        Ok(self.rows().get(key).map(|row| row.split().1.to_vec()))
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Row>, StoreError> {
        let rows = self.rows();
        Ok(keys.iter().map(|key| rows.get(*key).map(|row| row.split().1.to_vec())).collect())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let (rows, from) = (self.rows(), from.max(prefix));
        let from = rows.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).map(Packed::split);
        for (key, row) in from.take_while(|(key, _)| key.starts_with(prefix)) {
            if visit(key, row).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        for (key, row) in batch.iter() {
            match row {
                Some(row) => drop(rows.replace(Packed::new(key, row))),
                None => drop(rows.remove(key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: false }
    }
}
