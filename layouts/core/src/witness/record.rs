//! Recording: a source of tries that keeps a note of everything it hands out.
//!
//! An edge is never noted without the node at its end, its bottom. A commitment that finds a key beside an edge stops
//! there, but a prover goes on to the bottom, in the trie before and in the trie after. With the bottoms of all edges from
//! before the block, those of the edges that it makes are there too: such an edge ends in a node that the block makes, in a
//! node that was handed out, or where an edge that was handed out ends.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::encoding::subject_key;
use crate::commit::{CommitmentSource, NamedLeaves, TrieRows, Wanted, commit_blocks};
use crate::commitment::{ContractLeaf, Roots, TRIE_HEIGHT};
use crate::diff::{StateDiff, Subject};
use crate::error::StateError;
use crate::felt::Felt;
use crate::hash::Hasher;
use crate::outcome::changes::{BlockChanges, GroupChanges, StagedCommitment};
use crate::outcome::proof::ProofNode;
use crate::outcome::witness::{Witness, WitnessTrie};
use crate::trie::{Node, NodeRef, NodeSource, Path, TrieId, visit_paths};
use crate::types::{ClassHash, CompiledClassHash, ContractAddress};

/// Commits one block as [`commit_blocks`] does, and returns the witness of it. `reads` is what the block only read.
///
/// # Errors
/// [`StateError`] if old leaves or nodes cannot be read.
pub fn commit_with_witness(
    source: &mut dyn CommitmentSource,
    roots: Roots,
    diff: &StateDiff,
    reads: &[Subject],
    hasher: &dyn Hasher,
    each: impl FnMut(&BlockChanges),
) -> Result<(StagedCommitment, Witness), StateError> {
    let mut reads = reads.to_vec();
    reads.sort_by_cached_key(subject_key);
    reads.dedup();
    let mut recording = Recording::new(source, Recorded { roots, diff, reads: &reads });
    let staged = commit_blocks(&mut recording, roots, &[diff], hasher, each)?;
    let mut witness = recording.finish();
    (witness.before, witness.after) = (roots, staged.roots.first().copied().unwrap_or(roots));
    witness.reads = reads;
    Ok((staged, witness))
}

/// Lists that threads append to, so that they seldom wait for each other.
const SHARDS: usize = 16;

/// A node of a trie, as it was handed out.
type Loaded = (TrieId, ProofNode);

/// What is recorded: a block on top of a state, and what it only read.
#[derive(Clone, Copy)]
struct Recorded<'a> {
    roots: Roots,
    diff: &'a StateDiff,
    reads: &'a [Subject],
}

/// Hands out what its source has, and keeps a note of it.
struct Recording<'a> {
    source: &'a mut dyn CommitmentSource,
    of: Recorded<'a>,
    nodes: [Mutex<Vec<Loaded>>; SHARDS],
    /// Where edges among these nodes end, if not in leaves.
    bottoms: Mutex<Vec<NodeRef>>,
    /// Nodes before and after the block, in order.
    tries: BTreeMap<TrieId, WitnessTrie>,
    contracts: Mutex<Vec<(ContractAddress, ContractLeaf)>>,
    classes: Mutex<Vec<(ClassHash, CompiledClassHash)>>,
}

fn push<T>(list: &Mutex<Vec<T>>, item: T) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(item);
}

fn take_list<T>(list: &mut Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(list.get_mut().unwrap_or_else(PoisonError::into_inner))
}

impl<'a> Recording<'a> {
    fn new(source: &'a mut dyn CommitmentSource, of: Recorded<'a>) -> Self {
        let nodes = std::array::from_fn(|_| Mutex::new(Vec::new()));
        let (bottoms, tries) = (Mutex::default(), BTreeMap::new());
        let (contracts, classes) = (Mutex::default(), Mutex::default());
        Self { source, of, nodes, bottoms, tries, contracts, classes }
    }

    /// Reads what the commitment did not: the ways to keys that were only read, to contracts that were written and stayed
    /// what they were, and the contracts trie's top if the state commitment may be its hash.
    fn read_rest(&mut self, block: &BlockChanges) -> Result<(), StateError> {
        let Recorded { roots, diff, reads } = self.of;
        if roots.rule_matters() {
            self.required_node(&NodeRef {
                trie: TrieId::Contracts,
                path: Path::ROOT,
                hash: roots.contracts.0,
            })?;
        }
        for read in reads {
            if let Subject::CompiledClassHash(class_hash) = read {
                self.class_leaf(class_hash)?;
            }
        }
        let changed = |address: &ContractAddress| {
            block.contracts.binary_search_by_key(address, |change| change.address).is_ok()
        };
        let mut leaves = NamedLeaves::of(reads);
        let written = diff.contracts().iter().map(|contract| contract.address);
        written.filter(|address| !changed(address)).for_each(|address| leaves.add_contract(address));
        let wanted = leaves.wanted(roots, |address| self.contract_leaf(address))?;
        self.prepare(&wanted)?;
        let visit = |of: &Wanted| visit_paths(self, of.trie, of.root, &of.leaves, &mut |_, _| {});
        wanted.par_iter().try_for_each(visit)
    }

