//! Range proofs: a run of consecutive leaves of one trie, whole on its own.
//!
//! Whoever fetches a state in pieces from peers that it does not trust asks for the leaves from a key on. The answer
//! covers an interval of keys: from the asked key to its last leaf, or to the end of the trie. A subtree wholly inside
//! the interval must have exactly the hash that the run's leaves give; one wholly outside stays a hash; the nodes in
//! between, on the two boundary ways, are the proof. So leaves can neither be left out nor put in, and an interval
//! without leaves is shown to have none.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use super::error::ProofError;
use super::nodes::{PartialTrie, check_hashes};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::outcome::proof::ProofNode;
use crate::trie::{Node, NodeRef, NodeSource, Path, ShapedTrie, TrieId, hash_forest, hash_pairs, shape};
use crate::types::TrieKey;

/// Consecutive leaves of a trie with the nodes on the boundary of their interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeProof {
    /// The first key of the interval.
    pub first: TrieKey,
    /// All leaves of the interval, ascending by key.
    pub leaves: Vec<(TrieKey, Felt)>,
    /// Whether the interval goes to the end of the trie; if not, it ends with its last leaf.
    pub to_end: bool,
    /// The nodes above both the interval and what is outside, from the root down.
    pub nodes: Vec<ProofNode>,
}

/// A range that holds: the trie has these leaves from `first` to `last`, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvenRange<'a> {
    /// First key of the interval.
    pub first: TrieKey,
    /// Last key of the interval: that of the last leaf, or of the trie.
    pub last: TrieKey,
    /// The leaves.
    pub leaves: &'a [(TrieKey, Felt)],
}

/// The interval of keys that a range covers, as paths.
#[derive(Clone, Copy)]
struct Interval {
    first: Path,
    last: Path,
}

/// How a subtree lies to an interval.
#[derive(PartialEq, Eq)]
enum Lies {
    Inside,
    Across,
    Outside,
}

impl Interval {
    fn new(first: &TrieKey, last: &TrieKey) -> Self {
        Self { first: Path::of_key(first), last: Path::of_key(last) }
    }

    /// How the subtree at `path` lies.
    fn of(&self, path: &Path) -> Lies {
        let lowest = path.join(&Path::of_key(&TrieKey::default()).suffix(path.len()));
        let highest = path.join(&Path::of_key(&TrieKey::MAX).suffix(path.len()));
        if highest < self.first || self.last < lowest {
            Lies::Outside
        } else if self.first <= lowest && highest <= self.last {
            Lies::Inside
        } else {
            Lies::Across
        }
    }
}

/// Takes up to `leaves_max` leaves of a trie, from the key `first` on, and the nodes that prove them.
///
/// # Errors
/// [`StateError`] if the trie cannot be read.
pub fn prove_range(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    first: TrieKey,
    leaves_max: NonZeroUsize,
) -> Result<RangeProof, StateError> {
    let (leaves, to_end) = collect(source, trie, root, &first, leaves_max.get())?;
    let last = if to_end { TrieKey::MAX } else { leaves.last().map_or(first, |(key, _)| *key) };
    let interval = Interval::new(&first, &last);
    let (mut listed, mut nodes) = (HashSet::new(), Vec::new());
    let mut open = vec![NodeRef { trie, path: Path::ROOT, hash: root }];
    while let Some(at) = open.pop() {
        if at.hash == Felt::ZERO || interval.of(&at.path) != Lies::Across {
            continue;
        }
        let node = source.required_node(&at)?;
        if listed.insert(at.hash) {
            nodes.push(ProofNode { hash: at.hash, node });
        }
        open.extend(children(&at, &node).into_iter().rev());
    }
    Ok(RangeProof { first, leaves, to_end, nodes })
}

/// The children of a node, from left to right.
fn children(at: &NodeRef, node: &Node) -> Vec<NodeRef> {
    match node {
        Node::Binary { left, right } => vec![
            NodeRef { path: at.path.child(false), hash: *left, ..*at },
            NodeRef { path: at.path.child(true), hash: *right, ..*at },
        ],
        Node::Edge { path, child } => vec![NodeRef { path: at.path.join(path), hash: *child, ..*at }],
    }
}

/// The first leaves from a key on, and whether there is none behind them.
fn collect(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    first: &TrieKey,
    leaves_max: usize,
) -> Result<(Vec<(TrieKey, Felt)>, bool), StateError> {
    let behind = Interval::new(first, &TrieKey::MAX);
    let mut leaves = Vec::new();
    let mut open = vec![NodeRef { trie, path: Path::ROOT, hash: root }];
    while let Some(at) = open.pop() {
        if at.hash == Felt::ZERO || behind.of(&at.path) == Lies::Outside {
            continue;
        }
        match at.path.to_key() {
            Some(_) if leaves.len() == leaves_max => return Ok((leaves, false)),
            Some(key) => leaves.push((key, at.hash)),
            None => open.extend(children(&at, &source.required_node(&at)?).into_iter().rev()),
        }
    }
    Ok((leaves, true))
}

/// A subtree wholly inside the interval, and the leaves of the range in it.
struct Inside<'a> {
    at: NodeRef,
    leaves: &'a [(TrieKey, Felt)],
}

