//! Recording: a source of tries that keeps a note of everything it hands out.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::encoding::subject_key;
use super::{Witness, WitnessTrie};
use crate::commit::{
    BlockChanges, CommitmentSource, GroupChanges, NamedLeaves, TrieRows, Wanted, commit_blocks,
};
use crate::commitment::{ContractLeaf, Roots};
use crate::diff::{StateDiff, Subject};
use crate::error::StateError;
use crate::hash::Hasher;
use crate::layout::StagedCommitment;
use crate::proof::ProofNode;
use crate::trie::{Node, NodeRef, NodeSource, TrieId, visit_paths};
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
    made: Vec<Loaded>,
    contracts: Mutex<Vec<(ContractAddress, ContractLeaf)>>,
    classes: Mutex<Vec<(ClassHash, CompiledClassHash)>>,
}

fn push<T>(list: &Mutex<Vec<T>>, item: T) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(item);
}

fn into_list<T>(list: Mutex<Vec<T>>) -> Vec<T> {
    list.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Recording<'a> {
    fn new(source: &'a mut dyn CommitmentSource, of: Recorded<'a>) -> Self {
        let nodes = std::array::from_fn(|_| Mutex::new(Vec::new()));
        let (contracts, classes) = (Mutex::default(), Mutex::default());
        Self { source, of, nodes, made: Vec::new(), contracts, classes }
    }

    /// Reads what the commitment did not: the ways to keys that were only read, and to contracts that were written and
    /// stayed what they were.
    fn read_rest(&mut self, block: &BlockChanges) -> Result<(), StateError> {
        let Recorded { roots, diff, reads } = self.of;
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

    /// Puts what was handed out and what the block made into a witness, in order.
    fn finish(self) -> Witness {
        let mut witness = Witness::default();
        let mut tries: BTreeMap<TrieId, WitnessTrie> = BTreeMap::new();
        let entry = |trie| WitnessTrie { trie, before: Vec::new(), after: Vec::new() };
        for (trie, node) in self.nodes.into_iter().flat_map(into_list) {
            tries.entry(trie).or_insert_with(|| entry(trie)).before.push(node);
        }
        for (trie, node) in self.made {
            tries.entry(trie).or_insert_with(|| entry(trie)).after.push(node);
        }
        witness.tries = tries.into_values().collect();
        witness.tries.par_iter_mut().for_each(|trie| {
            rayon::join(|| in_order(&mut trie.before), || in_order(&mut trie.after));
        });
        witness.tries.retain(|trie| !trie.before.is_empty() || !trie.after.is_empty());
        witness.contracts = into_list(self.contracts);
        witness.contracts.sort_unstable_by_key(|(address, _)| *address);
        witness.contracts.dedup();
        witness.classes = into_list(self.classes);
        witness.classes.sort_by_cached_key(|(class_hash, _)| class_hash.to_be());
        witness.classes.dedup();
        witness
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
            for changes in &block.tries {
                let made = changes.written().map(|new| ProofNode { hash: new.hash, node: new.node });
                self.made.extend(made.map(|node| (changes.trie, node)));
            }
        }
        self.source.absorb(group)
    }
}
