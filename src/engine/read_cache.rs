//! Read cache in front of a layout: values and known absences, for executors.
//!
//! Answers a read without touching the store. Exact, never "probably": an entry is the value that the layout shows at
//! the cache's epoch, or it is missing. It must never answer for another epoch. Values of closed blocks that the layout
//! does not show yet are served from the overlay above it; this cache never sees them.
//!
//! # Why it is exact
//!
//! The engine's *epoch* counts the moves of readable values, so within one epoch the layout answers each key with one
//! value. Each shard says, under its lock, which epoch it is of, and this holds at every unlock: *an entry is what the
//! layout answers in the shard's epoch.*
//!
//! - **Asking** ([`ReadCache::get`]) names the view's epoch. A shard of another epoch knows nothing.
//! - **Filling** ([`ReadCache::fill`]) takes the [`Vacancy`] that asking returned, which carries key and epoch from before
//!   the store was read, so a value cannot be filed under a later epoch. The view fills only after it has seen that the
//!   engine's epoch is still its own: what it read is then of that epoch. A shard that has moved on refuses it. So a slow
//!   reader cannot put back what a newer block has replaced.
//! - **Moving.** The engine, its tip locked, raises its epoch, writes and syncs the store, advances every shard, changes the
//!   overlay, and unlocks the tip. From the raised epoch on, each read of an older view fails when it looks at the epoch
//!   last, a hit included; views of the new epoch begin only after the tip is unlocked, when all shards are there. In
//!   between, a fill for the old epoch may still reach a shard that has not advanced: it is right there, and advancing
//!   then goes over it like over any other entry. Advancing writes the values that the blocks set and keeps all others,
//!   which the blocks did not touch.
//! - **Which blocks.** Those whose values became readable with the batch: the closed block for a layout that shows values
//!   at close, all blocks of the committed group in order for one that shows them at commitment.
//! - **Going back.** A rollback forgets everything: it is rare, and what the values become again is known to the store alone.
//! - **A failed write** leaves the shards at the old epoch, and the engine stopped: nothing answers any more.
//!
//! # Bound
//!
//! In bytes, for entries and tables together ([`Plan`]). At the bound the entry that was longest not asked for, filled or
//! written leaves. Values that a block writes go in as well: a third or more of a block's writes are to keys written
//! recently, so they are about to be read again.
//!
//! # Where `lru` serves
//!
//! One [`LruCache`] per shard gives recency in constant time, and hashes as we say. What it does not do is here:
//! it counts entries and not bytes (enough, as all of ours have one size; for rows of different sizes it would not do);
//! its map may double itself when it evicts and inserts near its capacity, so ours is made twice as large as its entries
//! and evicted from outside, which also counts evictions; a hit reorders and thus needs the lock exclusively, hence
//! shards; each entry is an allocation of its own; and a scan of many keys once evicts what is hot.
//!
//! Keys are chosen by whoever writes contracts, so shard and place in the table come from a keyed hash (SipHash with
//! random keys). It is computed once for each read, outside the lock, and kept in the entry.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flagstone_core::diff::StateDiff;
use flagstone_core::felt::Felt;
use lru::LruCache;

use super::overlay::{ValueKey, each_value};

/// Most shards. More than executors have threads, so that two seldom meet; few enough that advancing is cheap.
const SHARDS_MAX: usize = 16;
/// A smaller cache has fewer shards, so that recency still means something in each.
const SHARD_BYTES_MIN: usize = 4 << 10;
/// What an allocator keeps beside an allocation, and what it rounds its size to.
const ALLOCATION_HEADER_BYTES: usize = 8;
const ALLOCATION_ROUNDED_TO: usize = 16;
/// An entry as `lru` allocates it: key, value, two links.
const ENTRY_BYTES: usize =
    (size_of::<Hashed>() + size_of::<Felt>() + 2 * size_of::<usize>() + ALLOCATION_HEADER_BYTES)
        .next_multiple_of(ALLOCATION_ROUNDED_TO);
/// A bucket of the table: pointers to key and entry, and a control byte.
const BUCKET_BYTES: usize = 2 * size_of::<usize>() + 1;
/// Least buckets. From here on a table of n buckets takes up to 7 n / 8 entries.
const BUCKETS_MIN: usize = 16;
/// What a shard takes without entries or buckets: itself, the two ends of its list, a table's trailing control bytes.
const SHARD_BYTES: usize = size_of::<Shard>() + 2 * ENTRY_BYTES + 2 * ALLOCATION_ROUNDED_TO;

