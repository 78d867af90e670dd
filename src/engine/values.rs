//! Values for executors, in front of the layout: what recent blocks wrote, and what the layout answered.
//!
//! Two things in one place, because a read asks both and takes one lock for it:
//!
//! - **Recent values.** Each closed block has a *stamp*, larger than all before. For each key that a recent block wrote,
//!   its values are kept with their stamps, and the value before the first of them once that is known (a commitment
//!   learns it from the tries, see [`Values::settle`]). So a view of any of the last blocks is answered from here
//!   whatever has been closed, committed or written to the store since.
//! - **A cache** of values and known absences that the layout answered, bounded in bytes; what was not used for long leaves it
//!   ([`cache`]).
//!
//! A large block's values take longer to put in place than its frame takes to sync. So they may be *shown* first
//! ([`Values::show`]) and *placed* later ([`Values::place`]), by whoever comes to it: until then readers look into the block's
//! diff before they look here, and for everything else it is as if the block was not there yet.
//!
//! # Why it is exact
//!
//! Each shard holds, under its lock, a *floor*: the stamp of the last block that left the recent ones. It keeps this at
//! every unlock:
//!
//! 1. *A key without recent values has one value for all views from the floor on, and if it is cached, that is it.*
//! 2. *A key's recent values answer for each view from the floor on; only the value before the first may be missing, and
//!    then the block that wrote the first is in no row that the engine reads.*
//!
//! - **Asking** ([`Values::get`]) with a stamp below the floor is refused: that view has expired.
//! - **Filling** ([`Values::fill`]) comes after the layout was asked, and looks again. If a block wrote the key meanwhile,
//!   recent values decide: they know the value before, or the rows that were read did not have the block's yet. If there
//!   are none, nothing from the view's block to now wrote the key, and the value goes into the cache. If the floor has
//!   passed the view, the value is not taken and the view has expired. So a slow reader can neither answer for another
//!   block nor put an old value back.
//! - **Showing** a block that is not placed changes nothing here. Views from its stamp on ask its diff first, and it leaves the
//!   shown ones only after its last value is placed. Blocks are placed in order, and before any of their rows can be read
//!   ([`Values::settle`] sees to that), so 2. holds as if they had been closed at that moment.
//! - **Leaving** ([`Values::retire`]): a block's values become the values before, or, if they are a key's last, go to the
//!   cache. The floor goes up with them. Only blocks that are written to the store leave.
//! - **Taking back** ([`Values::take_back`]): a refused block's values go as they came. If they are a key's last, what was
//!   cached under them is right again, because nothing of the block reached a row; or, if blocks left meanwhile, the value
//!   before is.
//!
//! # Why not `lru`
//!
//! The cache was an `LruCache` in each shard. Over 10 000 keys a hit took 378 ns, as one that moves to the front of the list touches four
//! entries besides its own; each entry was an allocation of its own; the table had to be four times as large as its
//! entries, or it would double itself; and a scan of many keys once evicted what was hot. Ready-made classes and hints of the
//! sequencer, which are few, are in `lru`.
//!
//! Keys are chosen by whoever writes contracts, so shard and place in the table come from a keyed hash (SipHash with
//! random keys). It is computed once for each read, outside the lock, and kept in the entry.

mod cache;
mod key;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::felt::Felt;
use indexmap::IndexMap;
use indexmap::map::Entry;

use self::cache::{Cache, ENTRY_BYTES, TABLE_BYTES};
use self::key::BuildBrought;
pub use self::key::{ByKey, Key};
use super::closed::Closed;

/// Most shards. More than executors have threads, so that two seldom meet.
const SHARDS_MAX: usize = 16;
/// A smaller cache has fewer shards, so that recency still means something in each.
const SHARD_BYTES_MIN: usize = 4 << 10;
/// What a shard's cache takes without entries or table: itself, and what the allocator adds to these two.
const SHARD_BYTES: usize = size_of::<Shard>() + 64;

/// About what a value takes among the recent ones: its key and versions, and its share of the index.
pub const RECENT_VALUE_BYTES: usize =
    size_of::<Key>() + size_of::<Recent>() + size_of::<u64>() + 3 * (size_of::<usize>() + 1);

