//! Hashing the new nodes of many tries together, level by level.
//!
//! A level's nodes do not depend on each other, so each level is one batch over all tries: many small tries fill the
//! hasher's lanes as well as one large trie does. Every new node is hashed exactly once.

use rayon::prelude::*;

use super::hashing::{HashFunction, PARALLEL_MIN, hash_batch, in_shares};
use super::shape::ShapedTrie;
use crate::commitment::TRIE_HEIGHT;
use crate::felt::Felt;
use crate::hash::Hasher;

/// Hashes all new nodes of `tries`, which share a hash function.
///
/// Tries that are small against a thread's share of all nodes are dealt out to the threads, which then do not wait for each
/// other; in the others the threads share each level.
pub fn hash_forest(hasher: &dyn Hasher, function: HashFunction, tries: &mut [ShapedTrie]) {
    let threads = rayon::current_num_threads();
    let nodes: usize = tries.iter().map(|trie| trie.arena.len()).sum();
    let is_large = |trie: &&mut ShapedTrie| threads > 1 && trie.arena.len() > nodes / threads;
    let (mut large, small): (Vec<_>, Vec<_>) = tries.iter_mut().partition(is_large);
    Levels { hasher, function, threads }.hash(&mut large);
    let alone = Levels { hasher, function, threads: 1 };
    let hands = if nodes < DEALT_MIN { 1 } else { threads };
    deal(small, hands).into_par_iter().for_each(|mut tries| alone.hash(&mut tries));
}

/// Fewer nodes than this stay with one thread.
const DEALT_MIN: usize = 2 * PARALLEL_MIN;

/// Divides tries into hands of about as many nodes: the largest first, each to whom has least.
fn deal(mut tries: Vec<&mut ShapedTrie>, hands: usize) -> Vec<Vec<&mut ShapedTrie>> {
    tries.sort_by_key(|trie| std::cmp::Reverse(trie.arena.len()));
    let mut dealt: Vec<(usize, Vec<&mut ShapedTrie>)> = (0..hands).map(|_| (0, Vec::new())).collect();
    for trie in tries {
        let Some((nodes, hand)) = dealt.iter_mut().min_by_key(|(nodes, _)| *nodes) else { break };
        *nodes += trie.arena.len();
        hand.push(trie);
    }
    dealt.into_iter().map(|(_, hand)| hand).collect()
}

/// Hashes level by level.
struct Levels<'a> {
    hasher: &'a dyn Hasher,
    function: HashFunction,
    threads: usize,
}

/// No way down is longer.
const LEVELS: usize = TRIE_HEIGHT;

/// Hashes of one call to the hasher at most: enough for its lanes.
const BATCH: usize = 1024;

/// How many nodes ahead of its use a node is fetched.
const AHEAD: usize = 12;

impl Levels<'_> {
    fn hash(&self, tries: &mut [&mut ShapedTrie]) {
        let (by_level, ends) = by_level(tries);
        let mut start = 0;
        let mut hashes = Vec::new();
        for end in ends {
            let level = &by_level[start..end];
            start = end;
            if level.is_empty() {
                break;
            }
            // Little enough at once that nodes are still in the cores' caches when their parents get their hashes.
            for nodes in level.chunks(self.threads * BATCH) {
                self.hash_nodes(tries, nodes, &mut hashes);
                for (at, (&(trie, index), hash)) in nodes.iter().zip(&hashes).enumerate() {
                    if let Some(&(trie, index)) = nodes.get(at + AHEAD) {
                        tries[trie as usize].prefetch_parent(index as usize);
                    }
                    tries[trie as usize].set_hash(index as usize, *hash);
                }
            }
        }
    }

    /// Hashes of nodes (trie, index) whose children's hashes are known, in their order.
    fn hash_nodes(&self, tries: &[&mut ShapedTrie], nodes: &[(u32, u32)], hashes: &mut Vec<Felt>) {
        hashes.clear();
        hashes.resize(nodes.len(), Felt::ZERO);
        in_shares(self.threads, nodes, hashes, |nodes, hashes| {
            let operands = nodes.iter().enumerate().map(|(at, &(trie, index))| {
                if let Some(&(trie, index)) = nodes.get(at + AHEAD) {
                    tries[trie as usize].prefetch(index as usize);
                }
                tries[trie as usize].operands(index as usize)
            });
            let (pairs, lengths): (Vec<[Felt; 2]>, Vec<u8>) = operands.unzip();
            hash_batch(self.hasher, self.function, &pairs, hashes);
            for (hash, length) in hashes.iter_mut().zip(lengths) {
                if length > 0 {
                    *hash += Felt::from(length);
                }
            }
        });
    }
}

/// All nodes, as (trie, index), in the order of levels, and where each level ends.
fn by_level(tries: &[&mut ShapedTrie]) -> (Vec<(u32, u32)>, [usize; LEVELS]) {
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
    (by_level, ends)
}
