//! Under which key a node's row is filed: all that the two Patricia layouts do differently.

use flagstone_core::felt::{Felt, felt_to_be};
use flagstone_core::store::keyspace::LAYOUT_FIRST;
use flagstone_core::trie::NodeRef;
use flagstone_core::types::{ClassHash, ContractAddress};

const NODE: u8 = LAYOUT_FIRST;
const CONTRACT_LEAF: u8 = LAYOUT_FIRST + 1;
const CLASS_LEAF: u8 = LAYOUT_FIRST + 2;

/// Keys of the rows of nodes and leaves.
pub trait Addressing: Send + Sync + 'static {
    /// Name of the layout with this addressing.
    fn layout_name(&self) -> &'static str;
    /// Whether rows of nodes that are no part of a trie any more are deleted.
    fn removes(&self) -> bool;
    /// Key of a node's row.
    fn node_key(&self, at: &NodeRef) -> Vec<u8>;
    /// Key of the row that says what a contract's leaf commits to.
    fn contract_leaf_key(&self, address: &ContractAddress, leaf: &Felt) -> Vec<u8>;
    /// Key of the row that says what a class's leaf commits to.
    fn class_leaf_key(&self, class_hash: &ClassHash, leaf: &Felt) -> Vec<u8>;
}

/// By trie and path: the latest state only, overwritten in place.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByPath;

/// By hash: nothing is ever overwritten or deleted, because equal subtrees share rows, and old roots stay readable.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByHash;

fn key(prefix: u8, rest: &[u8; 32]) -> Vec<u8> {
    let mut key = Vec::with_capacity(33);
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}

impl Addressing for ByPath {
    fn layout_name(&self) -> &'static str {
        "patricia-path"
    }
    fn removes(&self) -> bool {
        true
    }
    fn node_key(&self, at: &NodeRef) -> Vec<u8> {
        at.path_key(NODE)
    }
    fn contract_leaf_key(&self, address: &ContractAddress, _leaf: &Felt) -> Vec<u8> {
        key(CONTRACT_LEAF, address.as_be())
    }
    fn class_leaf_key(&self, class_hash: &ClassHash, _leaf: &Felt) -> Vec<u8> {
        key(CLASS_LEAF, &class_hash.to_be())
    }
}

impl Addressing for ByHash {
    fn layout_name(&self) -> &'static str {
        "patricia-hash"
    }
    fn removes(&self) -> bool {
        false
    }
    fn node_key(&self, at: &NodeRef) -> Vec<u8> {
        key(NODE, &felt_to_be(&at.hash))
    }
    fn contract_leaf_key(&self, _address: &ContractAddress, leaf: &Felt) -> Vec<u8> {
        key(CONTRACT_LEAF, &felt_to_be(leaf))
    }
    fn class_leaf_key(&self, _class_hash: &ClassHash, leaf: &Felt) -> Vec<u8> {
        key(CLASS_LEAF, &felt_to_be(leaf))
    }
}
