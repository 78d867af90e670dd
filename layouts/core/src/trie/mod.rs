//! The algorithm over tries, once. Layouts differ in where nodes and values live, not in this.
//!
//! An update has three steps, so that hashing can go in bulk over many tries at once: [`shape`] finds the new nodes of
//! one trie without hashing any, [`hash_forest`] hashes the new nodes of all tries level by level, and
//! [`ShapedTrie::into_changes`] says what to write and what to remove.

mod forest;
mod lockstep;
mod node;
mod path;
mod shape;
mod walk;

pub use forest::{HashFunction, hash_forest, hash_pairs};
pub use lockstep::{Differences, LeafDifference, Side};
pub use node::{Node, NodeRef, TrieId};
pub use path::Path;
pub use shape::{ShapedTrie, TrieChanges, WrittenNode, shape};
pub use walk::{Broken, Leaves};

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
}

/// The leaf of a key, walking from the root; zero if there is none.
///
/// # Errors
/// [`StateError`] if the store fails, or a node on the way is missing or damaged.
pub fn lookup(source: &dyn NodeSource, trie: TrieId, root: Felt, key: &TrieKey) -> Result<Felt, StateError> {
    let leaf = Path::of_key(key);
    let mut at = NodeRef { trie, path: Path::ROOT, hash: root };
    while at.hash != Felt::ZERO && at.path != leaf {
        let (hash, path) = match source.required_node(&at)? {
            Node::Binary { left, right } => {
                let bit = leaf.bit(at.path.len());
                (if bit { right } else { left }, at.path.child(bit))
            }
            Node::Edge { path, child } => (child, at.path.join(&path)),
        };
        if !leaf.starts_with(&path) {
            return Ok(Felt::ZERO);
        }
        at = NodeRef { trie, path, hash };
    }
    Ok(at.hash)
}
