//! The new shape of one trie after many leaves changed, block by block, before any hashing.
//!
//! Reads only the nodes on the way to the changed leaves, and on deletion the sibling that an edge must merge with.
//! New nodes go into one arena in post-order: a subtree's top node comes last. That is why merging an edge into the
//! one above it can change the last node in place.
//!
//! A later block finds the nodes of those before it in the arena, which never change again: it puts its own behind them, and
//! where it leaves a subtree as it is, points to it. So the nodes of all blocks are there to be hashed together, and each
//! block still has a root of its own.

use std::ops::Range;
use std::sync::Arc;

use super::node::Node;
use super::path::Path;
use super::place::{NodeRef, TrieId};
use super::source::{InMemory, NodeReader, NodeSource};
use crate::commitment::TRIE_HEIGHT;
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::prefetch;
use crate::types::TrieKey;

/// A leaf's whole path and its new value; zero deletes.
type Leaf = (Path, Felt);

/// What stands at a place: a subtree that is not empty.
#[derive(Debug, Clone, Copy)]
enum Child {
    /// A subtree of the trie before all blocks, or a leaf: its hash is known.
    Known(Felt),
    /// The new node at this index of the arena.
    New(u32),
}

/// An inner node with such children.
enum Inner {
    Binary([Child; 2]),
    Edge(Path, Child),
}

/// A new node. A block of ten thousand slots makes a hundred thousand of them, so how many cache lines they take is what
/// shaping and hashing cost: the operands are one, all the rest another. A node does not know its hash; its parent does,
/// which is of the same block. Nodes of later blocks that have it as a child too look there.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct NewNode {
    /// Its children's hashes; those of new children once they are hashed. An edge has the first one only.
    operands: [Felt; 2],
    /// Where it ends: its own path if it is binary, its child's if it is an edge.
    end: Path,
    /// Indices of its children, or [`NONE`] for those that are not new.
    children: [u32; 2],
    /// Index of its block's new node above it, or [`NONE`].
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

/// In place of an index: there is no such new node.
const NONE: u32 = u32::MAX;

/// The child of that side is a new node of an earlier block.
const EARLIER_CHILD: [u8; 2] = [1, 2];
/// There was a node at this path before its block.
const REPLACES: u8 = 4;
/// There was a node at this path before all blocks.
const REPLACES_OLD: u8 = 8;
/// A later block has put another node in its place, or removed it.
const REPLACED: u8 = 16;

impl NewNode {
    fn is_edge(&self) -> bool {
        usize::from(self.depth) < self.end.len()
    }

    fn path(&self) -> Path {
        self.end.prefix(self.depth.into())
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn child(&self, side: usize) -> Child {
        match self.children[side] {
            NONE => Child::Known(self.operands[side]),
            index => Child::New(index),
        }
    }

    fn inner(&self) -> Inner {
        if self.is_edge() {
            return Inner::Edge(self.end.suffix(self.depth.into()), self.child(0));
        }
        Inner::Binary([self.child(0), self.child(1)])
    }

    fn node(&self) -> Node {
        let [left, right] = self.operands;
        if self.is_edge() {
            return Node::Edge { path: self.end.suffix(self.depth.into()), child: left };
        }
        Node::Binary { left, right }
    }
}

/// What stands at a place after a block.
#[derive(Debug, Clone, Copy)]
enum Subtree {
    Empty,
    /// As before the block.
    Same(Child),
    Leaf(Felt),
    /// A node of the block.
    New(u32),
}

/// What a block leaves of a trie.
#[derive(Debug)]
struct ShapedBlock {
    /// The number that the caller gave it.
    block: usize,
    /// Where its nodes end in the arena.
    end: usize,
    /// Set when it is hashed, if it is a node of the block; none if it stays what it was after the block before.
    root: Option<Felt>,
    removed: Vec<Path>,
    replaced: Vec<(TrieKey, Felt)>,
}

/// The shapes of a trie after blocks. The new nodes get their hashes from [`hash_forest`](super::hash_forest).
#[derive(Debug)]
pub struct ShapedTrie {
    trie: TrieId,
    /// Block behind block.
    pub(super) arena: Vec<NewNode>,
    blocks: Vec<ShapedBlock>,
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

/// What a block, or several together, do to one trie's nodes.
#[derive(Debug, Clone)]
pub struct TrieChanges {
    /// The trie.
    pub trie: TrieId,
    /// Its new root; zero if it is empty now.
    pub root: Felt,
    /// Paths of old nodes where the trie has no node any more. Those with a new node at their path are not among them if
    /// these are one block's changes.
    pub removed: Vec<Path>,
    /// Whether they are of more than one block.
    pub of_many: bool,
    arena: Arc<Vec<NewNode>>,
    nodes: Range<usize>,
}

impl TrieChanges {
    /// Whether the trie is as it was.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.removed.is_empty()
    }