impl RangeProof {
    /// Verifies that the leaves are exactly those of `trie`, whose root is `root`, in the interval of the range.
    ///
    /// # Errors
    /// [`ProofError`] with the first node, leaf or subtree that is wrong.
    pub fn verify(
        &self,
        trie: TrieId,
        root: Felt,
        hasher: &dyn Hasher,
    ) -> Result<ProvenRange<'_>, ProofError> {
        let last = self.check_leaves()?;
        check_hashes(hasher, [(trie, self.nodes.as_slice())])?;
        let nodes = PartialTrie::new(trie, root, &self.nodes)?;
        let inside = self.inside(&nodes, NodeRef { trie, path: Path::ROOT, hash: root }, &last)?;
        check_subtrees(trie, &inside, hasher)?;
        Ok(ProvenRange { first: self.first, last, leaves: &self.leaves })
    }

    /// Checks order and bounds of the leaves. Returns the last key of the interval.
    fn check_leaves(&self) -> Result<TrieKey, ProofError> {
        let mut before = None;
        for (key, leaf) in &self.leaves {
            let problem = match before {
                _ if *leaf == Felt::ZERO => "is zero, which means absent",
                _ if *key < self.first => "comes before the range",
                Some(before) if *key <= before => "is not above the one before it",
                _ => {
                    before = Some(*key);
                    continue;
                }
            };
            return Err(ProofError::Leaf { key: *key, problem });
        }
        match (self.to_end, before) {
            (true, _) => Ok(TrieKey::MAX),
            (false, Some(last)) => Ok(last),
            (false, None) => {
                Err(ProofError::Leaf { key: self.first, problem: "begins a range without leaves or end" })
            }
        }
    }

    /// Walks down where subtrees lie across the boundary, and returns those inside. All leaves are in one of them, and
    /// all nodes on the way.
    fn inside(
        &self,
        nodes: &PartialTrie,
        root: NodeRef,
        last: &TrieKey,
    ) -> Result<Vec<Inside<'_>>, ProofError> {
        let interval = Interval::new(&self.first, last);
        let (mut inside, mut used) = (Vec::new(), HashSet::new());
        let mut open = vec![(root, self.leaves.as_slice(), false)];
        while let Some((at, leaves, below_edge)) = open.pop() {
            match interval.of(&at.path) {
                Lies::Inside => inside.push(Inside { at, leaves }),
                // A range's leaves are in its interval, so none is here.
                Lies::Outside => debug_assert!(leaves.is_empty()),
                Lies::Across if at.hash == Felt::ZERO => nothing_there(&at, leaves)?,
                Lies::Across => {
                    let node = nodes.node(&at, below_edge)?.ok_or(ProofError::NoBoundary(at))?;
                    used.insert(at.hash);
                    let mut rest = leaves;
                    for child in children(&at, &node) {
                        let before = rest.partition_point(|(key, _)| Path::of_key(key) < child.path);
                        nothing_there(&at, &rest[..before])?;
                        let under = rest[before..]
                            .partition_point(|(key, _)| Path::of_key(key).starts_with(&child.path));
                        let of_child = &rest[before..before + under];
                        rest = &rest[before + under..];
                        open.push((child, of_child, matches!(node, Node::Edge { .. })));
                    }
                    nothing_there(&at, rest)?;
                }
            }
        }
        nodes.all_used(&used)?;
        Ok(inside)
    }
}

/// Refuses leaves where the trie has none.
fn nothing_there(at: &NodeRef, leaves: &[(TrieKey, Felt)]) -> Result<(), ProofError> {
    match leaves.first() {
        Some((key, leaf)) => {
            let at = NodeRef { path: Path::of_key(key), hash: Felt::ZERO, ..*at };
            Err(ProofError::Range { at: Box::new(at), computed: *leaf })
        }
        None => Ok(()),
    }
}

/// A trie that has nothing yet.
struct Nothing;

impl NodeSource for Nothing {
    fn node(&self, _at: &NodeRef) -> Result<Option<Node>, StateError> {
        Ok(None)
    }
}

/// Compares each subtree's hash with the one that its leaves give, hashing all of them together.
fn check_subtrees(trie: TrieId, inside: &[Inside<'_>], hasher: &dyn Hasher) -> Result<(), ProofError> {
    let differs = |at: &NodeRef, computed| ProofError::Range { at: Box::new(*at), computed };
    let shaped = |Inside { at, leaves }: &Inside<'_>| {
        let shaped = shape(&Nothing, trie, Felt::ZERO, leaves.iter().copied());
        // Building over nothing reads no node, so this does not fail.
        shaped.map_err(|_| differs(at, Felt::ZERO))
    };
    let mut shaped = inside.iter().map(shaped).collect::<Result<Vec<ShapedTrie>, _>>()?;
    hash_forest(hasher, trie.hash_function(), &mut shaped);
    let tops: Vec<Top> = shaped.iter().zip(inside).map(|(shaped, of)| top(shaped, &of.at.path)).collect();
    let edges = tops.iter().filter_map(|top| if let Top::Edge(node) = top { Some(node) } else { None });
    let pairs: Vec<[Felt; 2]> = edges.map(Node::preimage).collect();
    let mut edges = hash_pairs(hasher, trie.hash_function(), &pairs).into_iter();
    for (top, Inside { at, .. }) in tops.into_iter().zip(inside) {
        let computed = match top {
            Top::Known(hash) => hash,
            Top::Edge(node) => edges.next().unwrap_or_default() + node.addend(),
        };
        if computed != at.hash {
            return Err(differs(at, computed));
        }
    }
    Ok(())
}

/// The top of a subtree.
enum Top {
    Known(Felt),
    /// What is left of an edge that begins further up.
    Edge(Node),
}

/// The top of the subtree at `at` in a trie that has nothing outside of it.
fn top(shaped: &ShapedTrie, at: &Path) -> Top {
    match shaped.top() {
        Some(Node::Edge { path, child }) if !at.is_empty() => match path.suffix(at.len()) {
            rest if rest.is_empty() => Top::Known(child),
            rest => Top::Edge(Node::Edge { path: rest, child }),
        },
        _ => Top::Known(shaped.root()),
    }
}
