//! Hashing many pairs, on the threads that there are.

use rayon::prelude::*;

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
pub(super) const PARALLEL_MIN: usize = 96;

/// Hashes pairs in order, on the threads of the current rayon pool.
pub fn hash_pairs(hasher: &dyn Hasher, function: HashFunction, pairs: &[[Felt; 2]]) -> Vec<Felt> {
    let mut out = vec![Felt::ZERO; pairs.len()];
    in_shares(rayon::current_num_threads(), pairs, &mut out, |pairs, out| {
        hash_batch(hasher, function, pairs, out)
    });
    out
}

pub(super) fn hash_batch(hasher: &dyn Hasher, function: HashFunction, pairs: &[[Felt; 2]], out: &mut [Felt]) {
    match function {
        HashFunction::Pedersen => hasher.pedersen_many(pairs, out),
        HashFunction::Poseidon => hasher.poseidon_many(pairs, out),
    }
}

/// Splits work evenly over so many threads of the current rayon pool, unless it is too little.
pub(super) fn in_shares<T: Sync>(
    threads: usize,
    items: &[T],
    out: &mut [Felt],
    work: impl Fn(&[T], &mut [Felt]) + Sync,
) {
    if threads == 1 || items.len() < PARALLEL_MIN {
        return work(items, out);
    }
    let share = items.len().div_ceil(threads).max(PARALLEL_MIN / 2);
    items.par_chunks(share).zip(out.par_chunks_mut(share)).for_each(|(items, out)| work(items, out));
}
