#![doc = include_str!("../README.md")]

mod rows;

use flagstone_core::commit::{BlockChanges, CommitmentSource, commit_blocks};
use flagstone_core::commitment::ContractLeaf;
use flagstone_core::diff::{ContractDiff, StateDiff};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::{Layout, StagedCommitment, StateAt, ValuesReadable};
use flagstone_core::store::{StoreRead, WriteBatch};
use flagstone_core::trie::{Node, NodeRef, NodeSource, TrieId, lookup};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress, Nonce, StorageKey, StorageValue};

/// Values in sorted rows, the commitment beside them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flat;

impl Flat {
    /// The layout.
    pub const fn new() -> Self {
        Self
    }
}

/// The tries of one state, read through its store. Nothing here reads a value row.
struct Tries<'a>(StateAt<'a>);

impl NodeSource for Tries<'_> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        let Some(row) = self.0.store.get(&rows::node(at))? else { return Ok(None) };
        Node::decode(&row, at.path.len()).map(Some).map_err(StateError::undecodable(at))
    }
}

impl CommitmentSource for Tries<'_> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        let Some(row) = self.0.store.get(&rows::contract_leaf(address))? else {
            return Ok(ContractLeaf::default());
        };
        ContractLeaf::decode(&row).map_err(StateError::undecodable(format!("leaf of contract {address}")))
    }
}

/// A felt's row; zero if there is none.
fn felt_at(store: &dyn StoreRead, key: &[u8], what: impl FnOnce() -> String) -> Result<Felt, StateError> {
    match store.get(key)? {
        Some(row) => rows::decode_felt(&row).map_err(|error| StateError::damaged(what(), error)),
        None => Ok(Felt::ZERO),
    }
}

/// Rows that a block's commitment writes and deletes.
fn stage_block(batch: &mut WriteBatch, block: &BlockChanges) {
    for trie in &block.tries {
        for (path, hash) in &trie.removed {
            batch.delete(rows::node(&NodeRef { trie: trie.trie, path: *path, hash: *hash }));
        }
        for new in &trie.written {
            let mut row = Vec::with_capacity(66);
            new.node.encode(&mut row);
            batch.put(rows::node(&NodeRef { trie: trie.trie, path: new.path, hash: new.hash }), row);
        }
    }
    for change in &block.contracts {
        let key = rows::contract_leaf(&change.address);
        if change.leaf.is_absent() {
            batch.delete(key);
        } else {
            batch.put(key, change.leaf.encode());
        }
    }
    for change in &block.classes {
        rows::put_felt(batch, rows::class_leaf(&change.class_hash), &change.compiled_class_hash.0);
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
        felt_at(state.store, &rows::storage(address, key), what).map(StorageValue)
    }

    fn nonce_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<Nonce, StateError> {
        felt_at(state.store, &rows::nonce(address), || format!("nonce of contract {address}")).map(Nonce)
    }

    fn class_hash_at(&self, state: StateAt<'_>, address: &ContractAddress) -> Result<ClassHash, StateError> {
        let what = || format!("class hash of contract {address}");
        felt_at(state.store, &rows::class_hash(address), what).map(ClassHash)
    }

    fn compiled_class_hash(
        &self,
        state: StateAt<'_>,
        class_hash: &ClassHash,
    ) -> Result<CompiledClassHash, StateError> {
        let what = || format!("compiled class hash of class {class_hash}");
        felt_at(state.store, &rows::compiled_class_hash(class_hash), what).map(CompiledClassHash)
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
        let tries = Tries(state);
        commit_blocks(&tries, state.roots, blocks, hasher, stage_block)
    }

    fn stage_rollback(&self, state: StateAt<'_>, blocks: &[&StateDiff]) -> Result<WriteBatch, StateError> {
        let mut batch = WriteBatch::default();
        let tries = Tries(state);
        for diff in blocks {
            for contract in diff.contracts() {
                restore_contract(&tries, &mut batch, contract)?;
            }
            for class in diff.classes() {
                let what = || format!("leaf of class {}", class.class_hash);
                let committed = felt_at(state.store, &rows::class_leaf(&class.class_hash), what)?;
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
