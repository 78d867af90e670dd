//! The new shape of one trie after many leaves changed, before any hashing.
//!
//! Reads only the nodes on the way to the changed leaves, and on deletion the sibling that an edge must merge with.
//! New nodes go into one arena in post-order: a subtree's top node comes last. That is why merging an edge into the
//! one above it can change the last node in place.

use super::{Node, NodeRef, NodeSource, Path, TrieId};
use crate::commitment::TRIE_HEIGHT;
use crate::error::StateError;
use crate::felt::Felt;
use crate::types::TrieKey;

/// A leaf's whole path and its new value; zero deletes.
type Leaf = (Path, Felt);

/// A child of a new node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Child {
    /// An unchanged subtree or a leaf: its hash is known.
    Known(Felt),
    /// The new node at this index of the arena.
    New(u32),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum NewKind {
    Binary { left: Child, right: Child },
    Edge { path: Path, child: Child },
}

#[derive(Debug)]
pub(super) struct NewNode {
    path: Path,
    pub(super) kind: NewKind,
    /// Longest way down to a node whose hash is known: nodes of one level do not depend on each other.
    pub(super) level: u32,
    /// Hash of the old node at the same path, if there was one.
    replaces: Option<Felt>,
    /// Zero until it is hashed.
    pub(super) hash: Felt,
}

/// What stands at a place after the update.
#[derive(Debug, Clone, Copy)]
enum Subtree {
    Empty,
    /// As before, with this hash.
    Same(Felt),
    Leaf(Felt),
    New(u32),
}

/// The new shape of a trie. Its new nodes get their hashes from [`hash_forest`](super::hash_forest).
#[derive(Debug)]
pub struct ShapedTrie {
    trie: TrieId,
    pub(super) arena: Vec<NewNode>,
    top: Child,
    removed: Vec<(Path, Felt)>,
    replaced: Vec<(TrieKey, Felt)>,
}

/// A new node with its place and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenNode {
    /// Path from the trie's root.
    pub path: Path,
    /// Its hash.
    pub hash: Felt,
    /// The node.
    pub node: Node,
}

/// What an update does to one trie's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrieChanges {
    /// The trie.
    pub trie: TrieId,
    /// Its new root; zero if it is empty now.
    pub root: Felt,
    /// New nodes, children before parents.
    pub written: Vec<WrittenNode>,
    /// Path and hash of old nodes where the trie has no node any more. Those with a new node at their path are not
    /// among them.
    pub removed: Vec<(Path, Felt)>,
}

/// Finds the new shape of `trie`, whose root is `root`, after setting `leaves`: ascending by key, none twice, zero
/// deletes. Writing what is already there, and deleting what is not, changes nothing.
///
/// # Errors
/// [`StateError`] if a node on the way is missing or damaged, or the store fails.
pub fn shape(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    leaves: impl IntoIterator<Item = (TrieKey, Felt)>,
) -> Result<ShapedTrie, StateError> {
    let leaves: Vec<Leaf> = leaves.into_iter().map(|(key, value)| (Path::of_key(&key), value)).collect();
    debug_assert!(leaves.is_sorted_by(|(a, _), (b, _)| a < b));
    let mut shaper = Shaper { source, trie, arena: Vec::new(), removed: Vec::new(), replaced: Vec::new() };
    let top = if root == Felt::ZERO {
        shaper.build(Path::ROOT, &leaves)?
    } else {
        shaper.update(Path::ROOT, root, &leaves)?
    };
    let top = match top {
        Subtree::Empty => Child::Known(Felt::ZERO),
        Subtree::Same(hash) | Subtree::Leaf(hash) => Child::Known(hash),
        Subtree::New(index) => Child::New(index),
    };
    Ok(ShapedTrie { trie, arena: shaper.arena, top, removed: shaper.removed, replaced: shaper.replaced })
}

/// From so many leaves on the smaller side, the two sides of a binary node are shaped in parallel.
const PARALLEL_LEAVES_MIN: usize = 128;

