//! Decoded records and contract leaves, kept across blocks.
//!
//! A commitment takes the cache, works on its records in place, and gives it back when its rows are written. So there is
//! one copy of each record, and nothing is copied on the way in or out. If the rows are not written and the commitment is taken
//! back, what it changed is dropped, and the rest is right for the roots before ([`RecordCache::take_back`]). If it fails, the cache
//! is gone with it, and the next one begins with an empty one.
//!
//! The cache belongs to one pair of roots. A root commits to the whole map, the shape of a trie is a function of the map,
//! and a record is a function of the shape; so a record that is right for these roots is right wherever they occur, and
//! roots are all that has to be compared.
//!
//! While a commitment has the cache, or before it takes it, others may read ahead. What they read waits beside, for the
//! roots at which it was read ([`Ticket`]), and joins the cache when a commitment takes it or gives it back. Giving back is
//! from one pair of roots to another; what was read ahead at the first pair holds at the second if the commitment did not
//! change it, and then the commitment has no record of its own there. The same makes it harmless to read while the
//! commitment's rows are being written: what is read too new is what the commitment has already.
//!
//! Bounded in bytes between commitments. At the bound the records go that were used longest ago, counted in commitments:
//! all at once, and an eighth more than needed, so that a sweep is rare. (The `lru` crate would keep them in a list. Its
//! links cost more to follow and to move, for each record of each commitment, than the record costs to find.)

use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flagstone_core::commitment::Roots;
use flagstone_core::layout::CacheCounters;
use flagstone_core::trie::{Path, TrieId};
use flagstone_core::types::ContractAddress;
use foldhash::fast::RandomState;

use crate::record::Record;
use crate::rows::{Cached, LeafRow};

/// Records of one trie by their paths.
pub type Records = HashMap<Path, Entry, RandomState>;

/// A record in memory.
pub struct Entry {
    pub record: Record,
    /// The commitment that used it last.
    used: AtomicU32,
}

impl Entry {
    /// A record, used by the commitment of that number, as its row has it.
    pub fn new(record: Record, generation: u32) -> Self {
        Self { record, used: AtomicU32::new(generation) }
    }

    /// Bytes it takes: the record, the table's slot, and the allocator's share.
    pub fn memory(&self) -> usize {
        self.record.memory() + size_of::<Path>() + size_of::<Self>() + 32
    }
}

#[derive(Clone, Copy)]
struct LeafEntry {
    leaf: LeafRow,
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

    pub fn leaf(&self, address: &ContractAddress) -> Option<LeafRow> {
        self.leaves.get(address).map(|entry| entry.leaf)
    }

    pub fn set_leaf(&mut self, address: ContractAddress, leaf: LeafRow) {
        let entry = LeafEntry { leaf, used: self.generation };
        if self.leaves.insert(address, entry).is_none() {
            self.bytes += LEAF_BYTES;
        }
    }

    /// Takes in what another state has and this one has not.
    fn adopt(&mut self, other: Self) {
        for (trie, records) in other.tries {
            let own = self.tries.entry(trie).or_default();
            for (path, entry) in records {
                if let hash_map::Entry::Vacant(slot) = own.entry(path) {
                    self.bytes += entry.memory();
                    slot.insert(Entry::new(entry.record, self.generation));
                }
            }
        }
        for (address, LeafEntry { leaf, .. }) in other.leaves {
            if !self.leaves.contains_key(&address) {
                self.set_leaf(address, leaf);
            }
        }
    }

    fn record(&self, trie: &TrieId, path: &Path) -> Option<&Record> {
        self.tries.get(trie)?.get(path).map(|entry| &entry.record)
    }

    /// Adds a record that its rows have.
    pub fn insert(&mut self, trie: TrieId, path: Path, record: Record) {
        let entry = Entry::new(record, self.generation);
        self.bytes += entry.memory();
        self.tries.entry(trie).or_default().insert(path, entry);
    }

    fn remove_leaf(&mut self, address: &ContractAddress) {
        if self.leaves.remove(address).is_some() {
            self.bytes -= LEAF_BYTES;
        }
    }

    fn remove(&mut self, trie: &TrieId, path: &Path) {
        let removed = self.tries.get_mut(trie).and_then(|records| records.remove(path));
        self.bytes -= removed.map_or(0, |entry| entry.memory());
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
    shared: Mutex<Shared>,
    bytes_max: AtomicUsize,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Default)]
struct Shared {
    /// The cache itself, unless a commitment has it.
    state: Option<CachedState>,
    /// Roots of the cache, or those at which it was taken.
    roots: Option<Roots>,
    /// What was read ahead at these roots.
    ahead: CachedState,
    /// Counts how often the roots changed.
    epoch: u64,
}

