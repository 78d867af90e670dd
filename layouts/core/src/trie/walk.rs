//! A trie's leaves in the order of their keys.
//!
//! A walk reads each node once, holds only the way down to where it is, can begin at any key, and can be split into walks
//! that go on apart. Every node must be one that can stand where it stands; a [verified](Leaves::verified) walk also
//! computes every node's hash and holds it against what the parent says.
//!
//! A walk does not end at damage. What is broken is told with its trie and path, and the walk goes on beside it: `export`
//! stops at the first such error, `check` lists them all.

use std::collections::VecDeque;

use super::hashing::{HashFunction, hash_pairs};
use super::node::Node;
use super::path::Path;
use super::place::{NodeRef, TrieId};
use super::source::NodeSource;
use crate::commitment::TRIE_HEIGHT;
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::types::TrieKey;

/// Nodes of a verified walk that are hashed together. Errors of their hashes come at most so many nodes late.
const VERIFY_BATCH: usize = 2048;

/// Something wrong at a place in a trie.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
#[non_exhaustive]
pub struct Broken {
    /// The trie.
    pub trie: TrieId,
    /// Where in it: a node, or a leaf if the path is whole.
    pub path: Path,
    /// What.
    pub problem: Box<StateError>,
}

impl Broken {
    /// A problem at a place.
    pub fn new(trie: TrieId, path: Path, problem: StateError) -> Self {
        Self { trie, path, problem: Box::new(problem) }
    }
}

impl From<Broken> for StateError {
    fn from(broken: Broken) -> Self {
        *broken.problem
    }
}

/// A node that was not looked at yet.
#[derive(Clone, Copy)]
struct Step {
    path: Path,
    hash: Felt,
    below_edge: bool,
}

/// Hashes pairs in order.
pub type HashPairs<'a> = dyn Fn(HashFunction, &[[Felt; 2]]) -> Vec<Felt> + Sync + 'a;

/// How a walk hashes nodes.
#[derive(Clone, Copy)]
enum Hashing<'a> {
    Here(&'a dyn Hasher),
    By(&'a HashPairs<'a>),
}

impl Hashing<'_> {
    fn pairs(self, function: HashFunction, pairs: &[[Felt; 2]]) -> Vec<Felt> {
        match self {
            Self::Here(hasher) => hash_pairs(hasher, function, pairs),
            Self::By(hash) => hash(function, pairs),
        }
    }
}

/// The leaves of one trie, ascending by key.
///
/// ```
/// use flagstone_core::error::StateError;
/// use flagstone_core::felt::Felt;
/// use flagstone_core::trie::{Leaves, Node, NodeRef, NodeSource, Path, TrieId};
/// use flagstone_core::types::TrieKey;
///
/// /// One leaf, at key 5.
/// struct One;
/// impl NodeSource for One {
///     fn node(&self, _: &NodeRef) -> Result<Option<Node>, StateError> {
///         Ok(Some(Node::Edge { path: Path::of_key(&5.into()), child: Felt::ONE }))
///     }
/// }
/// let mut leaves = Leaves::new(&One, TrieId::Classes, Felt::TWO);
/// assert_eq!(leaves.next().unwrap()?, (TrieKey::from(5), Felt::ONE));
/// assert!(leaves.next().is_none());
/// # Ok::<(), StateError>(())
/// ```
pub struct Leaves<'a> {
    source: &'a dyn NodeSource,
    trie: TrieId,
    /// What is ahead, the nearest last.
    ahead: Vec<Step>,
    /// No leaf before this one is wanted.
    start: Path,
    hashing: Option<Hashing<'a>>,
    unverified: Vec<(NodeRef, Node)>,
    broken: VecDeque<Broken>,
    nodes: u64,
}

impl<'a> Leaves<'a> {
    /// All leaves of the trie with this root.
    pub fn new(source: &'a dyn NodeSource, trie: TrieId, root: Felt) -> Self {
        let top = Step { path: Path::ROOT, hash: root, below_edge: false };
        Self {
            source,
            trie,
            ahead: if root == Felt::ZERO { Vec::new() } else { vec![top] },
            start: Path::ROOT,
            hashing: None,
            unverified: Vec::new(),
            broken: VecDeque::new(),
            nodes: 0,
        }
    }

    /// Begins at the leaf of this key, or behind where it would be.
    #[must_use]
    pub fn starting_at(self, key: &TrieKey) -> Self {
        Self { start: Path::of_key(key), ..self }
    }

