//! The commitment to a Starknet state, as the specification says it, with no thought of speed.
//!
//! The numbers in the comments are the specification's rules. Everything is recomputed from the values each time.

use std::collections::BTreeMap;

use bitvec::prelude::{BitSlice, Msb0};
use flagstone_core::commitment::{CommitmentRule, ContractLeaf, Roots};
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::felt::Felt;
use flagstone_core::trie::{Node, Path, TrieId};
use flagstone_core::types::{
    ClassHash, ClassesRoot, CompiledClassHash, ContractAddress, ContractsRoot, Nonce, StateCommitment,
    StorageKey, StorageRoot, StorageValue, TrieKey,
};
use starknet_crypto::{pedersen_hash, poseidon_hash, poseidon_hash_many};

/// A contract: class hash, nonce and storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Contract {
    class_hash: ClassHash,
    nonce: Nonce,
    storage: BTreeMap<StorageKey, StorageValue>,
}

/// A whole state as plain maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceState {
    contracts: BTreeMap<ContractAddress, Contract>,
    classes: BTreeMap<TrieKey, CompiledClassHash>,
}

impl ReferenceState {
    /// The empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what a diff sets. Zero deletes.
    pub fn apply(&mut self, diff: &StateDiff) {
        for change in diff.contracts() {
            let contract = self.contracts.entry(change.address).or_default();
            for (key, value) in &change.storage {
                if value.is_zero() {
                    contract.storage.remove(key); // 2
                } else {
                    contract.storage.insert(*key, *value);
                }
            }
            contract.class_hash = change.class_hash.unwrap_or(contract.class_hash);
            contract.nonce = change.nonce.unwrap_or(contract.nonce);
        }
        for class in diff.classes() {
            if class.compiled_class_hash.is_zero() {
                self.classes.remove(&class.trie_key()); // 8
            } else {
                self.classes.insert(class.trie_key(), class.compiled_class_hash);
            }
        }
    }

    /// Value of a storage slot; zero if never written.
    pub fn storage_at(&self, address: &ContractAddress, key: &StorageKey) -> StorageValue {
        self.contracts
            .get(address)
            .and_then(|contract| contract.storage.get(key))
            .copied()
            .unwrap_or_default()
    }

    /// Nonce of a contract; zero if it has none.
    pub fn nonce_at(&self, address: &ContractAddress) -> Nonce {
        self.contracts.get(address).map(|contract| contract.nonce).unwrap_or_default()
    }

    /// Class hash of a contract; zero if not deployed.
    pub fn class_hash_at(&self, address: &ContractAddress) -> ClassHash {
        self.contracts.get(address).map(|contract| contract.class_hash).unwrap_or_default()
    }

    /// Compiled class hash of a class; zero if not declared.
    pub fn compiled_class_hash_at(&self, class_hash: &ClassHash) -> CompiledClassHash {
        let key = TrieKey::try_from(class_hash.0).ok();
        key.and_then(|key| self.classes.get(&key)).copied().unwrap_or_default()
    }

    /// Every value that is not zero, by what it is.
    pub fn values(&self) -> Vec<(Subject, Felt)> {
        let mut values = Vec::new();
        for (address, contract) in &self.contracts {
            values.push((Subject::ClassHash(*address), contract.class_hash.0));
            values.push((Subject::Nonce(*address), contract.nonce.0));
            let storage = contract.storage.iter();
            values.extend(storage.map(|(key, value)| (Subject::Storage(*address, *key), value.0)));
        }
        let classes = self.classes.iter();
        values.extend(
            classes.map(|(key, compiled)| (Subject::CompiledClassHash(ClassHash(key.to_felt())), compiled.0)),
        );
        values.retain(|(_, value)| *value != Felt::ZERO);
        values
    }

    /// What a contract's leaf commits to; all zero if it has none.
    pub fn contract_leaf(&self, address: &ContractAddress) -> ContractLeaf {
        let storage_root = StorageRoot(self.trie_root(TrieId::Storage(*address)));
        ContractLeaf { class_hash: self.class_hash_at(address), storage_root, nonce: self.nonce_at(address) }
    }

