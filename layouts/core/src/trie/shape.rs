//! The new shape of one trie after many leaves changed, before any hashing.
//!
//! Reads only the nodes on the way to the changed leaves, and on deletion the sibling that an edge must merge with.
//! New nodes go into one arena in post-order: a subtree's top node comes last. That is why merging an edge into the
//! one above it can change the last node in place.

use super::{Node, NodeReader, NodeRef, NodeSource, Path, TrieId};
use crate::commitment::TRIE_HEIGHT;
use crate::error::StateError;
use crate::felt::Felt;
use crate::types::TrieKey;

/// A leaf's whole path and its new value; zero deletes.
type Leaf = (Path, Felt);

/// A child of a new node.
#[derive(Debug, Clone, Copy)]
enum Child {
    /// An unchanged subtree or a leaf: its hash is known.
    Known(Felt),
    /// The new node at this index of the arena.
    New(u32),
}

/// In place of an index: the child is not a new node.
const KNOWN: u32 = u32::MAX;

impl Child {
    fn of(index: u32, hash: Felt) -> Self {
        if index == KNOWN { Self::Known(hash) } else { Self::New(index) }
    }

    fn parts(self) -> (u32, Felt) {
        match self {
            Self::Known(hash) => (KNOWN, hash),
            Self::New(index) => (index, Felt::ZERO),
        }
    }
}

/// A new node. A block of ten thousand slots makes a hundred thousand of them, so their size is what shaping costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewNode {
    /// Where it ends: its own path if it is binary, its child's if it is an edge.
    end: Path,
    /// Where it begins, in bits from the root.
    depth: u8,
    /// Longest way down to a node whose hash is known: nodes of one level do not depend on each other.
    pub(super) level: u8,
    /// Whether there was a node at its path before.
    replaces: bool,
    /// Its children's indices, or [`KNOWN`]; an edge has the first one only.
    children: [u32; 2],
    /// Hashes of those children that are known.
    known: [Felt; 2],
    /// Zero until it is hashed.
    pub(super) hash: Felt,
}
const _: () = assert!(size_of::<NewNode>() <= 152);

impl NewNode {
    fn is_edge(&self) -> bool {
        usize::from(self.depth) < self.end.len()
    }

    fn path(&self) -> Path {
        self.end.prefix(self.depth.into())
    }

    fn child(&self, side: usize) -> Child {
        Child::of(self.children[side], self.known[side])
    }
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
    removed: Vec<Path>,
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
    /// Paths of old nodes where the trie has no node any more. Those with a new node at their path are not among them.
    pub removed: Vec<Path>,
    arena: Vec<NewNode>,
}

impl TrieChanges {
    /// Whether the trie is as it was.
    pub fn is_empty(&self) -> bool {
        self.arena.is_empty() && self.removed.is_empty()
    }

    /// New nodes, children before parents.
    pub fn written(&self) -> impl ExactSizeIterator<Item = WrittenNode> {
        (0..self.arena.len()).map(|index| self.written_at(index))
    }

    /// One of the [new nodes](Self::written).
    pub fn written_at(&self, index: usize) -> WrittenNode {
        let new = &self.arena[index];
        WrittenNode { path: new.path(), hash: new.hash, node: node_of(&self.arena, new) }
    }

    /// Where the new nodes begin, in bits from the root: the lengths of their paths.
    pub fn written_depths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.arena.iter().map(|new| new.depth.into())
    }

    /// Path of one of the [new nodes](Self::written).
    pub fn path_at(&self, index: usize) -> Path {
        self.arena[index].path()
    }

    /// Whether one of the [new nodes](Self::written) is in the place of an old one.
    pub fn replaces_at(&self, index: usize) -> bool {
        self.arena[index].replaces
    }

    /// Paths of those children of a new node that are old nodes.
    pub fn paths_of_old_children(&self, index: usize) -> impl Iterator<Item = Path> {
        let new = &self.arena[index];
        let ends = if new.is_edge() {
            [(new.end.len() < TRIE_HEIGHT).then_some(new.end), None]
        } else {
            let inner = new.end.len() + 1 < TRIE_HEIGHT;
            [false, true].map(|side| inner.then(|| new.end.child(side)))
        };
        ends.into_iter().zip(new.children).filter_map(|(end, child)| end.filter(|_| child == KNOWN))
    }
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
    let arena = Vec::with_capacity(4 * leaves.len());
    let replaced = Vec::with_capacity(leaves.len());
    let mut shaper =
        Shaper { source, reader: source.reader(trie), trie, arena, removed: Vec::new(), replaced };
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
    reader: Option<Box<dyn NodeReader + 'a>>,
    trie: TrieId,
    arena: Vec<NewNode>,
    removed: Vec<Path>,
    replaced: Vec<(TrieKey, Felt)>,
}