impl Shared {
    fn set_roots(&mut self, roots: Roots) {
        self.roots = Some(roots);
        self.ahead = CachedState::default();
        self.epoch += 1;
    }
}

/// Says at which roots reading ahead began. What is read under a ticket of roots that the cache has left is not taken,
/// even if it has come back to them.
#[derive(Clone, Copy)]
pub struct Ticket {
    epoch: u64,
}

/// A look into the cache.
pub struct Look<'a> {
    state: Option<&'a CachedState>,
    ahead: &'a CachedState,
}

impl<'a> Look<'a> {
    fn states(&self) -> impl Iterator<Item = &'a CachedState> {
        self.state.into_iter().chain([self.ahead])
    }

    /// A record; `None` if it is not known.
    pub fn record(&self, trie: &TrieId, path: &Path) -> Option<&'a Record> {
        self.states().find_map(|state| state.record(trie, path))
    }

    /// A contract's leaf; `None` if it is not known.
    pub fn leaf(&self, address: &ContractAddress) -> Option<LeafRow> {
        self.states().find_map(|state| state.leaf(address))
    }
}

impl RecordCache {
    /// An empty cache of at most so many bytes between commitments; zero turns it off.
    pub fn new(bytes_max: usize) -> Self {
        let [hits, misses, evictions] = [0; 3].map(AtomicU64::new);
        Self { shared: Mutex::default(), bytes_max: AtomicUsize::new(bytes_max), hits, misses, evictions }
    }

