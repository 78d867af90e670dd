//! A store on the simulated disk: one log of batches, each with a checksum that goes on from the one before, and an index in memory.
//!
//! What was not synced is lost in a power cut, in whatever part the disk likes. An opening recovers the batches up to the first
//! that is not whole, which is some whole prefix, and says nothing of what came behind: a store that is damaged opens at an
//! earlier height, as some do. Then it either writes the rows anew, or goes on in the file that there is, behind a batch that is
//! like no other, so that nothing of an earlier life is ever taken for what follows.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use flagstone::journal::{Files, OpenFile};
use flagstone::store::{Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch};

use crate::support::Gate;

const HEAD_BYTES: usize = 12;
const NO_ROW: u32 = u32::MAX;

pub const LOG: &str = "log";

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

pub struct LogStore {
    log: Mutex<Log>,
    /// Writes and syncs wait while it is shut.
    gate: Arc<Gate>,
}

struct Log {
    file: Box<dyn OpenFile>,
    end: u64,
    /// Checksum of the last batch.
    sum: u32,
    /// Where each row is.
    index: BTreeMap<Vec<u8>, (u64, usize)>,
    /// After a failure nothing is written: it is not known what the file has.
    failed: bool,
}

fn failure(error: &io::Error) -> StoreError {
    let kind = if error.kind() == ErrorKind::StorageFull { StoreErrorKind::Full } else { StoreErrorKind::Io };
    StoreError::new(kind, format!("the log: {error}"))
}

