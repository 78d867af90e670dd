//! A bounded map of values that makes room by itself: the cached part of one shard.
//!
//! Entries lie in one vector, in no order. A table of 8 bytes a bucket, half of them empty, finds them: a bucket says
//! where its entry is and has 32 bits of the key's hash, so that a key that is not there is told by one cache line, and one that
//! is by three. Collisions go to the next buckets, and a removal closes the gap it makes.
//!
//! At the bound the *clock* rule says who leaves: a hand goes round the entries, lets off those that were used since it came by last,
//! and takes the first that was not (or, so that nobody waits long, the one behind the first [`LET_OFF_MAX`] that were). A hit therefore writes at most one byte of its own entry, where a list in order of use
//! (the `lru` crate) touches four other entries; and keys that are read once and never again do not drive out those in use.

use flagstone_core::diff::Subject;
use flagstone_core::felt::Felt;

use super::key::Key;

/// An entry with its value.
struct Entry {
    key: Subject,
    value: Felt,
    /// Of the key.
    tag: u32,
    /// Since the hand came by.
    used: bool,
}

/// Bytes of an entry, once it is there.
pub const ENTRY_BYTES: usize = size_of::<Entry>();
/// Bytes of the table for each entry that there may be, from the beginning.
pub const TABLE_BYTES: usize = BUCKETS_OF_AN_ENTRY * size_of::<Bucket>();
const BUCKETS_OF_AN_ENTRY: usize = 2;

/// Where an entry is, plus one, and the tag of its key above that. A plain number, because the allocator has zeros at hand
/// that take no memory.
type Bucket = u64;

const EMPTY: Bucket = 0;

fn bucket(tag: u32, entry: usize) -> Bucket {
    u64::from(tag) << 32 | (entry as u64 + 1)
}

fn tag_of(bucket: Bucket) -> u32 {
    (bucket >> 32) as u32
}

/// Of a bucket that is not empty.
fn entry_of(bucket: Bucket) -> usize {
    (bucket as u32 - 1) as usize
}

/// After so many that were used, the next entry leaves whether it was or not: a reader waits for this.
const LET_OFF_MAX: usize = 64;

/// Values by key.
pub struct Cache {
    /// As many as there may be in all, from the beginning: what is not touched takes no memory.
    buckets: Box<[Bucket]>,
    entries: Vec<Entry>,
    entries_max: usize,
    hand: usize,
}

impl Cache {
    /// An empty cache of at most so many entries, which are fewer than 2^32.
    pub fn new(entries_max: usize) -> Self {
        let buckets = vec![EMPTY; entries_max * BUCKETS_OF_AN_ENTRY].into();
        Self { buckets, entries: Vec::with_capacity(entries_max), entries_max, hand: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// A value, which then counts as used.
    pub fn get(&mut self, key: &Key) -> Option<Felt> {
        let place = self.find(key).ok()?;
        let entry = &mut self.entries[place];
        if !entry.used {
            entry.used = true;
        }
        Some(entry.value)
    }

    /// A value, without using it.
    pub fn peek(&self, key: &Key) -> Option<Felt> {
        let place = self.find(key).ok()?;
        Some(self.entries[place].value)
    }

    /// Puts a value; one that was there counts as used. Whether another entry left for it.
    pub fn put(&mut self, key: Key, value: Felt) -> bool {
        if self.entries_max == 0 {
            return false;
        }
        if let Ok(place) = self.find(&key) {
            let entry = &mut self.entries[place];
            (entry.value, entry.used) = (value, true);
            return false;
        }
        let tag = tag(&key);
        let entry = Entry { key: key.key, value, tag, used: false };
        let is_full = self.entries.len() == self.entries_max;
        let place = if is_full {
            let place = self.make_room();
            self.entries[place] = entry;
            place
        } else {
            self.entries.push(entry);
            self.entries.len() - 1
        };
        // Not before: the removal may have moved buckets.
        if let Err(at) = self.find(&key) {
            self.buckets[at] = bucket(tag, place);
        }
        is_full
    }

    /// Takes the entry out of the table that leaves next. Returns its place.
    fn make_room(&mut self) -> usize {
        let mut let_off = 0;
        loop {
            let place = self.hand;
            self.hand = after(place, self.entries.len());
            let entry = &mut self.entries[place];
            if std::mem::take(&mut entry.used) && let_off < LET_OFF_MAX {
                let_off += 1;
            } else {
                let bucket = bucket(entry.tag, place);
                self.remove(bucket);
                return place;
            }
        }
    }

    /// Where a key's entry is, or else the bucket that it would go to.
    fn find(&self, key: &Key) -> Result<usize, usize> {
        let tag = tag(key);
        let mut at = self.home(tag);
        // Half of them are empty, but there may be none.
        while let Some(&bucket) = self.buckets.get(at).filter(|bucket| **bucket != EMPTY) {
            let place = entry_of(bucket);
            if tag_of(bucket) == tag && self.entries[place].key == key.key {
                return Ok(place);
            }
            at = after(at, self.buckets.len());
        }
        Err(at)
    }

    /// Empties a bucket, and moves those behind it that the gap would cut off from where they are looked for.
    fn remove(&mut self, bucket: Bucket) {
        let buckets = self.buckets.len();
        let mut gap = self.home(tag_of(bucket));
        while self.buckets[gap] != bucket {
            gap = after(gap, buckets);
        }
        let mut at = after(gap, buckets);
        while self.buckets[at] != EMPTY {
            let home = self.home(tag_of(self.buckets[at]));
            let way = |from: usize, to: usize| if to >= from { to - from } else { to + buckets - from };
            if way(home, at) >= way(gap, at) {
                self.buckets[gap] = self.buckets[at];
                gap = at;
            }
            at = after(at, buckets);
        }
        self.buckets[gap] = EMPTY;
    }

    /// Where a key is looked for first.
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.buckets.len() as u64) >> 32) as usize
    }
}