    /// All leaves of a trie, ascending by key.
    pub fn leaves(&self, trie: TrieId) -> Vec<(TrieKey, Felt)> {
        let class_leaf = |compiled: &CompiledClassHash| {
            let prefix = Felt::from_bytes_be_slice(b"CONTRACT_CLASS_LEAF_V0");
            poseidon_hash(prefix, compiled.0) // 8
        };
        let mut leaves: Vec<(TrieKey, Felt)> = match trie {
            TrieId::Contracts => self
                .contracts
                .iter()
                .map(|(address, contract)| (*address.trie_key(), contract.leaf()))
                .collect(),
            TrieId::Classes => {
                self.classes.iter().map(|(key, compiled)| (*key, class_leaf(compiled))).collect()
            }
            TrieId::Storage(address) => {
                let contract = self.contracts.get(&address);
                let storage = contract.into_iter().flat_map(|contract| &contract.storage);
                storage.map(|(key, value)| (*key.trie_key(), value.0)).collect() // 6
            }
        };
        leaves.retain(|(_, leaf)| *leaf != Felt::ZERO);
        leaves
    }

    /// Root of a trie.
    pub fn trie_root(&self, trie: TrieId) -> Felt {
        match trie {
            TrieId::Classes => trie_root(self.leaves(trie), poseidon_hash), // 5
            _ => trie_root(self.leaves(trie), |a, b| pedersen_hash(&a, &b)), // 5
        }
    }

    /// What a prover needs of a trie to see these keys: the inner nodes on the ways to them by hash, each with its content.
    /// Where a way ends in an edge that leaves it, the inner node at the edge's end is among them. So StarkWare's committer
    /// gives them ("commitment facts").
    pub fn facts(&self, trie: TrieId, keys: &[TrieKey]) -> BTreeMap<[u8; 32], Node> {
        let leaves: Vec<Leaf> =
            self.leaves(trie).into_iter().map(|(key, leaf)| (*key.as_be(), leaf)).collect();
        let mut facts = BTreeMap::new();
        let mut visit = |at: &Visited<'_>| {
            // The way to an edge's end begins where the edge does.
            let on_the_way = |key: &TrieKey| bits(key.as_be())[..at.from] == bits(at.leaf)[..at.from];
            if keys.iter().any(on_the_way) {
                facts.insert(at.hash.to_bytes_be(), at.node);
            }
        };
        match trie {
            _ if leaves.is_empty() => Felt::ZERO,
            TrieId::Classes => node(&leaves, 0, 0, &poseidon_hash, &mut visit),
            _ => node(&leaves, 0, 0, &|a, b| pedersen_hash(&a, &b), &mut visit),
        };
        facts
    }

    /// Roots of the contracts trie and the classes trie.
    pub fn roots(&self) -> Roots {
        Roots {
            contracts: ContractsRoot(self.trie_root(TrieId::Contracts)),
            classes: ClassesRoot(self.trie_root(TrieId::Classes)),
        }
    }

    /// The state commitment under a rule.
    pub fn commitment(&self, rule: CommitmentRule) -> StateCommitment {
        let Roots { contracts, classes } = self.roots(); // 9
        if contracts.is_zero() && classes.is_zero() {
            StateCommitment::ZERO
        } else if classes.is_zero() && rule == CommitmentRule::ContractsRootAlone {
            StateCommitment(contracts.0)
        } else {
            let prefix = Felt::from_bytes_be_slice(b"STARKNET_STATE_V0");
            StateCommitment(poseidon_hash_many(&[prefix, contracts.0, classes.0]))
        }
    }
}

