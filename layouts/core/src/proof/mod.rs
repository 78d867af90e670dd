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

mod anchor;
mod error;
mod nodes;
mod range;
mod storage;

pub use anchor::{Anchor, check_commitment};
pub use error::ProofError;
pub(crate) use nodes::check_hashes;
pub use range::{ProvenRange, RangeProof, prove_range};
pub use storage::{
    ContractLeafData, ContractStorageKeys, GlobalRoots, ProofRequest, StorageProof, VerifiedProof,
    prove_storage,
};

pub use crate::outcome::proof::{ProofNode, Proven};