/// The next place, round.
fn after(place: usize, places: usize) -> usize {
    if place + 1 == places { 0 } else { place + 1 }
}

/// Bits of the hash that the choice of the shard does not use.
fn tag(key: &Key) -> u32 {
    key.hash as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same rule without a table.
    #[derive(Default)]
    struct Model {
        entries: Vec<(u64, Felt, bool)>,
        hand: usize,
    }

    impl Model {
        fn get(&mut self, number: u64) -> Option<Felt> {
            let entry = self.entries.iter_mut().find(|entry| entry.0 == number)?;
            entry.2 = true;
            Some(entry.1)
        }

        fn put(&mut self, number: u64, value: Felt, entries_max: usize) -> bool {
            if let Some(entry) = self.entries.iter_mut().find(|entry| entry.0 == number) {
                *entry = (number, value, true);
                return false;
            }
            if self.entries.len() < entries_max {
                self.entries.push((number, value, false));
                return false;
            }
            while self.entries[self.hand].2 {
                self.entries[self.hand].2 = false;
                self.hand = (self.hand + 1) % entries_max;
            }
            self.entries[self.hand] = (number, value, false);
            self.hand = (self.hand + 1) % entries_max;
            true
        }
    }

    /// A key whose hash is one of few, at both ends of the table, so that keys collide and go round.
    fn key(number: u64, hashes: u64) -> Key {
        let hash = match number % hashes {
            0 => u32::MAX,
            1 => u32::MAX - 1,
            other => (other as u32) << 27,
        };
        Key { hash: hash.into(), key: Subject::Storage(1.into(), number.into()) }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_does_what_the_rule_says(
            steps in prop::collection::vec((0..40u64, 0..3u8, any::<u64>()), 1..400),
            entries_max in 1..20usize,
            hashes in 1..30u64,
        ) {
            let (mut cache, mut model) = (Cache::new(entries_max), Model::default());
            for (number, step, value) in steps {
                let key = key(number, hashes);
                match step {
                    0 => prop_assert_eq!(cache.get(&key), model.get(number)),
                    _ => prop_assert_eq!(cache.put(key, value.into()), model.put(number, value.into(), entries_max)),
                }
                prop_assert_eq!(cache.len(), model.entries.len());
                for (number, value, _) in &model.entries {
                    prop_assert_eq!(cache.peek(&self::key(*number, hashes)), Some(*value));
                }
                let full = cache.buckets.iter().filter(|bucket| **bucket != EMPTY).count();
                prop_assert_eq!(full, cache.len());
            }
        }
    }

    #[test]
    fn the_hand_does_not_go_far() {
        let mut cache = Cache::new(3 * LET_OFF_MAX);
        let keys: Vec<Key> = (0..=3 * LET_OFF_MAX as u64).map(|number| key(number, 30)).collect();
        let (last, first) = keys.split_last().unwrap();
        for key in first {
            cache.put(*key, Felt::ONE);
            cache.get(key);
        }
        assert!(cache.put(*last, Felt::TWO));
        let gone: Vec<usize> = (0..first.len()).filter(|at| cache.peek(&first[*at]).is_none()).collect();
        assert_eq!(gone, [LET_OFF_MAX]);
    }

    #[test]
    fn a_cache_of_nothing_takes_nothing() {
        let mut cache = Cache::new(0);
        assert!(!cache.put(key(1, 1), Felt::ONE));
        assert_eq!((cache.get(&key(1, 1)), cache.len()), (None, 0));
    }
}
