#![doc = include_str!("../README.md")]

mod audit;
mod cache;
mod record;
mod rows;
mod scrub;
mod tries;

use std::sync::Arc;

pub use record::DEPTH;

use cache::RecordCache;
use flagstone_core::audit::{Findings, Visited};
use flagstone_core::commit::{NamedLeaves, TrieRows, commit_blocks};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::{CacheCounters, Layout, StagedCommitment, StateAt};
use flagstone_core::scrub::{Scrub, Scrubbed};
use flagstone_core::store::WriteBatch;
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue};
use flagstone_core::witness::{Witness, commit_with_witness};

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

    /// The rows of committed blocks, and their records for the cache once the rows are written.
    fn staged(&self, tries: Tries<'_>, staged: StagedCommitment) -> StagedCommitment {
        let (batch, records) = tries.finish();
        let after = staged.roots.last().copied();
        let applied = after.map(|after| {
            let cache = Arc::clone(&self.cache);
            Box::new(move || cache.give_back(records, after)) as Box<dyn FnOnce() + Send>
        });
        StagedCommitment { batch, applied, ..staged }
    }
}

impl Layout for Flat {
    fn name(&self) -> &'static str {
        "flat"
    }

    fn format_version(&self) -> u32 {
        2
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

    fn compiled_class_hash_at(
        &self,
        state: StateAt<'_>,
        class_hash: &ClassHash,
    ) -> Result<CompiledClassHash, StateError> {
        let what = || format!("compiled class hash of class {class_hash}");
        rows::felt_at(state.store, &rows::compiled_class_hash(class_hash), what).map(CompiledClassHash)
    }

    fn values(&self, state: StateAt<'_>, subjects: &[Subject]) -> Result<Vec<Felt>, StateError> {
        let keys: Vec<Vec<u8>> = subjects.iter().map(rows::value).collect();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let felt = |(subject, row): (&Subject, Option<Vec<u8>>)| match row {
            Some(row) => {
                rows::decode_felt(&row).map_err(|error| StateError::damaged(format!("{subject}"), error))
            }
            None => Ok(Felt::ZERO),
        };
        subjects.iter().zip(state.store.get_many(&keys)?).map(felt).collect()
    }

    fn stage_values(&self, diff: &StateDiff) -> WriteBatch {
        let mut batch = WriteBatch::default();
        // One keyspace after the other: the order of keys.
        for contract in diff.contracts() {
            for (key, value) in &contract.storage {
                rows::put_felt(&mut batch, rows::storage(&contract.address, key), &value.0);
            }
        }
        for contract in diff.contracts() {
            if let Some(class_hash) = &contract.class_hash {
                rows::put_felt(&mut batch, rows::class_hash(&contract.address), &class_hash.0);
            }
        }
        for contract in diff.contracts() {
            if let Some(nonce) = &contract.nonce {
                rows::put_felt(&mut batch, rows::nonce(&contract.address), &nonce.0);
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
        let mut tries = Tries::new(state, &self.cache, blocks);
        let staged = commit_blocks(&mut tries, state.roots, blocks, hasher, |_| {})?;
        Ok(self.staged(tries, staged))
    }

    fn stage_commitment_with_witness(
        &self,
        state: StateAt<'_>,
        block: &StateDiff,
        reads: &[Subject],
        hasher: &dyn Hasher,
    ) -> Result<(StagedCommitment, Witness), StateError> {
        let blocks = [block];
        let mut tries = Tries::new(state, &self.cache, &blocks);
        let (staged, witness) = commit_with_witness(&mut tries, state.roots, block, reads, hasher, |_| {})?;
        Ok((self.staged(tries, staged), witness))
    }

    fn stage_aside(
        &self,
        state: StateAt<'_>,
        block: &StateDiff,
        reads: Option<&[Subject]>,
        hasher: &dyn Hasher,
    ) -> Result<(StagedCommitment, Witness), StateError> {
        let blocks = [block];
        let mut tries = Tries::aside(state, &self.cache, &blocks);
        let (staged, witness) = match reads {
            Some(reads) => commit_with_witness(&mut tries, state.roots, block, reads, hasher, |_| {})?,
            None => (commit_blocks(&mut tries, state.roots, &blocks, hasher, |_| {})?, Witness::default()),
        };
        let (batch, records) = tries.finish();
        let after = staged.roots.last().copied().unwrap_or(state.roots);
        let (cache, before) = (Arc::clone(&self.cache), state.roots);
        let applied = Box::new(move || cache.merge(records, before, after)) as Box<dyn FnOnce() + Send>;
        Ok((StagedCommitment { batch, applied: Some(applied), ..staged }, witness))
    }

    fn taken_back(&self, batch: &WriteBatch, before: Roots, after: Roots) {
        self.cache.take_back(batch.iter().filter_map(|(key, _)| rows::cached_of_key(key)), before, after);
    }

    fn tries<'a>(&'a self, state: StateAt<'a>) -> Box<dyn TrieRows + Send + 'a> {
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

    fn has_value_rows(&self) -> bool {
        true
    }

    fn scrub(&self, state: StateAt<'_>, scrub: &mut Scrub, rows_max: u64) -> Result<Scrubbed, StateError> {
        scrub::scrub(state, scrub, rows_max)
    }

    fn set_cache_bytes(&self, bytes_max: usize) {
        self.cache.set_bytes_max(bytes_max);
    }

    fn cache_counters(&self) -> Option<CacheCounters> {
        Some(self.cache.counters())
    }

    /// Reads the records and contract leaves on the way into the cache; if a commitment has it, beside it.
    fn prefetch(&self, state: StateAt<'_>, subjects: &[Subject]) -> Result<(), StateError> {
        let Some(ticket) = self.cache.begin_ahead(&state.roots) else { return Ok(()) };
        let read = Tries::apart(state, &self.cache).read_ahead(NamedLeaves::of(subjects))?;
        self.cache.put_ahead(ticket, read);
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use flagstone_core::hash::Bulk;
    use flagstone_core::store::{MemoryStore, Store};
    use flagstone_testkit::reference::ReferenceState;

    use super::*;
    use flagstone_core::diff::ContractDiff;
    use flagstone_core::trie::{TrieId, lookup};

    /// Block `number` of a sequence: some slots of a few contracts, now and then to zero.
    fn block(number: u64) -> StateDiff {
        let mut builder = StateDiff::builder();
        let mixed = |of: u64| (number * 31 + of).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        for slot in 0..40 {
            let (address, key) = (mixed(slot) % 3 + 1, mixed(slot + 100) % 200);
            let value =
                if (number + key).is_multiple_of(4) { 0 } else { number * 1000 + address * 300 + key };
            builder = builder.storage(address.into(), key.into(), value.into());
        }
        builder.class_hash(2.into(), (number % 5).into()).build().unwrap()
    }

    fn subjects(diff: &StateDiff) -> Vec<Subject> {
        let slots = |contract: &ContractDiff| {
            let address = contract.address;
            contract.storage.iter().map(move |(key, _)| Subject::Storage(address, *key)).collect::<Vec<_>>()
        };
        diff.contracts().iter().flat_map(slots).collect()
    }

    /// Commits blocks and takes some of them back, while others read ahead and walk the tries all the time.
    #[test]
    fn reading_ahead_beside_commitments_changes_no_root() {
        let (layout, store) = (Flat::with_cache(1 << 20), MemoryStore::new());
        let current = Mutex::new(Roots::default());
        let done = AtomicBool::new(false);
        let state = |roots| StateAt { store: &store, roots };
        let commit = |diff: &StateDiff| {
            let before = *current.lock().unwrap();
            let mut staged = layout.stage_commitment(state(before), &[diff], &Bulk).unwrap();
            store.write(&staged.batch).unwrap();
            staged.applied.take().into_iter().for_each(|applied| applied());
            *current.lock().unwrap() = staged.roots[0];
            staged
        };
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let (layout, current, done, state) = (&layout, &current, &done, &state);
                scope.spawn(move || {
                    for number in (seed..).take_while(|_| !done.load(Ordering::Relaxed)) {
                        let roots = *current.lock().unwrap();
                        // The rows can move on under the reader: it may fail, and must do no harm.
                        let _ = layout.prefetch(state(roots), &subjects(&block(number % 150)));
                        let tries = layout.tries(state(roots));
                        let _ = lookup(&*tries, TrieId::Contracts, roots.contracts.0, &2.into());
                    }
                });
            }
            let mut reference = ReferenceState::new();
            for number in 0..150 {
                let (diff, before) = (block(number), reference.clone());
                reference.apply(&diff);
                let staged = commit(&diff);
                assert_eq!(staged.roots, [reference.roots()]);
                if number % 3 == 0 {
                    assert_eq!(commit(&staged.undo[0]).roots, [before.roots()]);
                    reference = before;
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_commitment_finds_what_was_read_ahead() {
        let (first, store) = (Flat::new(), MemoryStore::new());
        let staged = first
            .stage_commitment(StateAt { store: &store, roots: Roots::default() }, &[&block(1)], &Bulk)
            .unwrap();
        store.write(&staged.batch).unwrap();
        let state = StateAt { store: &store, roots: staged.roots[0] };
        let cold = Flat::new();
        cold.prefetch(state, &subjects(&block(1))).unwrap();
        cold.stage_commitment(state, &[&block(1)], &Bulk).unwrap();
        let counters = cold.cache_counters().unwrap();
        assert_eq!(counters.misses, 0);
        assert!(counters.hits > 0);
    }

    /// A commitment that is taken back leaves the cache of the state before, without what it changed.
    #[test]
    fn what_is_taken_back_leaves_the_rest_of_the_cache() {
        let (layout, store) = (Flat::new(), MemoryStore::new());
        let state = |roots| StateAt { store: &store, roots };
        let stage = |roots, number| layout.stage_commitment(state(roots), &[&block(number)], &Bulk).unwrap();
        let apply = |staged: &mut StagedCommitment| {
            staged.applied.take().into_iter().for_each(|applied| applied());
            staged.roots[0]
        };
        let wide = (0..4000u64).fold(StateDiff::builder(), |diff, key| {
            diff.storage((key % 3 + 1).into(), (key * 77).into(), (key + 1).into())
        });
        let wide = wide.build().unwrap();
        let mut staged = layout.stage_commitment(state(Roots::default()), &[&wide], &Bulk).unwrap();
        store.write(&staged.batch).unwrap();
        let first = apply(&mut staged);
        let whole = layout.cache.bytes();
        let (mut second, expected) = (stage(first, 2), stage(first, 2).roots);
        assert_eq!(second.roots, expected, "the cache is taken, and what is read instead is right");
        let after = apply(&mut second);
        let mut third = stage(after, 3);
        let last = apply(&mut third);
        layout.taken_back(&third.batch, after, last);
        layout.taken_back(&second.batch, first, after);
        let (left, misses) = (layout.cache.bytes(), layout.cache_counters().unwrap().misses);
        assert!(left > whole * 3 / 4 && left < whole, "{left} of {whole}");
        let mut again = layout.stage_commitment(state(first), &[&wide.then(&block(4))], &Bulk).unwrap();
        let known = layout.cache_counters().unwrap();
        assert!(known.misses > misses && known.misses - misses < 200, "{}", known.misses - misses);
        let cold = Flat::with_cache(0);
        let fresh = cold.stage_commitment(state(first), &[&wide.then(&block(4))], &Bulk).unwrap();
        assert_eq!((&again.roots, &again.batch), (&fresh.roots, &fresh.batch));
        // What is not on top any more is let be.
        let root = apply(&mut again);
        layout.taken_back(&third.batch, after, last);
        assert_eq!(layout.cache.look(&root, |_| Some(())), Some(()));
    }

    /// What is committed aside and dropped takes nothing out of the cache; what is applied is in it for the next block.
    #[test]
    fn a_block_committed_aside_leaves_the_cache_to_the_others() {
        let (layout, store) = (Flat::new(), MemoryStore::new());
        let state = |roots| StateAt { store: &store, roots };
        let write = |staged: &mut StagedCommitment| {
            store.write(&staged.batch).unwrap();
            staged.applied.take().into_iter().for_each(|applied| applied());
            staged.roots[0]
        };
        let misses = || layout.cache_counters().unwrap().misses;
        let first =
            write(&mut layout.stage_commitment(state(Roots::default()), &[&block(1)], &Bulk).unwrap());
        let known = misses();
        for reads in [None, Some(&[][..])] {
            drop(layout.stage_aside(state(first), &block(1), reads, &Bulk).unwrap());
        }
        let (mut aside, _) = layout.stage_aside(state(first), &block(2), None, &Bulk).unwrap();
        drop(layout.stage_aside(state(first), &block(3), None, &Bulk).unwrap());
        let second = write(&mut aside);
        let both = block(1).then(&block(2));
        layout.stage_commitment(state(second), &[&both], &Bulk).unwrap();
        assert_eq!(misses(), known, "all that the two blocks touched is in memory");
    }
}
