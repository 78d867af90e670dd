//! `starknet_getStorageProof`: one answer for many classes, contracts and storage slots.
//!
//! Each list of nodes is a set, the union of the ways to the keys it was asked for; ours are in order from the root
//! down, and a verifier takes any order. Leaves are not listed. A key is absent if the way to it ends in an edge that
//! parts from it, or the trie is empty; the list of an empty trie is empty.

use std::collections::{HashMap, HashSet};

use super::anchor::{Anchor, check_commitment};
use super::error::ProofError;
use super::nodes::{PartialTrie, check_hashes, top_of};
use crate::commit::{TrieRows, contract_leaf_hashes};
use crate::commitment::{ContractLeaf, Roots};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::outcome::proof::{ProofNode, Proven};
use crate::trie::{Path, TrieId, visit_paths};
use crate::types::{
    BlockHash, ClassHash, ContractAddress, ContractsRoot, Nonce, StorageKey, StorageRoot, StorageValue,
    TrieKey,
};

/// What a proof is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProofRequest {
    /// Classes. One whose hash is 2^251 or more has no leaf in any state.
    pub class_hashes: Vec<ClassHash>,
    /// Contracts.
    pub contract_addresses: Vec<ContractAddress>,
    /// Storage slots. They are proven only for contracts that are asked for too.
    pub contracts_storage_keys: Vec<ContractStorageKeys>,
}

/// Slots of one contract.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContractStorageKeys {
    /// The contract.
    pub contract_address: ContractAddress,
    /// Its slots.
    pub storage_keys: Vec<StorageKey>,
}

/// What a contract's leaf commits to, as a proof states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContractLeafData {
    /// Its nonce.
    pub nonce: Nonce,
    /// Its class.
    pub class_hash: ClassHash,
    /// Root of its storage trie. Early servers leave it out; then a storage proof of the contract must show it.
    pub storage_root: Option<StorageRoot>,
}

/// The roots a proof is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GlobalRoots {
    /// Roots of the contracts trie and the classes trie.
    pub roots: Roots,
    /// Hash of the block, if whoever made the proof knew it.
    pub block_hash: Option<BlockHash>,
}

/// The result of `starknet_getStorageProof`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageProof {
    /// Nodes of the classes trie.
    pub classes_proof: Vec<ProofNode>,
    /// Nodes of the contracts trie.
    pub contracts_proof: Vec<ProofNode>,
    /// What the leaves of the asked contracts commit to, in the order of the request; all zero if there is no leaf.
    pub contract_leaves_data: Vec<ContractLeafData>,
    /// Nodes of storage tries, one list for each entry of the request.
    pub contracts_storage_proofs: Vec<Vec<ProofNode>>,
    /// The roots.
    pub global_roots: GlobalRoots,
}

impl ContractLeafData {
    fn leaf(&self, storage_root: StorageRoot) -> ContractLeaf {
        ContractLeaf { class_hash: self.class_hash, storage_root, nonce: self.nonce }
    }
}

/// Keys of classes that can have a leaf.
fn class_keys(class_hashes: &[ClassHash]) -> impl Iterator<Item = TrieKey> {
    class_hashes.iter().filter_map(|class_hash| TrieKey::try_from(class_hash.0).ok())
}

/// Makes the proof of a state. The roots must be those of `tries`.
///
/// # Errors
/// [`StateError`] if the tries cannot be read.
pub fn prove_storage(
    tries: &dyn TrieRows,
    roots: Roots,
    request: &ProofRequest,
    block_hash: Option<BlockHash>,
) -> Result<StorageProof, StateError> {
    let addresses = request.contract_addresses.iter();
    let mut proof = StorageProof {
        classes_proof: union_of_paths(
            tries,
            TrieId::Classes,
            roots.classes.0,
            class_keys(&request.class_hashes),
        )?,
        contracts_proof: union_of_paths(
            tries,
            TrieId::Contracts,
            roots.contracts.0,
            addresses.clone().map(|address| *address.trie_key()),
        )?,
        global_roots: GlobalRoots { roots, block_hash },
        ..StorageProof::default()
    };
    for address in addresses {
        let ContractLeaf { class_hash, storage_root, nonce } = tries.contract_leaf(address)?;
        let data = ContractLeafData { nonce, class_hash, storage_root: Some(storage_root) };
        proof.contract_leaves_data.push(data);
    }
    for ContractStorageKeys { contract_address, storage_keys } in &request.contracts_storage_keys {
        let root = tries.contract_leaf(contract_address)?.storage_root.0;
        let keys = storage_keys.iter().map(|key| *key.trie_key());
        let nodes = union_of_paths(tries, TrieId::Storage(*contract_address), root, keys)?;
        proof.contracts_storage_proofs.push(nodes);
    }
    Ok(proof)
}

