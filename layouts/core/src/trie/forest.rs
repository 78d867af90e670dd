//! Hashing the new nodes of many tries together, level by level.
//!
//! A level's nodes do not depend on each other, so each level is one batch over all tries: many small tries fill the
//! hasher's lanes as well as one large trie does. Every new node is hashed exactly once.

use rayon::prelude::*;

use super::{Node, ShapedTrie};
use crate::felt::Felt;
use crate::hash::Hasher;

/// The hash function of a trie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashFunction {
    /// Contracts trie and storage tries.
    Pedersen,
    /// Classes trie.
    Poseidon,
}

/// Batches below this go to one thread: handing work to another costs more than these hashes.
const PARALLEL_MIN: usize = 32;

/// Hashes pairs in order, on the threads of the current rayon pool.
pub fn hash_pairs(hasher: &dyn Hasher, function: HashFunction, pairs: &[[Felt; 2]]) -> Vec<Felt> {
    let mut out = vec![Felt::ZERO; pairs.len()];
    in_shares(pairs, &mut out, |pairs, out| hash_batch(hasher, function, pairs, out));
    out
}

fn hash_batch(hasher: &dyn Hasher, function: HashFunction, pairs: &[[Felt; 2]], out: &mut [Felt]) {
    match function {
        HashFunction::Pedersen => hasher.pedersen_many(pairs, out),
        HashFunction::Poseidon => hasher.poseidon_many(pairs, out),
    }
}

/// Splits work evenly over the threads of the current rayon pool, unless it is too little.
fn in_shares<T: Sync>(items: &[T], out: &mut [Felt], work: impl Fn(&[T], &mut [Felt]) + Sync) {
    if items.len() < PARALLEL_MIN {
        return work(items, out);
    }
    let share = items.len().div_ceil(rayon::current_num_threads()).max(PARALLEL_MIN / 2);
    items.par_chunks(share).zip(out.par_chunks_mut(share)).for_each(|(items, out)| work(items, out));
}

/// Hashes all new nodes of `tries`, which share a hash function. Returns how many hashes that took.
pub fn hash_forest(hasher: &dyn Hasher, function: HashFunction, tries: &mut [ShapedTrie]) -> u64 {
    let mut levels: Vec<Vec<(u32, u32)>> = Vec::new();
    for (trie, shaped) in tries.iter().enumerate() {
        for (index, node) in shaped.arena.iter().enumerate() {
            let level = node.level as usize;
            if levels.len() <= level {
                levels.resize_with(level + 1, Vec::new);
            }
            levels[level].push((trie as u32, index as u32));
        }
    }
    for level in &levels {
        let hashes = hash_level(hasher, function, tries, level);
        for (&(trie, index), hash) in level.iter().zip(hashes) {
            tries[trie as usize].arena[index as usize].hash = hash;
        }
    }
    levels.iter().map(|level| level.len() as u64).sum()
}

/// Hashes of nodes (trie, index) whose children's hashes are known.
fn hash_level(
    hasher: &dyn Hasher,
    function: HashFunction,
    tries: &[ShapedTrie],
    level: &[(u32, u32)],
) -> Vec<Felt> {
    let mut hashes = vec![Felt::ZERO; level.len()];
    in_shares(level, &mut hashes, |level, hashes| {
        let nodes = level.iter().map(|&(trie, index)| tries[trie as usize].node(index as usize));
        let nodes: Vec<Node> = nodes.collect();
        let pairs: Vec<[Felt; 2]> = nodes.iter().map(Node::preimage).collect();
        hash_batch(hasher, function, &pairs, hashes);
        for (hash, node) in hashes.iter_mut().zip(&nodes) {
            if let Node::Edge { .. } = node {
                *hash += node.addend();
            }
        }
    });
    hashes
}