/// What the values in front of the layout have done, and what they hold. Read without stopping anyone, so the numbers
/// may be some reads apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReadCacheStats {
    /// Reads answered with a value.
    pub hits: u64,
    /// Reads answered with a known absence.
    pub absent_hits: u64,
    /// Reads that went on to the layout.
    pub misses: u64,
    /// Cached values that left for others at the bound.
    pub evictions: u64,
    /// Values that came back from the layout after a block had written the key, and were not cached.
    pub stale_fills: u64,
    /// Cached values.
    pub entries: u64,
    /// Bytes of the cached values and their tables, with what the allocator adds.
    pub bytes: u64,
    /// Keys that recent blocks wrote.
    pub recent: u64,
}

/// What is known of a key.
pub enum Lookup {
    /// The value; zero if it is known to be absent.
    Known(Felt),
    /// Nothing. What the layout answers may be put here.
    Unknown(Vacancy),
    /// The stamp is below the floor.
    Expired,
}

/// A place for the value of one key, asked for by a view.
pub struct Vacancy {
    stamp: u64,
    key: Key,
}

/// What holding replaced values against known ones has found.
#[derive(Debug, Default)]
pub struct Held {
    /// The first that is known to be another, with what is known and what was replaced.
    pub contradiction: Option<(Subject, Felt, Felt)>,
    /// Some of those that nothing is known of, with what was replaced.
    pub unknown: Vec<(Subject, Felt)>,
}

/// A value that a block wrote.
#[derive(Clone, Copy)]
struct Version {
    stamp: u64,
    value: Felt,
}

/// The recent values of one key.
struct Recent {
    /// The value before the oldest version, if it is known.
    before: Option<Felt>,
    newest: Version,
    /// Ascending.
    older: Vec<Version>,
}

impl Recent {
    /// The value for a view; `None` if that is the one before and not known.
    fn at(&self, stamp: u64) -> Option<Felt> {
        if self.newest.stamp <= stamp {
            return Some(self.newest.value);
        }
        let older = self.older.iter().rev().find(|version| version.stamp <= stamp);
        older.map_or(self.before, |version| Some(version.value))
    }

    fn push(&mut self, version: Version) {
        debug_assert!(self.newest.stamp < version.stamp, "stamps go up");
        self.older.push(std::mem::replace(&mut self.newest, version));
    }

    fn oldest(&self) -> &Version {
        self.older.first().unwrap_or(&self.newest)
    }

    /// Lets versions up to a stamp become the value before. Returns that value if no version is left.
    fn retire(&mut self, through: u64) -> Option<Felt> {
        if self.newest.stamp <= through {
            return Some(self.newest.value);
        }
        let gone = self.older.partition_point(|version| version.stamp <= through);
        if let Some(last) = self.older.drain(..gone).next_back() {
            self.before = Some(last.value);
        }
        None
    }

    /// Takes versions from a stamp on away. Whether any is left.
    fn take_back(&mut self, from: u64) -> bool {
        while self.newest.stamp >= from {
            match self.older.pop() {
                Some(version) => self.newest = version,
                None => return false,
            }
        }
        true
    }
}

/// How much a shard's cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Zero if the cache is off.
    entries_max: usize,
}

impl Plan {
    /// The plan with most entries; one that is off if not even one fits.
    fn new(bytes_max: usize) -> Self {
        let entries = bytes_max.saturating_sub(SHARD_BYTES) / (ENTRY_BYTES + TABLE_BYTES);
        Self { entries_max: entries.min(u32::MAX as usize - 1) }
    }

