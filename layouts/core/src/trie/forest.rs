//! Hashing the new nodes of many tries together, level by level.
//!
//! A level's nodes do not depend on each other, so each level is one batch over all tries: many small tries fill the
//! hasher's lanes as well as one large trie does. Every new node is hashed exactly once.

use rayon::prelude::*;

use super::ShapedTrie;
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
    let hash = |pairs: &[[Felt; 2]], out: &mut [Felt]| match function {
        HashFunction::Pedersen => hasher.pedersen_many(pairs, out),
        HashFunction::Poseidon => hasher.poseidon_many(pairs, out),
    };
    if pairs.len() < PARALLEL_MIN {
        hash(pairs, &mut out);
    } else {
        let share = pairs.len().div_ceil(rayon::current_num_threads()).max(PARALLEL_MIN / 2);
        pairs.par_chunks(share).zip(out.par_chunks_mut(share)).for_each(|(pairs, out)| hash(pairs, out));
    }
    out
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
        let node = |&(trie, index): &(u32, u32)| tries[trie as usize].node(index as usize);
        let pairs: Vec<[Felt; 2]> = level.iter().map(|at| node(at).preimage()).collect();
        let addends: Vec<Felt> = level.iter().map(|at| node(at).addend()).collect();
        let hashes = hash_pairs(hasher, function, &pairs);
        for ((&(trie, index), hash), addend) in level.iter().zip(hashes).zip(addends) {
            tries[trie as usize].arena[index as usize].hash = hash + addend;
        }
    }
    levels.iter().map(|level| level.len() as u64).sum()
}