    /// Puts what was handed out and what the block made in order.
    fn gather(&mut self, blocks: &[BlockChanges]) {
        for (trie, node) in self.nodes.iter_mut().flat_map(take_list) {
            part_of(&mut self.tries, trie).before.push(node);
        }
        for changes in blocks.iter().flat_map(|block| &block.tries) {
            let made = changes.written().map(|new| ProofNode { hash: new.hash, node: new.node });
            part_of(&mut self.tries, changes.trie).after.extend(made);
        }
        self.tries.par_iter_mut().for_each(|(_, trie)| {
            rayon::join(|| in_order(&mut trie.before), || in_order(&mut trie.after));
        });
    }

    /// Reads the bottoms of edges that were not handed out themselves.
    fn read_bottoms(&mut self) -> Result<(), StateError> {
        let mut missing = take_list(&mut self.bottoms);
        missing.retain(|bottom| self.tries.get(&bottom.trie).is_none_or(|of| !of.has_before(&bottom.hash)));
        missing.sort_by_cached_key(|bottom| (bottom.trie, bottom.hash.to_bytes_be()));
        missing.dedup_by_key(|bottom| (bottom.trie, bottom.hash));
        let source: &dyn CommitmentSource = &*self.source;
        let read = |bottom: &NodeRef| {
            let node = source.required_node(bottom)?;
            Ok((bottom.trie, ProofNode { hash: bottom.hash, node }))
        };
        let found = missing.par_iter().map(read).collect::<Result<Vec<Loaded>, StateError>>()?;
        for of_one in found.chunk_by(|a, b| a.0 == b.0) {
            if let Some(of_trie) = self.tries.get_mut(&of_one[0].0) {
                of_trie.before.extend(of_one.iter().map(|(_, node)| *node));
                in_order(&mut of_trie.before);
            }
        }
        Ok(())
    }

    /// All of it as a witness, in order.
    fn finish(mut self) -> Witness {
        let tries = self.tries.into_values();
        let mut witness = Witness {
            tries: tries.filter(|trie| !trie.before.is_empty() || !trie.after.is_empty()).collect(),
            contracts: take_list(&mut self.contracts),
            classes: take_list(&mut self.classes),
            ..Witness::default()
        };
        witness.contracts.sort_unstable_by_key(|(address, _)| *address);
        witness.contracts.dedup();
        witness.classes.sort_by_cached_key(|(class_hash, _)| class_hash.to_be());
        witness.classes.dedup();
        witness
    }
}

/// The part that is a trie's, with empty lists if it is new.
fn part_of(tries: &mut BTreeMap<TrieId, WitnessTrie>, trie: TrieId) -> &mut WitnessTrie {
    tries.entry(trie).or_insert_with(|| WitnessTrie { trie, before: Vec::new(), after: Vec::new() })
}

impl WitnessTrie {
    /// Whether a node is in the list of those before the block, which is in order.
    fn has_before(&self, hash: &Felt) -> bool {
        let key = hash.to_bytes_be();
        self.before.binary_search_by_key(&key, |node| node.hash.to_bytes_be()).is_ok()
    }
}

/// Sorts nodes by hash, and keeps one of each.
fn in_order(nodes: &mut Vec<ProofNode>) {
    nodes.sort_by_cached_key(|node| node.hash.to_bytes_be());
    nodes.dedup_by_key(|node| node.hash);
}

impl NodeSource for Recording<'_> {
    fn node(&self, at: &NodeRef) -> Result<Option<Node>, StateError> {
        let node = self.source.node(at)?;
        if let Some(node) = node {
            let shard = rayon::current_thread_index().unwrap_or(0) % SHARDS;
            push(&self.nodes[shard], (at.trie, ProofNode { hash: at.hash, node }));
            if let Node::Edge { path, child: hash } = node
                && at.path.len() + path.len() < TRIE_HEIGHT
            {
                push(&self.bottoms, NodeRef { trie: at.trie, path: at.path.join(&path), hash });
            }
        }
        Ok(node)
    }
}

impl TrieRows for Recording<'_> {
    fn contract_leaf(&self, address: &ContractAddress) -> Result<ContractLeaf, StateError> {
        let leaf = self.source.contract_leaf(address)?;
        if !leaf.is_absent() {
            push(&self.contracts, (*address, leaf));
        }
        Ok(leaf)
    }

    fn class_leaf(&self, class_hash: &ClassHash) -> Result<CompiledClassHash, StateError> {
        let compiled = self.source.class_leaf(class_hash)?;
        if !compiled.is_zero() {
            push(&self.classes, (*class_hash, compiled));
        }
        Ok(compiled)
    }
}

impl CommitmentSource for Recording<'_> {
    fn prepare(&mut self, wanted: &[Wanted]) -> Result<(), StateError> {
        self.source.prepare(wanted)
    }

    /// Until here the source is as it was before the block.
    fn absorb(&mut self, group: &GroupChanges) -> Result<(), StateError> {
        for block in &group.blocks {
            self.read_rest(block)?;
        }
        self.gather(&group.blocks);
        self.read_bottoms()?;
        self.source.absorb(group)
    }
}
