//! Decoded records and contract leaves, kept across blocks.
//!
//! A commitment takes the cache, works on its records in place, and gives it back when its rows are written. So there is
//! one copy of each record, and nothing is copied on the way in or out. If the rows are not written, the cache is gone
//! with the commitment, and the next one begins with an empty one.
//!
//! The cache belongs to one pair of roots. A root commits to the whole map, the shape of a trie is a function of the map,
//! and a record is a function of the shape; so a record that is right for these roots is right wherever they occur, and
//! roots are all that has to be compared.
//!
//! Bounded in bytes between commitments. At the bound the records go that were used longest ago, counted in commitments:
//! all at once, and an eighth more than needed, so that a sweep is rare. (The `lru` crate would keep them in a list. Its
//! links cost more to follow and to move, for each record of each commitment, than the record costs to find.)

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use flagstone_core::commitment::{ContractLeaf, Roots};
use flagstone_core::trie::{Path, TrieId};
use flagstone_core::types::ContractAddress;
use foldhash::fast::RandomState;

use crate::record::Record;

/// Records of one trie by their paths.
pub type Records = HashMap<Path, Entry, RandomState>;

/// A record in memory.
pub struct Entry {
    pub record: Record,
    /// Whether it differs from its row.
    pub changed: bool,
    /// The commitment that used it last.
    used: AtomicU32,
}

impl Entry {
    /// A record, used by the commitment of that number, as its row has it.
    pub fn new(record: Record, generation: u32) -> Self {
        Self { record, changed: false, used: AtomicU32::new(generation) }
    }

    /// Bytes it takes: the record, the table's slot, and the allocator's share.
    pub fn memory(&self) -> usize {
        self.record.memory() + size_of::<Path>() + size_of::<Self>() + 32
    }
}

struct LeafEntry {
    leaf: ContractLeaf,
    used: u32,
}

const LEAF_BYTES: usize = size_of::<ContractAddress>() + size_of::<LeafEntry>() + 16;

/// Records and leaves of one state.
#[derive(Default)]
pub struct CachedState {
    roots: Roots,
    pub tries: HashMap<TrieId, Records, RandomState>,
    leaves: HashMap<ContractAddress, LeafEntry, RandomState>,
    /// Bytes of all entries.
    pub bytes: usize,
    /// Counts commitments.
    generation: u32,
}

impl CachedState {
    /// The number of this commitment.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Notes that a record is used by this commitment.
    pub fn touch(&self, entry: &Entry) {
        entry.used.store(self.generation, Ordering::Relaxed);
    }

    pub fn leaf(&self, address: &ContractAddress) -> Option<ContractLeaf> {
        self.leaves.get(address).map(|entry| entry.leaf)
    }

    pub fn set_leaf(&mut self, address: ContractAddress, leaf: ContractLeaf) {
        let entry = LeafEntry { leaf, used: self.generation };
        if self.leaves.insert(address, entry).is_none() {
            self.bytes += LEAF_BYTES;
        }
    }

    /// Makes room, if there is too much. Returns how many entries went.
    fn evict(&mut self, bytes_max: usize) -> u64 {
        if self.bytes <= bytes_max {
            return 0;
        }
        let mut by_generation: BTreeMap<u32, usize> = BTreeMap::new();
        let records = self.tries.values().flat_map(HashMap::values);
        let records = records.map(|entry| (entry.used.load(Ordering::Relaxed), entry.memory()));
        let leaves = self.leaves.values().map(|entry| (entry.used, LEAF_BYTES));
        records.chain(leaves).for_each(|(used, bytes)| *by_generation.entry(used).or_default() += bytes);

        let (mut kept, mut oldest_kept) = (0, u32::MAX);
        for (generation, bytes) in by_generation.into_iter().rev() {
            if kept + bytes > bytes_max / 8 * 7 {
                break;
            }
            kept += bytes;
            oldest_kept = generation;
        }
        let count = |state: &Self| state.leaves.len() + state.tries.values().map(HashMap::len).sum::<usize>();
        let before = count(self);
        for records in self.tries.values_mut() {
            records.retain(|_, entry| entry.used.load(Ordering::Relaxed) >= oldest_kept);
        }
        self.tries.retain(|_, records| !records.is_empty());
        self.leaves.retain(|_, entry| entry.used >= oldest_kept);
        self.bytes = kept;
        (before - count(self)) as u64
    }
}

