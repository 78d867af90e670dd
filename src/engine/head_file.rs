//! The last acknowledged block, kept outside the store.
//!
//! A damaged store can open at an older height and look sound: sled takes damage in its recent log for a torn end and
//! goes on without what follows. So the engine notes each acknowledged block in a file of its own, and a store that
//! is behind it is refused.
//!
//! ```text
//! slot 0 at byte 0, slot 1 at byte 512, written in turn; the valid one with the higher sequence counts
//! sequence u64 | closed block + 1, or 0 u64 | crc32 of these u32        big-endian
//! ```
//!
//! Going up, the file is written after the store has synced; going down (refused blocks are dropped), before the
//! store is written. So at any instant the file is not ahead of an intact store.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flagstone_core::codec::Reader;
use flagstone_core::store::{StoreError, StoreErrorKind};
use flagstone_core::types::BlockNumber;

use crate::error::Error;

const SLOT_BYTES: usize = 20;
const SLOT_STRIDE: u64 = 512;

/// The open file.
#[derive(Debug)]
pub struct HeadFile {
    file: File,
    path: PathBuf,
    sequence: u64,
    closed: Option<BlockNumber>,
}

impl HeadFile {
    /// Creates the file, or opens it if a creation was interrupted after it.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| io_error("cannot create", path, &error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(failed)?;
        let mut created = Self { file, path: path.to_owned(), sequence: 0, closed: None };
        created.record(None)?;
        created.record(None)?;
        created.file.sync_all().map_err(failed)?;
        Ok(created)
    }

    /// Opens the file and reads the last acknowledged block.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| io_error("cannot read", path, &error);
        let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let slot = |index: u64| decode(bytes.get((index * SLOT_STRIDE) as usize..)?);
        let newest = [slot(0), slot(1)].into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
        let Some((sequence, closed)) = newest else {
            return Err(Error::damaged(path.display(), "neither of its two slots is valid"));
        };
        Ok(Self { file, path: path.to_owned(), sequence, closed })
    }

    /// The last acknowledged block.
    pub const fn closed(&self) -> Option<BlockNumber> {
        self.closed
    }

    /// Notes a block; durable on return.
    pub fn record(&mut self, closed: Option<BlockNumber>) -> Result<(), StoreError> {
        self.sequence += 1;
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&self.sequence.to_be_bytes());
        slot[8..16].copy_from_slice(&closed.map_or(0, |block| block.0.saturating_add(1)).to_be_bytes());
        let sum = crc32fast::hash(&slot[..16]);
        slot[16..].copy_from_slice(&sum.to_be_bytes());
        let offset = (self.sequence % 2) * SLOT_STRIDE;
        let written = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(&slot))
            .and_then(|()| self.file.sync_data());
        written.map_err(|error| io_error("cannot write", &self.path, &error))?;
        self.closed = closed;
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Option<(u64, Option<BlockNumber>)> {
    let slot = bytes.get(..SLOT_BYTES)?;
    let mut from = Reader::new(slot);
    let (sequence, closed, sum) =
        (from.u64("sequence").ok()?, from.u64("closed").ok()?, from.u32("sum").ok()?);
    (sum == crc32fast::hash(&slot[..16])).then(|| (sequence, closed.checked_sub(1).map(BlockNumber)))
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::new(StoreErrorKind::Io, format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_valid_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("head");
        let mut file = HeadFile::create(&path).unwrap();
        assert_eq!(HeadFile::open(&path).unwrap().closed(), None);
        for number in [4, 5, 6, 3] {
            file.record(Some(BlockNumber(number))).unwrap();
            assert_eq!(HeadFile::open(&path).unwrap().closed(), Some(BlockNumber(number)));
        }
        // A torn write of the newest slot leaves the one before.
        let newest = (file.sequence % 2 * SLOT_STRIDE) as usize;
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[newest + 10] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(HeadFile::open(&path).unwrap().closed(), Some(BlockNumber(6)));
        bytes[(newest + SLOT_STRIDE as usize) % 1024] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(HeadFile::open(&path).is_err());
        std::fs::write(&path, []).unwrap();
        assert!(HeadFile::open(&path).is_err());
    }
}
