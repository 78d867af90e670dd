//! Reading nodes and leaves.

use flagstone_core::codec::{DecodeError, Reader};
use flagstone_core::commit::{CommitmentSource, TrieRows};
use flagstone_core::commitment::ContractLeaf;
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::layout::StateAt;
use flagstone_core::trie::{Node, NodeRef, NodeSource, TrieId, lookup};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress, TrieKey};

use crate::addressing::Addressing;

/// The tries of one state, read through its store.
pub(crate) struct Tries<'a, A> {
    pub(crate) addressing: &'a A,
    pub(crate) state: StateAt<'a>,
}

impl<A: Addressing> NodeSource for Tries<'_, A> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        let Some(row) = self.state.store.get(&self.addressing.node_key(at))? else { return Ok(None) };
        Node::decode(&row, at.path.len()).map(Some).map_err(StateError::undecodable(at))
    }
}

impl<A: Addressing> Tries<'_, A> {
    /// The row behind a leaf that is in a trie.
    fn leaf_row(&self, key: &[u8], what: impl Fn() -> String) -> Result<Vec<u8>, StateError> {
        self.state.store.get(key)?.ok_or_else(|| StateError::damaged(what(), "its row is missing"))
    }
}

impl<A: Addressing> TrieRows for Tries<'_, A> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        let root = self.state.roots.contracts.0;
        let hash = lookup(self, TrieId::Contracts, root, address.trie_key())?;
        if hash == Felt::ZERO {
            return Ok(ContractLeaf::default());
        }
        let what = || format!("leaf of contract {address}");
        let row = self.leaf_row(&self.addressing.contract_leaf_key(address, &hash), what)?;
        ContractLeaf::decode(&row).map_err(StateError::undecodable(what()))
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        // A Cairo 0 class may have any hash; it has no leaf.
        let Ok(key) = TrieKey::try_from(class_hash.0) else { return Ok(CompiledClassHash::ZERO) };
        let hash = lookup(self, TrieId::Classes, self.state.roots.classes.0, &key)?;
        if hash == Felt::ZERO {
            return Ok(CompiledClassHash::ZERO);
        }
        let what = || format!("leaf of class {class_hash}");
        let row = self.leaf_row(&self.addressing.class_leaf_key(class_hash, &hash), what)?;
        decode_class_leaf(&row).map_err(StateError::undecodable(what()))
    }
}

impl<A: Addressing> CommitmentSource for Tries<'_, A> {}

pub(crate) fn decode_class_leaf(row: &[u8]) -> Result<CompiledClassHash, DecodeError> {
    let mut from = Reader::new(row);
    let compiled = from.short_felt("compiled class hash")?;
    from.end("class leaf")?;
    Ok(CompiledClassHash(compiled))
}