struct Shaper<'a> {
    source: &'a dyn NodeSource,
    trie: TrieId,
    arena: Vec<NewNode>,
    removed: Vec<(Path, Felt)>,
    replaced: Vec<(TrieKey, Felt)>,
}

impl Shaper<'_> {
    fn load(&self, path: Path, hash: Felt) -> Result<Node, StateError> {
        self.source.required_node(&NodeRef { trie: self.trie, path, hash })
    }

    /// Sets leaves in the subtree at `at`, which is not empty and has the hash `old`.
    fn update(&mut self, at: Path, old: Felt, leaves: &[Leaf]) -> Result<Subtree, StateError> {
        let Some((_, value)) = leaves.first() else { return Ok(Subtree::Same(old)) };
        if at.len() == TRIE_HEIGHT {
            self.replaced.extend(at.to_key().map(|key| (key, old)));
            return Ok(match *value {
                value if value == Felt::ZERO => Subtree::Empty,
                value if value == old => Subtree::Same(old),
                value => Subtree::Leaf(value),
            });
        }
        match self.load(at, old)? {
            Node::Binary { left, right } => {
                let (lefts, rights) = split(leaves, at.len());
                let (left, right) = self.both(
                    lefts.len().min(rights.len()),
                    |shaper| shaper.update(at.child(false), left, lefts),
                    |shaper| shaper.update(at.child(true), right, rights),
                )?;
                if let (Subtree::Same(_), Subtree::Same(_)) = (left, right) {
                    return Ok(Subtree::Same(old));
                }
                let changed = self.join(at, left, right)?;
                Ok(self.replaced_by(at, old, changed))
            }
            Node::Edge { path, child } => match self.update_edge(at, path, child, leaves)? {
                None => Ok(Subtree::Same(old)),
                Some(changed) => Ok(self.replaced_by(at, old, changed)),
            },
        }
    }

    /// Notes what became of the old node at `at`.
    fn replaced_by(&mut self, at: Path, old: Felt, changed: Subtree) -> Subtree {
        match changed {
            Subtree::New(index) if self.arena[index as usize].path == at => {
                self.arena[index as usize].replaces = Some(old);
            }
            _ => self.removed.push((at, old)),
        }
        changed
    }

    /// Sets leaves below `at`, where an edge `edge` leads to `child`. `None` if nothing changes.
    fn update_edge(
        &mut self,
        at: Path,
        edge: Path,
        child: Felt,
        leaves: &[Leaf],
    ) -> Result<Option<Subtree>, StateError> {
        let end = at.join(&edge);
        let inserted = leaves.iter().filter(|(_, value)| *value != Felt::ZERO);
        // Depth of the first bit in which an inserted leaf leaves the edge.
        let fork = inserted.map(|(path, _)| path.common_prefix(&end)).min().filter(|fork| *fork < end.len());
        let Some(fork) = fork else {
            return match self.update(end, child, under(leaves, &end))? {
                Subtree::Same(_) => Ok(None),
                changed => self.edge(at, edge, changed).map(Some),
            };
        };
        let fork_at = end.prefix(fork);
        let goes_right = end.bit(fork);
        let (lefts, rights) = split(under(leaves, &fork_at), fork);
        let (with_edge, apart) = if goes_right { (rights, lefts) } else { (lefts, rights) };
        let rest = edge.suffix(fork + 1 - at.len());
        let old_side = self.rest_of_edge(fork_at.child(goes_right), rest, child, with_edge)?;
        let new_side = self.build(fork_at.child(!goes_right), apart)?;
        let (left, right) = if goes_right { (new_side, old_side) } else { (old_side, new_side) };
        let joined = self.join(fork_at, left, right)?;
        self.edge(at, edge.prefix(fork - at.len()), joined).map(Some)
    }

    /// What is left of a split edge behind the fork, with its leaves set.
    fn rest_of_edge(
        &mut self,
        at: Path,
        rest: Path,
        child: Felt,
        leaves: &[Leaf],
    ) -> Result<Subtree, StateError> {
        if rest.is_empty() {
            return self.update(at, child, leaves);
        }
        match self.update_edge(at, rest, child, leaves)? {
            Some(changed) => Ok(changed),
            None => Ok(self.push(at, NewKind::Edge { path: rest, child: Child::Known(child) })),
        }
    }

    /// A subtree of new leaves where nothing was before.
    fn build(&mut self, at: Path, leaves: &[Leaf]) -> Result<Subtree, StateError> {
        let is_set = |(_, value): &&Leaf| *value != Felt::ZERO;
        let (Some(first), Some(last)) = (leaves.iter().find(is_set), leaves.iter().rfind(is_set)) else {
            return Ok(Subtree::Empty);
        };
        let fork = first.0.common_prefix(&last.0);
        let top = if fork == TRIE_HEIGHT {
            Subtree::Leaf(first.1)
        } else {
            let fork_at = first.0.prefix(fork);
            let (lefts, rights) = split(under(leaves, &fork_at), fork);
            let (left, right) = self.both(
                lefts.len().min(rights.len()),
                |shaper| shaper.build(fork_at.child(false), lefts),
                |shaper| shaper.build(fork_at.child(true), rights),
            )?;
            self.push(fork_at, NewKind::Binary { left: child(left), right: child(right) })
        };
        if fork == at.len() {
            return Ok(top);
        }
        Ok(self.push(at, NewKind::Edge { path: first.0.prefix(fork).suffix(at.len()), child: child(top) }))
    }

    /// Both sides of a binary node; in parallel, each into an arena of its own, if the smaller side has enough leaves to
    /// pay for moving the nodes together. The outcome is the same.
    fn both(
        &mut self,
        smaller: usize,
        left: impl FnOnce(&mut Self) -> Result<Subtree, StateError> + Send,
        right: impl FnOnce(&mut Self) -> Result<Subtree, StateError> + Send,
    ) -> Result<(Subtree, Subtree), StateError> {
        if smaller < PARALLEL_LEAVES_MIN || rayon::current_num_threads() == 1 {
            return Ok((left(self)?, right(self)?));
        }
        let mut aside = Self { arena: Vec::new(), removed: Vec::new(), replaced: Vec::new(), ..*self };
        let (left, right) = rayon::join(|| left(self), || right(&mut aside));
        let (left, right) = (left?, right?);
        Ok((left, self.take_in(aside, right)))
    }

    /// Appends another arena behind this one; `top` is its subtree.
    fn take_in(&mut self, other: Self, top: Subtree) -> Subtree {
        let offset = self.arena.len() as u32;
        let moved = |child: Child| match child {
            Child::New(index) => Child::New(index + offset),
            known => known,
        };
        self.arena.extend(other.arena.into_iter().map(|mut node| {
            node.kind = match node.kind {
                NewKind::Binary { left, right } => NewKind::Binary { left: moved(left), right: moved(right) },
                NewKind::Edge { path, child } => NewKind::Edge { path, child: moved(child) },
            };
            node
        }));
        self.removed.extend(other.removed);
        self.replaced.extend(other.replaced);
        match top {
            Subtree::New(index) => Subtree::New(index + offset),
            top => top,
        }
    }

    /// A binary node over two subtrees, or what becomes of it if one or both are empty.
    fn join(&mut self, at: Path, left: Subtree, right: Subtree) -> Result<Subtree, StateError> {
        match (left, right) {
            (Subtree::Empty, Subtree::Empty) => Ok(Subtree::Empty),
            (Subtree::Empty, only) => self.edge(at, Path::ROOT.child(true), only),
            (only, Subtree::Empty) => self.edge(at, Path::ROOT.child(false), only),
            (left, right) => Ok(self.push(at, NewKind::Binary { left: child(left), right: child(right) })),
        }
    }

    /// An edge over a subtree, merged with the subtree's own edge if that is what is at its top.
    fn edge(&mut self, at: Path, path: Path, below: Subtree) -> Result<Subtree, StateError> {
        if path.is_empty() {
            return Ok(below);
        }
        let edge = match below {
            Subtree::Empty => return Ok(Subtree::Empty),
            Subtree::New(index) => {
                if let NewKind::Edge { path: lower, child } = self.arena[index as usize].kind {
                    debug_assert_eq!(index as usize + 1, self.arena.len());
                    let node = &mut self.arena[index as usize];
                    self.removed.extend(node.replaces.take().map(|old| (node.path, old)));
                    node.path = at;
                    node.kind = NewKind::Edge { path: path.join(&lower), child };
                    return Ok(below);
                }
                NewKind::Edge { path, child: Child::New(index) }
            }
            Subtree::Leaf(value) => NewKind::Edge { path, child: Child::Known(value) },
            Subtree::Same(hash) => self.edge_over_old(at.join(&path), path, hash)?,
        };
        Ok(self.push(at, edge))
    }

    /// An edge over an unchanged subtree at `end`, which may itself begin with an edge.
    fn edge_over_old(&mut self, end: Path, path: Path, hash: Felt) -> Result<NewKind, StateError> {
        if end.len() < TRIE_HEIGHT
            && let Node::Edge { path: lower, child } = self.load(end, hash)?
        {
            self.removed.push((end, hash));
            return Ok(NewKind::Edge { path: path.join(&lower), child: Child::Known(child) });
        }
        Ok(NewKind::Edge { path, child: Child::Known(hash) })
    }

    fn push(&mut self, path: Path, kind: NewKind) -> Subtree {
        let level_above = |child: &Child| match child {
            Child::Known(_) => 0,
            Child::New(index) => self.arena[*index as usize].level + 1,
        };
        let level = match &kind {
            NewKind::Binary { left, right } => level_above(left).max(level_above(right)),
            NewKind::Edge { child, .. } => level_above(child),
        };
        let index = self.arena.len() as u32;
        self.arena.push(NewNode { path, kind, level, replaces: None, hash: Felt::ZERO });
        Subtree::New(index)
    }
}

