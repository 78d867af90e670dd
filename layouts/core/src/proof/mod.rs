//! Proofs: what a state says, shown to somebody who has only its state commitment.
//!
//! [`StorageProof`] is `starknet_getStorageProof` of the JSON-RPC specification (0.8 to 0.10): the nodes on the ways to
//! some classes, contracts and storage slots. [`RangeProof`] is a run of consecutive leaves of one trie. Both are made
//! from any [`TrieRows`](crate::commit::TrieRows) and verified without a store.
//!
//! Whoever verifies trusts nothing in a proof. All nodes are hashed, in bulk; a node counts only where a way from the
//! root leads to it, is checked against the depth it stands at, and one that no asked key leads to is refused. Loops are
//! bounded by the number of asked keys times the height of a trie, whatever the nodes say.
//!
//! Source of the rules: the JSON-RPC specification for the form, the protocol's documentation of the state's tries for
//! hashes and shapes; checked against a real proof in this repository's tests.

mod nodes;
mod range;
mod storage;

pub use nodes::{ProofNode, Proven};
pub use range::{ProvenRange, RangeProof, prove_range};
pub use storage::{
    ContractLeafData, ContractStorageKeys, GlobalRoots, ProofRequest, StorageProof, VerifiedProof,
    prove_storage,
};

pub(crate) use nodes::check_hashes;

use crate::codec::DecodeError;
use crate::commitment::{CommitmentRule, Roots};
use crate::felt::Felt;
use crate::trie::{NodeRef, TrieId};
use crate::types::{BlockHash, ContractAddress, StateCommitment, TrieKey};

/// Why a proof is refused. Each names the node or the field, what it is, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// A node's content does not have the hash that is stated for it.
    #[error("node {stated:#x} of the {trie}: its content hashes to {computed:#x}")]
    NodeHash {
        /// The list it is in.
        trie: TrieId,
        /// The hash stated for it.
        stated: Felt,
        /// The hash of its content.
        computed: Felt,
    },
    /// A node that cannot be in a trie.
    #[error("node {hash:#x} of the {trie}: {problem}")]
    Malformed {
        /// The list it is in.
        trie: TrieId,
        /// The node.
        hash: Felt,
        /// What is wrong with it.
        problem: DecodeError,
    },
    /// A node that cannot be where a way from the root leads to it.
    #[error("{at}: {problem}")]
    Misplaced {
        /// The node and the place.
        at: Box<NodeRef>,
        /// What is wrong with it there.
        problem: DecodeError,
    },
    /// A node is listed more than once.
    #[error("node {hash:#x} of the {trie}: it is listed twice")]
    Repeated {
        /// The list it is in.
        trie: TrieId,
        /// The node.
        hash: Felt,
    },
    /// No way to an asked key leads over a node.
    #[error(
        "node {hash:#x} of the {trie}: it is superfluous, no way from root {root:#x} to an asked key leads over it"
    )]
    Superfluous {
        /// The list it is in.
        trie: TrieId,
        /// The node.
        hash: Felt,
        /// The root of the list.
        root: Felt,
    },
    /// The nodes of a list have no one node on top.
    #[error("{trie}: {tops} of its listed nodes are under no other; expected one, its root")]
    NoSingleRoot {
        /// The list.
        trie: TrieId,
        /// Nodes that are under no other.
        tops: usize,
    },
    /// A list of the answer is not as long as that of the request.
    #[error("{what}: {got} entries; expected {expected}, as many as were asked for")]
    Count {
        /// The list.
        what: &'static str,
        /// Entries asked for.
        expected: usize,
        /// Entries there are.
        got: usize,
    },
    /// A contract's leaf data does not hash to its leaf.
    #[error(
        "leaf data of contract {address}: it hashes to {computed:#x}; the contracts trie has {expected:#x}"
    )]
    LeafData {
        /// The contract.
        address: ContractAddress,
        /// The leaf in the contracts trie; zero if there is none.
        expected: Felt,
        /// The hash of the leaf data; zero if all of it is zero.
        computed: Felt,
    },
    /// A contract's leaf data lacks the storage root, no storage proof shows it, and it is not that of an empty trie.
    #[error(
        "leaf data of contract {0}: the storage root is not stated, no storage proof of the contract shows it, and it is \
         not zero; ask for a storage key of the contract too (contracts_storage_keys)"
    )]
    NoStorageRoot(ContractAddress),
    /// The roots do not commit to the state commitment.
    #[error("state commitment: the roots of the proof give {computed}; expected {expected}")]
    Commitment {
        /// The trusted one.
        expected: StateCommitment,
        /// What the roots give.
        computed: StateCommitment,
    },
    /// The commitment is the claimed contracts root itself, which also the hash of two other roots would be.
    #[error(
        "state commitment {0}: it can only be the contracts root itself if that root's node is shown, and it is not; \
         ask for a contract too (contract_addresses), any one will do"
    )]
    ContractsRootNotShown(StateCommitment),
    /// The proof is of another block.
    #[error("block hash: the proof is for {got}; expected {expected}", got = shown(.got))]
    BlockHash {
        /// The trusted one.
        expected: BlockHash,
        /// What the proof says.
        got: Option<BlockHash>,
    },
    /// A node that the leaves of a range need beside them is not there.
    #[error("{0}: it is at the boundary of the range and is not in the proof")]
    NoBoundary(NodeRef),
    /// A leaf of a range is zero, out of order, or outside.
    #[error("leaf {key}: {problem}")]
    Leaf {
        /// Its key.
        key: TrieKey,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The leaves of a range are not those of the trie.
    #[error("{at}: the leaves of the range give {computed:#x} there (0x0 is nothing)")]
    Range {
        /// The subtree that differs, with its hash in the trie; zero if the trie has nothing there.
        at: Box<NodeRef>,
        /// The hash of what the range has there.
        computed: Felt,
    },
}

