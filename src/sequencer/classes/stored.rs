//! Compiled classes as blobs of the engine.

use std::sync::Arc;

use flagstone_core::types::ClassHash;

use super::blob;
use super::class::{DeclaredClass, ReadyClass};
use super::error::ClassError;
use super::store::ClassStore;
use crate::engine::{Blob, Engine};

/// A [`ClassStore`] in the engine's own database, one blob a class: a class is there if a block that declared it was closed, and
/// stays there if that block is taken back later, once it was committed.
#[derive(Debug)]
pub struct EngineClasses {
    engine: Arc<Engine>,
}

impl EngineClasses {
    /// The classes of this engine's blocks.
    pub const fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    fn kept(&self, class_hash: ClassHash) -> Result<Option<Arc<[u8]>>, ClassError> {
        self.engine.view().blob(&blob_key(class_hash)).map_err(|error| ClassError::Store(error.to_string()))
    }
}

/// The key of a class's blob.
pub fn blob_key(class_hash: ClassHash) -> Vec<u8> {
    [b"class/".as_slice(), &class_hash.to_be()].concat()
}

impl ClassStore for EngineClasses {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        self.kept(class_hash)?.map(|bytes| blob::decode(class_hash, &bytes)).transpose()
    }

    fn has(&self, class_hash: ClassHash) -> Result<bool, ClassError> {
        Ok(self.kept(class_hash)?.is_some())
    }

    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        let encode = |class: &DeclaredClass| {
            Ok(Blob { key: blob_key(class.class_hash), bytes: blob::encode(class)?.into() })
        };
        classes.iter().map(encode).collect()
    }
}
