//! Nodes without a store: hashed in bulk, then walked from a root by hash.

use std::collections::{HashMap, HashSet};

use super::ProofError;
use crate::codec::DecodeError;
use crate::commitment::TRIE_HEIGHT;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::trie::{HashFunction, Node, NodeRef, Path, TrieId, hash_pairs};
use crate::types::TrieKey;

/// A node with the hash that is stated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofNode {
    /// Its hash, as stated.
    pub hash: Felt,
    /// Its content.
    pub node: Node,
}

/// What a proof says of a key.
///
/// It is matched without a catch-all: a verdict that is overlooked would be believed. So it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proven<T> {
    /// It has this value.
    Value(T),
    /// It has none.
    Absent,
    /// The proof does not lead as far as the key.
    NotCovered,
}

impl<T> Proven<T> {
    /// The value as another one.
    pub fn map<U>(self, with: impl FnOnce(T) -> U) -> Proven<U> {
        match self {
            Self::Value(value) => Proven::Value(with(value)),
            Self::Absent => Proven::Absent,
            Self::NotCovered => Proven::NotCovered,
        }
    }

    /// The value, or `absent` if it is proven that there is none; `None` if nothing is proven.
    pub fn value_or(self, absent: T) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent => Some(absent),
            Self::NotCovered => None,
        }
    }
}

/// Checks that every node could be one, and has the hash stated for it.
pub(crate) fn check_hashes<'a>(
    hasher: &dyn Hasher,
    lists: impl IntoIterator<Item = (TrieId, &'a [ProofNode])>,
) -> Result<(), ProofError> {
    let nodes = lists.into_iter().flat_map(|(trie, nodes)| nodes.iter().map(move |node| (trie, node)));
    let nodes: Vec<(TrieId, &ProofNode)> = nodes.collect();
    for (trie, ProofNode { hash, node }) in &nodes {
        let malformed = |problem| ProofError::Malformed { trie: *trie, hash: *hash, problem };
        node.check(0).map_err(malformed)?;
    }
    for function in [HashFunction::Pedersen, HashFunction::Poseidon] {
        let of_function = nodes.iter().filter(|(trie, _)| trie.hash_function() == function);
        let pairs: Vec<[Felt; 2]> = of_function.clone().map(|(_, listed)| listed.node.preimage()).collect();
        let hashes = hash_pairs(hasher, function, &pairs);
        for ((trie, ProofNode { hash: stated, node }), hash) in of_function.zip(hashes) {
            let computed = hash + node.addend();
            if computed != *stated {
                return Err(ProofError::NodeHash { trie: *trie, stated: *stated, computed });
            }
        }
    }
    Ok(())
}

/// Nodes of one trie under its root, by hash. Their hashes have been checked.
#[derive(Debug, Clone)]
pub(super) struct PartialTrie {
    trie: TrieId,
    root: Felt,
    nodes: HashMap<Felt, Node>,
}

impl PartialTrie {
    /// Takes in a list, in which each node must be once.
    pub fn new(trie: TrieId, root: Felt, list: &[ProofNode]) -> Result<Self, ProofError> {
        let mut nodes = HashMap::with_capacity(list.len());
        for ProofNode { hash, node } in list {
            if nodes.insert(*hash, *node).is_some() {
                return Err(ProofError::Repeated { trie, hash: *hash });
            }
        }
        Ok(Self { trie, root, nodes })
    }

    /// The node at a place, if it is among these. It is one that can be there.
    pub fn node(&self, at: &NodeRef, below_edge: bool) -> Result<Option<Node>, ProofError> {
        let Some(node) = self.nodes.get(&at.hash) else { return Ok(None) };
        let misplaced = |problem| ProofError::Misplaced { at: Box::new(*at), problem };
        node.check(at.path.len()).map_err(misplaced)?;
        if below_edge && matches!(node, Node::Edge { .. }) {
            return Err(misplaced(DecodeError::new("edge", "stands below an edge; the two must be one")));
        }
        Ok(Some(*node))
    }

    /// The leaf of a key. Calls `visit` with each node on the way.
    fn walk(&self, key: &TrieKey, mut visit: impl FnMut(Felt)) -> Result<Proven<Felt>, ProofError> {
        if self.root == Felt::ZERO {
            return Ok(Proven::Absent);
        }
        let leaf = Path::of_key(key);
        let mut at = NodeRef { trie: self.trie, path: Path::ROOT, hash: self.root };
        let mut below_edge = false;
        while at.path.len() < TRIE_HEIGHT {
            let Some(node) = self.node(&at, below_edge)? else { return Ok(Proven::NotCovered) };
            visit(at.hash);
            let Some((hash, path)) = node.towards(&at.path, &leaf) else { return Ok(Proven::Absent) };
            at = NodeRef { hash, path, ..at };
            below_edge = matches!(node, Node::Edge { .. });
        }
        Ok(Proven::Value(at.hash))
    }

    /// Checks the shape on the ways to some keys, and that all nodes are on one of them.
    pub fn check(&self, keys: impl Iterator<Item = TrieKey>) -> Result<(), ProofError> {
        let mut used = HashSet::with_capacity(self.nodes.len());
        for key in keys {
            self.walk(&key, |hash| {
                used.insert(hash);
            })?;
        }
        self.all_used(&used)
    }

    /// Refuses nodes that were not used; of several the one with the least hash, so that the answer is always the same.
    pub fn all_used(&self, used: &HashSet<Felt>) -> Result<(), ProofError> {
        let unused = self.nodes.keys().filter(|hash| !used.contains(*hash)).copied();
        match unused.min_by_key(Felt::to_bytes_be) {
            Some(hash) => Err(ProofError::Superfluous { trie: self.trie, hash, root: self.root }),
            None => Ok(()),
        }
    }

    /// What the nodes say of any key. On a way that was not checked, a node that cannot be there says nothing.
    pub fn get(&self, key: &TrieKey) -> Proven<Felt> {
        self.walk(key, |_| {}).unwrap_or(Proven::NotCovered)
    }

    /// Adds the nodes of another list of the same trie.
    pub fn merge(&mut self, other: Self) {
        debug_assert_eq!((self.trie, self.root), (other.trie, other.root));
        self.nodes.extend(other.nodes);
    }
}

/// The hash of the one node of a list that is under no other; zero if the list is empty.
pub(super) fn top_of(trie: TrieId, list: &[ProofNode]) -> Result<Felt, ProofError> {
    let mut children = HashSet::with_capacity(2 * list.len());
    for ProofNode { node, .. } in list {
        match node {
            Node::Binary { left, right } => children.extend([*left, *right]),
            Node::Edge { child, .. } => children.extend([*child]),
        }
    }
    let mut tops = list.iter().map(|listed| listed.hash).filter(|hash| !children.contains(hash));
    match (list.is_empty(), tops.next(), tops.count()) {
        (true, ..) => Ok(Felt::ZERO),
        (false, Some(top), 0) => Ok(top),
        (false, first, more) => {
            Err(ProofError::NoSingleRoot { trie, tops: usize::from(first.is_some()) + more })
        }
    }
}
