//! Where two tries differ, found by walking both at once and never below equal hashes.

use super::node::Node;
use super::path::Path;
use super::place::{NodeRef, TrieId};
use super::source::NodeSource;
use super::walk::Broken;
use crate::felt::Felt;
use crate::types::TrieKey;

/// One of the two tries.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// Where its nodes are.
    pub source: &'a dyn NodeSource,
    /// Its root.
    pub root: Felt,
}

/// A leaf that is not the same in both tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafDifference {
    /// Its key.
    pub key: TrieKey,
    /// The longest path towards it where both tries still have something: below, one of them has nothing. The whole path
    /// if both have the leaf.
    pub path: Path,
    /// The leaf in the first and in the second trie; zero if absent.
    pub leaves: [Felt; 2],
}

/// What one of the tries has at a place: the place need not be a node, it can be in the middle of an edge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Nothing,
    /// A node or a leaf with this hash.
    Node(Felt),
    /// The rest of an edge, one bit or more, and its child.
    Edge(Path, Felt),
    /// The two children of a binary node.
    Binary(Felt, Felt),
}

impl Below {
    /// What is one bit further down.
    fn child(self, right: bool) -> Self {
        match self {
            Self::Binary(left, _) if !right => Self::Node(left),
            Self::Binary(_, hash) => Self::Node(hash),
            Self::Edge(rest, _) if rest.bit(0) == right => self.along(1),
            _ => Self::Nothing,
        }
    }

    /// What is so many bits further along the edge.
    fn along(self, bits: usize) -> Self {
        match self {
            Self::Edge(rest, child) if rest.len() == bits => Self::Node(child),
            Self::Edge(rest, child) => Self::Edge(rest.suffix(bits), child),
            other => other,
        }
    }
}

#[derive(Clone, Copy)]
struct Place {
    at: Path,
    below: [Below; 2],
    /// Where the tries parted, if they have.
    parted: Option<Path>,
}

/// The leaves in which two tries differ, ascending by key. The tries may be in different layouts and stores: only hashes
/// are compared. Goes on beside what is broken.
pub struct Differences<'a> {
    sources: [&'a dyn NodeSource; 2],
    trie: TrieId,
    /// What is ahead, the nearest last.
    ahead: Vec<Place>,
}

impl<'a> Differences<'a> {
    /// Compares a trie of the first side with the same trie of the second.
    pub fn new(trie: TrieId, sides: [Side<'a>; 2]) -> Self {
        let top =
            |side: Side<'_>| if side.root == Felt::ZERO { Below::Nothing } else { Below::Node(side.root) };
        let place = Place { at: Path::ROOT, below: sides.map(top), parted: None };
        Self { sources: sides.map(|side| side.source), trie, ahead: vec![place] }
    }

    /// Looks into a node.
    fn open(&self, source: &dyn NodeSource, at: Path, below: Below) -> Result<Below, Broken> {
        let Below::Node(hash) = below else { return Ok(below) };
        let at = NodeRef { trie: self.trie, path: at, hash };
        match source.sound_node(&at) {
            Ok(Node::Binary { left, right }) => Ok(Below::Binary(left, right)),
            Ok(Node::Edge { path, child }) => Ok(Below::Edge(path, child)),
            Err(problem) => Err(Broken::new(at.trie, at.path, problem)),
        }
    }

    fn enter(&mut self, Place { at, below: [a, b], parted }: Place) -> Result<(), Broken> {
        let (a, b) = (self.open(self.sources[0], at, a)?, self.open(self.sources[1], at, b)?);
        let apart = a == Below::Nothing || b == Below::Nothing;
        let parted = parted.or(apart.then_some(at));
        let (way, shared) = match (a, b) {
            (Below::Edge(x, _), Below::Edge(y, _)) => (x, x.common_prefix(&y)),
            (Below::Edge(rest, _), Below::Nothing) | (Below::Nothing, Below::Edge(rest, _)) => {
                (rest, rest.len())
            }
            _ => (Path::ROOT, 0),
        };
        if shared > 0 {
            let (at, below) = (at.join(&way.prefix(shared)), [a.along(shared), b.along(shared)]);
            self.ahead.push(Place { at, below, parted });
            return Ok(());
        }
        for right in [true, false] {
            let below = [a.child(right), b.child(right)];
            // A side that ends here parts from the other at the place above.
            let parted = parted.or(below.contains(&Below::Nothing).then_some(at));
            self.ahead.push(Place { at: at.child(right), below, parted });
        }
        Ok(())
    }
}

impl Iterator for Differences<'_> {
    type Item = Result<LeafDifference, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(place) = self.ahead.pop() {
            let [a, b] = place.below;
            if a == b {
                continue;
            }
            if let Some(key) = place.at.to_key() {
                let leaf = |below| if let Below::Node(leaf) = below { leaf } else { Felt::ZERO };
                let leaves = [leaf(a), leaf(b)];
                return Some(Ok(LeafDifference { key, path: place.parted.unwrap_or(place.at), leaves }));
            }
            if let Err(broken) = self.enter(place) {
                return Some(Err(broken));
            }
        }
        None
    }
}
