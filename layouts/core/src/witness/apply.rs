//! Applying a witness: the commitment of its block over what it shows, without a store.

use std::collections::{HashMap, HashSet};

use super::error::WitnessError;
use super::record::commit_with_witness;
use crate::commit::{CommitmentSource, TrieRows, contract_leaf_hashes};
use crate::commitment::{CommitmentRule, ContractLeaf, Roots, class_leaf_preimage};
use crate::diff::StateDiff;
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::outcome::changes::BlockChanges;
use crate::outcome::witness::{Witness, WitnessTrie};
use crate::proof::{ProofError, check_commitment, check_hashes};
use crate::trie::{HashFunction, Node, NodeRef, NodeSource, TrieId, hash_pairs, lookup};
use crate::types::{ClassHash, CompiledClassHash, ContractAddress, StateCommitment, TrieKey};

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
