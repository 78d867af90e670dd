//! Why a witness is refused.

use crate::codec::DecodeError;
use crate::commitment::Roots;
use crate::error::StateError;
use crate::felt::Felt;
use crate::proof::ProofError;
use crate::trie::{NodeRef, TrieId};

/// Why a witness is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessError {
    /// The bytes are no witness.
    #[error("witness: {0}")]
    Decode(#[from] DecodeError),
    /// It is of another version.
    #[error(
        "witness: it is of version {got}; this build reads version {expected}, make it again from the block's update"
    )]
    Version {
        /// The version it is of.
        got: u32,
        /// The version that can be read.
        expected: u32,
    },
    /// Its checksum does not fit: it was changed on the way.
    #[error("witness: its checksum does not fit its bytes; fetch it again")]
    Checksum,
    /// A node is wrong by itself.
    #[error(transparent)]
    Node(#[from] ProofError),
    /// A node is needed that is not there.
    #[error("{0}: it is needed and is not in the witness")]
    Missing(NodeRef),
    /// A leaf, or a node at its place, is not what the old roots commit to.
    #[error("{what}: {problem}")]
    Wrong {
        /// The leaf or node.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A node is there that the block does not touch.
    #[error("node {hash:#x} of the {trie} {when} the block: it is superfluous")]
    Superfluous {
        /// The trie.
        trie: TrieId,
        /// The node.
        hash: Felt,
        /// `before` or `after`.
        when: &'static str,
    },
    /// A node that the block makes is not there.
    #[error(
        "node {hash:#x} of the {trie} after the block: it is made by the block and is not in the witness"
    )]
    MissingAfter {
        /// The trie.
        trie: TrieId,
        /// The node.
        hash: Felt,
    },
    /// The roots after the block are not those stated.
    #[error(
        "roots after the block: stated {}, {}; computed {}, {} (contracts, classes)",
        stated.contracts, stated.classes, computed.contracts, computed.classes
    )]
    Roots {
        /// As the witness states them.
        stated: Box<Roots>,
        /// As the diff gives them.
        computed: Box<Roots>,
    },
    /// All that is needed is there, but leaves are superfluous or something is out of order or there twice.
    #[error("{0}: superfluous, listed twice or out of order")]
    NotCanonical(&'static str),
}

impl From<StateError> for WitnessError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::MissingNode(at) => Self::Missing(at),
            StateError::Damaged { what, problem } => Self::Wrong { what, problem },
            StateError::Store(error) => {
                Self::Wrong { what: "witness".to_owned(), problem: error.to_string() }
            }
        }
    }
}
