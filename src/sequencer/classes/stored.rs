//! Compiled classes as blobs, and where blobs can be: in memory, or as files of a directory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use flagstone_core::types::ClassHash;

use super::{ClassError, ClassStore, DeclaredClass, ReadyClass, blob};

/// Bytes under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The key.
    pub key: Vec<u8>,
    /// What is kept under it.
    pub bytes: Vec<u8>,
}

/// A place that keeps bytes by key.
pub trait Blobs: Send + Sync {
    /// What is kept under a key; `None` if nothing is.
    ///
    /// # Errors
    /// [`ClassError::Store`] if it cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ClassError>;

    /// Keeps blobs; when this returns they outlive a crash, as far as the place does. A blob under a known key replaces it.
    ///
    /// # Errors
    /// [`ClassError::Store`] if one could not be kept.
    fn put(&self, blobs: Vec<Blob>) -> Result<(), ClassError>;
}

/// A [`ClassStore`] of one blob a class.
#[derive(Debug, Default)]
pub struct StoredClasses<B> {
    blobs: B,
}

impl<B: Blobs> StoredClasses<B> {
    /// Classes in these blobs.
    pub const fn new(blobs: B) -> Self {
        Self { blobs }
    }
}

/// The key of a class's blob.
pub fn blob_key(class_hash: ClassHash) -> Vec<u8> {
    [b"class/".as_slice(), &class_hash.to_be()].concat()
}

impl<B: Blobs> ClassStore for StoredClasses<B> {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        let bytes = self.blobs.get(&blob_key(class_hash))?;
        bytes.map(|bytes| blob::decode(class_hash, &bytes)).transpose()
    }

    fn put(&self, classes: &[DeclaredClass]) -> Result<(), ClassError> {
        let encode =
            |class: &DeclaredClass| Ok(Blob { key: blob_key(class.class_hash), bytes: blob::encode(class)? });
        let blobs = classes.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        if blobs.is_empty() { Ok(()) } else { self.blobs.put(blobs) }
    }
}

/// Blobs in memory.
#[derive(Debug, Default)]
pub struct MemoryBlobs(RwLock<HashMap<Vec<u8>, Vec<u8>>>);

impl Blobs for MemoryBlobs {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ClassError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn put(&self, blobs: Vec<Blob>) -> Result<(), ClassError> {
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        kept.extend(blobs.into_iter().map(|blob| (blob.key, blob.bytes)));
        Ok(())
    }
}

/// Blobs as files of a directory, named by their keys in hexadecimal. A file appears under its name complete and synced.
#[derive(Debug)]
pub struct DirectoryBlobs {
    dir: PathBuf,
}

impl DirectoryBlobs {
    /// Blobs in a directory, which is made if it is missing; its parent must be there.
    ///
    /// # Errors
    /// [`ClassError::Store`] if it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, ClassError> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("cannot create", dir, &error))
            }
            _ => Ok(Self { dir: dir.to_owned() }),
        }
    }

    fn path(&self, key: &[u8]) -> PathBuf {
        self.dir.join(key.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> ClassError {
    ClassError::Store(format!("{what} {}: {error}", path.display()))
}

impl Blobs for DirectoryBlobs {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ClassError> {
        let path = self.path(key);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("cannot read", &path, &error)),
        }
    }

    fn put(&self, blobs: Vec<Blob>) -> Result<(), ClassError> {
        for blob in blobs {
            let path = self.path(&blob.key);
            let unfinished = path.with_extension("new");
            let write = || -> io::Result<()> {
                let mut file = File::create(&unfinished)?;
                file.write_all(&blob.bytes)?;
                file.sync_all()?;
                fs::rename(&unfinished, &path)
            };
            write().map_err(|error| failed("cannot write", &path, &error))?;
        }
        let sync = File::open(&self.dir).and_then(|dir| dir.sync_all());
        sync.map_err(|error| failed("cannot sync", &self.dir, &error))
    }
}
