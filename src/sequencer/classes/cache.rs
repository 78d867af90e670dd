//! Classes that are ready to run, before another store.
//!
//! Preparing a class takes milliseconds, and each block runs the same few. Bounded in bytes: at the bound, the classes that
//! were longest not asked for leave. A class larger than the bound is served and not kept. Two readers that miss the same
//! class at once may both prepare it; neither waits for the other.
//!
//! A class that is here need not be declared: its block may have been taken back, and another class declared under the same
//! hash. Whoever asks knows the state, and says so with [`ClassStore::has`] and [`ClassStore::forget`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use flagstone_core::types::ClassHash;
use lru::LruCache;

use super::class::{DeclaredClass, ReadyClass};
use super::error::ClassError;
use super::store::ClassStore;
use crate::engine::Blob;

struct Ready {
    classes: LruCache<[u8; 32], ReadyClass>,
    bytes: usize,
}

/// A [`ClassStore`] that remembers what another one prepared.
pub struct ReadyClasses<S> {
    store: S,
    bytes_max: usize,
    ready: Mutex<Ready>,
}

impl<S: ClassStore> ReadyClasses<S> {
    /// Keeps at most `bytes_max` bytes of the store's classes, by what [`ReadyClass::bytes`] says of each.
    pub fn new(store: S, bytes_max: usize) -> Self {
        let ready = Ready { classes: LruCache::unbounded(), bytes: 0 };
        Self { store, bytes_max, ready: Mutex::new(ready) }
    }

    /// Classes kept, and their bytes.
    pub fn held(&self) -> (usize, usize) {
        let ready = self.ready();
        (ready.classes.len(), ready.bytes)
    }

    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: ClassStore> ClassStore for ReadyClasses<S> {
    fn get(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        let key = class_hash.to_be();
        if let Some(class) = self.ready().classes.get(&key) {
            return Ok(Some(class.clone()));
        }
        let Some(class) = self.store.get(class_hash)? else { return Ok(None) };
        if class.bytes <= self.bytes_max {
            let mut ready = self.ready();
            ready.bytes += class.bytes;
            let replaced = ready.classes.put(key, class.clone());
            ready.bytes -= replaced.map_or(0, |replaced| replaced.bytes);
            while ready.bytes > self.bytes_max {
                let Some((_, oldest)) = ready.classes.pop_lru() else { break };
                ready.bytes -= oldest.bytes;
            }
        }
        Ok(Some(class))
    }

    fn has(&self, class_hash: ClassHash) -> Result<bool, ClassError> {
        self.store.has(class_hash)
    }

    fn forget(&self, class_hash: ClassHash) {
        let mut ready = self.ready();
        let forgotten = ready.classes.pop(&class_hash.to_be());
        ready.bytes -= forgotten.map_or(0, |class| class.bytes);
        drop(ready);
        self.store.forget(class_hash);
    }

    fn put(&self, classes: &[DeclaredClass]) -> Result<Vec<Blob>, ClassError> {
        self.store.put(classes)
    }
}
