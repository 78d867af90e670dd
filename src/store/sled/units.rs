//! Long units: a log of their rows, so that sled may take them in many short batches.
//!
//! A file `unit.<number, 16 hex digits>` in the store's directory, integers big-endian:
//!
//! ```text
//!  0         8        12       16        24
//! +---------+--------+--------+---------+------~~------+-------+
//! |FLAGUNIT | format | rows   | number  | rows         | crc32 |
//! +---------+--------+--------+---------+------~~------+-------+
//!
//! a row:  | key bytes, 2 | row bytes, 4 (all ones: the key is deleted) | key | row |
//! ```
//!
//! The checksum is of all bytes before it. How far sled has come with a unit is in sled itself: one row
//! ([`Progress`]) that is written before the unit's first batch and after its last. sled comes back from a crash with
//! a beginning of what was written to it, so the row is never ahead of the unit's rows, nor behind them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::store::WriteBatch;

use crate::disk::sync_dir;

const MAGIC: [u8; 8] = *b"FLAGUNIT";
const FORMAT: u32 = 1;
const PREFIX: &str = "unit.";
const DELETED: u32 = u32::MAX;
const CHECKSUM_BYTES: usize = 4;
/// Bytes of a row beside its key and itself.
const ROW_HEAD_BYTES: usize = 2 + 4;
/// How much is written at once.
const PIECE_BYTES: usize = 1 << 20;

/// How far sled has come with the units that were logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The last unit that was begun; 0 if none was.
    pub unit: u64,
    /// Whether all of its rows are written.
    pub whole: bool,
}

impl Progress {
    /// No unit was begun.
    pub const NONE: Self = Self { unit: 0, whole: true };

    pub fn encode(self) -> [u8; 9] {
        let mut bytes = [u8::from(self.whole); 9];
        bytes[..8].copy_from_slice(&self.unit.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let unit = from.u64("unit")?;
        let whole = match from.u8("whole")? {
            0 => false,
            1 => true,
            other => return Err(DecodeError::new("whole", format!("{other} is neither 0 nor 1"))),
        };
        from.end("progress")?;
        Ok(Self { unit, whole })
    }
}

/// The logged units of one directory.
#[derive(Debug)]
pub struct Units {
    dir: PathBuf,
    last: u64,
    /// Those whose files sled may still need.
    held: Vec<u64>,
    held_bytes: u64,
}

impl Units {
    /// Those of a store that has come so far.
    pub fn new(dir: &Path, progress: Progress) -> Self {
        Self { dir: dir.to_owned(), last: progress.unit, held: Vec::new(), held_bytes: 0 }
    }

    /// Writes a unit to a file of its own, and returns its number when the file is on the disk.
    pub fn log(&mut self, batch: &WriteBatch) -> io::Result<u64> {
        let unit = self.last + 1;
        self.held_bytes += write(&self.path(unit), unit, batch)?;
        sync_dir(&self.dir)?;
        self.last = unit;
        self.held.push(unit);
        Ok(unit)
    }

    /// Reads a unit that was logged.
    pub fn read(&mut self, unit: u64) -> io::Result<Result<WriteBatch, DecodeError>> {
        let bytes = fs::read(self.path(unit))?;
        self.held.push(unit);
        self.held_bytes += bytes.len() as u64;
        Ok(decode(unit, &bytes))
    }

    /// Bytes of the files that are held.
    pub const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Everything that was logged is synced in sled: the files go.
    pub fn synced(&mut self) -> io::Result<()> {
        for unit in std::mem::take(&mut self.held) {
            fs::remove_file(self.path(unit))?;
        }
        self.held_bytes = 0;
        Ok(())
    }

    /// Removes the files of all units but those that are held: units that were finished, or that sled has nothing of.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let number = number.and_then(|number| u64::from_str_radix(number, 16).ok());
            if number.is_some_and(|unit| !self.held.contains(&unit)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Where a unit's file is.
    pub fn path(&self, unit: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{unit:016x}"))
    }
}

/// Writes and syncs a unit's file; returns its length.
fn write(path: &Path, unit: u64, batch: &WriteBatch) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let mut sum = crc32fast::Hasher::new();
    let mut bytes = 0;
    let mut piece = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
    let mut write_out = |piece: &mut Vec<u8>, file: &mut File| {
        sum.update(piece);
        bytes += piece.len() as u64;
        let written = file.write_all(piece);
        piece.clear();
        written
    };
    put_head(&mut piece, unit, batch.len());
    for (key, row) in batch.iter() {
        put_row(&mut piece, key, row);
        if piece.len() >= PIECE_BYTES {
            write_out(&mut piece, &mut file)?;
        }
    }
    write_out(&mut piece, &mut file)?;
    file.write_all(&sum.finalize().to_be_bytes())?;
    file.sync_all()?;
    Ok(bytes + CHECKSUM_BYTES as u64)
}

fn put_head(out: &mut Vec<u8>, unit: u64, rows: usize) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(&(rows as u32).to_be_bytes());
    out.extend_from_slice(&unit.to_be_bytes());
}