/// What the cache has done, and what it holds. Read without stopping it, so the numbers may be some reads apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadCacheStats {
    /// Reads answered with a value.
    pub hits: u64,
    /// Reads answered with a known absence.
    pub absent_hits: u64,
    /// Reads that went on to the layout.
    pub misses: u64,
    /// Entries that left for others at the bound.
    pub evictions: u64,
    /// Values that came back from the layout after a block had moved the values on, and were not taken.
    pub stale_fills: u64,
    /// Entries held.
    pub entries: u64,
    /// Bytes of the entries and of the tables, with what the allocator adds.
    pub bytes: u64,
}

/// A key with its keyed hash.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hashed {
    hash: u64,
    key: ValueKey,
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Passes on the hash that a key brings.
#[derive(Default)]
struct Brought(u64);

impl Hasher for Brought {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "only hashed keys are looked up");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What the cache knows of a key.
pub enum Lookup {
    /// The value; zero if it is known to be absent.
    Known(Felt),
    /// Nothing. What the layout answers may be put here.
    Unknown(Vacancy),
}

/// A place for the value of one key at one epoch.
pub struct Vacancy {
    epoch: u64,
    key: Hashed,
}

/// Values that blocks set, by shard.
pub struct Moved(Vec<Vec<(Hashed, Felt)>>);

/// How a shard divides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// A power of two. Allocated at once and never again.
    buckets: usize,
    /// With the one that comes before another leaves, at most half of what the table could take: then it never grows,
    /// whatever is evicted and inserted.
    entries_max: usize,
}

impl Plan {
    /// The plan with most entries; `None` if not even one fits.
    fn new(bytes_max: usize) -> Option<Self> {
        let bytes = bytes_max.checked_sub(SHARD_BYTES)?;
        let tables = std::iter::successors(Some(BUCKETS_MIN), |buckets| buckets.checked_mul(2));
        tables
            .map_while(|buckets| {
                let entries = bytes.checked_sub(buckets.checked_mul(BUCKET_BYTES)?)? / ENTRY_BYTES;
                Some(Self { buckets, entries_max: entries.min(buckets / 16 * 7).saturating_sub(1) })
            })
            .max_by_key(|plan| plan.entries_max)
            .filter(|plan| plan.entries_max > 0)
    }

    const fn bytes(&self, entries: usize) -> usize {
        SHARD_BYTES + self.buckets * BUCKET_BYTES + entries * ENTRY_BYTES
    }
}

/// Written with the shard's lock held and so never by two at once; read without it.
#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    fn increment(&self) {
        self.set(self.get() + 1);
    }
    fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Counters {
    hits: Counter,
    absent_hits: Counter,
    misses: Counter,
    evictions: Counter,
    stale_fills: Counter,
    entries: Counter,
}

struct Entries {
    epoch: u64,
    values: LruCache<Hashed, Felt, BuildHasherDefault<Brought>>,
    max: usize,
}

impl Entries {
    /// Sets a value, which becomes the most recent one.
    fn put(&mut self, counters: &Counters, key: Hashed, value: Felt) {
        if self.values.put(key, value).is_some() {
            return;
        }
        if self.values.len() > self.max {
            self.values.pop_lru();
            counters.evictions.increment();
        }
        counters.entries.set(self.values.len() as u64);
    }
}

/// Alone on its cache lines (two, as they are fetched in pairs): neighbours are used by other threads.
#[repr(align(128))]
struct Shard {
    entries: Mutex<Entries>,
    counters: Counters,
}