/// The nodes on the ways to keys, from the root down, each once.
fn union_of_paths(
    tries: &dyn TrieRows,
    trie: TrieId,
    root: Felt,
    keys: impl Iterator<Item = TrieKey>,
) -> Result<Vec<ProofNode>, StateError> {
    let mut leaves: Vec<Path> = keys.map(|key| Path::of_key(&key)).collect();
    leaves.sort_unstable();
    let (mut listed, mut nodes) = (HashSet::new(), Vec::new());
    visit_paths(tries, trie, root, &leaves, &mut |at, node| {
        // Equal subtrees at two places are one node.
        if listed.insert(at.hash) {
            nodes.push(ProofNode { hash: at.hash, node: *node });
        }
    })?;
    Ok(nodes)
}

/// A proof that holds: what it says of any key, under its roots.
#[derive(Debug, Clone)]
pub struct VerifiedProof {
    roots: GlobalRoots,
    classes: PartialTrie,
    contracts: PartialTrie,
    leaves: HashMap<ContractAddress, ContractLeaf>,
    storage: HashMap<ContractAddress, PartialTrie>,
}

impl StorageProof {
    /// Verifies the proof as the answer to `request`, and its roots against what is known of the block from elsewhere.
    /// Without a trusted commitment in `anchor`, what it says is proven relative to its own roots only.
    ///
    /// A proof that does not lead to all asked keys is no error; the outcome tells which ones.
    ///
    /// # Errors
    /// [`ProofError`] with the first node or field that is wrong, malformed or superfluous.
    pub fn verify(
        &self,
        request: &ProofRequest,
        anchor: &Anchor,
        hasher: &dyn Hasher,
    ) -> Result<VerifiedProof, ProofError> {
        self.check_counts(request)?;
        let Roots { contracts: contracts_root, classes: classes_root } = self.global_roots.roots;
        let entries = request.contracts_storage_keys.iter().zip(&self.contracts_storage_proofs);
        let storage_lists =
            entries.clone().map(|(entry, list)| (TrieId::Storage(entry.contract_address), list.as_slice()));
        let lists = [
            (TrieId::Classes, self.classes_proof.as_slice()),
            (TrieId::Contracts, self.contracts_proof.as_slice()),
        ];
        check_hashes(hasher, lists.into_iter().chain(storage_lists))?;
        self.check_anchor(anchor)?;

        let classes = PartialTrie::new(TrieId::Classes, classes_root.0, &self.classes_proof)?;
        classes.check(class_keys(&request.class_hashes))?;
        let contracts = PartialTrie::new(TrieId::Contracts, contracts_root.0, &self.contracts_proof)?;
        contracts.check(request.contract_addresses.iter().map(|address| *address.trie_key()))?;
        let mut verified = VerifiedProof {
            roots: self.global_roots,
            classes,
            contracts,
            leaves: HashMap::new(),
            storage: HashMap::new(),
        };
        let claimed = self.check_leaves(request, &mut verified, hasher)?;
        for (entry, list) in entries {
            verified.take_storage(entry, list, &claimed)?;
        }
        Ok(verified)
    }

    fn check_counts(&self, request: &ProofRequest) -> Result<(), ProofError> {
        let same = |what, expected, got| {
            if expected == got { Ok(()) } else { Err(ProofError::Count { what, expected, got }) }
        };
        let contracts = request.contract_addresses.len();
        same("contract_leaves_data", contracts, self.contract_leaves_data.len())?;
        let entries = request.contracts_storage_keys.len();
        same("contracts_storage_proofs", entries, self.contracts_storage_proofs.len())
    }

    fn check_anchor(&self, anchor: &Anchor) -> Result<(), ProofError> {
        let GlobalRoots { roots, block_hash: got } = self.global_roots;
        if let Some(expected) = anchor.block_hash
            && got != Some(expected)
        {
            return Err(ProofError::BlockHash { expected, got });
        }
        let ContractsRoot(contracts_root) = roots.contracts;
        let shown = self.contracts_proof.iter().any(|listed| listed.hash == contracts_root);
        anchor.commitment.map_or(Ok(()), |expected| check_commitment(roots, expected, anchor.rule, shown))
    }

