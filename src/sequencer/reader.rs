//! The executor's reader over a pinned view.
//!
//! Answers for the view's block or fails: an error is passed on as [`StateError::StateReadError`] with its text, never as
//! a default value, and the first one is kept. Absent values are zero, as the executor expects.
//!
//! What the block that executes has written, the executor keeps itself, also the classes that it declares: it asks here only
//! for what the view can know. One question is the exception: the second compiled class hash of a class, which no write
//! sets. For a class that is not declared in the view, it is computed from the class that the executor hands over with the
//! question. Nothing here remembers a class beyond its block.
//!
//! "Not declared" is the only answer that may be the transaction's own fault. So it is given if the view says so, and not
//! because a class that is declared in the view could not be had.

use std::collections::{HashMap, HashSet};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use blockifier::execution::contract_class::{CompiledClassV1, RunnableCompiledClass};
use blockifier::state::errors::StateError;
use blockifier::state::state_api::{StateReader, StateResult};
use flagstone_core::diff::Subject;
use flagstone_core::felt::Felt;
use flagstone_core::types::{ClassHash, CompiledClassHash};
use starknet_api::contract_class::compiled_class_hash::{HashVersion, HashableCompiledClass};
use starknet_api::core as api;
use starknet_api::state::StorageKey;

use super::classes::{ClassError, ClassStore, ReadyClass, cairo_0};
use super::convert;
use crate::engine::View;

/// What the executor has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReadCounts {
    /// Storage slots.
    pub storage: u64,
    /// Nonces.
    pub nonces: u64,
    /// Class hashes of contracts.
    pub class_hashes: u64,
    /// Compiled class hashes, with those asked for to know that a class is declared.
    pub compiled_class_hashes: u64,
    /// Compiled classes. They come from the [`ClassStore`], not from the view.
    pub classes: u64,
    /// Of those that went to the view, the ones that were not in memory.
    pub misses: u64,
    /// What these misses took, of all threads together.
    pub missing: Duration,
}

impl ReadCounts {
    /// Reads that went to the view.
    pub const fn of_values(&self) -> u64 {
        self.storage + self.nonces + self.class_hashes + self.compiled_class_hashes
    }

    /// Share of the reads that went to the view and were answered from memory.
    pub fn hit_rate(&self) -> f64 {
        let reads = self.of_values();
        1.0 - self.misses.min(reads) as f64 / reads.max(1) as f64
    }
}

impl AddAssign for ReadCounts {
    fn add_assign(&mut self, other: Self) {
        self.storage += other.storage;
        self.nonces += other.nonces;
        self.class_hashes += other.class_hashes;
        self.compiled_class_hashes += other.compiled_class_hashes;
        self.classes += other.classes;
        self.misses += other.misses;
        self.missing += other.missing;
    }
}

#[derive(Debug, Default)]
struct Shared {
    storage: AtomicU64,
    nonces: AtomicU64,
    class_hashes: AtomicU64,
    compiled_class_hashes: AtomicU64,
    classes: AtomicU64,
    misses: AtomicU64,
    missing_nanos: AtomicU64,
    failure: OnceLock<String>,
    /// Classes of contracts that were asked for. They are declared, of whatever kind they are.
    deployed: Mutex<HashSet<Felt>>,
    /// Second compiled class hashes of classes that the executing block declares, with the class that was hashed: in its place
    /// another one may be declared under the same hash.
    hashed: Mutex<HashMap<Felt, (CompiledClassV1, api::CompiledClassHash)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state after a block, as the executor reads it. Clones share their counts and their failure.
#[derive(Clone)]
pub struct ViewReader {
    view: View,
    classes: Arc<dyn ClassStore>,
    shared: Arc<Shared>,
}

impl ViewReader {
    /// A reader of a view, with the compiled classes of its contracts.
    pub fn new(view: View, classes: Arc<dyn ClassStore>) -> Self {
        Self { view, classes, shared: Arc::default() }
    }

    /// What was asked for until now.
    pub fn counts(&self) -> ReadCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReadCounts {
            storage: get(&self.shared.storage),
            nonces: get(&self.shared.nonces),
            class_hashes: get(&self.shared.class_hashes),
            compiled_class_hashes: get(&self.shared.compiled_class_hashes),
            classes: get(&self.shared.classes),
            misses: get(&self.shared.misses),
            missing: Duration::from_nanos(get(&self.shared.missing_nanos)),
        }
    }

