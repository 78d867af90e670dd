//! A store of a third party: a map in memory, written whole to one file at each sync.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use flagstone::store::{Capabilities, Row, Store, StoreError, StoreErrorKind, StoreRead, Visit, WriteBatch};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// The store.
pub struct OneFile {
    dir: PathBuf,
    rows: RwLock<Map>,
    bytes_max: usize,
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    StoreError::new(StoreErrorKind::Io, format!("{}: {error}", path.display()))
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (taken, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *bytes = rest;
    Some(taken)
}

fn decode(mut bytes: &[u8]) -> Option<Map> {
    let mut rows = Map::new();
    while !bytes.is_empty() {
        rows.insert(take(&mut bytes)?.to_vec(), take(&mut bytes)?.to_vec());
    }
    Some(rows)
}

impl OneFile {
    /// Opens the one in a directory, or makes it there. Its file has at most so many bytes.
    pub fn open(dir: &Path, bytes_max: usize) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
        let path = dir.join("rows");
        let rows = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).ok_or_else(|| {
                StoreError::new(StoreErrorKind::Corrupt, format!("{} is no map", path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(failed(&path, &error)),
        };
        Ok(Self { dir: dir.to_owned(), rows: RwLock::new(rows), bytes_max })
    }

    fn replace_file(&self, bytes: &[u8]) -> io::Result<()> {
        let (path, temporary) = (self.dir.join("rows"), self.dir.join("rows.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(&self.dir)?.sync_all()
    }
}

impl StoreRead for OneFile {
    fn get(&self, key: &[u8]) -> Result<Row, StoreError> {
        Ok(self.rows.read().unwrap().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let rows = self.rows.read().unwrap();
        let from = rows.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        for (key, row) in from.take_while(|(key, _)| key.starts_with(prefix)) {
            if visit(key, row).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Store for OneFile {
    fn name(&self) -> &'static str {
        "one-file"
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut rows = self.rows.write().unwrap();
        for (key, row) in batch.iter() {
            match row {
                Some(row) => drop(rows.insert(key.to_vec(), row.to_vec())),
                None => drop(rows.remove(key)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        for word in self.rows.read().unwrap().iter().flat_map(|(key, row)| [key, row]) {
            bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
            bytes.extend_from_slice(word);
        }
        if bytes.len() > self.bytes_max {
            let problem =
                format!("{} bytes are more than the file may have ({})", bytes.len(), self.bytes_max);
            return Err(StoreError::new(StoreErrorKind::Full, problem));
        }
        self.replace_file(&bytes).map_err(|error| failed(&self.dir, &error))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { atomic_batches: true, durable: true }
    }
}