    /// Where the new nodes are. A block's come children before parents; of several blocks' those are left out that a later
    /// one replaced or removed.
    pub fn indices(&self) -> impl Iterator<Item = usize> {
        self.nodes.clone().filter(|index| !(self.of_many && self.arena[*index].has(REPLACED)))
    }

    /// How many new nodes there are, with those that are left out.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The new nodes.
    pub fn written(&self) -> impl Iterator<Item = WrittenNode> {
        self.indices().map(|index| WrittenNode {
            path: self.path_at(index),
            hash: hash_at(&self.arena, index).unwrap_or(self.root),
            node: self.node_at(index),
        })
    }

    /// One of the new nodes, without its place.
    pub fn node_at(&self, index: usize) -> Node {
        self.arena[index].node()
    }

    /// Where one of the new nodes begins, in bits from the root: the length of its path.
    pub fn depth_at(&self, index: usize) -> usize {
        self.arena[index].depth.into()
    }

    /// Path of one of the new nodes.
    pub fn path_at(&self, index: usize) -> Path {
        self.arena[index].path()
    }

    /// Whether one of the new nodes is in the place of one that was there before all blocks that were shaped together.
    pub fn replaces_old_at(&self, index: usize) -> bool {
        self.arena[index].has(REPLACES_OLD)
    }

