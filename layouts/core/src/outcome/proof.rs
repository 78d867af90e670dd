//! What proofs are made of, and what they say.

use crate::felt::Felt;
use crate::trie::Node;

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