    /// Also computes every node's hash, in bulk on the current rayon pool.
    #[must_use]
    pub fn verified(self, hasher: &'a dyn Hasher) -> Self {
        Self { hashing: Some(Hashing::Here(hasher)), ..self }
    }

    /// Like [`Leaves::verified`], but nodes are hashed where `hash` does it, such as on other threads.
    #[must_use]
    pub fn verified_by(self, hash: &'a HashPairs<'a>) -> Self {
        Self { hashing: Some(Hashing::By(hash)), ..self }
    }

    /// How many nodes were read.
    pub const fn nodes(&self) -> u64 {
        self.nodes
    }

    /// Cuts what is ahead into walks over subtrees, in order: about `parts` of them, or fewer if there is little ahead.
    /// What this walk owes (nodes to be verified, errors to be told) goes with the first.
    #[must_use]
    pub fn split(mut self, parts: usize) -> Vec<Self> {
        while self.ahead.len() < parts {
            let before = self.nodes;
            for step in std::mem::take(&mut self.ahead) {
                // The nearest is last; `enter` pushes in that order too.
                if step.path.len() == TRIE_HEIGHT {
                    self.ahead.push(step);
                } else if let Err(problem) = self.enter(step) {
                    self.broken.push_back(Broken::new(self.trie, step.path, problem));
                }
            }
            if self.nodes == before {
                break;
            }
        }
        let mut ahead = std::mem::take(&mut self.ahead).into_iter().rev();
        self.ahead.extend(ahead.next());
        let (source, trie, hashing, start) = (self.source, self.trie, self.hashing, self.start);
        let rest = ahead.map(|step| Self {
            source,
            trie,
            ahead: vec![step],
            start,
            hashing,
            unverified: Vec::new(),
            broken: VecDeque::new(),
            nodes: 0,
        });
        let rest: Vec<Self> = rest.collect();
        std::iter::once(self).chain(rest).collect()
    }

    fn reference(&self, step: &Step) -> NodeRef {
        NodeRef { trie: self.trie, path: step.path, hash: step.hash }
    }

    /// Reads a node and puts its children ahead.
    fn enter(&mut self, step: Step) -> Result<(), StateError> {
        let at = self.reference(&step);
        let node = self.source.sound_node(&at)?;
        self.nodes += 1;
        match node {
            Node::Edge { .. } if step.below_edge => {
                return Err(StateError::damaged(at, "an edge below an edge, which should be one"));
            }
            Node::Edge { path, child } => self.put_ahead(at.path.join(&path), child, true),
            Node::Binary { left, right } => {
                self.put_ahead(at.path.child(true), right, false);
                self.put_ahead(at.path.child(false), left, false);
            }
        }
        if self.hashing.is_some() {
            self.unverified.push((at, node));
            if self.unverified.len() >= VERIFY_BATCH {
                self.verify();
            }
        }
        Ok(())
    }

    fn put_ahead(&mut self, path: Path, hash: Felt, below_edge: bool) {
        // A path of the same length as the start's prefix and before it leads to earlier keys alone.
        if self.start.is_empty() || path >= self.start.prefix(path.len()) {
            self.ahead.push(Step { path, hash, below_edge });
        }
    }

    fn verify(&mut self) {
        let Some(hashing) = self.hashing else { return };
        let pairs: Vec<[Felt; 2]> = self.unverified.iter().map(|(_, node)| node.preimage()).collect();
        let hashes = hashing.pairs(self.trie.hash_function(), &pairs);
        for ((at, node), hash) in self.unverified.drain(..).zip(hashes) {
            let hash = hash + node.addend();
            if hash != at.hash {
                let problem = format!("its content hashes to {hash:#x}");
                self.broken.push_back(Broken::new(at.trie, at.path, StateError::damaged(at, problem)));
            }
        }
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<(TrieKey, Felt), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(broken) = self.broken.pop_front() {
                return Some(Err(broken));
            }
            let Some(step) = self.ahead.pop() else {
                self.verify();
                return self.broken.pop_front().map(Err);
            };
            if let Some(key) = step.path.to_key() {
                return Some(Ok((key, step.hash)));
            }
            if let Err(problem) = self.enter(step) {
                return Some(Err(Broken::new(self.trie, step.path, problem)));
            }
        }
    }
}
