//! The layouts' rows held against the tries they belong to.
//!
//! Every row that a state needs is read, and its hash verified, by the walk over the tries; what is left to find are rows
//! too many. By path there must be exactly one row for each node and leaf, so their number tells, and only if it does not
//! fit each row is looked at. By hash any number of rows of other states may be there, but each must be what it is filed
//! under.

use flagstone_core::audit::{Findings, Place, Visited, foreign_rows, scan_rows};
use flagstone_core::codec::Reader;
use flagstone_core::commit::{TrieRows, contract_leaf_hashes};
use flagstone_core::commitment::{ContractLeaf, class_leaf_preimage};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Hasher;
use flagstone_core::layout::StateAt;
use flagstone_core::store::StoreErrorKind;
use flagstone_core::trie::{HashFunction, Node, NodeRef, NodeSource, Path, TrieId, hash_pairs};
use flagstone_core::types::{ClassHash, CompiledClassHash, ContractAddress};

use crate::addressing::{Addressing, CLASS_LEAF, CONTRACT_LEAF, NODE};
use crate::tries::{Tries, decode_class_leaf};

/// Rows that are hashed together.
const BATCH: usize = 2048;

type Row = (Vec<u8>, Vec<u8>);

/// Finds rows of one kind that do not hash to their keys.
type SameHashes = fn(&dyn Hasher, &[Row], &Findings);

/// Rows filed by path: one for each node and leaf.
pub fn by_path<A: Addressing>(
    tries: &Tries<'_, A>,
    visited: &Visited,
    findings: &Findings,
) -> Result<(), StateError> {
    let store = tries.state.store;
    foreign_rows(store, &[NODE, CONTRACT_LEAF, CLASS_LEAF], findings)?;
    for (prefix, expected) in
        [(NODE, visited.nodes), (CONTRACT_LEAF, visited.contracts), (CLASS_LEAF, visited.classes)]
    {
        let mut rows = 0;
        scan_rows(store, &[prefix], findings, &mut |_, _| rows += 1)?;
        if rows == expected {
            continue;
        }
        let mut failed: Result<(), StateError> = Ok(());
        scan_rows(store, &[prefix], findings, &mut |key, _| {
            match belongs(tries, key) {
                Ok(true) => {}
                Ok(false) => findings.add(Place::Row(key.to_vec()), "it is of nothing that is in a trie"),
                Err(StateError::Store(error)) if error.kind() != StoreErrorKind::Corrupt => {
                    failed = Err(error.into());
                }
                // Below something broken, which the walk over the tries has told.
                Err(_) => {}
            }
        })?;
        failed?;
    }
    Ok(())
}

/// Whether a row's key is that of a node or leaf of the state.
fn belongs<A: Addressing>(tries: &Tries<'_, A>, key: &[u8]) -> Result<bool, StateError> {
    let mut from = Reader::new(key.get(1..).unwrap_or_default());
    let roots = tries.state.roots;
    match key.first() {
        Some(&NODE) => {
            let (Ok(trie), Ok(path)) = (TrieId::decode(&mut from), Path::decode(&mut from)) else {
                return Ok(false);
            };
            let root = match trie {
                TrieId::Contracts => roots.contracts.0,
                TrieId::Classes => roots.classes.0,
                TrieId::Storage(address) => tries.contract_leaf(&address)?.storage_root.0,
            };
            Ok(from.remaining() == 0 && has_node(tries, trie, root, &path)?)
        }
        Some(&CONTRACT_LEAF) => match from.key("address") {
            Ok(key) if from.remaining() == 0 => {
                Ok(!tries.contract_leaf(&ContractAddress::from(key))?.is_absent())
            }
            _ => Ok(false),
        },
        _ => match from.key("class hash") {
            Ok(key) if from.remaining() == 0 => Ok(!tries.class_leaf(&ClassHash(key.to_felt()))?.is_zero()),
            _ => Ok(false),
        },
    }
}

/// Whether a node begins at a path.
fn has_node(source: &dyn NodeSource, trie: TrieId, root: Felt, wanted: &Path) -> Result<bool, StateError> {
    let mut at = NodeRef { trie, path: Path::ROOT, hash: root };
    while at.hash != Felt::ZERO && at.path.len() < wanted.len() {
        let Some(child) = source.required_node(&at)?.towards(&at.path, wanted) else { return Ok(false) };
        (at.hash, at.path) = child;
    }
    Ok(at.hash != Felt::ZERO && at.path == *wanted)
}

