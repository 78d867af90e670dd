//! The new shape of one trie after many leaves changed, before any hashing.
//!
//! Reads only the nodes on the way to the changed leaves, and on deletion the sibling that an edge must merge with.
//! New nodes go into one arena in post-order: a subtree's top node comes last. That is why merging an edge into the
//! one above it can change the last node in place.

use super::{InMemory, Node, NodeReader, NodeRef, NodeSource, Path, TrieId};
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

/// A new node. A block of ten thousand slots makes a hundred thousand of them, so how many cache lines they take is what
/// shaping and hashing cost: the operands are one, all the rest another. A node does not know its hash; its parent does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(align(64))]
pub(super) struct NewNode {
    /// Its children's hashes; those of new children once they are hashed. An edge has the first one only.
    operands: [Felt; 2],
    /// Where it ends: its own path if it is binary, its child's if it is an edge.
    end: Path,
    /// Index of the new node above it, or [`NO_PARENT`].
    parent: u32,
    /// Where it begins, in bits from the root.
    depth: u8,
    /// Longest way down to a node whose hash is known: nodes of one level do not depend on each other.
    pub(super) level: u8,
    /// Which operand of its parent it is.
    side: u8,
    flags: u8,
}
const _: () = assert!(size_of::<NewNode>() == 128);

/// In place of an index: the node is the trie's top.
const NO_PARENT: u32 = u32::MAX;

/// The child of that side is a new node.
const NEW_CHILD: [u8; 2] = [1, 2];
/// There was a node at this path before.
const REPLACES: u8 = 4;

impl NewNode {
    fn is_edge(&self) -> bool {
        usize::from(self.depth) < self.end.len()
    }

    fn path(&self) -> Path {
        self.end.prefix(self.depth.into())
    }

    fn replaces(&self) -> bool {
        self.flags & REPLACES != 0
    }

    fn node(&self) -> Node {
        let [left, right] = self.operands;
        if self.is_edge() {
            return Node::Edge { path: self.end.suffix(self.depth.into()), child: left };
        }
        Node::Binary { left, right }
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
    root: Felt,
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
        let hash = match self.arena.get(new.parent as usize) {
            Some(parent) => parent.operands[usize::from(new.side)],
            None => self.root,
        };
        WrittenNode { path: new.path(), hash, node: new.node() }
    }

    /// One of the new nodes, without its place.
    pub fn node_at(&self, index: usize) -> Node {
        self.arena[index].node()
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
        self.arena[index].replaces()
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
        let is_old = |flag: u8| new.flags & flag == 0;
        ends.into_iter().zip(NEW_CHILD).filter_map(move |(end, flag)| end.filter(|_| is_old(flag)))
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
    match Shaper::shape(source, trie, root, &leaves, true) {
        Ok(shaped) => Ok(shaped),
        Err(Stop::Failed(error)) => Err(*error),
        // Not told to a shaper that reads.
        Err(Stop::NotInMemory) => {
            Err(StateError::MissingNode(NodeRef { trie, path: Path::ROOT, hash: root }))
        }
    }
}

/// As [`shape`], if the source has all nodes for it in memory; otherwise `None`, so that they can be read in bulk first.
///
/// # Errors
/// As [`shape`].
pub fn shape_in_memory(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    leaves: impl IntoIterator<Item = (TrieKey, Felt)>,
) -> Result<Option<ShapedTrie>, StateError> {
    let leaves: Vec<Leaf> = leaves.into_iter().map(|(key, value)| (Path::of_key(&key), value)).collect();
    match Shaper::shape(source, trie, root, &leaves, false) {
        Ok(shaped) => Ok(Some(shaped)),
        Err(Stop::Failed(error)) => Err(*error),
        Err(Stop::NotInMemory) => Ok(None),
    }
}

/// Why shaping came to no end. Small, because every step of the recursion returns one or a subtree.
enum Stop {
    Failed(Box<StateError>),
    NotInMemory,
}

impl From<StateError> for Stop {
    fn from(error: StateError) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// From so many leaves on the smaller side, the two sides of a binary node are shaped in parallel.
const PARALLEL_LEAVES_MIN: usize = 128;

struct Shaper<'a> {
    source: &'a dyn NodeSource,
    reader: Option<Box<dyn NodeReader + 'a>>,
    /// Whether to read nodes that are not in memory.
    reads: bool,
    trie: TrieId,
    arena: Vec<NewNode>,
    removed: Vec<Path>,
    replaced: Vec<(TrieKey, Felt)>,
}

impl<'a> Shaper<'a> {
    fn new(source: &'a dyn NodeSource, trie: TrieId, reads: bool, leaves: usize) -> Self {
        let reader = source.reader(trie);
        let (arena, replaced) = (Vec::with_capacity(8 * leaves), Vec::with_capacity(leaves));
        Self { source, reader, reads, trie, arena, removed: Vec::new(), replaced }
    }