    /// Changes the bound. A smaller one holds when the cache is given back next.
    pub fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    fn bytes_max(&self) -> usize {
        self.bytes_max.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what is there for these roots; an empty state if that is nothing.
    pub fn take(&self, roots: &Roots) -> CachedState {
        let mut shared = self.lock();
        let mut state = shared.state.take().filter(|state| state.roots == *roots).unwrap_or_default();
        state.roots = *roots;
        state.generation = state.generation.wrapping_add(1);
        if shared.roots == Some(*roots) {
            state.adopt(std::mem::take(&mut shared.ahead));
        } else {
            shared.set_roots(*roots);
        }
        state
    }

    /// Gives back a state that is now at these roots.
    pub fn give_back(&self, mut state: CachedState, roots: Roots) {
        let mut shared = self.lock();
        if shared.roots == Some(state.roots) {
            state.adopt(std::mem::take(&mut shared.ahead));
        }
        shared.set_roots(roots);
        state.roots = roots;
        self.evictions.fetch_add(state.evict(self.bytes_max()), Ordering::Relaxed);
        shared.state = Some(state);
    }

    /// A commitment between two pairs of roots is taken back: what it changed is dropped.
    pub fn take_back(&self, changed: impl Iterator<Item = Cached>, before: Roots, after: Roots) {
        let mut shared = self.lock();
        let Some(mut state) = shared.state.take().filter(|state| state.roots == after) else { return };
        for changed in changed {
            match changed {
                Cached::Record(trie, path) => state.remove(&trie, &path),
                Cached::Leaf(address) => state.remove_leaf(&address),
            }
        }
        state.roots = before;
        shared.set_roots(before);
        shared.state = Some(state);
    }

    /// Takes in the records of a commitment that was made aside, from one pair of roots to another.
    pub fn merge(&self, records: CachedState, before: Roots, after: Roots) {
        let mut shared = self.lock();
        let mut state = shared.state.take().filter(|state| state.roots == before).unwrap_or_default();
        state.generation = state.generation.wrapping_add(1);
        for (trie, records) in records.tries {
            for (path, entry) in records {
                state.remove(&trie, &path);
                state.insert(trie, path, entry.record);
            }
        }
        records.leaves.into_iter().for_each(|(address, entry)| state.set_leaf(address, entry.leaf));
        state.roots = before;
        drop(shared);
        self.give_back(state, after);
    }

    /// Begins to read ahead at these roots. `None` if the cache is at others, or off.
    pub fn begin_ahead(&self, roots: &Roots) -> Option<Ticket> {
        let mut shared = self.lock();
        if shared.roots.is_none() {
            shared.set_roots(*roots);
        }
        let wanted = self.bytes_max() > 0 && shared.roots == Some(*roots);
        wanted.then_some(Ticket { epoch: shared.epoch })
    }

    /// Keeps what was read ahead, unless it comes too late or there is no room: a quarter of the cache's.
    pub fn put_ahead(&self, ticket: Ticket, read: CachedState) {
        let mut shared = self.lock();
        if ticket.epoch == shared.epoch && shared.ahead.bytes + read.bytes <= self.bytes_max() / 4 {
            shared.ahead.adopt(read);
        }
    }

    /// What `look` finds in the cache or in what was read ahead, if they are at these roots. Short: a commitment that
    /// takes or gives back the cache waits for it.
    pub fn look<T>(&self, roots: &Roots, mut look: impl FnMut(Look<'_>) -> Option<T>) -> Option<T> {
        let shared = self.lock();
        if shared.roots != Some(*roots) {
            return None;
        }
        let state = shared.state.as_ref().filter(|state| state.roots == *roots);
        look(Look { state, ahead: &shared.ahead })
    }

    /// Counts records that were there.
    pub fn count_hits(&self, count: u64) {
        self.hits.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts records that had to be read.
    pub fn count_misses(&self, count: u64) {
        self.misses.fetch_add(count, Ordering::Relaxed);
    }

    /// Bytes of all entries that are there now.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let shared = self.lock();
        shared.ahead.bytes + shared.state.as_ref().map_or(0, |state| state.bytes)
    }

    /// The counters so far.
    pub fn counters(&self) -> CacheCounters {
        let [hits, misses, evictions] =
            [&self.hits, &self.misses, &self.evictions].map(|counter| counter.load(Ordering::Relaxed));
        CacheCounters { hits, misses, evictions, bytes_max: self.bytes_max() as u64 }
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
            if state.record(&TrieId::Contracts, &path(number)).is_none() {
                state.insert(TrieId::Contracts, path(number), record);
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
            assert!(cache.bytes() <= 8000);
        }
        assert!(has(&cache, &roots(1), 0) && has(&cache, &roots(1), 99));
        assert!(!has(&cache, &roots(1), 50));
        assert!(cache.counters().evictions > 50);
        commitment(&cache, &roots(1), 0..1000);
        assert_eq!(cache.bytes(), 0, "more than fits at once is not kept");
    }

    fn read_ahead(number: u64) -> CachedState {
        let mut read = CachedState::default();
        let mut record = Record::default();
        record.set(&path(number), Some(Node::Binary { left: Felt::ONE, right: Felt::TWO }));
        read.insert(TrieId::Contracts, path(number), record);
        read
    }

    #[test]
    fn what_was_read_ahead_joins_when_the_cache_is_taken_or_given_back() {
        let cache = RecordCache::new(1 << 20);
        let ticket = cache.begin_ahead(&roots(1)).unwrap();
        cache.put_ahead(ticket, read_ahead(7));
        let state = cache.take(&roots(1));
        assert!(state.record(&TrieId::Contracts, &path(7)).is_some());
        cache.put_ahead(ticket, read_ahead(8));
        cache.give_back(state, roots(2));
        assert!(has(&cache, &roots(2), 7) && has(&cache, &roots(2), 8));
    }

    #[test]
    fn what_was_read_ahead_never_replaces_what_a_commitment_has() {
        let cache = RecordCache::new(1 << 20);
        let ticket = cache.begin_ahead(&roots(1)).unwrap();
        let mut state = cache.take(&roots(1));
        state.insert(TrieId::Contracts, path(7), Record::default());
        cache.put_ahead(ticket, read_ahead(7));
        cache.give_back(state, roots(2));
        let kept = cache.look(&roots(2), |look| look.record(&TrieId::Contracts, &path(7)).cloned());
        assert_eq!(kept, Some(Record::default()));
    }

    #[test]
    fn what_comes_late_is_dropped_even_if_the_roots_have_come_back() {
        let cache = RecordCache::new(1 << 20);
        let late = cache.begin_ahead(&roots(1)).unwrap();
        for after in [2, 1] {
            let state = cache.take(&roots(3 - after));
            cache.give_back(state, roots(after));
        }
        cache.put_ahead(late, read_ahead(7));
        assert!(!has(&cache, &roots(1), 7));
        assert!(cache.begin_ahead(&roots(2)).is_none(), "nothing is read for other roots");
    }

    #[test]
    fn what_is_read_ahead_is_bounded() {
        let cache = RecordCache::new(8000);
        let ticket = cache.begin_ahead(&roots(1)).unwrap();
        (0..100).for_each(|number| cache.put_ahead(ticket, read_ahead(number)));
        assert!((1000..=2000).contains(&cache.bytes()));
        assert!(RecordCache::new(0).begin_ahead(&roots(1)).is_none());
    }

    #[test]
    fn no_bytes_mean_no_cache() {
        let cache = RecordCache::new(0);
        commitment(&cache, &roots(1), 0..3);
        assert!(!has(&cache, &roots(1), 2));
    }
}
