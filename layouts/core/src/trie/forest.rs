//! Hashing the new nodes of many tries together, level by level.
//!
//! A level's nodes do not depend on each other, so each level is one batch over all tries: many small tries fill the
//! hasher's lanes as well as one large trie does. Every new node is hashed exactly once.

use rayon::prelude::*;

use super::ShapedTrie;
use crate::commitment::TRIE_HEIGHT;
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
const PARALLEL_MIN: usize = 96;

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

/// Hashes all new nodes of `tries`, which share a hash function.
pub fn hash_forest(hasher: &dyn Hasher, function: HashFunction, tries: &mut [ShapedTrie]) {
    let mut ends = [0; LEVELS];
    tries.iter().flat_map(|trie| &trie.arena).for_each(|node| ends[usize::from(node.level)] += 1);
    let count = ends.iter_mut().fold(0, |start, level| {
        let end = start + *level;
        *level = start;
        end
    });
    let mut by_level = vec![(0, 0); count];
    for (trie, shaped) in tries.iter().enumerate() {
        for (index, node) in shaped.arena.iter().enumerate() {
            let place = &mut ends[usize::from(node.level)];
            by_level[*place] = (trie as u32, index as u32);
            *place += 1;
        }
    }
    let mut start = 0;
    let mut hashes = Vec::new();
    for end in ends {
        let level = &by_level[start..end];
        start = end;
        if level.is_empty() {
            break;
        }
        hash_level(hasher, function, tries, level, &mut hashes);
        for (&(trie, index), hash) in level.iter().zip(&hashes) {
            tries[trie as usize].set_hash(index as usize, *hash);
        }
    }
}

/// No way down is longer.
const LEVELS: usize = TRIE_HEIGHT;

/// Hashes of nodes (trie, index) whose children's hashes are known, in their order.
fn hash_level(
    hasher: &dyn Hasher,
    function: HashFunction,
    tries: &[ShapedTrie],
    level: &[(u32, u32)],
    hashes: &mut Vec<Felt>,
) {
    hashes.clear();
    hashes.resize(level.len(), Felt::ZERO);
    in_shares(level, hashes, |level, hashes| {
        for (level, hashes) in level.chunks(BATCH).zip(hashes.chunks_mut(BATCH)) {
            let operands = level.iter().map(|&(trie, index)| tries[trie as usize].operands(index as usize));
            let (pairs, lengths): (Vec<[Felt; 2]>, Vec<u8>) = operands.unzip();
            hash_batch(hasher, function, &pairs, hashes);
            for (hash, length) in hashes.iter_mut().zip(lengths) {
                if length > 0 {
                    *hash += Felt::from(length);
                }
            }
        }
    });
}

/// Hashes of one call to the hasher at most: enough for its lanes, and little enough to stay in the core's cache.
const BATCH: usize = 2048;