    /// Checks leaf data against the contracts trie. Returns the storage roots that are stated or shown for contracts,
    /// proven or not.
    ///
    /// Where a root is neither, it is tried whether zero, an empty storage trie's, gives the leaf: a server that leaves roots
    /// out has no nodes to show of such a trie.
    fn check_leaves(
        &self,
        request: &ProofRequest,
        verified: &mut VerifiedProof,
        hasher: &dyn Hasher,
    ) -> Result<HashMap<ContractAddress, StorageRoot>, ProofError> {
        let addresses = &request.contract_addresses;
        let known = addresses.iter().zip(&self.contract_leaves_data);
        let known = known.map(|(address, data)| match data.storage_root {
            Some(root) => Ok(Some(root)),
            None => self.shown_root(request, address),
        });
        let known = known.collect::<Result<Vec<Option<StorageRoot>>, _>>()?;
        let leaves = self.contract_leaves_data.iter().zip(&known);
        let leaves: Vec<_> = leaves.map(|(data, root)| data.leaf(root.unwrap_or_default())).collect();
        let hashes = contract_leaf_hashes(hasher, &leaves);
        let mut claimed = HashMap::new();
        for (((address, known), leaf), computed) in addresses.iter().zip(known).zip(leaves).zip(hashes) {
            claimed.extend(known.map(|root| (*address, root)));
            let in_trie = verified.contracts.get(address.trie_key());
            match in_trie.value_or(Felt::ZERO) {
                Some(expected) if expected != computed => {
                    return Err(match known {
                        None if expected != Felt::ZERO => ProofError::NoStorageRoot(*address),
                        _ => ProofError::LeafData { address: *address, expected, computed },
                    });
                }
                Some(_) => {
                    verified.leaves.insert(*address, leaf);
                }
                None => {}
            }
        }
        Ok(claimed)
    }

    /// The storage root of a contract whose leaf data does not state it: the top of its storage proof, if slots of it are
    /// asked for.
    fn shown_root(
        &self,
        request: &ProofRequest,
        address: &ContractAddress,
    ) -> Result<Option<StorageRoot>, ProofError> {
        let entries = request.contracts_storage_keys.iter().zip(&self.contracts_storage_proofs);
        let mut lists = entries.filter(|(entry, _)| entry.contract_address == *address);
        let list = lists.find(|(entry, _)| !entry.storage_keys.is_empty());
        list.map(|(_, list)| top_of(TrieId::Storage(*address), list).map(StorageRoot)).transpose()
    }
}

impl VerifiedProof {
    /// Takes in a storage proof, under the root that the contract's leaf commits to. If the leaf is not proven, the list
    /// must hold together all the same, and then says nothing.
    fn take_storage(
        &mut self,
        entry: &ContractStorageKeys,
        list: &[ProofNode],
        claimed: &HashMap<ContractAddress, StorageRoot>,
    ) -> Result<(), ProofError> {
        let address = entry.contract_address;
        let trie = TrieId::Storage(address);
        let proven = self.contract(&address).map(|leaf| leaf.storage_root).value_or(StorageRoot::ZERO);
        let root = match proven.or_else(|| claimed.get(&address).copied()) {
            Some(root) => root.0,
            None => top_of(trie, list)?,
        };
        let nodes = PartialTrie::new(trie, root, list)?;
        nodes.check(entry.storage_keys.iter().map(|key| *key.trie_key()))?;
        if proven.is_some() {
            match self.storage.get_mut(&address) {
                Some(known) => known.merge(nodes),
                None => {
                    self.storage.insert(address, nodes);
                }
            }
        }
        Ok(())
    }

    /// The roots all of this is under.
    pub const fn roots(&self) -> GlobalRoots {
        self.roots
    }

    /// What a contract's leaf commits to.
    pub fn contract(&self, address: &ContractAddress) -> Proven<ContractLeaf> {
        match self.contracts.get(address.trie_key()) {
            Proven::Value(_) => {
                self.leaves.get(address).map_or(Proven::NotCovered, |leaf| Proven::Value(*leaf))
            }
            Proven::Absent => Proven::Absent,
            Proven::NotCovered => Proven::NotCovered,
        }
    }

    /// A class's leaf, the Poseidon hash of
    /// [`class_leaf_preimage`](crate::commitment::class_leaf_preimage) of its compiled class hash.
    pub fn class(&self, class_hash: &ClassHash) -> Proven<Felt> {
        match TrieKey::try_from(class_hash.0) {
            Ok(key) => self.classes.get(&key),
            Err(_) => Proven::Absent,
        }
    }

    /// Value of a storage slot.
    pub fn storage(&self, address: &ContractAddress, key: &StorageKey) -> Proven<StorageValue> {
        match self.contract(address) {
            Proven::Value(leaf) if leaf.storage_root.is_zero() => Proven::Absent,
            Proven::Value(_) => match self.storage.get(address) {
                Some(nodes) => nodes.get(key.trie_key()).map(StorageValue),
                None => Proven::NotCovered,
            },
            Proven::Absent => Proven::Absent,
            Proven::NotCovered => Proven::NotCovered,
        }
    }
}
