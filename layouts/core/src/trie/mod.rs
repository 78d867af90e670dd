//! The algorithm over tries, once. Layouts differ in where nodes and values live, not in this.
//!
//! An update has three steps, so that hashing can go in bulk over many tries at once: [`shape`] finds the new nodes of
//! one trie without hashing any, [`hash_forest`] hashes the new nodes of all tries level by level, and
//! [`ShapedTrie::into_changes`] says what to write and what to remove. All three work on one arena of new nodes.

mod forest;
mod hashing;
mod lockstep;
mod node;
mod path;
pub(crate) mod place;
mod shape;
mod source;
mod walk;

pub use forest::hash_forest;
pub use hashing::{HashFunction, hash_pairs};
pub use lockstep::{Differences, LeafDifference, Side};
pub use node::Node;
pub use path::Path;
pub use place::{NodeRef, TrieId};
pub use shape::{ShapedTrie, TrieChanges, WrittenNode, shape, shape_blocks, shape_blocks_in_memory};
pub use source::{InMemory, NodeReader, NodeSource, lookup, visit_paths};
pub use walk::{Broken, HashPairs, Leaves};
