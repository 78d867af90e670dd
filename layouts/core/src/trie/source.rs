//! Reading nodes, and going from a root to leaves.

use super::node::Node;
use super::path::Path;
use super::place::{NodeRef, TrieId};
use crate::commitment::TRIE_HEIGHT;
use crate::error::StateError;
use crate::felt::Felt;
use crate::types::TrieKey;

/// Where the nodes of tries come from.
pub trait NodeSource: Sync {
    /// The node at a place, or `None` if there is none; for the caller that is damage, since it asks only for nodes
    /// that a parent or a root refers to.
    ///
    /// # Errors
    /// [`StateError`] if the store fails or the node is damaged.
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError>;

    /// Like [`NodeSource::node`], for a node that must be there.
    ///
    /// # Errors
    /// [`StateError`], also if there is no such node.
    fn required_node(&self, at: &NodeRef) -> Result<Node, StateError> {
        self.node(at)?.ok_or(StateError::MissingNode(*at))
    }

    /// Like [`NodeSource::required_node`], for a node that must also be one that can stand there.
    ///
    /// # Errors
    /// [`StateError`], also if there is no such node or it cannot stand there.
    fn sound_node(&self, at: &NodeRef) -> Result<Node, StateError> {
        let node = self.required_node(at)?;
        node.check(at.path.len()).map_err(StateError::undecodable(at))?;
        Ok(node)
    }

    /// A reader of what is in memory, for a walk down one trie; `None` if nothing is kept there.
    fn reader(&self, _trie: TrieId) -> Option<Box<dyn NodeReader + '_>> {
        None
    }
}

/// Reads nodes of one trie from memory, quickest if asked for a node after the one above it.
pub trait NodeReader: Send {
    /// The node at a path.
    fn node(&mut self, at: &Path) -> InMemory;
}

/// What memory has of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InMemory {
    /// It is there.
    Node(Node),
    /// It is known that there is none.
    Nothing,
    /// It is not known.
    Not,
}

impl<S: NodeSource + Send + ?Sized> NodeSource for Box<S> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        (**self).node(at)
    }
}

/// The leaf of a key, walking from the root; zero if there is none.
///
/// # Errors
/// [`StateError`] if the store fails, or a node on the way is missing or damaged.
pub fn lookup(source: &dyn NodeSource, trie: TrieId, root: Felt, key: &TrieKey) -> Result<Felt, StateError> {
    let leaf = Path::of_key(key);
    let mut at = NodeRef { trie, path: Path::ROOT, hash: root };
    while at.hash != Felt::ZERO && at.path != leaf {
        let Some((hash, path)) = source.required_node(&at)?.towards(&at.path, &leaf) else {
            return Ok(Felt::ZERO);
        };
        at = NodeRef { trie, path, hash };
    }
    Ok(at.hash)
}

/// Visits the nodes on the ways from the root to leaves, given by their whole paths, ascending: each node once, and
/// before those below it.
///
/// # Errors
/// [`StateError`] if the store fails, or a node on the way is missing or damaged.
pub fn visit_paths(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    leaves: &[Path],
    visit: &mut dyn FnMut(&NodeRef, &Node),
) -> Result<(), StateError> {
    debug_assert!(leaves.is_sorted());
    let mut open = vec![(NodeRef { trie, path: Path::ROOT, hash: root }, leaves)];
    while let Some((at, leaves)) = open.pop() {
        if leaves.is_empty() || at.hash == Felt::ZERO || at.path.len() == TRIE_HEIGHT {
            continue;
        }
        let node = source.required_node(&at)?;
        visit(&at, &node);
        match node {
            Node::Binary { left, right } => {
                let (lefts, rights) =
                    leaves.split_at(leaves.partition_point(|leaf| !leaf.bit(at.path.len())));
                open.push((NodeRef { trie, path: at.path.child(true), hash: right }, rights));
                open.push((NodeRef { trie, path: at.path.child(false), hash: left }, lefts));
            }
            Node::Edge { path, child } => {
                let end = at.path.join(&path);
                let start = leaves.partition_point(|leaf| *leaf < end);
                let count = leaves[start..].partition_point(|leaf| leaf.starts_with(&end));
                open.push((NodeRef { trie, path: end, hash: child }, &leaves[start..start + count]));
            }
        }
    }
    Ok(())
}
