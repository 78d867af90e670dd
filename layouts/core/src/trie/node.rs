//! Nodes of a trie, and where one is found.

use std::fmt;

use super::HashFunction;
use super::path::Path;
use crate::codec::{DecodeError, Reader};
use crate::commitment::TRIE_HEIGHT;
use crate::felt::{Felt, felt_to_be};
use crate::types::ContractAddress;

/// Which trie.
///
/// It is matched without a catch-all: a layout must have a place for each trie. So it is not `#[non_exhaustive]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrieId {
    /// The contracts trie: a leaf for each contract address.
    Contracts,
    /// The classes trie: a leaf for each Sierra class hash.
    Classes,
    /// A contract's storage trie: a leaf for each storage key.
    Storage(ContractAddress),
}

impl TrieId {
    /// Appends the byte form, with which keys of a trie's rows begin: its kind, and the address of a storage trie.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Contracts => out.push(0),
            Self::Classes => out.push(1),
            Self::Storage(address) => {
                out.push(2);
                out.extend_from_slice(address.as_be());
            }
        }
    }

    /// Reads what [`TrieId::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if bytes are missing or name no trie.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.u8("trie kind")? {
            0 => Ok(Self::Contracts),
            1 => Ok(Self::Classes),
            2 => Ok(Self::Storage(from.key("contract address")?.into())),
            kind => Err(DecodeError::new("trie kind", format!("{kind} is none of the three kinds of trie"))),
        }
    }

    /// The hash function of its nodes.
    pub const fn hash_function(&self) -> HashFunction {
        match self {
            Self::Contracts | Self::Storage(_) => HashFunction::Pedersen,
            Self::Classes => HashFunction::Poseidon,
        }
    }
}

impl fmt::Display for TrieId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contracts => f.write_str("contracts trie"),
            Self::Classes => f.write_str("classes trie"),
            Self::Storage(address) => write!(f, "storage trie of contract {address}"),
        }
    }
}

/// Where a node is: its trie, its path from the root, and the hash its parent holds for it. A layout looks it up by
/// whichever of them it files nodes under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRef {
    /// The trie.
    pub trie: TrieId,
    /// Path from the trie's root.
    pub path: Path,
    /// The node's hash.
    pub hash: Felt,
}

impl NodeRef {
    /// A row key for layouts that file nodes by place: `prefix`, the trie (kind, and address of a storage trie), and
    /// the path. All nodes of one trie share a prefix, and come level by level.
    pub fn path_key(&self, prefix: u8) -> Vec<u8> {
        let mut key = Vec::with_capacity(67);
        key.push(prefix);
        self.trie.encode(&mut key);
        self.path.encode(&mut key);
        key
    }
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {:#x} at {} of the {}", self.hash, self.path, self.trie)
    }
}

/// An inner node. Leaves are felts held by their parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// Two children, neither empty.
    Binary {
        /// Hash (or leaf) on the 0 side.
        left: Felt,
        /// Hash (or leaf) on the 1 side.
        right: Felt,
    },
    /// One child, some levels down. Maximal: the child is a binary node or a leaf.
    Edge {
        /// The way to the child, 1 to 251 bits.
        path: Path,
        /// Hash (or leaf) of the child.
        child: Felt,
    },
}

const BINARY: u8 = 0;
const EDGE: u8 = 1;

impl Node {
    /// The pair that the trie's hash function is applied to. A node's hash is that hash, plus [`Node::addend`].
    pub fn preimage(&self) -> [Felt; 2] {
        match self {
            Self::Binary { left, right } => [*left, *right],
            Self::Edge { path, child } => [*child, path.value()],
        }
    }

    /// What is added to the hash of the preimage: an edge's length, or zero.
    pub fn addend(&self) -> Felt {
        match self {
            Self::Binary { .. } => Felt::ZERO,
            Self::Edge { path, .. } => Felt::from(path.len() as u64),
        }
    }