    /// Paths of those children of a new node that were there before all blocks that were shaped together.
    pub fn paths_of_old_children(&self, index: usize) -> impl Iterator<Item = Path> {
        let new = &self.arena[index];
        let ends = if new.is_edge() {
            [(new.end.len() < TRIE_HEIGHT).then_some(new.end), None]
        } else {
            let inner = new.end.len() + 1 < TRIE_HEIGHT;
            [false, true].map(|side| inner.then(|| new.end.child(side)))
        };
        let old = ends.into_iter().zip(new.children).filter(|(_, child)| *child == NONE);
        old.filter_map(|(end, _)| end)
    }
}

/// The hash of a node, as its parent has it; `None` for a block's top node.
fn hash_at(arena: &[NewNode], index: usize) -> Option<Felt> {
    let NewNode { parent, side, .. } = arena[index];
    arena.get(parent as usize).map(|parent| parent.operands[usize::from(side)])
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
    shape_blocks(source, trie, root, [(0, leaves)])
}

/// As [`shape`], for the leaves that one block after another sets. Each block has a number, by which its part of the
/// outcome is known.
///
/// # Errors
/// As [`shape`].
pub fn shape_blocks<I: IntoIterator<Item = (TrieKey, Felt)>>(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    blocks: impl IntoIterator<Item = (usize, I)>,
) -> Result<ShapedTrie, StateError> {
    match (Shaping { source, trie, reads: true }).shape(root, blocks) {
        Ok(shaped) => Ok(shaped),
        Err(Stop::Failed(error)) => Err(*error),
        // Not told to a shaper that reads.
        Err(Stop::NotInMemory) => {
            Err(StateError::MissingNode(NodeRef { trie, path: Path::ROOT, hash: root }))
        }
    }
}

/// As [`shape_blocks`], if the source has all nodes for it in memory; otherwise `None`, so that they can be read in bulk
/// first.
///
/// # Errors
/// As [`shape`].
pub fn shape_blocks_in_memory<I: IntoIterator<Item = (TrieKey, Felt)>>(
    source: &dyn NodeSource,
    trie: TrieId,
    root: Felt,
    blocks: impl IntoIterator<Item = (usize, I)>,
) -> Result<Option<ShapedTrie>, StateError> {
    match (Shaping { source, trie, reads: false }).shape(root, blocks) {
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

/// What is shaped, and from where.
#[derive(Clone, Copy)]
struct Shaping<'a> {
    source: &'a dyn NodeSource,
    trie: TrieId,
    /// Whether to read nodes that are not in memory.
    reads: bool,
}

impl Shaping<'_> {
    fn shape<I: IntoIterator<Item = (TrieKey, Felt)>>(
        &self,
        root: Felt,
        blocks: impl IntoIterator<Item = (usize, I)>,
    ) -> Result<ShapedTrie, Stop> {
        let mut shaped = ShapedTrie { trie: self.trie, arena: Vec::new(), blocks: Vec::new() };
        let mut top = (root != Felt::ZERO).then_some(Child::Known(root));
        for (block, leaves) in blocks {
            let leaves: Vec<Leaf> =
                leaves.into_iter().map(|(key, value)| (Path::of_key(&key), value)).collect();
            top = self.block(&mut shaped, block, top, &leaves)?;
        }
        Ok(shaped)
    }

    /// Shapes the trie after one more block. `top` is what it has so far; returns what it has then.
    fn block(
        &self,
        shaped: &mut ShapedTrie,
        block: usize,
        top: Option<Child>,
        leaves: &[Leaf],
    ) -> Result<Option<Child>, Stop> {
        debug_assert!(leaves.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut shaper = Shaper::new(*self, &shaped.arena, leaves.len());
        let after = match top {
            None => shaper.build(Path::ROOT, leaves)?,
            Some(top) => shaper.update(Path::ROOT, top, leaves)?,
        };
        let Made { arena, removed, replaced, ended } = shaper.made();
        let (root, after) = match after {
            Subtree::Empty => (Some(Felt::ZERO), None),
            Subtree::Same(Child::Known(hash)) | Subtree::Leaf(hash) => (Some(hash), Some(Child::Known(hash))),
            Subtree::Same(top) => (None, Some(top)),
            Subtree::New(index) => (None, Some(Child::New(index))),
        };
        if shaped.arena.is_empty() {
            shaped.arena = arena;
        } else {
            shaped.arena.extend(arena);
        }
        ended.into_iter().for_each(|index| shaped.arena[index as usize].flags |= REPLACED);
        shaped.blocks.push(ShapedBlock { block, end: shaped.arena.len(), root, removed, replaced });
        Ok(after)
    }
}

/// What a block makes of a trie.
struct Made {
    arena: Vec<NewNode>,
    removed: Vec<Path>,
    replaced: Vec<(TrieKey, Felt)>,
    ended: Vec<u32>,
}

/// Shapes one block's changes, or a part of them.
struct Shaper<'a> {
    of: Shaping<'a>,
    reader: Option<Box<dyn NodeReader + 'a>>,
    /// Nodes of earlier blocks.
    earlier: &'a [NewNode],
    /// The block's nodes. Their indices begin behind those of earlier blocks.
    arena: Vec<NewNode>,
    removed: Vec<Path>,
    replaced: Vec<(TrieKey, Felt)>,
    /// Nodes of earlier blocks that are in the trie no more.
    ended: Vec<u32>,
}

impl<'a> Shaper<'a> {
    fn new(of: Shaping<'a>, earlier: &'a [NewNode], leaves: usize) -> Self {
        let reader = of.source.reader(of.trie);
        let (arena, replaced) = (Vec::with_capacity(8 * leaves), Vec::with_capacity(leaves));
        Self { of, reader, earlier, arena, removed: Vec::new(), replaced, ended: Vec::new() }
    }

