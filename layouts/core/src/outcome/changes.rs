//! What commitments change.

use std::fmt;

use crate::commitment::{ContractLeaf, Roots};
use crate::diff::StateDiff;
use crate::felt::Felt;
use crate::store::WriteBatch;
use crate::trie::TrieChanges;
use crate::types::{ClassHash, CompiledClassHash, ContractAddress, TrieKey};

/// A contract's leaf that a block changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContractLeafChange {
    /// The contract.
    pub address: ContractAddress,
    /// The leaf, a hash; zero if the contract is absent now.
    pub hash: Felt,
    /// What it commits to.
    pub leaf: ContractLeaf,
}

/// A class's leaf that a block changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLeafChange {
    /// The class.
    pub class_hash: ClassHash,
    /// The leaf, a hash; zero if the class is absent now.
    pub hash: Felt,
    /// What it commits to.
    pub compiled_class_hash: CompiledClassHash,
}

impl ClassLeafChange {
    /// The key of the leaf.
    pub(crate) fn trie_key(&self) -> Option<TrieKey> {
        TrieKey::try_from(self.class_hash.0).ok()
    }
}

/// How many hashes were computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct HashCounts {
    /// Pedersen hashes.
    pub pedersen: u64,
    /// Poseidon hashes of two felts.
    pub poseidon: u64,
}

impl std::ops::AddAssign for HashCounts {
    fn add_assign(&mut self, other: Self) {
        self.pedersen += other.pedersen;
        self.poseidon += other.poseidon;
    }
}

/// What committing one block changes.
#[derive(Debug, Clone, Default)]
pub struct BlockChanges {
    /// Roots after the block.
    pub roots: Roots,
    /// Nodes of all changed tries.
    pub tries: Vec<TrieChanges>,
    /// Changed leaves of the contracts trie, ascending by address.
    pub contracts: Vec<ContractLeafChange>,
    /// Leaves of the classes trie that the block sets, ascending by class hash.
    pub classes: Vec<ClassLeafChange>,
    /// The diff that takes the block back: every value that the block sets, as it was before.
    pub undo: StateDiff,
    /// Hashes computed for it.
    pub hashes: HashCounts,
}

/// What committing a group of blocks changes.
#[derive(Debug, Default)]
pub struct GroupChanges {
    /// What each block changes.
    pub blocks: Vec<BlockChanges>,
    /// What the blocks together do to the tries: the nodes that are there after the last of them.
    pub tries: Vec<TrieChanges>,
}

/// What committing one or more blocks writes.
///
/// Layouts build it by a literal, so it is not `#[non_exhaustive]`.
#[derive(Default)]
pub struct StagedCommitment {
    /// Rows to write and delete.
    pub batch: WriteBatch,
    /// Roots after each of the blocks, in order.
    pub roots: Vec<Roots>,
    /// For each of the blocks, in order, the diff that takes it back.
    pub undo: Vec<StateDiff>,
    /// For each of the blocks, in order, the contract leaves that it changed, ascending by address.
    pub contracts: Vec<Vec<ContractLeafChange>>,
    /// Hashes computed.
    pub hashes: HashCounts,
    /// What the layout wants done once the batch is written, such as moving a cache on. Dropped if it is not written.
    pub applied: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for StagedCommitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedCommitment")
            .field("rows", &self.batch.len())
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}
