//! Why a proof is refused.

use crate::codec::DecodeError;
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