fn child(subtree: Subtree) -> Child {
    match subtree {
        Subtree::New(index) => Child::New(index),
        Subtree::Same(hash) | Subtree::Leaf(hash) => Child::Known(hash),
        Subtree::Empty => {
            debug_assert!(false, "a new node never has an empty child");
            Child::Known(Felt::ZERO)
        }
    }
}

/// Leaves by their bit at `depth`.
fn split(leaves: &[Leaf], depth: usize) -> (&[Leaf], &[Leaf]) {
    leaves.split_at(leaves.partition_point(|(path, _)| !path.bit(depth)))
}

/// The leaves whose paths begin with `prefix`.
fn under<'a>(leaves: &'a [Leaf], prefix: &Path) -> &'a [Leaf] {
    let start = leaves.partition_point(|(path, _)| path < prefix);
    let count = leaves[start..].partition_point(|(path, _)| path.starts_with(prefix));
    &leaves[start..start + count]
}

impl ShapedTrie {
    /// The trie's new root; zero if it is empty. Meaningful once hashed.
    pub fn root(&self) -> Felt {
        self.resolve(self.top)
    }

    /// Keys among the set leaves that had a leaf before, with that leaf, ascending by key.
    pub fn replaced(&self) -> &[(TrieKey, Felt)] {
        &self.replaced
    }

    pub(super) fn resolve(&self, child: Child) -> Felt {
        match child {
            Child::Known(hash) => hash,
            Child::New(index) => self.arena[index as usize].hash,
        }
    }

    /// The node at an index of the arena, with its children's hashes, which must be known already.
    pub(super) fn node(&self, index: usize) -> Node {
        match self.arena[index].kind {
            NewKind::Binary { left, right } => {
                Node::Binary { left: self.resolve(left), right: self.resolve(right) }
            }
            NewKind::Edge { path, child } => Node::Edge { path, child: self.resolve(child) },
        }
    }

    /// What to write and what to remove, once hashed.
    pub fn into_changes(self) -> TrieChanges {
        debug_assert!(self.arena.iter().all(|node| node.hash != Felt::ZERO));
        let written = |(index, node): (usize, &NewNode)| WrittenNode {
            path: node.path,
            hash: node.hash,
            node: self.node(index),
        };
        let written = self.arena.iter().enumerate().map(written).collect();
        TrieChanges { trie: self.trie, root: self.root(), written, removed: self.removed }
    }
}