    fn shape(
        source: &'a dyn NodeSource,
        trie: TrieId,
        root: Felt,
        leaves: &[Leaf],
        reads: bool,
    ) -> Result<ShapedTrie, Stop> {
        debug_assert!(leaves.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut shaper = Self::new(source, trie, reads, leaves.len());
        let top = if root == Felt::ZERO {
            shaper.build(Path::ROOT, leaves)?
        } else {
            shaper.update(Path::ROOT, root, leaves)?
        };
        let root = match top {
            Subtree::Empty | Subtree::New(_) => Felt::ZERO,
            Subtree::Same(hash) | Subtree::Leaf(hash) => hash,
        };
        let Self { arena, removed, replaced, .. } = shaper;
        Ok(ShapedTrie { trie, arena, root, removed, replaced })
    }

    fn load(&mut self, path: Path, hash: Felt) -> Result<Node, Stop> {
        let found = match &mut self.reader {
            Some(reader) => reader.node(&path),
            None => InMemory::Not,
        };
        let at = || NodeRef { trie: self.trie, path, hash };
        match found {
            InMemory::Node(node) => Ok(node),
            InMemory::Nothing => Err(StateError::MissingNode(at()).into()),
            InMemory::Not if self.reads => Ok(self.source.required_node(&at())?),
            InMemory::Not => Err(Stop::NotInMemory),
        }
    }

    /// Sets leaves in the subtree at `at`, which is not empty and has the hash `old`.
    fn update(&mut self, at: Path, old: Felt, leaves: &[Leaf]) -> Result<Subtree, Stop> {
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
                self.arena[index as usize].flags |= REPLACES;
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
    ) -> Result<Option<Subtree>, Stop> {
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
    fn rest_of_edge(&mut self, at: Path, rest: Path, child: Felt, leaves: &[Leaf]) -> Result<Subtree, Stop> {
        if rest.is_empty() {
            return self.update(at, child, leaves);
        }
        match self.update_edge(at, rest, child, leaves)? {
            Some(changed) => Ok(changed),
            None => Ok(self.push_edge(at, rest, Child::Known(child))),
        }
    }

    /// A subtree of new leaves where nothing was before.
    fn build(&mut self, at: Path, leaves: &[Leaf]) -> Result<Subtree, Stop> {
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
        left: impl FnOnce(&mut Self) -> Result<Subtree, Stop> + Send,
        right: impl FnOnce(&mut Self) -> Result<Subtree, Stop> + Send,
    ) -> Result<(Subtree, Subtree), Stop> {
        if smaller < PARALLEL_LEAVES_MIN || rayon::current_num_threads() == 1 {
            return Ok((left(self)?, right(self)?));
        }
        let mut aside = Self::new(self.source, self.trie, self.reads, smaller);
        let (left, right) = rayon::join(|| left(self), || right(&mut aside));
        let (left, right) = (left?, right?);
        Ok((left, self.take_in(aside, right)))
    }

    /// Appends another arena behind this one; `top` is its subtree.
    fn take_in(&mut self, other: Self, top: Subtree) -> Subtree {
        let offset = self.arena.len() as u32;
        let moved = |parent: u32| if parent == NO_PARENT { NO_PARENT } else { parent + offset };
        let nodes = other.arena.into_iter();
        self.arena.extend(nodes.map(|node| NewNode { parent: moved(node.parent), ..node }));
        self.removed.extend(other.removed);
        self.replaced.extend(other.replaced);
        match top {
            Subtree::New(index) => Subtree::New(index + offset),
            top => top,
        }
    }

    /// A binary node over two subtrees, or what becomes of it if one or both are empty.
    fn join(&mut self, at: Path, left: Subtree, right: Subtree) -> Result<Subtree, Stop> {
        match (left, right) {
            (Subtree::Empty, Subtree::Empty) => Ok(Subtree::Empty),
            (Subtree::Empty, only) => self.edge(at, Path::ROOT.child(true), only),
            (only, Subtree::Empty) => self.edge(at, Path::ROOT.child(false), only),
            (left, right) => Ok(self.push_binary(at, left, right)),
        }
    }

    /// An edge over a subtree, merged with the subtree's own edge if that is what is at its top.
    fn edge(&mut self, at: Path, path: Path, below: Subtree) -> Result<Subtree, Stop> {
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
                if node.replaces() {
                    self.removed.push(node.path());
                    node.flags &= !REPLACES;
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
    fn edge_over_old(&mut self, at: Path, path: Path, hash: Felt) -> Result<Subtree, Stop> {
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
        let index = self.arena.len() as u32;
        let (mut operands, mut level, mut flags) = ([Felt::ZERO; 2], 0, 0);
        for (side, child) in children.into_iter().enumerate() {
            match child {
                Child::Known(hash) => operands[side] = hash,
                Child::New(child) => {
                    let child = &mut self.arena[child as usize];
                    (child.parent, child.side) = (index, side as u8);
                    level = level.max(child.level + 1);
                    flags |= NEW_CHILD[side];
                }
            }
        }
        let depth = depth as u8;
        self.arena.push(NewNode { operands, end, parent: NO_PARENT, depth, level, side: 0, flags });
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
        self.root
    }

    /// Keys among the set leaves that had a leaf before, with that leaf, ascending by key.
    pub fn replaced(&self) -> &[(TrieKey, Felt)] {
        &self.replaced
    }

    /// What the hash of the node at an index of the arena is made of: the pair that is hashed and the length that is
    /// added, zero for a binary node. The children must be hashed already.
    pub(super) fn operands(&self, index: usize) -> ([Felt; 2], u8) {
        let new = &self.arena[index];
        if new.is_edge() {
            return (new.node().preimage(), new.end.len() as u8 - new.depth);
        }
        (new.operands, 0)
    }

    /// Notes the hash of the node at an index of the arena.
    pub(super) fn set_hash(&mut self, index: usize, hash: Felt) {
        let NewNode { parent, side, .. } = self.arena[index];
        match self.arena.get_mut(parent as usize) {
            Some(parent) => parent.operands[usize::from(side)] = hash,
            None => self.root = hash,
        }
    }

    /// What to write and what to remove, once hashed.
    pub fn into_changes(self) -> TrieChanges {
        let Self { trie, root, removed, arena, .. } = self;
        debug_assert!(arena.iter().all(|node| node.operands[0] != Felt::ZERO));
        TrieChanges { trie, root, removed, arena }
    }
}