/// The cache; shared by all clones of one layout.
pub struct RecordCache {
    state: Mutex<Option<CachedState>>,
    bytes_max: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

/// How often the cache could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounters {
    /// Records that were there.
    pub hits: u64,
    /// Records that had to be read and decoded.
    pub misses: u64,
    /// Records and leaves that went to make room.
    pub evictions: u64,
}

impl RecordCache {
    /// An empty cache of at most so many bytes between commitments; zero turns it off.
    pub fn new(bytes_max: usize) -> Self {
        let [hits, misses, evictions] = [0; 3].map(AtomicU64::new);
        Self { state: Mutex::new(None), bytes_max, hits, misses, evictions }
    }

    /// Takes out what is there for these roots; an empty state if that is nothing.
    pub fn take(&self, roots: &Roots) -> CachedState {
        let taken = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut state = taken.filter(|state| state.roots == *roots).unwrap_or_default();
        state.generation = state.generation.wrapping_add(1);
        state
    }

    /// Gives back a state that is now at these roots.
    pub fn give_back(&self, mut state: CachedState, roots: Roots) {
        state.roots = roots;
        self.evictions.fetch_add(state.evict(self.bytes_max), Ordering::Relaxed);
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// Counts records that were there.
    pub fn count_hits(&self, count: u64) {
        self.hits.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts records that had to be read.
    pub fn count_misses(&self, count: u64) {
        self.misses.fetch_add(count, Ordering::Relaxed);
    }

    /// The counters so far.
    pub fn counters(&self) -> CacheCounters {
        let [hits, misses, evictions] =
            [&self.hits, &self.misses, &self.evictions].map(|counter| counter.load(Ordering::Relaxed));
        CacheCounters { hits, misses, evictions }
    }
}

#[cfg(test)]
mod tests {
    use flagstone_core::felt::Felt;
    use flagstone_core::trie::Node;

    use super::*;

    fn roots(contracts: u64) -> Roots {
        Roots { contracts: contracts.into(), classes: 0.into() }
    }

    fn path(number: u64) -> Path {
        Path::of_value(&Felt::from(number), 10).unwrap()
    }

    /// Takes the cache at some roots, puts records in, and gives it back.
    fn commitment(cache: &RecordCache, roots: &Roots, numbers: impl IntoIterator<Item = u64>) {
        let mut state = cache.take(roots);
        for number in numbers {
            let mut record = Record::default();
            record.set(&path(number), Some(Node::Binary { left: Felt::ONE, right: Felt::from(number + 1) }));
            let entry = Entry::new(record, state.generation());
            let bytes = entry.memory();
            if state.tries.entry(TrieId::Contracts).or_default().insert(path(number), entry).is_none() {
                state.bytes += bytes;
            }
        }
        cache.give_back(state, *roots);
    }

    fn has(cache: &RecordCache, roots: &Roots, number: u64) -> bool {
        let state = cache.take(roots);
        let found =
            state.tries.get(&TrieId::Contracts).is_some_and(|records| records.contains_key(&path(number)));
        cache.give_back(state, *roots);
        found
    }

    #[test]
    fn it_answers_for_its_roots_only() {
        let cache = RecordCache::new(1 << 20);
        commitment(&cache, &roots(1), 0..3);
        assert!(has(&cache, &roots(1), 2));
        assert!(!has(&cache, &roots(2), 2));
        assert!(!has(&cache, &roots(1), 2), "and forgets when asked for others");
    }

    #[test]
    fn a_commitment_that_is_not_written_takes_it_along() {
        let cache = RecordCache::new(1 << 20);
        commitment(&cache, &roots(1), 0..3);
        drop(cache.take(&roots(1)));
        assert!(!has(&cache, &roots(1), 2));
    }

    #[test]
    fn the_bound_in_bytes_is_held_and_what_was_used_longest_ago_goes() {
        let cache = RecordCache::new(8000);
        for number in 0..100 {
            commitment(&cache, &roots(1), [0, number]);
            assert!(cache.state.lock().unwrap().as_ref().unwrap().bytes <= 8000);
        }
        assert!(has(&cache, &roots(1), 0) && has(&cache, &roots(1), 99));
        assert!(!has(&cache, &roots(1), 50));
        assert!(cache.counters().evictions > 50);
        commitment(&cache, &roots(1), 0..1000);
        assert_eq!(
            cache.state.lock().unwrap().as_ref().unwrap().bytes,
            0,
            "more than fits at once is not kept"
        );
    }

    #[test]
    fn no_bytes_mean_no_cache() {
        let cache = RecordCache::new(0);
        commitment(&cache, &roots(1), 0..3);
        assert!(!has(&cache, &roots(1), 2));
    }
}
