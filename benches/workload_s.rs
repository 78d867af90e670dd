//! Workload S: a synthetic state and blocks with a fixed definition, so that any implementation can be measured on the
//! same work and checked by its roots.
//!
//! Random numbers are SplitMix64 from state 42, one stream, drawn in exactly the order below. `felt(b)` is four draws
//! behind each other, the first most significant, with the bits above `b` cleared.
//!
//! - Base: contract i has weight (i + 1)^-1.2. Draw all addresses, 251 bits. Then for each contract as many keys as its
//!   share of the leaves (at least one), 251 bits, sorted, duplicates dropped; class hash of 250 bits; nonce 1; a value of
//!   250 bits for each key, ascending.
//! - Block: choose a contract by weight; with 8 in 10 an old key of it, else a new one; a value. A slot that the block has
//!   already is skipped. New keys count from the next block on. Then three tenths as many distinct contracts as were
//!   written get their nonce raised.

use std::collections::{BTreeMap, BTreeSet};

use flagstone_core::diff::StateDiff;
use flagstone_core::types::{ClassHash, ContractAddress, StorageKey, StorageValue, TrieKey};

/// Most leaves of one diff of the base.
const BASE_CHUNK_LEAVES: usize = 100_000;

/// The SplitMix64 generator.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn bits(&mut self, bits: u32) -> TrieKey {
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next().to_be_bytes());
        }
        bytes[0] &= 0xff >> (256 - bits);
        TrieKey::from_be(bytes).unwrap_or_default()
    }
}

/// The generator after its base; gives the blocks.
pub struct WorkloadS {
    random: SplitMix64,
    /// Running sums of the weights, the last one 1.
    cumulated: Vec<f64>,
    addresses: Vec<ContractAddress>,
    keys: Vec<Vec<TrieKey>>,
    nonces: Vec<u64>,
}

impl WorkloadS {
    /// A state of about `leaves` storage leaves over `contracts` contracts: the diffs that make it, in order.
    pub fn new(leaves: usize, contracts: usize) -> (Self, Vec<StateDiff>) {
        let mut random = SplitMix64(42);
        let weights: Vec<f64> = (0..contracts).map(|i| ((i + 1) as f64).powf(-1.2)).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let cumulated = weights.iter().map(|weight| {
            sum += weight / total;
            sum
        });
        let cumulated: Vec<f64> = cumulated.collect();
        let addresses: Vec<ContractAddress> = (0..contracts).map(|_| random.bits(251).into()).collect();
        let mut base = Base::default();
        let mut keys = Vec::new();
        for (address, weight) in addresses.iter().zip(&weights) {
            let count = ((leaves as f64 * weight / total).round() as usize).max(1);
            let mut of_contract: Vec<TrieKey> = (0..count).map(|_| random.bits(251)).collect();
            of_contract.sort_unstable();
            of_contract.dedup();
            base.contract(*address, random.bits(250));
            for key in &of_contract {
                base.slot(*address, *key, random.bits(250));
            }
            keys.push(of_contract);
        }
        let nonces = vec![1; contracts];
        (Self { random, cumulated, addresses, keys, nonces }, base.finish())
    }

    /// The next block, with `slots` storage entries.
    pub fn block(&mut self, slots: usize) -> StateDiff {
        let mut written: BTreeMap<(usize, TrieKey), TrieKey> = BTreeMap::new();
        let mut fresh = Vec::new();
        while written.len() < slots {
            let draw = self.random.unit();
            let contract = self.cumulated.partition_point(|sum| *sum <= draw).min(self.addresses.len() - 1);
            let old = self.random.next() % 10 < 8;
            let key = if old {
                let at = self.random.below(self.keys[contract].len());
                self.keys[contract][at]
            } else {
                self.random.bits(251)
            };
            let value = self.random.bits(250);
            if let std::collections::btree_map::Entry::Vacant(entry) = written.entry((contract, key)) {
                entry.insert(value);
                fresh.extend((!old).then_some((contract, key)));
            }
        }
        fresh.into_iter().for_each(|(contract, key)| self.keys[contract].push(key));
        let touched: BTreeSet<usize> = written.keys().map(|(contract, _)| *contract).collect();
        let mut builder = StateDiff::builder();
        for ((contract, key), value) in written {
            builder = builder.storage(self.addresses[contract], key.into(), StorageValue(value.to_felt()));
        }
        let mut raised = BTreeSet::new();
        while raised.len() < (0.3 * touched.len() as f64).round() as usize {
            raised.insert(self.random.below(self.addresses.len()));
        }
        for contract in raised {
            self.nonces[contract] += 1;
            builder = builder.nonce(self.addresses[contract], self.nonces[contract].into());
        }
        built(builder)
    }
}