fn shown(block_hash: &Option<BlockHash>) -> String {
    block_hash.map_or_else(|| "no stated block".to_owned(), |hash| hash.to_string())
}

/// What is known of a block from a source that is trusted, such as its header. What is `None` is not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Anchor {
    /// The state commitment after the block.
    pub commitment: Option<StateCommitment>,
    /// The commitment rule of the block's version. Without it either rule may give the commitment.
    pub rule: Option<CommitmentRule>,
    /// The block's hash.
    pub block_hash: Option<BlockHash>,
}

/// Checks claimed roots against a trusted state commitment.
///
/// Under [`CommitmentRule::ContractsRootAlone`] a commitment says nothing of how it came about: a prover could give out
/// the hash over both roots as the contracts root of a state without classes. So that rule is only believed if
/// `contracts_root_shown`: a node is known whose Pedersen hash the contracts root is.
///
/// # Errors
/// [`ProofError::Commitment`] or [`ProofError::ContractsRootNotShown`].
pub fn check_commitment(
    roots: Roots,
    expected: StateCommitment,
    rule: Option<CommitmentRule>,
    contracts_root_shown: bool,
) -> Result<(), ProofError> {
    let gives = |tried: CommitmentRule| {
        let may = rule.is_none_or(|rule| rule == tried) || !roots.rule_matters();
        may && roots.commitment(tried) == expected
    };
    if gives(CommitmentRule::AlwaysBoth) {
        return Ok(());
    }
    if !gives(CommitmentRule::ContractsRootAlone) {
        let computed = roots.commitment(rule.unwrap_or(CommitmentRule::AlwaysBoth));
        return Err(ProofError::Commitment { expected, computed });
    }
    if contracts_root_shown { Ok(()) } else { Err(ProofError::ContractsRootNotShown(expected)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::contract_leaf_hashes;
    use crate::commitment::ContractLeaf;
    use crate::hash;

    const ALONE: CommitmentRule = CommitmentRule::ContractsRootAlone;
    const BOTH: CommitmentRule = CommitmentRule::AlwaysBoth;

    #[test]
    fn a_hash_over_both_roots_does_not_pass_for_a_contracts_root() {
        let state = Roots { contracts: 5.into(), classes: 6.into() };
        let commitment = state.commitment(ALONE);
        let lie = Roots { contracts: commitment.0.into(), classes: 0.into() };
        for rule in [None, Some(ALONE)] {
            assert_eq!(
                check_commitment(lie, commitment, rule, false),
                Err(ProofError::ContractsRootNotShown(commitment))
            );
        }
        assert!(check_commitment(lie, commitment, Some(BOTH), true).is_err());
        assert_eq!(check_commitment(state, commitment, None, false), Ok(()));
    }

    #[test]
    fn a_commitment_is_compared_under_the_blocks_rule() {
        let roots = Roots { contracts: 5.into(), classes: 0.into() };
        for (rule, other) in [(ALONE, BOTH), (BOTH, ALONE)] {
            let commitment = roots.commitment(rule);
            assert_eq!(check_commitment(roots, commitment, Some(rule), true), Ok(()));
            assert_eq!(check_commitment(roots, commitment, None, true), Ok(()));
            assert_eq!(
                check_commitment(roots, commitment, Some(other), true),
                Err(ProofError::Commitment { expected: commitment, computed: roots.commitment(other) })
            );
        }
        assert_eq!(check_commitment(Roots::default(), StateCommitment::ZERO, None, false), Ok(()));
    }

    #[test]
    fn contract_leaves_are_three_hashes_deep() {
        let leaf = ContractLeaf { class_hash: 1.into(), storage_root: 2.into(), nonce: 3.into() };
        let [one, two, three] = [1u64, 2, 3].map(Felt::from);
        let expected = hash::pedersen(&hash::pedersen(&hash::pedersen(&one, &two), &three), &Felt::ZERO);
        let hashes = contract_leaf_hashes(&hash::Bulk, &[leaf, ContractLeaf::default()]);
        assert_eq!(hashes, [expected, Felt::ZERO]);
    }
}