impl<'a> Shaper<'a> {
    fn load(&mut self, path: Path, hash: Felt) -> Result<Node, StateError> {
        let at = NodeRef { trie: self.trie, path, hash };
        match &mut self.reader {
            Some(reader) => reader.node(&at)?.ok_or(StateError::MissingNode(at)),
            None => self.source.required_node(&at),
        }
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
                Ok(self.replaced_by(at, changed))
            }
            Node::Edge { path, child } => match self.update_edge(at, path, child, leaves)? {
                None => Ok(Subtree::Same(old)),
                Some(changed) => Ok(self.replaced_by(at, changed)),
            },
        }
    }

    /// Notes what became of the old node at `at`.
    fn replaced_by(&mut self, at: Path, changed: Subtree) -> Subtree {
        match changed {
            Subtree::New(index) if usize::from(self.arena[index as usize].depth) == at.len() => {
                self.arena[index as usize].replaces = true;
            }
            _ => self.removed.push(at),
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
            None => Ok(self.push_edge(at, rest, Child::Known(child))),
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
            self.push_binary(fork_at, left, right)
        };
        if fork == at.len() {
            return Ok(top);
        }
        Ok(self.push_edge(at, first.0.prefix(fork).suffix(at.len()), child(top)))
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
        let (source, trie) = (self.source, self.trie);
        let (arena, removed, replaced) = (Vec::with_capacity(8 * smaller), Vec::new(), Vec::new());
        let mut aside = Self { source, reader: source.reader(trie), trie, arena, removed, replaced };
        let (left, right) = rayon::join(|| left(self), || right(&mut aside));
        let (left, right) = (left?, right?);
        Ok((left, self.take_in(aside, right)))
    }

    /// Appends another arena behind this one; `top` is its subtree.
    fn take_in(&mut self, other: Self, top: Subtree) -> Subtree {
        let offset = self.arena.len() as u32;
        let moved = |child: u32| if child == KNOWN { KNOWN } else { child + offset };
        self.arena.extend(
            other.arena.into_iter().map(|node| NewNode { children: node.children.map(moved), ..node }),
        );
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
            (left, right) => Ok(self.push_binary(at, left, right)),
        }
    }

    /// An edge over a subtree, merged with the subtree's own edge if that is what is at its top.
    fn edge(&mut self, at: Path, path: Path, below: Subtree) -> Result<Subtree, StateError> {
        if path.is_empty() {
            return Ok(below);
        }
        match below {
            Subtree::Empty => Ok(Subtree::Empty),
            Subtree::New(index) => {
                let node = &mut self.arena[index as usize];
                if !node.is_edge() {
                    return Ok(self.push_edge(at, path, Child::New(index)));
                }
                if std::mem::take(&mut node.replaces) {
                    self.removed.push(node.path());
                }
                node.depth = at.len() as u8;
                debug_assert_eq!(index as usize + 1, self.arena.len());
                Ok(below)
            }
            Subtree::Leaf(value) => Ok(self.push_edge(at, path, Child::Known(value))),
            Subtree::Same(hash) => self.edge_over_old(at, path, hash),
        }
    }

    /// An edge over an unchanged subtree, which may itself begin with an edge.
    fn edge_over_old(&mut self, at: Path, path: Path, hash: Felt) -> Result<Subtree, StateError> {
        let end = at.join(&path);
        if end.len() < TRIE_HEIGHT
            && let Node::Edge { path: lower, child } = self.load(end, hash)?
        {
            self.removed.push(end);
            return Ok(self.push_edge(at, path.join(&lower), Child::Known(child)));
        }
        Ok(self.push_edge(at, path, Child::Known(hash)))
    }

    fn push_binary(&mut self, at: Path, left: Subtree, right: Subtree) -> Subtree {
        self.push(at, at.len(), [child(left), child(right)])
    }

    fn push_edge(&mut self, at: Path, path: Path, child: Child) -> Subtree {
        self.push(at.join(&path), at.len(), [child, Child::Known(Felt::ZERO)])
    }

    fn push(&mut self, end: Path, depth: usize, children: [Child; 2]) -> Subtree {
        let level_above = |child: Child| match child {
            Child::Known(_) => 0,
            Child::New(index) => self.arena[index as usize].level + 1,
        };
        let level = level_above(children[0]).max(level_above(children[1]));
        let [(left, left_hash), (right, right_hash)] = children.map(Child::parts);
        let index = self.arena.len() as u32;
        self.arena.push(NewNode {
            end,
            depth: depth as u8,
            level,
            replaces: false,
            children: [left, right],
            known: [left_hash, right_hash],
            hash: Felt::ZERO,
        });
        Subtree::New(index)
    }
}

/// A child's hash, which must be known already.
fn resolve(arena: &[NewNode], child: Child) -> Felt {
    match child {
        Child::Known(hash) => hash,
        Child::New(index) => arena[index as usize].hash,
    }
}

/// A new node with its children's hashes, which must be known already.
fn node_of(arena: &[NewNode], new: &NewNode) -> Node {
    let left = resolve(arena, new.child(0));
    if new.is_edge() {
        return Node::Edge { path: new.end.suffix(new.depth.into()), child: left };
    }
    Node::Binary { left, right: resolve(arena, new.child(1)) }
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
        resolve(&self.arena, self.top)
    }

    /// Keys among the set leaves that had a leaf before, with that leaf, ascending by key.
    pub fn replaced(&self) -> &[(TrieKey, Felt)] {
        &self.replaced
    }

    /// What the hash of the node at an index of the arena is made of: the pair that is hashed and the length that is
    /// added, zero for a binary node. The children's hashes must be known already.
    pub(super) fn operands(&self, index: usize) -> ([Felt; 2], u8) {
        let new = &self.arena[index];
        let left = resolve(&self.arena, new.child(0));
        if new.is_edge() {
            let path = new.end.suffix(new.depth.into());
            return ([left, path.value()], path.len() as u8);
        }
        ([left, resolve(&self.arena, new.child(1))], 0)
    }

    /// What to write and what to remove, once hashed.
    pub fn into_changes(self) -> TrieChanges {
        debug_assert!(self.arena.iter().all(|node| node.hash != Felt::ZERO));
        TrieChanges { trie: self.trie, root: self.root(), removed: self.removed, arena: self.arena }
    }
}