    const fn bytes(&self, entries: usize) -> usize {
        if self.entries_max == 0 {
            return 0;
        }
        SHARD_BYTES + self.entries_max * TABLE_BYTES + entries * ENTRY_BYTES
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
    recent: Counter,
}

impl Counters {
    /// Counts a read that was answered with this value.
    fn answered(&self, value: Felt) {
        if value == Felt::ZERO { &self.absent_hits } else { &self.hits }.increment();
    }
}

struct Entries {
    floor: u64,
    /// Its values lie close together, whatever comes and goes; a table of them would be four times as large, as it doubles
    /// itself where removals leave it no room.
    recent: IndexMap<Key, Recent, BuildBrought>,
    cached: Cache,
}

impl Entries {
    /// The known value for a view.
    fn at(&mut self, key: &Key, stamp: u64) -> Option<Felt> {
        match self.recent.get(key) {
            Some(recent) => recent.at(stamp),
            None => self.cached.get(key),
        }
    }

    /// The known value for a view that answered before the newest blocks; leaves the cache as it was.
    fn at_earlier(&self, key: &Key, stamp: u64) -> Option<Felt> {
        // What was cached when the first block wrote the key is under its versions until the value before them is settled.
        self.recent.get(key).and_then(|recent| recent.at(stamp)).or_else(|| {
            let unsettled = self.recent.get(key).is_none_or(|recent| recent.before.is_none());
            self.cached.peek(key).filter(|_| unsettled)
        })
    }

    /// Caches a value.
    fn cache(&mut self, counters: &Counters, key: Key, value: Felt) {
        if self.cached.put(key, value) {
            counters.evictions.increment();
        }
        counters.entries.set(self.cached.len() as u64);
    }

    fn push(&mut self, key: Key, version: Version) {
        match self.recent.entry(key) {
            Entry::Occupied(mut recent) => recent.get_mut().push(version),
            Entry::Vacant(place) => {
                place.insert(Recent { before: None, newest: version, older: Vec::new() });
            }
        }
    }
}

/// Alone on its cache lines (two, as they are fetched in pairs): neighbours are used by other threads.
#[repr(align(128))]
struct Shard {
    entries: Mutex<Entries>,
    counters: Counters,
}

impl Shard {
    fn new(plan: Plan) -> Self {
        let cached = Cache::new(plan.entries_max);
        let entries = Entries { floor: 0, recent: IndexMap::default(), cached };
        Self { entries: Mutex::new(entries), counters: Counters::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Visits every value that a diff sets, each once; zero deletes.
pub fn each_value(diff: &StateDiff, mut visit: impl FnMut(Subject, Felt)) {
    for contract in diff.contracts() {
        let address = contract.address;
        contract.class_hash.iter().for_each(|hash| visit(Subject::ClassHash(address), hash.0));
        contract.nonce.iter().for_each(|nonce| visit(Subject::Nonce(address), nonce.0));
        contract.storage.iter().for_each(|(key, value)| visit(Subject::Storage(address, *key), value.0));
    }
    for class in diff.classes() {
        visit(Subject::CompiledClassHash(class.class_hash), class.compiled_class_hash.0);
    }
}

/// Blocks that are shown and not placed.
#[derive(Default)]
struct Shown {
    any: AtomicBool,
    /// In order.
    blocks: RwLock<VecDeque<Arc<Closed>>>,
    /// Held by who places them.
    placing: Mutex<()>,
}

impl Shown {
    /// The value for a view, if one of these blocks set it.
    fn at(&self, stamp: u64, key: &Subject) -> Option<Felt> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let mut newest_first = blocks.iter().rev().filter(|closed| closed.stamp <= stamp);
        newest_first.find_map(|closed| closed.block.diff.value(key))
    }

    /// The oldest, if its stamp is not after this one.
    fn next(&self, through: u64) -> Option<Arc<Closed>> {
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        blocks.front().filter(|closed| closed.stamp <= through).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut VecDeque<Arc<Closed>>)) {
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut blocks);
        self.any.store(!blocks.is_empty(), Ordering::Release);
    }
}

/// Recent values and cached ones. Shared by all views; holds a lock only while it looks into one shard.
pub struct Values {
    /// A power of two of them.
    shards: Box<[Shard]>,
    shown: Shown,
    plan: Plan,
    hasher: RandomState,
}

impl Values {
    /// No recent values, and a cache that takes at most `cache_bytes_max`; one that is off if no entry fits.
    pub fn new(cache_bytes_max: usize) -> Self {
        let mut count = SHARDS_MAX;
        while cache_bytes_max > 0 && count > 1 && cache_bytes_max / count < SHARD_BYTES_MIN {
            count /= 2;
        }
        let plan = Plan::new(cache_bytes_max / count);
        let shards = (0..count).map(|_| Shard::new(plan)).collect();
        Self { shards, shown: Shown::default(), plan, hasher: RandomState::new() }
    }

