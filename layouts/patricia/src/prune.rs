//! Rows filed by hash that no kept state needs.
//!
//! Equal subtrees share rows, whichever states, tries and paths they are in, so a row's own block does not tell whether it is needed.
//! What is needed is marked from the kept roots down, each row once; all others are needless.

use std::collections::HashSet;
use std::ops::ControlFlow;

use flagstone_core::commitment::{ContractLeaf, Roots, TRIE_HEIGHT};
use flagstone_core::error::StateError;
use flagstone_core::felt::{Felt, felt_to_be};
use flagstone_core::layout::StateAt;
use flagstone_core::store::StoreRead;
use flagstone_core::trie::{Node, NodeRef, NodeSource, Path, TrieId};
use flagstone_core::types::ContractAddress;

use crate::addressing::{Addressing, ByHash, CLASS_LEAF, CONTRACT_LEAF, NODE};
use crate::tries::Tries;

type Hashes = HashSet<[u8; 32]>;

/// Keys of rows that are needed, by their kind.
#[derive(Default)]
struct Needed {
    /// By the kind of trie that they were seen in. Who chooses values can make a node of a storage trie the very one of the contracts
    /// trie, and below the two lie different rows.
    nodes: [Hashes; 3],
    contract_leaves: Hashes,
    class_leaves: Hashes,
}

/// The children of a node, with their paths.
fn children(node: &Node, at: &Path) -> impl Iterator<Item = (Path, Felt)> {
    let (first, second) = match node {
        Node::Binary { left, right } => ((at.child(false), *left), Some((at.child(true), *right))),
        Node::Edge { path, child } => ((at.join(path), *child), None),
    };
    std::iter::once(first).chain(second)
}

impl Needed {
    fn has(&self, key: &[u8]) -> bool {
        let Some((prefix, hash)) = key.split_first() else { return false };
        match *prefix {
            NODE => self.nodes.iter().any(|nodes| nodes.contains(hash)),
            CONTRACT_LEAF => self.contract_leaves.contains(hash),
            _ => self.class_leaves.contains(hash),
        }
    }

    fn nodes_of(&mut self, trie: &TrieId) -> &mut Hashes {
        let [contracts, classes, storage] = &mut self.nodes;
        match trie {
            TrieId::Contracts => contracts,
            TrieId::Classes => classes,
            TrieId::Storage(_) => storage,
        }
    }

    /// Marks what a state needs and no state before it did.
    fn mark(&mut self, store: &dyn StoreRead, roots: Roots) -> Result<(), StateError> {
        let tries = Tries { addressing: &ByHash, state: StateAt { store, roots } };
        let top = |trie, hash| NodeRef { trie, path: Path::ROOT, hash };
        let mut ahead =
            vec![top(TrieId::Contracts, roots.contracts.0), top(TrieId::Classes, roots.classes.0)];
        while let Some(at) = ahead.pop() {
            let hash = felt_to_be(&at.hash);
            if at.hash == Felt::ZERO {
                continue;
            }
            if at.path.len() < TRIE_HEIGHT {
                if self.nodes_of(&at.trie).insert(hash) {
                    let node = tries.required_node(&at)?;
                    let below = children(&node, &at.path);
                    ahead.extend(below.map(|(path, hash)| NodeRef { trie: at.trie, path, hash }));
                }
                continue;
            }
            match (at.trie, at.path.to_key()) {
                (TrieId::Contracts, Some(key)) if self.contract_leaves.insert(hash) => {
                    let address = ContractAddress::from(key);
                    let leaf = contract_leaf(store, &address, &at.hash)?;
                    ahead.push(top(TrieId::Storage(address), leaf.storage_root.0));
                }
                (TrieId::Classes, _) => {
                    self.class_leaves.insert(hash);
                }
                // It is marked, or is a storage trie's leaf, which has no row.
                _ => {}
            }
        }
        Ok(())
    }
}

fn contract_leaf(
    store: &dyn StoreRead,
    address: &ContractAddress,
    hash: &Felt,
) -> Result<ContractLeaf, StateError> {
    let what = || format!("leaf of contract {address}");
    let row = store.get(&ByHash.contract_leaf_key(address, hash))?;
    let row = row.ok_or_else(|| StateError::damaged(what(), "its row is missing"))?;
    ContractLeaf::decode(&row).map_err(StateError::undecodable(what()))
}

/// Visits the rows that none of these states needs, each with its key. Returns how many rows they need.
pub fn needless_rows(
    store: &dyn StoreRead,
    kept: &[Roots],
    visit: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<u64, StateError> {
    let mut needed = Needed::default();
    kept.iter().try_for_each(|roots| needed.mark(store, *roots))?;
    let mut rows = 0;
    for prefix in [NODE, CONTRACT_LEAF, CLASS_LEAF] {
        store.scan(&[prefix], &mut |key, row| {
            match needed.has(key) {
                true => rows += 1,
                false => visit(key, row),
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(rows)
}
