//! Where compiled classes are kept.

use std::sync::Arc;

use flagstone_core::types::ClassHash;

use super::class::{DeclaredClass, ReadyClass};
use super::error::ClassError;
use crate::engine::Blob;

/// Where compiled classes are kept. Asked from many threads.
pub trait ClassStore: Send + Sync {
    /// The class with this hash, ready to run; `None` if it was never put.
    ///
    /// # Errors
    /// [`ClassError`] if what is kept is damaged or cannot be read. Never "none" for what could not be read.
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError>;

    /// Whether a class with this hash is kept now, which no cache can know. Asked of Cairo 0 classes alone; for those, a store
    /// must not have one whose block was not closed.
    ///
    /// # Errors
    /// As [`ClassStore::get`].
    fn has(&self, class_hash: ClassHash) -> Result<bool, ClassError> {
        Ok(self.get(class_hash)?.is_some())
    }

    /// What was remembered of this class is not what is declared: the next [`ClassStore::get`] must answer with what is kept
    /// then. For a store without a cache there is nothing to do.
    fn forget(&self, _class_hash: ClassHash) {}

    /// Takes the classes that a block declares. Called once before that block closes; what it returns is written with the
    /// block, durable if and only if the block is. A store that keeps classes elsewhere has them durable when it returns,
    /// and returns nothing to write. Putting a class again changes nothing.
    ///
    /// # Errors
    /// [`ClassError`] if one could not be kept. The block is not closed then.
    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError>;
}

impl<T: ClassStore + ?Sized> ClassStore for Arc<T> {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        self.as_ref().get(class_hash)
    }
    fn has(&self, class_hash: ClassHash) -> Result<bool, ClassError> {
        self.as_ref().has(class_hash)
    }
    fn forget(&self, class_hash: ClassHash) {
        self.as_ref().forget(class_hash);
    }
    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        self.as_ref().put(classes)
    }
}
