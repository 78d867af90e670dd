#![doc = include_str!("../README.md")]

mod cache;
mod record;
mod rows;
mod tries;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use cache::CacheCounters;
pub use record::DEPTH;

use cache::RecordCache;
use flagstone_core::commit::{CommitmentSource, TrieRows, commit_blocks};
use flagstone_core::diff::StateDiff;
use flagstone_core::error::StateError;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::{Layout, StagedCommitment, StateAt};
use flagstone_core::store::WriteBatch;
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue};

use tries::Tries;

/// Values in sorted rows, the commitment beside them in packed records.
///
/// Clones share one cache.
#[derive(Clone)]
pub struct Flat {
    cache: Arc<RecordCache>,
}

/// Default bound of the cache of decoded records.
pub const CACHE_BYTES: usize = 64 << 20;

impl Default for Flat {
    fn default() -> Self {
        Self::new()
    }
}

impl Flat {
    /// The layout, with a cache of [`CACHE_BYTES`].
    pub fn new() -> Self {
        Self::with_cache(CACHE_BYTES)
    }

    /// The layout, with a cache of at most so many bytes of decoded records; zero for none.
    pub fn with_cache(bytes_max: usize) -> Self {
        Self { cache: Arc::new(RecordCache::new(bytes_max)) }
    }

    /// How often the cache of decoded records could answer.
    pub fn cache_counters(&self) -> CacheCounters {
        self.cache.counters()
    }
}

impl Layout for Flat {
    fn name(&self) -> &'static str {
        "flat"
    }

    fn format_version(&self) -> u32 {
        1
    }

    fn storage_at(
        &self,
        state: StateAt<'_>,
        address: &ContractAddress,
        key: &StorageKey,
    ) -> Result<StorageValue, StateError> {
        let what = || format!("storage {key} of contract {address}");
        rows::felt_at(state.store, &rows::storage(address, key), what).map(StorageValue)
    }

    fn nonce_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<Nonce, StateError> {
        rows::felt_at(state.store, &rows::nonce(address), || format!("nonce of contract {address}"))
            .map(Nonce)
    }

    fn class_hash_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<ClassHash, StateError> {
        let what = || format!("class hash of contract {address}");
        rows::felt_at(state.store, &rows::class_hash(address), what).map(ClassHash)
    }

    fn compiled_class_hash(
        &self,
        state: StateAt<'_>,
        class_hash: &ClassHash,
    ) -> Result<CompiledClassHash, StateError> {
        let what = || format!("compiled class hash of class {class_hash}");
        rows::felt_at(state.store, &rows::compiled_class_hash(class_hash), what).map(CompiledClassHash)
    }

    fn stage_values(&self, diff: &StateDiff) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for contract in diff.contracts() {
            let address = &contract.address;
            if let Some(class_hash) = &contract.class_hash {
                rows::put_felt(&mut batch, rows::class_hash(address), &class_hash.0);
            }
            if let Some(nonce) = &contract.nonce {
                rows::put_felt(&mut batch, rows::nonce(address), &nonce.0);
            }
            for (key, value) in &contract.storage {
                rows::put_felt(&mut batch, rows::storage(address, key), &value.0);
            }
        }
        for class in diff.classes() {
            let key = rows::compiled_class_hash(&class.class_hash);
            rows::put_felt(&mut batch, key, &class.compiled_class_hash.0);
        }
        batch
    }

    fn stage_commitment(
        &self,
        state: StateAt<'_>,
        blocks: &[&StateDiff],
        hasher: &dyn Hasher,
    ) -> Result<StagedCommitment, StateError> {
        let mut committed = commit_blocks(Tries::new(state, &self.cache), state.roots, blocks, hasher)?;
        if let Some(last) = committed.blocks.last() {
            committed.source.absorb(last)?;
        }
        let mut staged = committed.staged(WriteBatch::default());
        let leaves: BTreeSet<ContractAddress> = committed
            .blocks
            .iter()
            .flat_map(|block| block.contracts.iter().map(|change| change.address))
            .collect();
        let (mut batch, records) = committed.source.finish(leaves.into_iter());
        for change in committed.blocks.iter().flat_map(|block| &block.classes) {
            rows::put_felt(&mut batch, rows::class_leaf(&change.class_hash), &change.compiled_class_hash.0);
        }
        staged.batch = batch;
        if let Some(after) = staged.roots.last().copied() {
            let cache = Arc::clone(&self.cache);
            staged.applied = Some(Box::new(move || cache.give_back(records, after)));
        }
        Ok(staged)
    }

    fn tries<'a>(&'a self, state: StateAt<'a>) -> Box<dyn TrieRows + Send + 'a> {
        Box::new(Tries::apart(state, &self.cache))
    }
}

#[cfg(test)]
mod conformance {
    flagstone_testkit::conformance!(crate::Flat::new());
}

#[cfg(test)]
mod conformance_without_cache {
    flagstone_testkit::conformance!(crate::Flat::with_cache(0));
}

#[cfg(test)]
mod conformance_with_a_tiny_cache {
    flagstone_testkit::conformance!(crate::Flat::with_cache(4096));
}