    /// Appends the byte form, which [`Node::decode`] reads back:
    ///
    /// ```text
    /// binary  0 | left[32]   | right[32]
    /// edge    1 | child[32]  | length[1] | bits, padded to bytes
    /// ```
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Binary { left, right } => {
                out.push(BINARY);
                out.extend_from_slice(&felt_to_be(left));
                out.extend_from_slice(&felt_to_be(right));
            }
            Self::Edge { path, child } => {
                out.push(EDGE);
                out.extend_from_slice(&felt_to_be(child));
                path.encode(out);
            }
        }
    }

    /// Reads a node that sits at depth `depth`.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no node, or one that cannot sit there: an empty child, an empty edge, or an
    /// edge that goes below the leaves.
    pub fn decode(bytes: &[u8], depth: usize) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let node = Self::read(&mut from)?;
        from.end("node")?;
        node.check(depth)?;
        Ok(node)
    }

    /// Reads a node from among other bytes; where it sits is not known and not checked.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no node.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.u8("node kind")? {
            BINARY => Ok(Self::Binary { left: from.felt("left child")?, right: from.felt("right child")? }),
            EDGE => {
                let child = from.felt("edge child")?;
                Ok(Self::Edge { path: Path::decode(from)?, child })
            }
            kind => Err(DecodeError::new("node kind", format!("{kind} is neither binary nor edge"))),
        }
    }

    /// The child on the way to a leaf from this node at `at`: its hash and its path. `None` if the way to the leaf
    /// parts from this node's edge, which shows that there is no such leaf.
    pub fn towards(&self, at: &Path, leaf: &Path) -> Option<(Felt, Path)> {
        let (child, path) = match self {
            Self::Binary { left, right } => {
                let bit = leaf.bit(at.len());
                (if bit { right } else { left }, at.child(bit))
            }
            Self::Edge { path, child } => (child, at.join(path)),
        };
        leaf.starts_with(&path).then_some((*child, path))
    }

    /// Checks what holds for every node at depth `depth`: children that are not empty, and none below the leaves.
    ///
    /// # Errors
    /// [`DecodeError`] if this node cannot be there.
    pub fn check(&self, depth: usize) -> Result<(), DecodeError> {
        let (levels, children) = match self {
            Self::Binary { left, right } => (1, [*left, *right]),
            Self::Edge { path, child } => (path.len(), [*child, *child]),
        };
        if levels == 0 {
            return Err(DecodeError::new("edge path", "has no bits"));
        }
        if depth + levels > TRIE_HEIGHT {
            return Err(DecodeError::new("node", format!("reaches {levels} levels below depth {depth}")));
        }
        if children.contains(&Felt::ZERO) {
            return Err(DecodeError::new("child", "is zero, which means absent"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(bits: usize) -> Node {
        let path = Path::of_value(&Felt::from(1u64), bits).unwrap();
        Node::Edge { path, child: Felt::from(9u64) }
    }

    #[track_caller]
    fn survives(node: Node, depth: usize) {
        let mut bytes = Vec::new();
        node.encode(&mut bytes);
        assert_eq!(Node::decode(&bytes, depth).unwrap(), node);
        for length in 0..bytes.len() {
            assert!(Node::decode(&bytes[..length], depth).is_err(), "cut at {length}");
        }
        bytes.push(0);
        assert!(Node::decode(&bytes, depth).is_err(), "a byte too many");
    }

    #[test]
    fn nodes_survive_their_bytes() {
        survives(Node::Binary { left: Felt::ONE, right: Felt::MAX }, 250);
        survives(edge(251), 0);
        survives(edge(1), 250);
        survives(edge(9), 17);
    }

    #[test]
    fn impossible_nodes_are_refused() {
        for (node, depth) in [
            (Node::Binary { left: Felt::ONE, right: Felt::ZERO }, 0),
            (Node::Binary { left: Felt::ONE, right: Felt::ONE }, 251),
            (edge(2), 250),
            (Node::Edge { path: Path::ROOT, child: Felt::ONE }, 0),
            (Node::Edge { path: Path::ROOT.child(true), child: Felt::ZERO }, 0),
        ] {
            let mut bytes = Vec::new();
            node.encode(&mut bytes);
            assert!(Node::decode(&bytes, depth).is_err(), "{node:?} at {depth}");
        }
    }
}