fn read_full(file: &mut dyn OpenFile, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(offset + done as u64, &mut bytes[done..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_full(file: &mut dyn OpenFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(offset + done as u64, &bytes[done..]) {
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn sum_of(before: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_be_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// A batch as it lies in the log: the length, the checksum before and its own, then the rows.
fn encode<'a>(before: u32, rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    for (key, row) in rows {
        bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&row.map_or(NO_ROW, |row| row.len() as u32).to_be_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(row.unwrap_or_default());
    }
    let length = (bytes.len() - HEAD_BYTES) as u32;
    let sum = sum_of(before, &bytes[HEAD_BYTES..]);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..8].copy_from_slice(&before.to_be_bytes());
    bytes[8..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The payload of the batch at a place, if it is whole, and its checksum.
fn batch_at(bytes: &[u8], at: usize, before: u32) -> Option<(&[u8], u32)> {
    let (length, said, sum) = (number(bytes, at)? as usize, number(bytes, at + 4)?, number(bytes, at + 8)?);
    let payload = bytes.get(at + HEAD_BYTES..)?.get(..length)?;
    (said == before && sum == sum_of(before, payload)).then_some((payload, sum))
}

/// Each key of a payload, with the place of its row in it.
fn keys(payload: &[u8]) -> impl Iterator<Item = (&[u8], Option<(usize, usize)>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (key, row) = (number(payload, at)? as usize, number(payload, at + 4)?);
        let (begin, row_at) = (at + 8, at + 8 + key);
        let length = if row == NO_ROW { 0 } else { row as usize };
        at = row_at + length;
        Some((&payload[begin..row_at], (row != NO_ROW).then_some((row_at, length))))
    })
}

/// What the whole batches from the beginning say, where they end, and the last one's checksum.
fn recovered(bytes: &[u8]) -> (Rows, usize, u32) {
    let (mut rows, mut at, mut sum) = (Rows::new(), 0, 0);
    while let Some((payload, next)) = batch_at(bytes, at, sum) {
        for (key, row) in keys(payload) {
            match row {
                Some((row, length)) => rows.insert(key.to_vec(), payload[row..row + length].to_vec()),
                None => rows.remove(key),
            };
        }
        (at, sum) = (at + HEAD_BYTES + payload.len(), next);
    }
    (rows, at, sum)
}

impl LogStore {
    /// Opens the store in a directory, or begins one. `anew` says whether the rows are written to another file; `salt` is never the
    /// same.
    pub fn open(
        files: &dyn Files,
        dir: &Path,
        gate: &Arc<Gate>,
        (anew, salt): (bool, u64),
    ) -> io::Result<Self> {
        files.create_dir(dir)?;
        files.sync_dir(dir.parent().unwrap_or(dir))?;
        let path = dir.join(LOG);
        let mut bytes = Vec::new();
        let is_there = files.list(dir)?.iter().any(|name| name == LOG);
        if is_there {
            let mut file = files.open(&path)?;
            bytes = vec![0; file.size()? as usize];
            read_full(file.as_mut(), 0, &mut bytes)?;
        }
        let (rows, end, sum) = recovered(&bytes);
        let log = match anew || !is_there {
            true => Log::anew(files, dir, &rows, salt)?,
            false => Log::go_on(files.open(&path)?, &bytes[..end], sum, salt)?,
        };
        Ok(Self { log: Mutex::new(log), gate: Arc::clone(gate) })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }
}

impl Log {
    const fn empty(file: Box<dyn OpenFile>) -> Self {
        Self { file, end: 0, sum: 0, index: BTreeMap::new(), failed: false }
    }

    /// All rows as one batch of another file, which takes the log's place once it is synced.
    fn anew(files: &dyn Files, dir: &Path, rows: &Rows, salt: u64) -> io::Result<Self> {
        let (path, new) = (dir.join(LOG), dir.join("log.new"));
        let mut log = Self::empty(files.create(&new)?);
        log.append(std::iter::once((&b""[..], Some(&salt.to_be_bytes()[..]))))?;
        log.append(rows.iter().map(|(key, row)| (key.as_slice(), Some(row.as_slice()))))?;
        log.file.sync_all()?;
        files.rename(&new, &path)?;
        files.sync_dir(dir)?;
        Ok(log)
    }

    /// Goes on behind what is whole. All of it is written once more: what a failed sync left is then not taken for synced.
    fn go_on(file: Box<dyn OpenFile>, whole: &[u8], sum: u32, salt: u64) -> io::Result<Self> {
        let mut log = Self::empty(file);
        log.file.set_size(whole.len() as u64)?;
        write_full(log.file.as_mut(), 0, whole)?;
        let (mut at, mut before) = (0, 0);
        while let Some((payload, next)) = batch_at(whole, at, before) {
            log.find(payload, (at + HEAD_BYTES) as u64);
            (at, before) = (at + HEAD_BYTES + payload.len(), next);
        }
        (log.end, log.sum) = (whole.len() as u64, sum);
        log.append(std::iter::once((&b""[..], Some(&salt.to_be_bytes()[..]))))?;
        Ok(log)
    }

    /// Puts a row's place into the index; the empty key is the log's own.
    fn place(&mut self, key: &[u8], place: Option<(u64, usize)>) {
        match place {
            Some(place) if !key.is_empty() => self.index.insert(key.to_vec(), place),
            _ => self.index.remove(key),
        };
    }

    fn find(&mut self, payload: &[u8], offset: u64) {
        for (key, row) in keys(payload) {
            self.place(key, row.map(|(row, length)| (offset + row as u64, length)));
        }
    }

    /// Writes a batch. Returns it, and where its payload is; reads do not find its rows yet.
    fn put<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> io::Result<(Vec<u8>, u64)> {
        let (bytes, at) = (encode(self.sum, rows), self.end);
        write_full(self.file.as_mut(), at, &bytes)?;
        self.sum = number(&bytes, 8).unwrap_or_default();
        self.end += bytes.len() as u64;
        Ok((bytes, at + HEAD_BYTES as u64))
    }

    fn append<'a>(&mut self, rows: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> io::Result<()> {
        let (bytes, offset) = self.put(rows)?;
        self.find(&bytes[HEAD_BYTES..], offset);
        Ok(())
    }

    fn row(&mut self, (offset, length): (u64, usize)) -> Result<Vec<u8>, StoreError> {
        let mut row = vec![0; length];
        read_full(self.file.as_mut(), offset, &mut row).map_err(|error| failure(&error))?;
        Ok(row)
    }

    /// Does what may fail; nothing once it has.
    fn finally<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> Result<T, StoreError> {
        if self.failed {
            return Err(StoreError::new(StoreErrorKind::Closed, "the log has failed before"));
        }
        work(self).map_err(|error| {
            self.failed = true;
            failure(&error)
        })
    }
}

impl StoreRead for LogStore {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        let mut log = self.log();
        let place = log.index.get(key).copied();
        place.map(|place| log.row(place)).transpose()
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, prefix, visit)
    }

    fn scan_from(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut at = Bound::Included(from.max(prefix).to_vec());
        loop {
            let mut log = self.log();
            let next = log.index.range((at, Bound::Unbounded)).next();
            let next = next.map(|(key, place)| (key.clone(), *place));
            let Some((key, place)) = next.filter(|(key, _)| key.starts_with(prefix)) else { return Ok(()) };
            let row = log.row(place)?;
            drop(log);
            if let ControlFlow::Break(()) = visit(&key, &row) {
                return Ok(());
            }
            at = Bound::Excluded(key);
        }
    }
}

impl Store for LogStore {
    fn name(&self) -> &'static str {
        "log"
    }

    /// Reads that come meanwhile find some of the rows.
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.gate.pass();
        let (bytes, offset) = self.log().finally(|log| log.put(batch.iter()))?;
        for (index, (key, row)) in keys(&bytes[HEAD_BYTES..]).enumerate() {
            self.log().place(key, row.map(|(row, length)| (offset + row as u64, length)));
            if index % 4 == 3 {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.gate.pass();
        self.log().finally(|log| log.file.sync_data())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }
}