    /// The first read that failed, if one did. The executor takes a failed read for a transaction's own fault, so whoever
    /// uses its results asks this first.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    fn checked<T, E: std::fmt::Display>(&self, read: Result<T, E>) -> StateResult<T> {
        read.map_err(|error| {
            let text = error.to_string();
            let _ = self.shared.failure.set(text.clone());
            StateError::StateReadError(text)
        })
    }

    fn value(&self, subject: &Subject) -> StateResult<Felt> {
        if let Some(value) = self.view.known(subject) {
            return Ok(value);
        }
        count(&self.shared.misses);
        let started = Instant::now();
        let value = self.view.value(subject);
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.shared.missing_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.checked(value)
    }

    fn compiled_class_hash_at(&self, class_hash: ClassHash) -> StateResult<CompiledClassHash> {
        count(&self.shared.compiled_class_hashes);
        self.value(&Subject::CompiledClassHash(class_hash)).map(CompiledClassHash)
    }

    /// A class that is declared in this view's block; `None` if it is not declared there.
    fn class(&self, class_hash: api::ClassHash) -> StateResult<Option<ReadyClass>> {
        let ours = ClassHash(class_hash.0);
        let in_state = self.compiled_class_hash_at(ours)?;
        self.checked(self.class_of(ours, in_state))
    }

    /// The class that has this compiled class hash in the state, or a Cairo 0 class if it has none.
    fn class_of(
        &self,
        class_hash: ClassHash,
        in_state: CompiledClassHash,
    ) -> Result<Option<ReadyClass>, ClassError> {
        if in_state == CompiledClassHash::ZERO {
            return self.cairo_0_class(class_hash);
        }
        let is_it = |class: &ReadyClass| {
            class.hashes.is_some_and(|hashes| [hashes.v1, hashes.v2].contains(&in_state))
        };
        let mut class = self.classes.get(class_hash)?;
        if class.as_ref().is_some_and(|class| !is_it(class)) {
            // It may be remembered from a block that was dropped.
            self.classes.forget(class_hash);
            class = self.classes.get(class_hash)?;
        }
        match class {
            Some(class) if is_it(&class) => Ok(Some(class)),
            Some(class) => Err(ClassError::Other { class_hash, in_state, kept: class.hashes.map(Box::new) }),
            None => Err(ClassError::Missing(class_hash)),
        }
    }

    /// A class that has no leaf in the state: a Cairo 0 class, if it is declared. The store may know it, or a Sierra class, of a
    /// block that was dropped or of one after this view.
    fn cairo_0_class(&self, class_hash: ClassHash) -> Result<Option<ReadyClass>, ClassError> {
        let class = self.classes.get(class_hash)?.filter(|class| class.hashes.is_none());
        let declared = lock(&self.shared.deployed).contains(&class_hash.0)
            || match cairo_0::is_recorded(&self.view, class_hash)? {
                Some(recorded) => recorded,
                None => class.is_some() && self.classes.has(class_hash)?,
            };
        match class {
            None if declared => Err(ClassError::Missing(class_hash)),
            class => Ok(class.filter(|_| declared)),
        }
    }

    /// The second compiled class hash of a class that is not in the view.
    fn hash(&self, class_hash: api::ClassHash, class: &CompiledClassV1) -> api::CompiledClassHash {
        if let Some((hashed, hash)) = lock(&self.shared.hashed).get(&class_hash.0)
            && Arc::ptr_eq(&hashed.0, &class.0)
        {
            return *hash;
        }
        let hash = class.hash(&HashVersion::V2);
        lock(&self.shared.hashed).insert(class_hash.0, (class.clone(), hash));
        hash
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl StateReader for ViewReader {
    fn get_storage_at(&self, address: api::ContractAddress, key: StorageKey) -> StateResult<Felt> {
        count(&self.shared.storage);
        let address = self.checked(convert::address(address))?;
        let key = self.checked(convert::storage_key(key))?;
        self.value(&Subject::Storage(address, key))
    }

    fn get_nonce_at(&self, address: api::ContractAddress) -> StateResult<api::Nonce> {
        count(&self.shared.nonces);
        let address = self.checked(convert::address(address))?;
        self.value(&Subject::Nonce(address)).map(api::Nonce)
    }

    fn get_class_hash_at(&self, address: api::ContractAddress) -> StateResult<api::ClassHash> {
        count(&self.shared.class_hashes);
        let address = self.checked(convert::address(address))?;
        let class_hash = self.value(&Subject::ClassHash(address))?;
        if class_hash != Felt::ZERO {
            lock(&self.shared.deployed).insert(class_hash);
        }
        Ok(api::ClassHash(class_hash))
    }

    fn get_compiled_class(&self, class_hash: api::ClassHash) -> StateResult<RunnableCompiledClass> {
        count(&self.shared.classes);
        match self.class(class_hash)? {
            Some(class) => Ok(class.runnable),
            None => Err(StateError::UndeclaredClassHash(class_hash)),
        }
    }

    fn get_compiled_class_hash(&self, class_hash: api::ClassHash) -> StateResult<api::CompiledClassHash> {
        self.compiled_class_hash_at(ClassHash(class_hash.0)).map(|hash| api::CompiledClassHash(hash.0))
    }

    /// Asked for classes that have a compiled class hash, in the view or by a declaration in the block that executes.
    fn get_compiled_class_hash_v2(
        &self,
        class_hash: api::ClassHash,
        class: &RunnableCompiledClass,
    ) -> StateResult<api::CompiledClassHash> {
        let in_view = self.class(class_hash)?.and_then(|class| class.hashes);
        match (in_view, class) {
            (Some(hashes), _) => Ok(api::CompiledClassHash(hashes.v2.0)),
            (None, RunnableCompiledClass::V1(class)) => Ok(self.hash(class_hash, class)),
            (None, RunnableCompiledClass::V0(_)) => self.checked(Err(ClassError::Unusable {
                class_hash: ClassHash(class_hash.0),
                problem: "a Cairo 0 class has no compiled class hash, and the executor asks for one"
                    .to_owned(),
            })),
        }
    }
}

impl std::fmt::Debug for ViewReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ViewReader").field("view", &self.view).finish_non_exhaustive()
    }
}
