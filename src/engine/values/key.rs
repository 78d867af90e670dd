//! What values are looked up by.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use flagstone_core::diff::Subject;

/// A key with its keyed hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub hash: u64,
    pub key: Subject,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Passes on the hash that a key brings.
#[derive(Default)]
pub struct Brought(u64);

impl Hasher for Brought {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "only hashed keys are looked up");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Values by their keys.
pub type ByKey<V> = HashMap<Key, V, BuildBrought>;

pub type BuildBrought = BuildHasherDefault<Brought>;