impl Shard {
    fn new(plan: Plan, epoch: u64) -> Self {
        let table_takes = NonZeroUsize::new(plan.buckets / 8 * 7).unwrap_or(NonZeroUsize::MIN);
        let values = LruCache::with_hasher(table_takes, BuildHasherDefault::default());
        let entries = Entries { epoch, values, max: plan.entries_max };
        Self { entries: Mutex::new(entries), counters: Counters::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cache. Shared by all views; holds a lock only while it looks into one shard.
pub struct ReadCache {
    /// A power of two of them, or none if the cache is off.
    shards: Box<[Shard]>,
    plan: Plan,
    hasher: RandomState,
}

impl ReadCache {
    /// A cache at epoch 0 that takes at most `bytes_max`; one that is off if no entry fits.
    pub fn new(bytes_max: usize) -> Self {
        let mut count = SHARDS_MAX;
        while count > 1 && bytes_max / count < SHARD_BYTES_MIN {
            count /= 2;
        }
        let plan = Plan::new(bytes_max / count);
        let shards = plan.map(|plan| (0..count).map(|_| Shard::new(plan, 0)).collect());
        let plan = plan.unwrap_or(Plan { buckets: 0, entries_max: 0 });
        Self { shards: shards.unwrap_or_default(), plan, hasher: RandomState::new() }
    }

    /// What is known of a key at a view's epoch.
    pub fn get(&self, epoch: u64, key: ValueKey) -> Lookup {
        let key = self.hashed(key);
        if let Some(shard) = self.shard(&key) {
            let mut entries = shard.lock();
            let known = if entries.epoch == epoch { entries.values.get(&key).copied() } else { None };
            match known {
                Some(value) if value == Felt::ZERO => shard.counters.absent_hits.increment(),
                Some(_) => shard.counters.hits.increment(),
                None => shard.counters.misses.increment(),
            }
            if let Some(value) = known {
                return Lookup::Known(value);
            }
        }
        Lookup::Unknown(Vacancy { epoch, key })
    }

    /// A place for a key's value that is not known, for one who asks ahead of readers. Neither a hit nor a miss.
    #[cfg(feature = "blockifier")]
    pub fn place_ahead(&self, epoch: u64, key: ValueKey) -> Option<Vacancy> {
        let key = self.hashed(key);
        let entries = self.shard(&key)?.lock();
        let known = entries.epoch != epoch || entries.values.contains(&key);
        (!known).then_some(Vacancy { epoch, key })
    }

    /// Keeps what the layout answered, zero if the key is absent. The caller has seen, after reading, that the engine's
    /// epoch was still the one it asked for. Refused if the values have moved on since.
    pub fn fill(&self, vacancy: Vacancy, value: Felt) {
        let Some(shard) = self.shard(&vacancy.key) else { return };
        let mut entries = shard.lock();
        if entries.epoch == vacancy.epoch {
            debug_assert!(
                entries.values.peek(&vacancy.key).is_none_or(|known| *known == value),
                "two readers of one epoch read different values"
            );
            entries.put(&shard.counters, vacancy.key, value);
        } else {
            shard.counters.stale_fills.increment();
        }
    }

    /// Sorts the values of blocks (in order) by shard: what can be done before readers are kept from new views.
    pub fn prepare(&self, blocks: &[&StateDiff]) -> Moved {
        let mut moved: Vec<Vec<(Hashed, Felt)>> = self.shards.iter().map(|_| Vec::new()).collect();
        if !moved.is_empty() {
            for diff in blocks {
                each_value(diff, |key, value| {
                    let key = self.hashed(key);
                    moved[self.shard_index(&key)].push((key, value));
                });
            }
        }
        Moved(moved)
    }

    /// Goes on to a new epoch, in which blocks have moved the values. The store holds them already; no view is of that
    /// epoch yet.
    pub fn advance(&self, epoch: u64, moved: Moved) {
        for (shard, values) in self.shards.iter().zip(moved.0) {
            let mut entries = shard.lock();
            assert!(entries.epoch < epoch, "epochs go up");
            values.into_iter().for_each(|(key, value)| entries.put(&shard.counters, key, value));
            // Last: should this thread die before, the shard stays at an epoch whose views have all expired.
            entries.epoch = epoch;
        }
    }

    /// Goes on to a new epoch and forgets everything.
    pub fn clear(&self, epoch: u64) {
        for shard in &self.shards {
            let mut entries = shard.lock();
            assert!(entries.epoch < epoch, "epochs go up");
            entries.values.clear();
            shard.counters.entries.set(0);
            entries.epoch = epoch;
        }
    }

    /// What it has done, and what it holds.
    pub fn stats(&self) -> ReadCacheStats {
        let mut stats = ReadCacheStats::default();
        for Shard { counters, .. } in &self.shards {
            stats.hits += counters.hits.get();
            stats.absent_hits += counters.absent_hits.get();
            stats.misses += counters.misses.get();
            stats.evictions += counters.evictions.get();
            stats.stale_fills += counters.stale_fills.get();
            let entries = counters.entries.get();
            stats.entries += entries;
            stats.bytes += self.plan.bytes(entries as usize) as u64;
        }
        stats
    }

    fn hashed(&self, key: ValueKey) -> Hashed {
        // Nobody looks at the hash if there are no shards.
        Hashed { hash: if self.shards.is_empty() { 0 } else { self.hasher.hash_one(key) }, key }
    }

    fn shard(&self, key: &Hashed) -> Option<&Shard> {
        self.shards.get(self.shard_index(key))
    }

    /// From bits that the tables do not use: they take the lowest ones for the place and the highest seven as a tag.
    fn shard_index(&self, key: &Hashed) -> usize {
        (key.hash >> 40) as usize & self.shards.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests;
