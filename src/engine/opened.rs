//! What an opening leaves: what it found and did, and what is kept until the end.

use flagstone_core::types::BlockNumber;
use tempfile::TempDir;

use crate::journal::Cut;
use crate::lock::DirLock;

/// What opening a database found and did, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Opened {
    /// Whether the database was closed in good order before, or is new.
    pub orderly: bool,
    /// The last block that the store had.
    pub persisted: Option<BlockNumber>,
    /// The journal's torn tail, if it had one; it was cut, unless the database is only looked at.
    pub cut: Option<Cut>,
    /// Blocks of the journal that the store did not have.
    pub replayed: u64,
    /// Blocks of the journal that the store had, and was held against.
    pub held_against: u64,
    /// Values, blobs and roots of the store that were not what these blocks say, and were written again.
    pub repaired: u64,
    /// Bytes of the store's files that were copied, as the database is only looked at.
    pub copied_bytes: u64,
}

/// What a database in a directory keeps until its engine and the engine's views are gone.
#[derive(Default)]
#[expect(dead_code, reason = "they are kept, not read")]
pub(crate) struct House {
    pub lock: Option<DirLock>,
    /// The files of a store that is only looked at.
    pub copy: Option<TempDir>,
    pub copied_bytes: u64,
}

impl House {
    /// Nothing but a lock.
    pub fn locked(lock: DirLock) -> Self {
        Self { lock: Some(lock), ..Self::default() }
    }
}