/// Collects the base into diffs of a bounded number of leaves.
#[derive(Default)]
struct Base {
    done: Vec<StateDiff>,
    current: flagstone_core::diff::StateDiffBuilder,
    leaves: usize,
}

impl Base {
    fn contract(&mut self, address: ContractAddress, class_hash: TrieKey) {
        let current = std::mem::take(&mut self.current);
        self.current = current.class_hash(address, ClassHash(class_hash.to_felt())).nonce(address, 1.into());
    }

    fn slot(&mut self, address: ContractAddress, key: TrieKey, value: TrieKey) {
        let current = std::mem::take(&mut self.current);
        self.current = current.storage(address, StorageKey::from(key), StorageValue(value.to_felt()));
        self.leaves += 1;
        if self.leaves == BASE_CHUNK_LEAVES {
            self.leaves = 0;
            self.done.push(built(std::mem::take(&mut self.current)));
        }
    }

    fn finish(mut self) -> Vec<StateDiff> {
        self.done.push(built(self.current));
        self.done
    }
}

fn built(builder: flagstone_core::diff::StateDiffBuilder) -> StateDiff {
    // UNWRAP: slots and contracts are distinct, so no two entries disagree.
    #[expect(clippy::expect_used, reason = "slots and contracts are distinct")]
    builder.build().expect("no entries disagree")
}

/// The published roots of a size: leaves, contracts, root of the base, root after ten blocks of 1 000 slots.
pub const ROOTS: [(usize, usize, &str, &str); 2] = [
    (
        100_000,
        200,
        "0x3dc8c3ea70fe09599777a71a7b660d2e344749f3e495d608ee3a3fbf67b5db3",
        "0x5222c17595d98a7343b11d3b56e7aea0f07ff4139141a881f3a6bca0598c6f1",
    ),
    (
        1_000_000,
        1_000,
        "0x62d7fa8293e7b245d622a7b4dcac6e5be1f547b8534ac75a626bcf7c52f9e3b",
        "0x353bf17b776fa46a59c794d1aee1c7d56d2b05a740e718a53c15627d764138c",
    ),
];

/// The root of the larger size after ten blocks of 10 000 slots more.
pub const ROOT_AFTER_LARGE_BLOCKS: &str = "0x5e974c64a02d98f5a0c802acc0d3442ecdec6d49118d2c26b62232fb9c2939c";

#[cfg(test)]
mod tests {
    use flagstone_core::commitment::Roots;
    use flagstone_core::hash::Bulk;
    use flagstone_core::layout::{Layout, StateAt};
    use flagstone_core::store::{MemoryStore, Store};

    use super::*;

    #[test]
    fn a_hundred_thousand_leaves_have_their_roots() {
        let (leaves, contracts, after_base, after_blocks) = ROOTS[0];
        let (mut workload, base) = WorkloadS::new(leaves, contracts);
        let (layout, store) = (flagstone_flat::Flat::new(), MemoryStore::new());
        let mut roots = Roots::default();
        let mut commit = |diff: &StateDiff| {
            let staged = layout.stage_commitment(StateAt { store: &store, roots }, &[diff], &Bulk).unwrap();
            store.write(&staged.batch).unwrap();
            roots = staged.roots[0];
            roots.contracts.to_string()
        };
        assert_eq!(base.iter().map(&mut commit).last().unwrap(), after_base);
        let last = (0..10).map(|_| commit(&workload.block(1_000))).last();
        assert_eq!(last.unwrap(), after_blocks);
    }
}
