//! Block witness: what a block read and wrote in all tries, enough to commit it without a store.
//!
//! A [`Witness`] is recorded while a block is committed ([`commit_with_witness`]): every node that the commitment loads
//! is on the way to a key that the block writes, or is the sibling that an edge merges with when a leaf goes, so what is
//! loaded is what is needed, and nothing is walked a second time for it. Added to that are the ways to keys that
//! the block only read, and to contracts that it wrote without change. The nodes that the commitment makes are the
//! ways after the block.
//!
//! For a prover a way does not end at an edge that leaves it: the preimage of the node at the edge's end (its *bottom*, if
//! that is no leaf) belongs to the way, in the trie before and in the trie after. StarkWare's committer always gives it,
//! and StarkWare's Cairo needs it where a key departs at the edge's last bit. So every edge of a witness comes with its
//! bottom.
//!
//! While no class is declared, a commitment may be the contracts root itself. It is believed to be that only if the node
//! is shown whose hash it is, so a block on such a state has that node in its witness, also if it touches no contract.
//!
//! [`Witness::apply`] is the check that needs no store: the same commitment over the witness itself. Nodes are looked up
//! by hash, from the stated old roots down, so nothing counts that does not hash up to them. Then what that commitment
//! read and made must be the whole witness: one node more, less, or different is refused. The caller compares the old
//! roots with a commitment it trusts ([`Witness::check_commitment_before`]).

mod encoding;
mod record;

use std::collections::{HashMap, HashSet};

pub use record::commit_with_witness;

use crate::codec::DecodeError;
use crate::commit::{BlockChanges, CommitmentSource, TrieRows, contract_leaf_hashes};
use crate::commitment::{CommitmentRule, ContractLeaf, Roots, class_leaf_preimage};
use crate::diff::{StateDiff, Subject};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::proof::{ProofError, ProofNode, check_commitment, check_hashes};
use crate::trie::{HashFunction, Node, NodeRef, NodeSource, TrieId, hash_pairs, lookup};
use crate::types::{BlockNumber, ClassHash, CompiledClassHash, ContractAddress, StateCommitment, TrieKey};

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

impl Witness {
    /// Applies a block's diff to what the witness shows, without a store. Returns what the block changes, with the roots
    /// after it, under the condition that the state before has the roots [`Witness::before`].
    ///
    /// # Errors
    /// [`WitnessError`] if anything is missing, wrong or superfluous.
    pub fn apply(&self, diff: &StateDiff, hasher: &dyn Hasher) -> Result<BlockChanges, WitnessError> {
        check_hashes(hasher, self.tries.iter().map(|trie| (trie.trie, trie.before.as_slice())))?;
        let (mut shown, mut changes) = (Shown::new(self, hasher), BlockChanges::default());
        let keep = |block: &BlockChanges| changes = block.clone();
        let (_, needed) = commit_with_witness(&mut shown, self.before, diff, &self.reads, hasher, keep)?;
        let needed = Self { block: self.block, ..needed };
        if *self != needed {
            return Err(self.difference(&needed));
        }
        Ok(changes)
    }

    /// Checks the roots before the block against a trusted state commitment. It says something of a witness that
    /// [`Witness::apply`] has accepted, and so hashed.
    ///
    /// # Errors
    /// [`ProofError`] as [`check_commitment`].
    pub fn check_commitment_before(
        &self,
        expected: StateCommitment,
        rule: Option<CommitmentRule>,
    ) -> Result<(), ProofError> {
        let contracts_root = self.before.contracts.0;
        let contracts = self.tries.iter().filter(|trie| trie.trie == TrieId::Contracts);
        let shown = contracts.flat_map(|trie| &trie.before).any(|node| node.hash == contracts_root);
        check_commitment(self.before, expected, rule, shown)
    }

    fn hashes_before(&self) -> Vec<(TrieId, Felt)> {
        let of_trie =
            |of: &WitnessTrie| of.before.iter().map(|node| (of.trie, node.hash)).collect::<Vec<_>>();
        self.tries.iter().flat_map(of_trie).collect()
    }

    fn hashes_after(&self) -> Vec<(TrieId, Felt)> {
        let of_trie = |of: &WitnessTrie| of.after.iter().map(|node| (of.trie, node.hash)).collect::<Vec<_>>();
        self.tries.iter().flat_map(of_trie).collect()
    }

