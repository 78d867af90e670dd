#![doc = include_str!("../README.md")]

mod addressing;
mod audit;
mod prune;
mod tries;

pub use addressing::{Addressing, ByHash, ByPath};

use flagstone_core::audit::{Findings, Visited};
use flagstone_core::codec::put_short_felt;
use flagstone_core::commit::{BlockChanges, TrieRows, commit_blocks};
use flagstone_core::commitment::Roots;
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::{Layout, StagedCommitment, StateAt};
use flagstone_core::store::{BatchBuilder, StoreRead, WriteBatch};
use flagstone_core::trie::{NodeRef, TrieId, lookup};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue};
use flagstone_core::witness::{Witness, commit_with_witness};

use tries::Tries;

/// Nodes as rows, values in leaves, filed as `A` says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patricia<A>(A);

impl<A: Addressing> Patricia<A> {
    /// The layout.
    pub const fn new(addressing: A) -> Self {
        Self(addressing)
    }

    /// Rows that a block's commitment writes and deletes.
    fn stage(&self, batch: &mut BatchBuilder, block: &BlockChanges) {
        for trie in &block.tries {
            if self.0.removes() {
                // Only layouts that file nodes by path remove any.
                for path in &trie.removed {
                    let at = NodeRef { trie: trie.trie, path: *path, hash: Felt::ZERO };
                    batch.delete(self.0.node_key(&at));
                }
            }
            for new in trie.written() {
                let at = NodeRef { trie: trie.trie, path: new.path, hash: new.hash };
                batch.put_with(self.0.node_key(&at), |row| new.node.encode(row));
            }
        }
        for change in &block.contracts {
            let key = self.0.contract_leaf_key(&change.address, &change.hash);
            self.stage_leaf(batch, key, &change.hash, |row| row.extend(change.leaf.encode()));
        }
        for change in &block.classes {
            let key = self.0.class_leaf_key(&change.class_hash, &change.hash);
            self.stage_leaf(batch, key, &change.hash, |row| {
                put_short_felt(row, &change.compiled_class_hash.0)
            });
        }
    }

    fn stage_leaf(
        &self,
        batch: &mut BatchBuilder,
        key: Vec<u8>,
        hash: &Felt,
        row: impl FnOnce(&mut Vec<u8>),
    ) {
        if *hash != Felt::ZERO {
            batch.put_with(key, row);
        } else if self.0.removes() {
            batch.delete(key);
        }
    }
}

impl<A: Addressing> Layout for Patricia<A> {
    fn name(&self) -> &'static str {
        self.0.layout_name()
    }

    fn format_version(&self) -> u32 {
        1
    }

    fn keeps_old_states(&self) -> bool {
        !self.0.removes()
    }

    fn needless_rows(
        &self,
        store: &dyn StoreRead,
        kept: &[Roots],
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<u64, StateError> {
        if self.0.removes() { Ok(0) } else { prune::needless_rows(store, kept, visit) }
    }

    fn storage_at(
        &self,
        state: StateAt<'_>,
        address: &ContractAddress,
        key: &StorageKey,
    ) -> Result<StorageValue, StateError> {
        let tries = Tries { addressing: &self.0, state };
        let root = tries.contract_leaf(address)?.storage_root.0;
        lookup(&tries, TrieId::Storage(*address), root, key.trie_key()).map(StorageValue)
    }

    fn nonce_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<Nonce, StateError> {
        Ok(Tries { addressing: &self.0, state }.contract_leaf(address)?.nonce)
    }

    fn class_hash_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<ClassHash, StateError> {
        Ok(Tries { addressing: &self.0, state }.contract_leaf(address)?.class_hash)
    }

    fn compiled_class_hash_at(
        &self,
        state: StateAt<'_>,
        class_hash: &ClassHash,
    ) -> Result<CompiledClassHash, StateError> {
        Tries { addressing: &self.0, state }.class_leaf(class_hash)
    }

    fn stage_values(&self, _diff: &StateDiff) -> WriteBatch {
        WriteBatch::default()
    }

    fn stage_commitment(
        &self,
        state: StateAt<'_>,
        blocks: &[&StateDiff],
        hasher: &dyn Hasher,
    ) -> Result<StagedCommitment, StateError> {
        let mut tries = Tries { addressing: &self.0, state };
        let mut batch = BatchBuilder::default();
        let staged =
            commit_blocks(&mut tries, state.roots, blocks, hasher, |block| self.stage(&mut batch, block))?;
        Ok(StagedCommitment { batch: batch.build(), ..staged })
    }

    fn stage_commitment_with_witness(
        &self,
        state: StateAt<'_>,
        block: &StateDiff,
        reads: &[Subject],
        hasher: &dyn Hasher,
    ) -> Result<(StagedCommitment, Witness), StateError> {
        let mut tries = Tries { addressing: &self.0, state };
        let mut batch = BatchBuilder::default();
        let stage = |block: &BlockChanges| self.stage(&mut batch, block);
        let (staged, witness) = commit_with_witness(&mut tries, state.roots, block, reads, hasher, stage)?;
        Ok((StagedCommitment { batch: batch.build(), ..staged }, witness))
    }

    fn tries<'a>(&'a self, state: StateAt<'a>) -> Box<dyn TrieRows + Send + 'a> {
        Box::new(Tries { addressing: &self.0, state })
    }

    fn audit(
        &self,
        state: StateAt<'_>,
        visited: &Visited,
        hasher: &dyn Hasher,
        findings: &Findings,
    ) -> Result<(), StateError> {
        if self.0.removes() {
            return audit::by_path(&Tries { addressing: &self.0, state }, visited, findings);
        }
        audit::by_hash(state, visited, hasher, findings)
    }
}

#[cfg(test)]
mod by_path {
    flagstone_testkit::conformance!(crate::Patricia::new(crate::ByPath));
}

#[cfg(test)]
mod by_hash {
    flagstone_testkit::conformance!(crate::Patricia::new(crate::ByHash));
}