    fn made(self) -> Made {
        let Self { arena, removed, replaced, ended, .. } = self;
        Made { arena, removed, replaced, ended }
    }

    /// One of the block's nodes.
    fn own(&mut self, index: u32) -> &mut NewNode {
        &mut self.arena[index as usize - self.earlier.len()]
    }

    /// The inner node at `path`, where `at` stands.
    fn load(&mut self, path: Path, at: Child) -> Result<Inner, Stop> {
        let hash = match at {
            Child::Known(hash) => hash,
            Child::New(index) => return Ok(self.earlier[index as usize].inner()),
        };
        let found = match &mut self.reader {
            Some(reader) => reader.node(&path),
            None => InMemory::Not,
        };
        let at = || NodeRef { trie: self.of.trie, path, hash };
        let node = match found {
            InMemory::Node(node) => node,
            InMemory::Nothing => return Err(StateError::MissingNode(at()).into()),
            InMemory::Not if self.of.reads => self.of.source.required_node(&at())?,
            InMemory::Not => return Err(Stop::NotInMemory),
        };
        Ok(match node {
            Node::Binary { left, right } => Inner::Binary([Child::Known(left), Child::Known(right)]),
            Node::Edge { path, child } => Inner::Edge(path, Child::Known(child)),
        })
    }

    /// Notes that the node `old`, which stood at `at`, is in the trie no more, and no other in its place.
    fn remove(&mut self, at: Path, old: Child) {
        self.removed.push(at);
        self.end(old);
    }

    fn end(&mut self, old: Child) {
        if let Child::New(index) = old {
            self.ended.push(index);
        }
    }

