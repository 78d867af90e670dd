//! Which trie, and where in it.

use std::fmt;

use super::hashing::HashFunction;
use super::path::Path;
use crate::codec::{DecodeError, Reader};
use crate::felt::Felt;
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
