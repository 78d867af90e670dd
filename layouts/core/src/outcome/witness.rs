//! What a block read and wrote in all tries.

use super::proof::ProofNode;
use crate::commitment::{ContractLeaf, Roots};
use crate::diff::Subject;
use crate::trie::TrieId;
use crate::types::{BlockNumber, ClassHash, CompiledClassHash, ContractAddress};

/// What a block read and wrote in all tries, before and after it. Made in one order, so that equal witnesses are equal
/// bytes; any values are safe to [`apply`](Witness::apply).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Witness {
    /// The block, if whoever made the witness knew its number.
    pub block: Option<BlockNumber>,
    /// Roots before the block.
    pub before: Roots,
    /// Roots after the block.
    pub after: Roots,
    /// What the block read, besides what its diff writes, as whoever made the witness says: a check can tell that these
    /// keys are shown, and not that they were read.
    pub reads: Vec<Subject>,
    /// What leaves of touched contracts committed to before the block, ascending by address, without absent ones.
    pub contracts: Vec<(ContractAddress, ContractLeaf)>,
    /// What leaves of touched classes committed to before the block, ascending by class hash, without absent ones.
    pub classes: Vec<(ClassHash, CompiledClassHash)>,
    /// The tries, ascending.
    pub tries: Vec<WitnessTrie>,
}

/// The part of a witness that is one trie's. Both lists are ascending by hash, each node once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessTrie {
    /// The trie.
    pub trie: TrieId,
    /// Nodes before the block on the ways to touched keys, siblings that edges merge with, and the bottoms of all edges
    /// among these.
    pub before: Vec<ProofNode>,
    /// Nodes that the block makes.
    pub after: Vec<ProofNode>,
}
