#![doc = include_str!("../README.md")]

mod audit;
mod cache;
mod record;
mod rows;
mod tries;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use cache::CacheCounters;
pub use record::DEPTH;

use cache::RecordCache;
use flagstone_core::audit::{Findings, Visited};
use flagstone_core::commit::{CommitmentSource, TrieRows, commit_blocks};
use flagstone_core::diff::{ContractDiff, StateDiff};
use flagstone_core::error::StateError;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::{Layout, StagedCommitment, StateAt, ValuesReadable};
use flagstone_core::store::WriteBatch;
use flagstone_core::trie::{TrieId, lookup};
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

/// Restores the values of one contract that a dropped block wrote.
fn restore_contract(
    tries: &Tries<'_>,
    batch: &mut WriteBatch,
    dropped: &ContractDiff,
) -> Result<(), StateError> {
    let address = &dropped.address;
    let leaf = tries.contract_leaf(address)?;
    if dropped.class_hash.is_some() {
        rows::put_felt(batch, rows::class_hash(address), &leaf.class_hash.0);
    }
    if dropped.nonce.is_some() {
        rows::put_felt(batch, rows::nonce(address), &leaf.nonce.0);
    }
    for (key, _) in &dropped.storage {
        let value = lookup(tries, TrieId::Storage(*address), leaf.storage_root.0, key.trie_key())?;
        rows::put_felt(batch, rows::storage(address, key), &value);
    }
    Ok(())
}

impl Layout for Flat {
    fn name(&self) -> &'static str {
        "flat"
    }

    fn format_version(&self) -> u32 {
        1
    }

    fn values_readable(&self) -> ValuesReadable {
        ValuesReadable::AtClose
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

    fn tries<'a>(&'a self, state: StateAt<'a>) -> Box<dyn TrieRows + 'a> {
        Box::new(Tries::apart(state, &self.cache))
    }

    fn audit(
        &self,
        state: StateAt<'_>,
        _visited: &Visited,
        _hasher: &dyn Hasher,
        findings: &Findings,
    ) -> Result<(), StateError> {
        audit::audit(state, findings)
    }

    fn stage_rollback(&self, state: StateAt<'_>, blocks: &[&StateDiff]) -> Result<WriteBatch, StateError> {
        let mut batch = WriteBatch::default();
        let no_cache = RecordCache::new(0);
        let tries = Tries::new(state, &no_cache);
        for diff in blocks {
            for contract in diff.contracts() {
                restore_contract(&tries, &mut batch, contract)?;
            }
            for class in diff.classes() {
                let what = || format!("leaf of class {}", class.class_hash);
                let committed = rows::felt_at(state.store, &rows::class_leaf(&class.class_hash), what)?;
                rows::put_felt(&mut batch, rows::compiled_class_hash(&class.class_hash), &committed);
            }
        }
        Ok(batch)
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