    /// Sets leaves in the subtree `old`, which stands at `at`.
    fn update(&mut self, at: Path, old: Child, leaves: &[Leaf]) -> Result<Subtree, Stop> {
        let Some((_, value)) = leaves.first() else { return Ok(Subtree::Same(old)) };
        if let (TRIE_HEIGHT, Child::Known(leaf)) = (at.len(), old) {
            self.replaced.extend(at.to_key().map(|key| (key, leaf)));
            return Ok(match *value {
                value if value == Felt::ZERO => Subtree::Empty,
                value if value == leaf => Subtree::Same(old),
                value => Subtree::Leaf(value),
            });
        }
        match self.load(at, old)? {
            Inner::Binary([left, right]) => {
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
            Inner::Edge(path, child) => match self.update_edge(at, path, child, leaves)? {
                None => Ok(Subtree::Same(old)),
                Some(changed) => Ok(self.replaced_by(at, old, changed)),
            },
        }
    }

    /// Notes what became of the node `old`, which stood at `at`.
    fn replaced_by(&mut self, at: Path, old: Child, changed: Subtree) -> Subtree {
        let over_old = match old {
            Child::Known(_) => true,
            Child::New(index) => self.earlier[index as usize].has(REPLACES_OLD),
        };
        match changed {
            Subtree::New(index) if usize::from(self.own(index).depth) == at.len() => {
                self.own(index).flags |= REPLACES | if over_old { REPLACES_OLD } else { 0 };
                self.end(old);
            }
            _ => self.remove(at, old),
        }
        changed
    }

    /// Sets leaves below `at`, where an edge `edge` leads to `child`. `None` if nothing changes.
    fn update_edge(
        &mut self,
        at: Path,
        edge: Path,
        child: Child,
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
    fn rest_of_edge(&mut self, at: Path, rest: Path, child: Child, leaves: &[Leaf]) -> Result<Subtree, Stop> {
        if rest.is_empty() {
            return self.update(at, child, leaves);
        }
        match self.update_edge(at, rest, child, leaves)? {
            Some(changed) => Ok(changed),
            None => Ok(self.push_edge(at, rest, child)),
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
        let mut aside = Self::new(self.of, self.earlier, smaller);
        let (left, right) = rayon::join(|| left(self), || right(&mut aside));
        let (left, right) = (left?, right?);
        Ok((left, self.take_in(aside, right)))
    }

    /// Appends another arena behind this one; `top` is its subtree.
    fn take_in(&mut self, other: Self, top: Subtree) -> Subtree {
        let (earlier, offset) = (self.earlier.len() as u32, self.arena.len() as u32);
        let moved = |index: u32| if index == NONE || index < earlier { index } else { index + offset };
        let nodes = other.arena.into_iter();
        self.arena.extend(nodes.map(|node| NewNode {
            parent: moved(node.parent),
            children: node.children.map(moved),
            ..node
        }));
        self.removed.extend(other.removed);
        self.replaced.extend(other.replaced);
        self.ended.extend(other.ended);
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
                let node = self.own(index);
                if !node.is_edge() {
                    return Ok(self.push_edge(at, path, Child::New(index)));
                }
                let gone = node.has(REPLACES).then(|| node.path());
                node.flags &= !(REPLACES | REPLACES_OLD);
                node.depth = at.len() as u8;
                self.removed.extend(gone);
                debug_assert_eq!(index as usize + 1, self.earlier.len() + self.arena.len());
                Ok(below)
            }
            Subtree::Leaf(value) => Ok(self.push_edge(at, path, Child::Known(value))),
            Subtree::Same(old) => self.edge_over_old(at, path, old),
        }
    }

    /// An edge over an unchanged subtree, which may itself begin with an edge.
    fn edge_over_old(&mut self, at: Path, path: Path, old: Child) -> Result<Subtree, Stop> {
        let end = at.join(&path);
        if end.len() < TRIE_HEIGHT
            && let Inner::Edge(lower, child) = self.load(end, old)?
        {
            self.remove(end, old);
            return Ok(self.push_edge(at, path.join(&lower), child));
        }
        Ok(self.push_edge(at, path, old))
    }

    fn push_binary(&mut self, at: Path, left: Subtree, right: Subtree) -> Subtree {
        self.push(at, at.len(), [child(left), child(right)])
    }

    fn push_edge(&mut self, at: Path, path: Path, child: Child) -> Subtree {
        self.push(at.join(&path), at.len(), [child, Child::Known(Felt::ZERO)])
    }

    fn push(&mut self, end: Path, depth: usize, children: [Child; 2]) -> Subtree {
        let index = (self.earlier.len() + self.arena.len()) as u32;
        let (mut operands, mut indices) = ([Felt::ZERO; 2], [NONE; 2]);
        let (mut level, mut flags) = (0, 0);
        for (side, child) in children.into_iter().enumerate() {
            match child {
                Child::Known(hash) => operands[side] = hash,
                Child::New(child) => {
                    let below = match self.earlier.get(child as usize) {
                        Some(earlier) => {
                            flags |= EARLIER_CHILD[side];
                            earlier.level
                        }
                        None => {
                            let child = self.own(child);
                            (child.parent, child.side) = (index, side as u8);
                            child.level
                        }
                    };
                    level = level.max(below + 1);
                    indices[side] = child;
                }
            }
        }
        let depth = depth as u8;
        let (children, parent) = (indices, NONE);
        self.arena.push(NewNode { operands, end, children, parent, depth, level, side: 0, flags });
        Subtree::New(index)
    }
}

fn child(subtree: Subtree) -> Child {
    match subtree {
        Subtree::New(index) => Child::New(index),
        Subtree::Same(old) => old,
        Subtree::Leaf(hash) => Child::Known(hash),
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
    /// The trie's new root, after all blocks; zero if it is empty. Meaningful once hashed.
    pub fn root(&self) -> Felt {
        self.roots().last().map_or(Felt::ZERO, |(_, root)| root)
    }

    /// The node at the trie's root, if the last block made it. Meaningful once hashed.
    pub fn top(&self) -> Option<Node> {
        // Children come before parents, so the last one is the root's.
        self.arena.last().map(NewNode::node)
    }

    /// The trie's root after each block, with the block's number. Meaningful once hashed.
    pub fn roots(&self) -> impl Iterator<Item = (usize, Felt)> {
        let mut root = Felt::ZERO;
        self.blocks.iter().map(move |block| {
            root = block.root.unwrap_or(root);
            (block.block, root)
        })
    }

    /// For each block, keys among the set leaves that had a leaf before, with that leaf, ascending by key.
    pub fn replaced(&self) -> impl Iterator<Item = &[(TrieKey, Felt)]> {
        self.blocks.iter().map(|block| &*block.replaced)
    }

    /// The hash of a child; it must be known already.
    fn operand(&self, new: &NewNode, side: usize) -> Felt {
        let earlier = new.has(EARLIER_CHILD[side]).then(|| hash_at(&self.arena, new.children[side] as usize));
        earlier.flatten().unwrap_or(new.operands[side])
    }

    /// What the hash of the node at an index of the arena is made of: the pair that is hashed and the length that is
    /// added, zero for a binary node. The children must be hashed already.
    pub(super) fn operands(&self, index: usize) -> ([Felt; 2], u8) {
        let new = &self.arena[index];
        if new.is_edge() {
            let path = new.end.suffix(new.depth.into());
            return ([self.operand(new, 0), path.value()], path.len() as u8);
        }
        ([self.operand(new, 0), self.operand(new, 1)], 0)
    }

    /// Asks for the node at an index of the arena.
    pub(super) fn prefetch(&self, index: usize) {
        prefetch(&self.arena, index);
    }

    /// Asks for the new node above the node at an index of the arena.
    pub(super) fn prefetch_parent(&self, index: usize) {
        prefetch(&self.arena, self.arena[index].parent as usize);
    }

    /// Notes the hash of the node at an index of the arena.
    pub(super) fn set_hash(&mut self, index: usize, hash: Felt) {
        let new = &self.arena[index];
        let NewNode { parent, side, .. } = *new;
        if new.flags & (EARLIER_CHILD[0] | EARLIER_CHILD[1]) != 0 {
            self.arena[index].operands = [0, 1].map(|side| self.operand(new, side));
        }
        match self.arena.get_mut(parent as usize) {
            Some(parent) => parent.operands[usize::from(side)] = hash,
            None => {
                let block = self.blocks.partition_point(|block| block.end <= index);
                self.blocks[block].root = Some(hash);
            }
        }
    }

    /// What each block writes and removes, with its number, and what all of them do together; once hashed.
    pub fn into_changes(self) -> (Vec<(usize, TrieChanges)>, TrieChanges) {
        debug_assert!(self.arena.iter().all(|node| node.operands[0] != Felt::ZERO));
        let (root, roots) = (self.root(), self.roots().map(|(_, root)| root).collect::<Vec<_>>());
        let Self { trie, arena, blocks, .. } = self;
        let (of_many, nodes, arena) = (blocks.len() > 1, 0..arena.len(), Arc::new(arena));
        let removed = blocks.iter().flat_map(|block| &block.removed).copied().collect();
        let together = TrieChanges { trie, root, removed, of_many, arena: Arc::clone(&arena), nodes };
        let mut start = 0;
        let changes = |(block, root): (ShapedBlock, Felt)| {
            let nodes = start..block.end;
            start = block.end;
            let ShapedBlock { block, removed, .. } = block;
            (block, TrieChanges { trie, root, removed, of_many: false, arena: Arc::clone(&arena), nodes })
        };
        (blocks.into_iter().zip(roots).map(changes).collect(), together)
    }
}