impl Contract {
    /// The contract's leaf.
    fn leaf(&self) -> Felt {
        let storage = self.storage.iter().map(|(key, value)| (*key.trie_key(), value.0)); // 6
        let storage_root = trie_root(storage, |a, b| pedersen_hash(&a, &b));
        if self.class_hash.is_zero() && storage_root == Felt::ZERO && self.nonce.is_zero() {
            return Felt::ZERO; // 7, 10
        }
        let hash = pedersen_hash(&self.class_hash.0, &storage_root); // 7
        let hash = pedersen_hash(&hash, &self.nonce.0);
        pedersen_hash(&hash, &Felt::ZERO)
    }
}

/// A key and its leaf.
type Leaf = ([u8; 32], Felt);

/// Root of a trie with these leaves, given by ascending key; zero leaves are absent.
pub fn trie_root(
    leaves: impl IntoIterator<Item = (TrieKey, Felt)>,
    hash: impl Fn(Felt, Felt) -> Felt,
) -> Felt {
    let present = leaves.into_iter().filter(|(_, leaf)| *leaf != Felt::ZERO); // 2
    let leaves: Vec<Leaf> = present.map(|(key, leaf)| (*key.as_be(), leaf)).collect();
    if leaves.is_empty() { Felt::ZERO } else { node(&leaves, 0, 0, &hash, &mut |_| {}) } // 2
}

/// An inner node, seen on the way back up.
struct Visited<'a> {
    /// A key below it.
    leaf: &'a [u8; 32],
    /// Where it begins, in bits from the root; if it stands at an edge's end, where the edge begins.
    from: usize,
    hash: Felt,
    node: Node,
}

/// The 251 bits of a key, most significant first.
fn bits(key: &[u8; 32]) -> &BitSlice<u8, Msb0> {
    &BitSlice::from_slice(key)[256 - 251..]
}

/// Hash of the node at depth `depth` over one or more leaves that agree in their first `depth` bits. `from` is where the
/// edge above it begins, or `depth` if there is none. Calls `visit` with each inner node.
fn node(
    leaves: &[Leaf],
    from: usize,
    depth: usize,
    hash: &impl Fn(Felt, Felt) -> Felt,
    visit: &mut impl FnMut(&Visited<'_>),
) -> Felt {
    let leaf = &leaves[0].0;
    if depth == 251 {
        return leaves[0].1;
    }
    let (lefts, rights): (Vec<Leaf>, Vec<Leaf>) = leaves.iter().partition(|(key, _)| !bits(key)[depth]);
    if !lefts.is_empty() && !rights.is_empty() {
        let left = node(&lefts, depth + 1, depth + 1, hash, visit);
        let right = node(&rights, depth + 1, depth + 1, hash, visit);
        let hash = hash(left, right); // 4, binary
        visit(&Visited { leaf, from, hash, node: Node::Binary { left, right } });
        return hash;
    }
    // 3: the edge goes on as far as all leaves agree.
    let first = bits(leaf);
    let agree = |at: &usize| leaves.iter().all(|(key, _)| bits(key)[*at] == first[*at]);
    let length = (depth..251).take_while(agree).count();
    let mut path = Felt::ZERO;
    for bit in &first[depth..depth + length] {
        path = path + path + Felt::from(u64::from(*bit));
    }
    let child = node(leaves, depth, depth + length, hash, visit);
    let hash = hash(child, path) + Felt::from(length as u64); // 4, edge
    let path = Path::of_value(&path, length).unwrap_or_default();
    visit(&Visited { leaf, from, hash, node: Node::Edge { path, child } });
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_state_commits_to_zero() {
        assert_eq!(ReferenceState::new().roots(), Roots::default());
        assert_eq!(ReferenceState::new().commitment(CommitmentRule::AlwaysBoth), StateCommitment::ZERO);
    }

    #[test]
    fn a_contract_without_anything_has_no_leaf() {
        let mut state = ReferenceState::new();
        state.apply(&StateDiff::builder().storage(1.into(), 5.into(), 7.into()).build().unwrap());
        assert_ne!(state.roots(), Roots::default());
        state.apply(&StateDiff::builder().storage(1.into(), 5.into(), 0.into()).build().unwrap());
        assert_eq!(state.roots(), Roots::default());
    }
}