/// Rows filed by hash: each must hash to its key.
pub fn by_hash(
    state: StateAt<'_>,
    visited: &Visited,
    hasher: &dyn Hasher,
    findings: &Findings,
) -> Result<(), StateError> {
    foreign_rows(state.store, &[NODE, CONTRACT_LEAF, CLASS_LEAF], findings)?;
    let mut rows = 0;
    let kinds: [(u8, SameHashes); 3] =
        [(NODE, same_nodes), (CONTRACT_LEAF, same_contract_leaves), (CLASS_LEAF, same_class_leaves)];
    for (prefix, same) in kinds {
        let mut batch = Vec::with_capacity(BATCH);
        scan_rows(state.store, &[prefix], findings, &mut |key, row| {
            batch.push((key.to_vec(), row.to_vec()));
            rows += 1;
            if batch.len() == BATCH {
                same(hasher, &batch, findings);
                batch.clear();
            }
        })?;
        same(hasher, &batch, findings);
    }
    let needed = visited.nodes + visited.contracts + visited.classes;
    if rows > needed {
        findings.note("rows of other states at least, which this layout keeps", rows - needed);
    }
    Ok(())
}

/// Rows that can be decoded, and their keys.
fn decoded<'a, T>(
    rows: &'a [Row],
    findings: &Findings,
    decode: impl Fn(&[u8]) -> Result<T, flagstone_core::codec::DecodeError>,
) -> Vec<(&'a [u8], T)> {
    let decode = |(key, row): &'a Row| match decode(row) {
        Ok(content) => Some((key.as_slice(), content)),
        Err(error) => {
            findings.add(Place::Row(key.clone()), error.to_string());
            None
        }
    };
    rows.iter().filter_map(decode).collect()
}

fn is_filed(key: &[u8], hash: &Felt) -> bool {
    key.get(1..) == Some(&hash.to_bytes_be()[..])
}

fn misfiled(key: &[u8], findings: &Findings) {
    findings.add(Place::Row(key.to_vec()), "its content has another hash than the one it is filed under");
}

fn same_nodes(hasher: &dyn Hasher, rows: &[Row], findings: &Findings) {
    let nodes = decoded(rows, findings, |row| Node::decode(row, 0));
    let hash = |nodes: &[(&[u8], Node)], function| {
        let pairs: Vec<[Felt; 2]> = nodes.iter().map(|(_, node)| node.preimage()).collect();
        hash_pairs(hasher, function, &pairs)
    };
    // A row does not say whose trie it is of. Few are of the classes trie.
    let hashes = hash(&nodes, HashFunction::Pedersen);
    let others = nodes.into_iter().zip(hashes);
    let others = others.filter(|((key, node), hash)| !is_filed(key, &(*hash + node.addend())));
    let others: Vec<(&[u8], Node)> = others.map(|(node, _)| node).collect();
    for ((key, node), hash) in others.iter().zip(hash(&others, HashFunction::Poseidon)) {
        if !is_filed(key, &(hash + node.addend())) {
            misfiled(key, findings);
        }
    }
}

fn same_contract_leaves(hasher: &dyn Hasher, rows: &[Row], findings: &Findings) {
    let leaves = decoded(rows, findings, ContractLeaf::decode);
    let contents: Vec<ContractLeaf> = leaves.iter().map(|(_, leaf)| *leaf).collect();
    let hashes = contract_leaf_hashes(hasher, &contents);
    let wrong = leaves.iter().zip(hashes).filter(|((key, _), hash)| !is_filed(key, hash));
    wrong.for_each(|((key, _), _)| misfiled(key, findings));
}

fn same_class_leaves(hasher: &dyn Hasher, rows: &[Row], findings: &Findings) {
    let leaves: Vec<(&[u8], CompiledClassHash)> = decoded(rows, findings, decode_class_leaf);
    let pairs: Vec<_> = leaves.iter().map(|(_, compiled)| class_leaf_preimage(*compiled)).collect();
    let hashes = hash_pairs(hasher, HashFunction::Poseidon, &pairs);
    let wrong = leaves.iter().zip(hashes).filter(|((key, _), hash)| !is_filed(key, hash));
    wrong.for_each(|((key, _), _)| misfiled(key, findings));
}