/// Lengths were checked against the store's bounds, which are far below what the fields hold.
fn put_row(out: &mut Vec<u8>, key: &[u8], row: Option<&[u8]>) {
    out.extend_from_slice(&(key.len() as u16).to_be_bytes());
    out.extend_from_slice(&row.map_or(DELETED, |row| row.len() as u32).to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(row.unwrap_or_default());
}

/// The rows of a unit's file.
fn decode(unit: u64, bytes: &[u8]) -> Result<WriteBatch, DecodeError> {
    let mut whole = Reader::new(bytes);
    let summed = whole.bytes("rows", bytes.len().saturating_sub(CHECKSUM_BYTES))?;
    let (sum, found) = (whole.u32("checksum")?, crc32fast::hash(summed));
    if sum != found {
        let problem = format!("is {sum:08x}, the bytes have {found:08x}");
        return Err(DecodeError::new("checksum", problem));
    }
    let mut from = Reader::new(summed);
    if from.array::<8>("magic")? != MAGIC {
        return Err(DecodeError::new("magic", "it does not begin as the log of a unit"));
    }
    let format = from.u32("format")?;
    if format != FORMAT {
        return Err(DecodeError::new("format", format!("is {format}, this version reads {FORMAT}")));
    }
    let rows = from.count("rows", ROW_HEAD_BYTES)?;
    let number = from.u64("number")?;
    if number != unit {
        return Err(DecodeError::new("number", format!("is {number}, its name says {unit}")));
    }
    let mut batch = WriteBatch::default();
    for _ in 0..rows {
        let key_bytes = u16::from_be_bytes(from.array("key bytes")?);
        let row_bytes = from.u32("row bytes")?;
        let key = from.bytes("key", key_bytes.into())?;
        match row_bytes {
            DELETED => batch.delete(key),
            row_bytes => batch.put(key, from.bytes("row", row_bytes as usize)?),
        }
    }
    from.end("rows")?;
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn encoded(unit: u64, batch: &WriteBatch) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = Units::new(dir.path(), Progress::NONE).path(unit);
        let bytes = write(&path, unit, batch).unwrap();
        let written = fs::read(path).unwrap();
        assert_eq!(written.len() as u64, bytes);
        written
    }

    fn batches() -> impl Strategy<Value = WriteBatch> {
        let row = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
        btree_map(proptest::collection::vec(any::<u8>(), 0..9), row, 0..20)
            .prop_map(|rows| rows.into_iter().collect())
    }

    #[test]
    fn bytes_are_as_drawn() {
        let rows = [(b"k".to_vec(), Some(b"row".to_vec())), (b"kk".to_vec(), None)];
        let bytes = encoded(0x0102, &rows.into_iter().collect());
        let (summed, sum) = bytes.split_last_chunk::<4>().unwrap();
        assert_eq!(
            summed,
            b"FLAGUNIT\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\x01\x02\
              \0\x01\0\0\0\x03krow\
              \0\x02\xff\xff\xff\xffkk"
        );
        assert_eq!(*sum, crc32fast::hash(summed).to_be_bytes());
    }

    #[test]
    fn another_format_or_another_units_file_is_named() {
        let mut bytes = encoded(7, &WriteBatch::default());
        assert_eq!(decode(8, &bytes).unwrap_err().field, "number");
        bytes[11] = 2;
        let end = bytes.len() - CHECKSUM_BYTES;
        let sum = crc32fast::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(decode(7, &bytes).unwrap_err().field, "format");
    }

    #[test]
    fn progress_survives_its_bytes_and_says_what_is_wrong_with_others() {
        for whole in [false, true] {
            let progress = Progress { unit: 0x0102_0304_0506, whole };
            assert_eq!(Progress::decode(&progress.encode()), Ok(progress));
        }
        assert_eq!(Progress::decode(&[0; 8]).unwrap_err().field, "whole");
        assert_eq!(Progress::decode(&[2; 9]).unwrap_err().field, "whole");
        assert_eq!(Progress::decode(&[0; 10]).unwrap_err().field, "progress");
    }

    proptest! {
        #[test]
        fn rows_survive_the_log(batch in batches(), unit: u64) {
            prop_assert_eq!(decode(unit, &encoded(unit, &batch)).unwrap(), batch);
        }

        #[test]
        fn cut_or_changed_bytes_are_an_error(batch in batches(), at: prop::sample::Index, flip in 1u8..) {
            let mut bytes = encoded(3, &batch);
            let at = at.index(bytes.len());
            prop_assert!(decode(3, &bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(decode(3, &bytes).is_err());
        }

        #[test]
        fn any_bytes_with_a_right_checksum_do_not_panic(rest in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = Vec::new();
            put_head(&mut bytes, 1, 2);
            bytes.extend_from_slice(&rest);
            let sum = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&sum.to_be_bytes());
            let _ = decode(1, &bytes);
        }
    }
}