    /// Why this is not the witness that is needed.
    fn difference(&self, needed: &Self) -> WitnessError {
        if self.after != needed.after {
            let (stated, computed) = (Box::new(self.after), Box::new(needed.after));
            return WitnessError::Roots { stated, computed };
        }
        let first_beyond = |these: &[(TrieId, Felt)], those: &[(TrieId, Felt)]| {
            let those: HashSet<&(TrieId, Felt)> = those.iter().collect();
            these.iter().find(|node| !those.contains(node)).copied()
        };
        for (when, list) in [("before", Self::hashes_before as fn(&Self) -> _), ("after", Self::hashes_after)]
        {
            let (ours, theirs) = (list(self), list(needed));
            if let Some((trie, hash)) = first_beyond(&ours, &theirs) {
                return WitnessError::Superfluous { trie, hash, when };
            }
            // What is missing before the block was an error already.
            if let Some((trie, hash)) = first_beyond(&theirs, &ours) {
                return WitnessError::MissingAfter { trie, hash };
            }
        }
        WitnessError::NotCanonical(if self.reads != needed.reads {
            "reads"
        } else if self.contracts != needed.contracts {
            "contract leaves"
        } else if self.classes != needed.classes {
            "class leaves"
        } else {
            "nodes"
        })
    }
}

/// The state before a block, as far as a witness shows it. A node is found by its hash, which has been checked, and so
/// is what the roots commit to.
struct Shown {
    roots: Roots,
    tries: HashMap<TrieId, HashMap<Felt, Node>>,
    /// Leaf data with its hash.
    contracts: HashMap<ContractAddress, (Felt, ContractLeaf)>,
    classes: HashMap<ClassHash, (Felt, CompiledClassHash)>,
}

impl Shown {
    fn new(witness: &Witness, hasher: &dyn Hasher) -> Self {
        let mut tries: HashMap<TrieId, HashMap<Felt, Node>> = HashMap::new();
        for trie in &witness.tries {
            let nodes = trie.before.iter().map(|listed| (listed.hash, listed.node));
            tries.entry(trie.trie).or_default().extend(nodes);
        }
        let leaves: Vec<ContractLeaf> = witness.contracts.iter().map(|(_, leaf)| *leaf).collect();
        let contract =
            |(hash, (address, leaf)): (Felt, &(ContractAddress, ContractLeaf))| (*address, (hash, *leaf));
        let hashes = contract_leaf_hashes(hasher, &leaves);
        let contracts = hashes.into_iter().zip(&witness.contracts).map(contract).collect();
        let preimages: Vec<_> =
            witness.classes.iter().map(|(_, compiled)| class_leaf_preimage(*compiled)).collect();
        let class = |(hash, (class_hash, compiled)): (Felt, &(ClassHash, CompiledClassHash))| {
            (*class_hash, (hash, *compiled))
        };
        let hashes = hash_pairs(hasher, HashFunction::Poseidon, &preimages);
        let classes = hashes.into_iter().zip(&witness.classes).map(class).collect();
        Self { roots: witness.before, tries, contracts, classes }
    }
}

/// The preimage of a leaf that is `in_trie`; the default value if there is no leaf.
fn behind_leaf<T: Copy + Default>(
    in_trie: Felt,
    shown: Option<&(Felt, T)>,
    what: impl FnOnce() -> String,
) -> Result<T, StateError> {
    match shown {
        _ if in_trie == Felt::ZERO => Ok(T::default()),
        Some((hash, preimage)) if *hash == in_trie => Ok(*preimage),
        Some((hash, _)) => {
            let problem = format!("what is stated of it hashes to {hash:#x}; the trie has {in_trie:#x}");
            Err(StateError::damaged(what(), problem))
        }
        None => Err(StateError::damaged(what(), "what it commits to is not in the witness")),
    }
}

impl NodeSource for Shown {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        let Some(node) = self.tries.get(&at.trie).and_then(|nodes| nodes.get(&at.hash)) else {
            return Ok(None);
        };
        node.check(at.path.len()).map_err(StateError::undecodable(at))?;
        Ok(Some(*node))
    }
}

impl TrieRows for Shown {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        let in_trie = lookup(self, TrieId::Contracts, self.roots.contracts.0, address.trie_key())?;
        behind_leaf(in_trie, self.contracts.get(address), || format!("leaf of contract {address}"))
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        let Ok(key) = TrieKey::try_from(class_hash.0) else { return Ok(CompiledClassHash::ZERO) };
        let in_trie = lookup(self, TrieId::Classes, self.roots.classes.0, &key)?;
        behind_leaf(in_trie, self.classes.get(class_hash), || format!("leaf of class {class_hash}"))
    }
}

impl CommitmentSource for Shown {}