    /// What is known of a key for a view.
    pub fn get(&self, stamp: u64, key: Key) -> Lookup {
        let shown = self.shown.at(stamp, &key.key);
        let Shard { counters, .. } = self.shard(&key);
        let mut entries = self.shard(&key).lock();
        if stamp < entries.floor {
            return Lookup::Expired;
        }
        match shown.or_else(|| entries.at(&key, stamp)) {
            Some(value) => {
                counters.answered(value);
                Lookup::Known(value)
            }
            None => {
                counters.misses.increment();
                Lookup::Unknown(Vacancy { stamp, key })
            }
        }
    }

    /// The known value for a view, if there is one; only then this counts as a read.
    pub fn recall(&self, stamp: u64, key: Key) -> Option<Felt> {
        let shown = self.shown.at(stamp, &key.key);
        let Shard { counters, .. } = self.shard(&key);
        let mut entries = self.shard(&key).lock();
        if stamp < entries.floor {
            return None;
        }
        let value = shown.or_else(|| entries.at(&key, stamp))?;
        counters.answered(value);
        Some(value)
    }

    /// Takes what the layout answered, zero if the key is absent, and returns the value for the view that asked; `None`
    /// if it has expired meanwhile.
    ///
    /// # Errors
    /// The value that is known, if the answer is another: nobody wrote the key between the two.
    pub fn fill(&self, vacancy: Vacancy, answer: Felt) -> Result<Option<Felt>, Felt> {
        let Vacancy { stamp, key } = vacancy;
        let Shard { counters, .. } = self.shard(&key);
        let mut entries = self.shard(&key).lock();
        if stamp < entries.floor {
            counters.stale_fills.increment();
            return Ok(None);
        }
        if let Some(recent) = entries.recent.get(&key) {
            counters.stale_fills.increment();
            return Ok(Some(recent.at(stamp).unwrap_or(answer)));
        }
        if let Some(known) = entries.cached.peek(&key).filter(|known| *known != answer) {
            return Err(known);
        }
        entries.cache(counters, key, answer);
        Ok(Some(answer))
    }

    /// Holds what a block replaced, as the diff that takes it back says, against what is known of the state before it, which
    /// has this stamp. Of what is not known, some `unknown_max` are returned: the first in the order of keyed hashes.
    pub fn hold(&self, stamp: u64, undo: &StateDiff, unknown_max: usize) -> Held {
        let mut held = Held::default();
        self.each_shard(undo, |_, entries, values| {
            for (key, replaced) in values {
                match entries.at_earlier(&key, stamp) {
                    Some(known) if known != replaced => {
                        held.contradiction.get_or_insert((key.key, known, replaced));
                    }
                    Some(_) => {}
                    None if held.unknown.len() < unknown_max => held.unknown.push((key.key, replaced)),
                    None => {}
                }
            }
        });
        held
    }

    /// Whether a view can still be answered.
    pub fn reaches(&self, stamp: u64) -> bool {
        self.shards.iter().all(|shard| shard.lock().floor <= stamp)
    }

    /// Adds a block's values, for views from its stamp on. No view has this stamp or a later one yet.
    pub fn push(&self, stamp: u64, diff: &StateDiff) {
        self.place(u64::MAX);
        self.put(stamp, diff);
    }

    /// Like [`Values::push`], at once; the work is left to [`Values::place`].
    pub fn show(&self, closed: &Arc<Closed>) {
        self.shown.change(|blocks| blocks.push_back(Arc::clone(closed)));
    }

    /// Puts the values of shown blocks in place, up to the one with this stamp.
    pub fn place(&self, through: u64) {
        if !self.shown.any.load(Ordering::Acquire) {
            return;
        }
        let _placing = self.shown.placing.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(closed) = self.shown.next(through) {
            self.put(closed.stamp, &closed.block.diff);
            self.shown.change(|blocks| drop(blocks.pop_front()));
        }
    }

    fn put(&self, stamp: u64, diff: &StateDiff) {
        self.each_shard(diff, |_, entries, values| {
            values.into_iter().for_each(|(key, value)| entries.push(key, Version { stamp, value }));
        });
    }

    /// Learns the values before blocks, from the diff that takes them back. `through` is the last one's stamp; all before
    /// are settled already. Comes before any row of these blocks can be read.
    pub fn settle(&self, through: u64, undo: &StateDiff) {
        self.place(through);
        self.each_shard(undo, |_, entries, values| {
            for (key, before) in values {
                if let Some(recent) = entries.recent.get_mut(&key)
                    && recent.before.is_none()
                    && recent.oldest().stamp <= through
                {
                    recent.before = Some(before);
                }
            }
        });
    }

    /// Lets a block's values go: the oldest recent block, whose rows are in the store. Views before it expire.
    pub fn retire(&self, stamp: u64, diff: &StateDiff) {
        for (shard, values) in self.shards.iter().zip(self.by_shard(diff)) {
            let mut entries = shard.lock();
            entries.floor = stamp;
            for (key, _) in values {
                let left = entries.recent.get_mut(&key).and_then(|recent| recent.retire(stamp));
                if let Some(value) = left {
                    entries.recent.swap_remove(&key);
                    entries.cache(&shard.counters, key, value);
                }
            }
            shard.counters.recent.set(entries.recent.len() as u64);
        }
    }

    /// Takes back all values from a stamp on; `diffs` are those blocks'. Nothing of them is in any row.
    pub fn take_back<'a>(&self, from: u64, diffs: impl IntoIterator<Item = &'a StateDiff>) {
        self.place(u64::MAX);
        for diff in diffs {
            self.each_shard(diff, |counters, entries, values| {
                for (key, _) in values {
                    let Entry::Occupied(mut recent) = entries.recent.entry(key) else { continue };
                    if !recent.get_mut().take_back(from) {
                        // What is cached may be older than blocks that left since.
                        if let Some(before) = recent.swap_remove().before {
                            entries.cache(counters, key, before);
                        }
                    }
                }
            });
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
            stats.recent += counters.recent.get();
            let entries = counters.entries.get();
            stats.entries += entries;
            stats.bytes += self.plan.bytes(entries as usize) as u64;
        }
        stats
    }

    /// A diff's values by shard: hashed before any lock is taken.
    fn by_shard(&self, diff: &StateDiff) -> Vec<Vec<(Key, Felt)>> {
        let expected = diff.writes() / self.shards.len() + diff.writes() / 64;
        let mut values: Vec<_> = self.shards.iter().map(|_| Vec::with_capacity(expected)).collect();
        each_value(diff, |key, value| {
            let key = self.key(key);
            values[self.shard_index(&key)].push((key, value));
        });
        values
    }

    /// Visits, one at a time, the shards that a diff has values for.
    fn each_shard(&self, diff: &StateDiff, mut visit: impl FnMut(&Counters, &mut Entries, Vec<(Key, Felt)>)) {
        for (shard, values) in self.shards.iter().zip(self.by_shard(diff)) {
            if !values.is_empty() {
                let mut entries = shard.lock();
                visit(&shard.counters, &mut entries, values);
                shard.counters.recent.set(entries.recent.len() as u64);
            }
        }
    }

    /// What a thing is looked up by.
    pub fn key(&self, key: Subject) -> Key {
        Key { hash: self.hasher.hash_one(key), key }
    }

    fn shard(&self, key: &Key) -> &Shard {
        &self.shards[self.shard_index(key)]
    }

    /// From bits that the tables do not use: one takes the lowest ones for the place and the highest seven as a tag, the other
    /// the lowest 32.
    fn shard_index(&self, key: &Key) -> usize {
        (key.hash >> 40) as usize & (self.shards.len() - 1)
    }
}

#[cfg(test)]
mod tests;
